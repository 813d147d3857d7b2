"""Hyper-parameters from tensor shapes and key names. File names are not looked at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..errors import CheckpointError
from .tensor_file import TensorInfo

# Beginnings of names under which files have their VAE, the one to take first if a file has several: trainers write a
# moving average beside the weights themselves. Others are found by what follows them.
KNOWN_PREFIXES = ("", "first_stage_model.", "vae.", "model.", "ema_model.", "ema.", "online_model.")
ANCHORS = ("encoder.conv_in.weight", "decoder.conv_in.weight")

# The fields of a config that the shapes and names of its weights show.
SHOWN_FIELDS = (
    *("in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block"),
    *("latent_channels", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention", "patch_size"),
    "decoder_block_out_channels",
)
LDM = "LDM"
DIFFUSERS = "diffusers"

# Names that detection looks at, in both schemes' words. Groups are the half, the word for its levels, the level and
# the layer. A level or layer of more digits than a model can have is a name like any other that is not known.
_LEVEL = r"(encoder|decoder)\.(down|up|down_blocks|up_blocks)\.([0-9]{1,3})\."
_QUERY = r"(?:q|to_q|query|query_proj)\.weight"
_RESNET = re.compile(rf"{_LEVEL}(?:block|resnets)\.([0-9]{{1,4}})\.conv1\.weight")
_ATTENTION = re.compile(rf"{_LEVEL}(?:attn|attentions)\.([0-9]{{1,4}})\.{_QUERY}")
_MID_ATTENTION = re.compile(
    rf"(?:encoder|decoder)\.(?:(?:mid|mid_block)\.(?:attn_1|attentions\.0)|mid_blocks\.1)\.{_QUERY}"
)


_QUANT_CONV = re.compile(r"(?:(?:encoder\.)?quant_conv|quant_proj)\.weight")
_POST_QUANT_CONV = re.compile(r"(?:(?:decoder\.)?post_quant_conv|post_quant_proj)\.weight")
_AVERAGE = re.compile(r"(?:^|[._])(?:ema|avg|averaged?|swa|shadow)(?=[._])", re.IGNORECASE)


def only_without_average(prefixes: Iterable[str]) -> str | None:
    """The only prefix that does not say that it is a moving average's, where there is one."""
    found = [prefix for prefix in prefixes if not _AVERAGE.search(prefix)]
    return found[0] if len(found) == 1 else None


def find_prefixes(names: Iterable[str]) -> list[str]:
    """Every prefix under which a file has both halves of an autoencoder, the best known first."""
    found: dict[str, set[str]] = {}
    for name in names:
        for anchor in ANCHORS:
            if name == anchor or name.endswith(f".{anchor}"):
                found.setdefault(name.removesuffix(anchor), set()).add(anchor)
    whole = [prefix for prefix, anchors in found.items() if len(anchors) == len(ANCHORS)]
    return sorted(whole, key=lambda p: (KNOWN_PREFIXES.index(p) if p in KNOWN_PREFIXES else len(KNOWN_PREFIXES), p))


def find_layout(names: Iterable[str]) -> str | None:
    """The naming scheme of an autoencoder's keys (without their prefix): "LDM", "diffusers", or None."""
    words: dict[str, str] = {}
    for name in names:
        match = _RESNET.fullmatch(name)
        if match:
            words[match[1]] = match[2]
    if len(words) < 2:
        return None
    return DIFFUSERS if all(word.endswith("_blocks") for word in words.values()) else LDM


def fields_from_shapes(tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """The config fields that shapes and names show. `norm_num_groups` is not among them: see `norm_groups`.

    Args:
        tensors: the autoencoder's keys, without their prefix.

    Raises:
        CheckpointError: a level is missing, or a weight that must be there is not.
    """
    encoder = _levels(tensors, "encoder")
    decoder = _levels(tensors, "decoder", len(encoder))
    widths, decoder_widths = (tuple(level.width for level in half) for half in (encoder, decoder))
    latent_channels = _shape(tensors, "decoder.conv_in.weight")[1]
    fields: dict[str, Any] = {
        "in_channels": _shape(tensors, "encoder.conv_in.weight")[1],
        "out_channels": _shape(tensors, "decoder.conv_out.weight")[0],
        "down_block_types": tuple(
            "AttnDownEncoderBlock2D" if level.has_attention else "DownEncoderBlock2D" for level in encoder
        ),
        "up_block_types": tuple(
            "AttnUpDecoderBlock2D" if level.has_attention else "UpDecoderBlock2D" for level in reversed(decoder)
        ),
        "block_out_channels": widths,
        "layers_per_block": encoder[0].layers,
        "latent_channels": latent_channels,
        "use_quant_conv": any(map(_QUANT_CONV.fullmatch, tensors)),
        "use_post_quant_conv": any(map(_POST_QUANT_CONV.fullmatch, tensors)),
        "mid_block_add_attention": any(map(_MID_ATTENTION.fullmatch, tensors)),
    }
    if decoder_widths != widths:
        fields["decoder_block_out_channels"] = decoder_widths
    if "bn.running_mean" in tensors:
        packed = _shape(tensors, "bn.running_mean", dimensions=1)[0] // max(1, latent_channels)
        side = round(packed**0.5)
        fields["patch_size"] = (side, side) if side * side == packed and side else (max(1, packed), 1)
    return fields


class _Level(NamedTuple):
    width: int
    layers: int
    has_attention: bool


def _levels(tensors: Mapping[str, TensorInfo], half: str, count: int | None = None) -> list[_Level]:
    """The levels of one half, the finest first. They are counted, and never gone through up to a number of the file.

    Args:
        count: number of levels, by which diffusers' numbers of the decoder, coarsest first, become LDM's.
    """

    def finest_first(match: re.Match[str]) -> int:
        return (count or 0) - 1 - int(match[3]) if match[2] == "up_blocks" else int(match[3])

    found: dict[int, dict[int, int]] = {}
    for name, info in tensors.items():
        match = _RESNET.fullmatch(name)
        if match and match[1] == half and info.shape:
            found.setdefault(finest_first(match), {})[int(match[4])] = info.shape[0]
    if count is not None and len(found) != count:
        raise CheckpointError(f"the encoder has {count} levels and the decoder {len(found)}.")
    if not found or max(found) >= len(found):
        absent = next(level for level in range(len(found) + 1) if level not in found)
        raise CheckpointError(f"the {half} has no level {absent}, though it has level {max(found, default='none')}.")
    attention = {finest_first(m) for m in map(_ATTENTION.fullmatch, tensors) if m and m[1] == half}
    return [
        _Level(next(iter(layers.values())), len(layers), level in attention) for level, layers in sorted(found.items())
    ]


def _shape(tensors: Mapping[str, TensorInfo], name: str, dimensions: int = 4) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"{name} is missing.")
    if len(tensors[name].shape) != dimensions:
        raise CheckpointError(f"{name} has the shape {tensors[name].shape}, which needs {dimensions} dimensions.")
    return tensors[name].shape


def norm_groups(widths: tuple[int, ...]) -> int:
    """The number of groups to assume, which no shape shows: 32, or the largest power of two that divides all widths."""
    groups = 32
    while any(width % groups for width in widths):
        groups //= 2
    return groups
