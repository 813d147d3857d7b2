"""The two halves of an AutoencoderKL as the engine runs them: their programs, and what it needs to know beside."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from .attention import Attention, FusedAttnProcessor2_0
from .blocks import Downsample, Level, ResnetBlock, UNetMidBlock2D, Upsample
from .config import AutoencoderKLConfig
from .decoder import Decoder
from .encoder import Encoder
from .errors import ConfigError
from .layers import conv2d
from .patched import find_patch
from .streaming.half import Half
from .streaming.program import Linear, Pass, ProgramBuilder
from .wrappers import plain_name


class HasHalves(Protocol):
    """What is needed of an AutoencoderKL."""

    @property
    def config(self) -> AutoencoderKLConfig: ...
    @property
    def encoder(self) -> nn.Module: ...
    @property
    def decoder(self) -> nn.Module: ...
    @property
    def quant_conv(self) -> nn.Module | None: ...
    @property
    def post_quant_conv(self) -> nn.Module | None: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def check_image_shape(self, shape: Sequence[int]) -> None: ...
    def check_latent_shape(self, shape: Sequence[int]) -> None: ...


@dataclass(frozen=True)
class ModelHalf(Half):
    """A half whose weights are named as people know them, whatever is wrapped around its modules."""

    def find_damage(self) -> str | None:
        """The name of the first weight that has NaN or infinite values; None if all are finite."""
        found = super().find_damage()
        return None if found is None else plain_name(nn.ModuleDict(dict(self.modules)), found)


def unwrapped(vae: Any) -> Any:
    """A model without what wraps it as a whole, such as DataParallel.

    Raises:
        ConfigError: it is not an AutoencoderKL of this package; says how to make one of it.
    """
    while not hasattr(vae, "check_latent_shape") and isinstance(getattr(vae, "module", None), nn.Module):
        vae = vae.module
    if hasattr(vae, "check_latent_shape"):
        return vae
    kind = type(vae)
    if hasattr(vae, "vae"):  # a pipeline
        remedy = "Pass vae_core.from_diffusers(pipe.vae)."
    elif isinstance(vae, nn.Module):
        remedy = "Pass vae_core.from_diffusers(vae) if it is diffusers' AutoencoderKL."
    else:
        remedy = "Load one with vae_core.load_vae."
    found = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    raise ConfigError(f"the model must be an AutoencoderKL of vae_core, and it is of the type {found}. {remedy}")


def _with_half(vae: Any, half: str, purpose: str) -> Any:
    """A model that has this half; the other one may be removed to save memory.

    Raises:
        ConfigError: it does not, or it is not a model of this package.
    """
    vae = unwrapped(vae)
    if getattr(vae, half, None) is None:
        raise ConfigError(f"the {half} was removed from this model, which cannot {purpose} without it. Reload it.")
    return vae


def encoder_half(vae: HasHalves) -> Half:
    """Images [B, in_channels, H, W] to moments [B, 2 * latent_channels, h, w].

    Raises:
        ConfigError: not a model of this package, or one without its encoder.
    """
    vae = _with_half(vae, "encoder", "encode images")
    config = vae.config
    modules = Parts(vae, "encoder", "quant_conv")

    return ModelHalf(
        takes="image",
        modules=modules,
        placement=lambda: (vae.device, vae.dtype),
        program=lambda: encoder_program(vae.encoder, vae.quant_conv),  # type: ignore[arg-type]
        nominal_program=lambda: _nominal_encoder(config),
        find_patch=lambda: _find_patch(modules),
        check=vae.check_image_shape,
        out_channels=2 * config.latent_channels,
        in_unit=config.downscale_factor,
        out_unit=1,
    )


def decoder_half(vae: HasHalves) -> Half:
    """Raw latents z [B, latent_channels, h, w] to images [B, out_channels, H, W].

    Raises:
        ConfigError: not a model of this package, or one without its decoder.
    """
    vae = _with_half(vae, "decoder", "decode latents")
    config = vae.config
    modules = Parts(vae, "post_quant_conv", "decoder")

    return ModelHalf(
        takes="latent",
        modules=modules,
        placement=lambda: (vae.device, vae.dtype),
        program=lambda: decoder_program(vae.decoder, vae.post_quant_conv),  # type: ignore[arg-type]
        nominal_program=lambda: _nominal_decoder(config),
        find_patch=lambda: _find_patch(modules),
        check=vae.check_latent_shape,
        out_channels=config.out_channels,
        in_unit=1,
        out_unit=config.downscale_factor,
    )


@functools.lru_cache(maxsize=8)
def _nominal_encoder(config: AutoencoderKLConfig) -> list[Pass]:
    channels = 2 * config.latent_channels
    with torch.device("meta"):
        return encoder_program(Encoder(config), conv2d(channels, channels, 1) if config.use_quant_conv else None)


@functools.lru_cache(maxsize=8)
def _nominal_decoder(config: AutoencoderKLConfig) -> list[Pass]:
    channels = config.latent_channels
    with torch.device("meta"):
        return decoder_program(Decoder(config), conv2d(channels, channels, 1) if config.use_post_quant_conv else None)


class Parts(Mapping[str, nn.Module]):
    """Parts of a model by name, those that it has, as they are whenever they are asked for: a host may exchange one
    between planning and running.
    """

    def __init__(self, vae: object, *names: str) -> None:
        self._vae = vae
        self._names = names

    def __getitem__(self, name: str) -> nn.Module:
        part = getattr(self._vae, name, None) if name in self._names else None
        if part is None:
            raise KeyError(name)
        return part

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names if getattr(self._vae, name, None) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _find_patch(modules: Mapping[str, nn.Module]) -> str | None:
    found = (find_patch(module, name) for name, module in modules.items())
    return next((patch for patch in found if patch is not None), None)


# Programs.


class AttentionLayers:
    """The layers of an Attention that its processor uses."""

    def __init__(self, attention: Attention) -> None:
        self._attention = attention

    def query_key_value(self) -> list[Linear]:
        attention = self._attention
        if isinstance(attention.processor, FusedAttnProcessor2_0):
            fused = attention.to_qkv
            return list(zip(fused.weight.chunk(3), fused.bias.chunk(3), strict=True))
        return [(layer.weight, layer.bias) for layer in (attention.to_q, attention.to_k, attention.to_v)]

    def output(self) -> Linear:
        layer = self._attention.to_out[0]
        assert isinstance(layer, nn.Linear)
        return layer.weight, layer.bias


def encoder_program(encoder: Encoder, quant_conv: nn.Conv2d | None) -> list[Pass]:
    """image -> moments."""
    build = ProgramBuilder()
    build.convolve(encoder.conv_in)
    for block in encoder.down_blocks:
        _level(build, block)  # type: ignore[arg-type]
        for downsample in block.downsamplers or []:  # type: ignore[union-attr]
            assert isinstance(downsample, Downsample)
            build.convolve(downsample.conv, scale="down")
    _level(build, encoder.mid_block)
    build.convolve(encoder.conv_out, norm=encoder.conv_norm_out, act=encoder.conv_act)
    if quant_conv is not None:
        build.convolve(quant_conv)
    return build.finish()


def decoder_program(decoder: Decoder, post_quant_conv: nn.Conv2d | None) -> list[Pass]:
    """z -> image."""
    build = ProgramBuilder()
    if post_quant_conv is not None:
        build.convolve(post_quant_conv)
    build.convolve(decoder.conv_in)
    _level(build, decoder.mid_block)
    for block in decoder.up_blocks:
        _level(build, block)  # type: ignore[arg-type]
        for upsample in block.upsamplers or []:  # type: ignore[union-attr]
            assert isinstance(upsample, Upsample)
            build.convolve(upsample.conv, scale="up")
    build.convolve(decoder.conv_out, norm=decoder.conv_norm_out, act=decoder.conv_act)
    return build.finish()


def _level(build: ProgramBuilder, block: Level | UNetMidBlock2D) -> None:
    attentions = list(block.attentions or [])
    for index, resnet in enumerate(block.resnets):
        _resnet(build, resnet)  # type: ignore[arg-type]
        if index < len(attentions):  # the middle block has one attention less than resnets
            attention = attentions[index]
            assert isinstance(attention, Attention)
            norm = attention.group_norm
            build.attend(norm.num_channels, norm, AttentionLayers(attention))


def _resnet(build: ProgramBuilder, block: ResnetBlock) -> None:
    x = build.current
    shortcut = block.conv_shortcut
    build.convolve(block.conv1, norm=block.norm1, act=block.nonlinearity)
    build.convolve(
        block.conv2,
        norm=block.norm2,
        act=block.nonlinearity,
        residual=x,
        shortcut=shortcut,
        in_place=shortcut is None,
    )
