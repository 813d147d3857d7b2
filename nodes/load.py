"""Seamless VAE Load."""

from __future__ import annotations

from typing import Any

import torch

from ..vae_core import load_vae
from ..vae_core.errors import ConfigError, VAEError
from . import catalogue, host, inputs, wire
from .catalogue import AUTO


class VAELoad:
    ID = "SeamlessVAELoad"
    DISPLAY_NAME = "Seamless VAE Load"
    DESCRIPTION = (
        "Load a VAE (AutoencoderKL) in any format: a VAE file, a diffusers folder, or the VAE inside a checkpoint. "
        "Connect it to any node that takes a VAE. With it the core nodes also encode and decode without seams between "
        "tiles. If the file is not a complete AutoencoderKL, the message says what it is."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = (
        *("load vae", "vae loader", "autoencoder", "AutoencoderKL", "diffusers vae", "checkpoint vae"),
        *("seamless tiling", "no seams"),
    )
    FUNCTION = "load"
    RETURN_TYPES = ("VAE",)
    RETURN_NAMES = ("vae",)
    OUTPUT_TOOLTIPS = ("The VAE, for the nodes of this pack and any others.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "vae_name": inputs.choice(
                    catalogue.vae_names(),
                    "demo is a small VAE included in this pack. Below it: files in models/vae, then diffusers folders, "
                    "checkpoints and the Hugging Face cache, labelled as such.",
                ),
                "dtype": inputs.choice(
                    inputs.DTYPES,
                    "Precision of the weights and of the computation. auto uses ComfyUI's choice. On a CPU bfloat16 "
                    "halves the memory of weights and feature maps and costs accuracy (about 8 bits); it is faster "
                    "only on processors with instructions for it (AVX512-BF16). If float16 overflows, the run is "
                    "repeated in a wider type instead of giving a black "
                    "image.",
                    advanced=True,
                ),
                "device": inputs.choice(
                    [AUTO, *catalogue.device_names()],
                    "Device that the VAE runs on. auto uses ComfyUI's VAE device.",
                    advanced=True,
                ),
                "latent_scale": inputs.choice(
                    [AUTO, *catalogue.family_names()],
                    "Which model family's scale and shift Seamless Latent Scale uses. auto reads it from the file. Set "
                    "it only if the file doesn't say, e.g. SDXL for a bare 4-channel VAE.",
                    advanced=True,
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, vae_name: str | None = None, device: str | None = None) -> bool | str:
        """Whether a file and a device exist, or a sentence that says what to do; the host would only show its list.

        The host passes None for a linked input, which is checked when the node runs.
        """
        try:
            if vae_name is not None:
                catalogue.vae_path(vae_name)
            if device is not None:
                catalogue.device_of(device)
        except VAEError as error:
            return str(error)
        return True

    def load(self, vae_name: str, dtype: str = "auto", device: str = "auto", latent_scale: str = "auto") -> tuple[Any]:
        return (load(vae_name, dtype, device, latent_scale),)


def load(name: str, dtype: str = AUTO, device: str = AUTO, latent_scale: str = AUTO) -> Any:
    """The VAE of a name of `catalogue.vae_names`, as the host's nodes take it.

    Raises:
        CheckpointError: no such VAE, or not a complete AutoencoderKL.
        ConfigError: a device that does not exist, or a family whose latents have another number of channels.
    """
    path = catalogue.vae_path(name)
    place = catalogue.device_of(device)
    precision = host.vae_dtype(place) if dtype == AUTO else dtype
    overrides = {} if latent_scale == AUTO else catalogue.family_fields(latent_scale)
    with torch.inference_mode(False):  # where the host runs nodes; weights made in it could not be moved later
        try:
            # Copies: a file that is downloaded again over the old one must not end the host or change images.
            model = load_vae(path, dtype=precision, disable_mmap=True, **overrides)
        except VAEError as error:
            if latent_scale == AUTO or not isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{error} latent_scale is {latent_scale}; set it to auto.") from None
        vae = wire.wrap(model.requires_grad_(False), place)
    if vae.patcher is not None:  # newer hosts make a second patcher of it, for another device
        vae.patcher.cached_patcher_init = (load_patcher, (name, dtype, device, latent_scale))
    return vae


def load_patcher(
    name: str, dtype: str = AUTO, device: str = AUTO, latent_scale: str = AUTO, disable_dynamic: bool = False
) -> Any:
    """The patcher of a VAE that is loaded once more, with weights of its own; ours are never dynamic."""
    return load(name, dtype, device, latent_scale).patcher
