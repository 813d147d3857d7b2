"""What Seamless VAE Inspect says about an AutoencoderKL."""

from __future__ import annotations

from ..vae_core import AutoencoderKLConfig, Job
from ..vae_core.checkpoints.families import FAMILIES, family_of_config
from ..vae_core.units import GIB
from . import host, latents


def model_lines(config: AutoencoderKLConfig, parameters: int) -> list[str]:
    """What a model of a config is."""
    factor = latents.wire_factor(config)
    channels = latents.wire_channels(config)
    widths = ", ".join(map(str, config.block_out_channels))
    decoder = ", ".join(map(str, config.decoder_widths))
    return [
        f"family: {_family_text(config)}",
        f"images: {config.in_channels} channels, sides a multiple of {factor}",
        f"latents: {channels} channels at 1/{factor} of the size",
        f"scale: {_scale_text(config)}",
        f"parameters: {parameters / 1e6:.1f} million",
        f"widths: {widths}" + (f"; decoder {decoder}" if config.decoder_widths != config.block_out_channels else ""),
    ]


def _family_text(config: AutoencoderKLConfig) -> str:
    family = family_of_config(config)
    if family is not None:
        return family.name
    alike = [each.name for each in FAMILIES if each.has_shapes_of(config)]
    return "none of the published families" + (f", although the shapes are those of {alike[0]}" if alike else "")


def _scale_text(config: AutoencoderKLConfig) -> str:
    if config.has_batch_norm:
        return "by the batch norm statistics in the file, packed 2x2"
    if config.latents_std is not None:
        return f"{config.scaling_factor:g}, with a mean and a standard deviation for each channel"
    shift = f", shift {config.shift_factor:g}" if config.shift_factor else ""
    return f"{config.scaling_factor:g}{shift}"


def cost_lines(job: Job) -> list[str]:
    """What a decode will take, and whether that is free."""
    batch, _, height, width = job.output_shape
    plan = job.plan
    free = host.free_memory(job.device)
    images = f"{batch} image{'s' if batch > 1 else ''} of {width}x{height}"
    found = [
        f"a decode of {images}: {plan.flops / 1e12:.2f} TFLOPs in {plan.passes} passes, "
        f"{plan.peak_bytes / GIB:.2f} GiB of working memory",
        f"way: {job.way.name}, because {job.way.reason}",
    ]
    offloaded = [
        f"{count / GIB:.2f} GiB to {place}"
        for place, count in (("CPU memory", plan.places.cpu), ("disk", plan.places.disk))
        if count
    ]
    if offloaded:
        found.append(f"offloaded: {', '.join(offloaded)}")
    if free is not None:
        fits = "it fits" if job.bytes.device <= free else "it will run in smaller strips, or offload more"
        found.append(f"free on {job.device}: {free / GIB:.2f} GiB, so {fits}")
    return found
