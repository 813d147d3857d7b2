"""Every spelling of every weight's name, as tables made from a config. Nothing is renamed by substring."""

from __future__ import annotations

from collections.abc import Iterator

from ..config import AutoencoderKLConfig

RESNET_LAYERS = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"}
ATTENTION_LAYERS = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
DEPRECATED_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
BATCH_NORM = ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked")
OPTIONAL = frozenset({"bn.num_batches_tracked"})  # counts training steps; no output depends on it


def ldm_names(config: AutoencoderKLConfig) -> dict[str, str]:
    """diffusers key -> LDM key, for every weight of the model. FLUX.2's are those of its own file."""
    table = {f"{theirs}.{part}": f"{ldm}.{part}" for theirs, ldm in _layers(config) for part in ("weight", "bias")}
    if config.has_batch_norm:
        table.update({name: name for name in BATCH_NORM})
    return table


def spellings(config: AutoencoderKLConfig) -> dict[str, str]:
    """Every known name of every weight -> its diffusers key: diffusers', its deprecated ones, LDM's, FLUX.2's."""
    table = {}
    for key, ldm in ldm_names(config).items():
        table[key] = table[ldm] = key
        module, _, part = key.rpartition(".")
        for layer, old in DEPRECATED_ATTENTION.items():
            if ".attentions." in key and module.endswith(f".{layer}"):
                table[f"{module.removesuffix(layer)}{old}.{part}"] = key
    for name in ("quant_conv", "post_quant_conv"):
        for part in ("weight", "bias"):
            key = f"{name}.{part}"
            if key in table:
                table[f"{'encoder' if name == 'quant_conv' else 'decoder'}.{key}"] = key
    return table


def is_attention_projection(key: str) -> bool:
    """Whether a diffusers key is a matrix that LDM keeps as a 1x1 convolution."""
    module, _, part = key.rpartition(".")
    return part == "weight" and ".attentions." in key and not module.endswith("group_norm")


def _layers(config: AutoencoderKLConfig) -> Iterator[tuple[str, str]]:
    """(diffusers name, LDM name) of every layer that has weights."""
    levels = len(config.block_out_channels)
    for half in ("encoder", "decoder"):
        yield f"{half}.conv_in", f"{half}.conv_in"
        for i in range(2):
            yield from _resnet(f"{half}.mid_block.resnets.{i}", f"{half}.mid.block_{i + 1}", shortcut=False)
        if config.mid_block_add_attention:
            yield from _attention(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1")
        yield f"{half}.conv_norm_out", f"{half}.norm_out"
        yield f"{half}.conv_out", f"{half}.conv_out"

    before = config.block_out_channels[0]
    for level, (width, kind) in enumerate(zip(config.block_out_channels, config.down_block_types, strict=True)):
        block, ldm = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
        yield from _level(block, ldm, config.layers_per_block, kind, shortcut=width != before)
        if level < levels - 1:
            yield f"{block}.downsamplers.0.conv", f"{ldm}.downsample.conv"
        before = width

    widths = config.decoder_widths[::-1]  # coarsest first, as diffusers counts; LDM counts from the finest
    before = widths[0]
    for level, (width, kind) in enumerate(zip(widths, config.up_block_types, strict=True)):
        block, ldm = f"decoder.up_blocks.{level}", f"decoder.up.{levels - 1 - level}"
        yield from _level(block, ldm, config.layers_per_block + 1, kind, shortcut=width != before)
        if level < levels - 1:
            yield f"{block}.upsamplers.0.conv", f"{ldm}.upsample.conv"
        before = width

    prefixes = ("encoder.", "decoder.") if config.has_batch_norm else ("", "")
    if config.use_quant_conv:
        yield "quant_conv", f"{prefixes[0]}quant_conv"
    if config.use_post_quant_conv:
        yield "post_quant_conv", f"{prefixes[1]}post_quant_conv"


def _level(block: str, ldm: str, layers: int, kind: str, shortcut: bool) -> Iterator[tuple[str, str]]:
    for i in range(layers):
        yield from _resnet(f"{block}.resnets.{i}", f"{ldm}.block.{i}", shortcut=shortcut and i == 0)
        if kind.startswith("Attn"):
            yield from _attention(f"{block}.attentions.{i}", f"{ldm}.attn.{i}")


def _resnet(block: str, ldm: str, shortcut: bool) -> Iterator[tuple[str, str]]:
    for theirs, name in RESNET_LAYERS.items():
        yield f"{block}.{theirs}", f"{ldm}.{name}"
    if shortcut:
        yield f"{block}.conv_shortcut", f"{ldm}.nin_shortcut"


def _attention(block: str, ldm: str) -> Iterator[tuple[str, str]]:
    for theirs, name in ATTENTION_LAYERS.items():
        yield f"{block}.{theirs}", f"{ldm}.{name}"
