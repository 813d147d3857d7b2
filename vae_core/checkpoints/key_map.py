"""Every weight of a model of a given config: its shape and every spelling of its name, as tables.

Nothing is renamed by substring. A name is a path of parts (half, level, block, layer), and files have each part in
LDM's words or in diffusers', also mixed: trainers convert some parts and leave the others.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import AutoencoderKLConfig
from .layouts import DIRECTIONS

# One part of a name: diffusers' word, LDM's, then others that files have had. A single word is everybody's.
Words = tuple[str, ...]

ATTENTION: tuple[tuple[Words, bool], ...] = (  # and whether it is a projection, which LDM keeps as a 1x1 kernel
    (("group_norm", "norm"), False),
    (("to_q", "q", "query", "query_proj"), True),
    (("to_k", "k", "key", "key_proj"), True),
    (("to_v", "v", "value", "value_proj"), True),
    (("to_out.0", "proj_out", "proj_attn", "to_out", "out_proj"), True),
)
NORM_OUT: Words = ("conv_norm_out", "norm_out", "conv_norm_out.norm")
OPTIONAL = frozenset({"bn.num_batches_tracked"})  # counts training steps; no output depends on it
FUSED = ".to_qkv."  # in names of weights that `fuse_qkv_projections` makes of three others

# Parts of names that wrappers put in: torch.compile, DataParallel, FSDP, checkpointing, LoRA's plain layer; and MLX's
# modules around a single convolution.
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))"
    r"(?:_orig_mod|module|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_layer|conv2d)\."
)


class Layer(NamedTuple):
    """A layer that has weights.

    Attributes:
        names: all of its names; the first is diffusers', the second LDM's.
        parts: its tensors by their last name, such as "weight", and their shapes.
    """

    names: tuple[str, ...]
    parts: Mapping[str, tuple[int, ...]]


def without_wrappers(name: str) -> str:
    """A weight's name without what wrappers of modules put into it: `decoder._orig_mod.conv_in.weight`."""
    return _WRAPPERS.sub("", name)


def plain_name(name: str) -> str:
    """The name of a file's weight without what wrappers of modules put into it.

    The direction of a weight with weight norm has the weight's own name: its length is beside it.
    """
    name = without_wrappers(name)
    direction = next((ending for ending in DIRECTIONS if name.endswith(ending)), None)
    return name if direction is None else f"{name.removesuffix(direction)}.weight"


def ldm_names(config: AutoencoderKLConfig) -> dict[str, str]:
    """diffusers key -> LDM key, for every weight of the model. FLUX.2's are those of its own file."""
    return {f"{layer.names[0]}.{part}": f"{layer.names[1]}.{part}" for layer in _layers(config) for part in layer.parts}


@lru_cache(maxsize=16)
def spellings(config: AutoencoderKLConfig) -> Mapping[str, str]:
    """Every known name of every weight -> its diffusers key."""
    return {
        f"{name}.{part}": f"{layer.names[0]}.{part}"
        for layer in _layers(config)
        for name in layer.names
        for part in layer.parts
    }


@lru_cache(maxsize=16)
def weight_shapes(config: AutoencoderKLConfig) -> Mapping[str, tuple[int, ...]]:
    """diffusers key -> shape, for every weight of the model."""
    return {f"{layer.names[0]}.{part}": shape for layer in _layers(config) for part, shape in layer.parts.items()}


def with_counters(weights: Mapping[str, Tensor], needed: Collection[str]) -> dict[str, Tensor]:
    """These weights by diffusers keys, and new counters of batch norm where few files have them and they are needed."""
    absent = OPTIONAL.intersection(needed).difference(weights)
    return {**weights, **{key: torch.zeros((), dtype=torch.int64, device="cpu") for key in absent}}


def count_at_least(config: AutoencoderKLConfig) -> int:
    """A number of tensors that a model of this config has at least, counted without going through its layers."""
    return 8 * 2 * len(config.block_out_channels) * config.layers_per_block


def is_attention_projection(key: str) -> bool:
    """Whether a diffusers key is a matrix that LDM keeps as a 1x1 convolution."""
    module, _, part = key.rpartition(".")
    return part == "weight" and ".attentions." in key and not module.endswith("group_norm")


def _names(*parts: Words) -> tuple[str, ...]:
    """All names made of these parts: diffusers' first, LDM's second, then every mixture."""
    pure = (".".join(words[0] for words in parts), ".".join(words[min(1, len(words) - 1)] for words in parts))
    return tuple(dict.fromkeys((*pure, *map(".".join, itertools.product(*parts))))) if pure[0] != pure[1] else pure


def _layer(parts: Iterable[Words], *shape: int) -> Layer:
    """A layer with a weight of this shape and a bias for each of its outputs."""
    return Layer(_names(*parts), {"weight": shape, "bias": shape[:1]})


def _layers(config: AutoencoderKLConfig) -> Iterator[Layer]:
    yield from _encoder(config)
    yield from _decoder(config)
    latent = config.latent_channels
    if config.use_quant_conv:
        yield _quant_conv("encoder", ("quant_conv", "quant_proj"), 2 * latent, config)
    if config.use_post_quant_conv:
        yield _quant_conv("decoder", ("post_quant_conv", "post_quant_proj"), latent, config)
    if config.patch_size is not None:
        packed = (latent * math.prod(config.patch_size),)
        yield Layer(("bn", "bn"), {"running_mean": packed, "running_var": packed, "num_batches_tracked": ()})


def _quant_conv(half: str, words: Words, channels: int, config: AutoencoderKLConfig) -> Layer:
    name, *others = words
    names = (name, f"{half}.{name}", *others)
    layer = _layer([names], channels, channels, 1, 1)
    return layer if config.has_batch_norm else layer._replace(names=(name, *dict.fromkeys((name, *names))))


def _encoder(config: AutoencoderKLConfig) -> Iterator[Layer]:
    widths = config.block_out_channels
    half: Words = ("encoder",)
    yield _layer([half, ("conv_in",)], widths[0], config.in_channels, 3, 3)
    before = widths[0]
    for level, (width, kind) in enumerate(zip(widths, config.down_block_types, strict=True)):
        block = [half, (f"down_blocks.{level}", f"down.{level}")]
        yield from _level(block, config.layers_per_block, before, width, kind)
        if level < len(widths) - 1:
            yield _layer([*block, ("downsamplers.0.conv", "downsample.conv", "downsample")], width, width, 3, 3)
        before = width
    yield from _middle(half, widths[-1], config.mid_block_add_attention)
    yield _layer([half, NORM_OUT], widths[-1])
    yield _layer([half, ("conv_out",)], 2 * config.latent_channels, widths[-1], 3, 3)


def _decoder(config: AutoencoderKLConfig) -> Iterator[Layer]:
    widths = config.decoder_widths[::-1]  # coarsest first, as diffusers counts; LDM counts from the finest
    half: Words = ("decoder",)
    yield _layer([half, ("conv_in",)], widths[0], config.latent_channels, 3, 3)
    yield from _middle(half, widths[0], config.mid_block_add_attention)
    before = widths[0]
    for level, (width, kind) in enumerate(zip(widths, config.up_block_types, strict=True)):
        block = [half, (f"up_blocks.{level}", f"up.{len(widths) - 1 - level}")]
        yield from _level(block, config.layers_per_block + 1, before, width, kind)
        if level < len(widths) - 1:
            yield _layer([*block, ("upsamplers.0.conv", "upsample.conv", "upsample")], width, width, 3, 3)
        before = width
    yield _layer([half, NORM_OUT], widths[-1])
    yield _layer([half, ("conv_out",)], config.out_channels, widths[-1], 3, 3)


def _middle(half: Words, width: int, attention: bool) -> Iterator[Layer]:
    for i in range(2):
        yield from _resnet([half, _middle_words(f"resnets.{i}", f"block_{i + 1}", 2 * i)], width, width)
    if attention:
        yield from _attention([half, _middle_words("attentions.0", "attn_1", 1)], width)


def _middle_words(theirs: str, ldm: str, place: int) -> Words:
    """Names of a layer of the middle block; the last is MLX's, which counts all of them."""
    return (
        *(f"mid_block.{theirs}", f"mid.{ldm}", f"mid_block.{ldm}", f"mid.{theirs}"),
        f"mid_blocks.{place}",
    )


def _level(block: list[Words], layers: int, before: int, width: int, kind: str) -> Iterator[Layer]:
    for i in range(layers):
        yield from _resnet([*block, (f"resnets.{i}", f"block.{i}")], before if i == 0 else width, width)
        if kind.startswith("Attn"):
            yield from _attention([*block, (f"attentions.{i}", f"attn.{i}")], width)


def _resnet(block: list[Words], before: int, width: int) -> Iterator[Layer]:
    yield _layer([*block, ("norm1",)], before)
    yield _layer([*block, ("conv1",)], width, before, 3, 3)
    yield _layer([*block, ("norm2",)], width)
    yield _layer([*block, ("conv2",)], width, width, 3, 3)
    if before != width:
        yield _layer([*block, ("conv_shortcut", "nin_shortcut")], width, before, 1, 1)


def _attention(block: list[Words], width: int) -> Iterator[Layer]:
    for words, is_projection in ATTENTION:
        yield _layer([*block, words], *((width, width) if is_projection else (width,)))
