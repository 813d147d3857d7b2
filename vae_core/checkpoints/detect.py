"""Hyper-parameters from tensor shapes and key names. File names are not looked at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .tensor_file import TensorInfo

# Beginnings of names under which whole checkpoints keep their VAE; others are found by what follows them.
KNOWN_PREFIXES = ("", "first_stage_model.", "vae.")
ANCHORS = ("encoder.conv_in.weight", "decoder.conv_in.weight")

LDM, DIFFUSERS = "LDM", "diffusers"


@dataclass(frozen=True)
class Layout:
    """How one naming scheme writes the names that detection looks at: groups are the level and the layer."""

    name: str
    encoder_resnet: re.Pattern[str]
    decoder_resnet: re.Pattern[str]
    encoder_attention: re.Pattern[str]
    decoder_attention: re.Pattern[str]
    mid_attention: tuple[str, ...]
    finest_first: bool  # whether decoder level 0 is the finest


LAYOUTS = (
    Layout(
        LDM,
        re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight"),
        re.compile(r"decoder\.up\.(\d+)\.block\.(\d+)\.conv1\.weight"),
        re.compile(r"encoder\.down\.(\d+)\.attn\.(\d+)\.q\.weight"),
        re.compile(r"decoder\.up\.(\d+)\.attn\.(\d+)\.q\.weight"),
        ("encoder.mid.attn_1.q.weight", "decoder.mid.attn_1.q.weight"),
        finest_first=True,
    ),
    Layout(
        DIFFUSERS,
        re.compile(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.weight"),
        re.compile(r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.weight"),
        re.compile(r"encoder\.down_blocks\.(\d+)\.attentions\.(\d+)\.(?:to_q|query)\.weight"),
        re.compile(r"decoder\.up_blocks\.(\d+)\.attentions\.(\d+)\.(?:to_q|query)\.weight"),
        tuple(
            f"{half}.mid_block.attentions.0.{q}.weight" for half in ("encoder", "decoder") for q in ("to_q", "query")
        ),
        finest_first=False,
    ),
)


def find_prefixes(names: Iterable[str]) -> list[str]:
    """Every prefix under which both halves of an autoencoder lie, the best known first."""
    found: dict[str, set[str]] = {}
    for name in names:
        for anchor in ANCHORS:
            if name == anchor or name.endswith(f".{anchor}"):
                found.setdefault(name.removesuffix(anchor), set()).add(anchor)
    whole = [prefix for prefix, anchors in found.items() if len(anchors) == len(ANCHORS)]
    return sorted(whole, key=lambda p: (KNOWN_PREFIXES.index(p) if p in KNOWN_PREFIXES else len(KNOWN_PREFIXES), p))


def find_layout(names: Iterable[str]) -> Layout | None:
    """The naming scheme of an autoencoder's keys (without their prefix)."""
    names = list(names)
    for layout in LAYOUTS:
        if any(layout.encoder_resnet.fullmatch(n) for n in names) and any(
            layout.decoder_resnet.fullmatch(n) for n in names
        ):
            return layout
    return None


def fields_from_shapes(tensors: Mapping[str, TensorInfo], layout: Layout) -> tuple[dict[str, Any], list[str]]:
    """The config fields that shapes and names show, and remarks on those that are guesses.

    Args:
        tensors: the autoencoder's keys, without their prefix.

    Raises:
        CheckpointError: a level is missing, or a weight that must be there is not.
    """
    encoder = _levels(tensors, layout.encoder_resnet, "encoder")
    decoder = _levels(tensors, layout.decoder_resnet, "decoder")
    if not layout.finest_first:
        decoder.reverse()
    if len(encoder) != len(decoder):
        raise CheckpointError(f"the encoder has {len(encoder)} levels and the decoder {len(decoder)}.")
    widths, decoder_widths = (tuple(width for width, _ in half) for half in (encoder, decoder))
    down = _attention_levels(tensors, layout.encoder_attention)
    up = _attention_levels(tensors, layout.decoder_attention)
    if layout.finest_first:
        up = {len(decoder) - 1 - level for level in up}
    latent_channels = _shape(tensors, "decoder.conv_in.weight")[1]
    groups, remarks = _norm_groups(widths + decoder_widths)
    fields: dict[str, Any] = {
        "in_channels": _shape(tensors, "encoder.conv_in.weight")[1],
        "out_channels": _shape(tensors, "decoder.conv_out.weight")[0],
        "down_block_types": tuple(
            "AttnDownEncoderBlock2D" if level in down else "DownEncoderBlock2D" for level in range(len(encoder))
        ),
        "up_block_types": tuple(
            "AttnUpDecoderBlock2D" if level in up else "UpDecoderBlock2D" for level in range(len(decoder))
        ),
        "block_out_channels": widths,
        "layers_per_block": encoder[0][1],
        "latent_channels": latent_channels,
        "norm_num_groups": groups,
        "use_quant_conv": "quant_conv.weight" in tensors or "encoder.quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors or "decoder.post_quant_conv.weight" in tensors,
        "mid_block_add_attention": any(name in tensors for name in layout.mid_attention),
    }
    if decoder_widths != widths:
        fields["decoder_block_out_channels"] = decoder_widths
    if "bn.running_mean" in tensors:
        packed = _shape(tensors, "bn.running_mean", dimensions=1)[0] // latent_channels
        side = round(packed**0.5)
        fields["patch_size"] = (side, side) if side * side == packed and side else (max(1, packed), 1)
    return fields, remarks


def _levels(tensors: Mapping[str, TensorInfo], pattern: re.Pattern[str], half: str) -> list[tuple[int, int]]:
    """(width, number of resnet blocks) of each level."""
    found: dict[int, dict[int, int]] = {}
    for name, info in tensors.items():
        match = pattern.fullmatch(name)
        if match and info.shape:
            found.setdefault(int(match[1]), {})[int(match[2])] = info.shape[0]
    absent = sorted(set(range(max(found, default=0) + 1)) - set(found))
    if absent:
        raise CheckpointError(f"the {half} has no level {absent[0]}, though it has level {max(found, default=0)}.")
    return [(next(iter(found[level].values())), len(found[level])) for level in sorted(found)]


def _attention_levels(tensors: Mapping[str, TensorInfo], pattern: re.Pattern[str]) -> set[int]:
    return {int(match[1]) for match in map(pattern.fullmatch, tensors) if match}


def _shape(tensors: Mapping[str, TensorInfo], name: str, dimensions: int = 4) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"there is no {name}.")
    if len(tensors[name].shape) != dimensions:
        raise CheckpointError(f"{name} has the shape {tensors[name].shape}, which needs {dimensions} dimensions.")
    return tensors[name].shape


def _norm_groups(widths: tuple[int, ...]) -> tuple[int, list[str]]:
    """32, or the largest power of two that divides every width."""
    groups = 32
    while any(width % groups for width in widths):
        groups //= 2
    if groups == 32:
        return groups, []
    return groups, [
        f"norm_num_groups is not in the file; the widths are no multiples of 32, so {groups} is a guess. "
        f"Pass norm_num_groups if you know better."
    ]
