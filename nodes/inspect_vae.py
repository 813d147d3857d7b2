"""Seamless VAE Inspect."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..vae_core.checkpoints.families import FAMILIES, family_of_config
from . import host, inputs, latents, run
from .adopt import Autoencoder, Foreign, open_vae


class VAEInspect:
    ID = "SeamlessVAEInspect"
    DISPLAY_NAME = "Seamless VAE Inspect"
    DESCRIPTION = (
        "Show what a VAE is: family, channels, scale, parameters, precision, device, and the cost of a decode. "
        "Connect a latent to get the cost of decoding that one."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("vae info", "which vae", "vae family", "memory estimate", "debug vae")
    FUNCTION = "inspect"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = ("The report shown on the node.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"vae": inputs.vae()},
            "optional": {"samples": inputs.wire("LATENT", "Estimate the cost of decoding this latent.")},
        }

    def inspect(self, vae: Any, samples: latents.Latent | None = None) -> dict[str, Any]:
        opened = open_vae(vae)
        if isinstance(opened, Foreign):
            text = "\n".join(_foreign_lines(opened))
        else:
            z = None if samples is None else latents.samples_of(samples)
            if z is not None:
                latents.check(opened.model, z)
                run.checked_size(opened, run.raw_shape(opened, z))
            text = "\n".join([*_lines(opened), *_cost_lines(opened, z)])
        return {"ui": {"text": [text]}, "result": (text,)}


EXAMPLE_PIXELS = 1024
GIB = 2**30


def _lines(vae: Autoencoder) -> list[str]:
    config, device = vae.config, vae.device
    family = family_of_config(config)
    alike = [each.name for each in FAMILIES if each.has_shapes_of(config)]
    if family is not None:
        named = family.name
    else:
        named = f"none of the published families{f', although the shapes are those of {alike[0]}' if alike else ''}"
    ratio = latents.wire_ratio(vae.model)
    channels = latents.wire_channels(vae.model)
    widths = ", ".join(map(str, config.block_out_channels))
    decoder = ", ".join(map(str, config.decoder_widths))
    parameters = sum(weight.numel() for weight in vae.model.parameters())
    origin = "another loader; its weights are used in place" if vae.shared is not None else "Seamless VAE"
    return [
        f"family: {named}",
        f"loaded by: {origin}",
        f"images: {config.in_channels} channels, sides a multiple of {ratio}",
        f"latents: {channels} channels at 1/{ratio} of the size",
        f"scale: {_scale_text(vae)}",
        f"parameters: {parameters / 1e6:.1f} million",
        f"widths: {widths}" + (f"; decoder {decoder}" if config.decoder_widths != config.block_out_channels else ""),
        f"precision: {str(vae.dtype).removeprefix('torch.')}",
        f"device: {device}",
    ]


def _scale_text(vae: Autoencoder) -> str:
    config = vae.config
    if config.has_batch_norm:
        return "by the batch norm statistics in the file, packed 2x2"
    if config.latents_std is not None:
        return f"{config.scaling_factor:g}, with a mean and a standard deviation for each channel"
    shift = f", shift {config.shift_factor:g}" if config.shift_factor else ""
    return f"{config.scaling_factor:g}{shift}"


def _cost_lines(vae: Autoencoder, samples: Tensor | None) -> list[str]:
    """What decoding these will take, or one image of a usual size."""
    side = EXAMPLE_PIXELS // vae.config.spatial_ratio
    shape = (1, vae.config.latent_channels, side, side) if samples is None else run.raw_shape(vae, samples)
    unlimited = run.Options(memory_budget=run.NO_LIMIT)
    plan = run.plan(vae, shape, False, unlimited, vae.device)
    free = host.free_memory(vae.device)
    ratio = vae.config.spatial_ratio
    what = f"{shape[0]} image{'s' if shape[0] > 1 else ''} of {shape[3] * ratio}x{shape[2] * ratio}"
    lines = [
        f"a decode of {what}: {plan.flops / 1e12:.2f} TFLOPs in {plan.passes} passes, "
        f"{plan.peak_bytes / GIB:.2f} GiB of working memory",
    ]
    if free is not None:
        fits = (
            "it fits"
            if plan.peak_bytes <= free * run.LARGEST_SHARE
            else "part of it is offloaded to CPU memory or disk"
        )
        lines.append(f"free on {vae.device}: {free / GIB:.2f} GiB, so {fits}")
    return lines


def _foreign_lines(vae: Foreign) -> list[str]:
    lines = [f"third-party VAE: {vae.reason}", vae.note]
    for name in ("latent_channels", "latent_dim", "upscale_ratio", "vae_dtype", "device"):
        value = getattr(vae.vae, name, None)
        if value is not None and not isinstance(value, tuple):
            lines.append(f"{name}: {str(value).removeprefix('torch.')}")
    return lines
