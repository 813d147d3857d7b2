"""Seamless VAE Load."""

from __future__ import annotations

from typing import Any

from ..vae_core.errors import VAEError
from . import host, inputs, wire
from .families import family_names


class VAELoad:
    ID = "SeamlessVAELoad"
    DISPLAY_NAME = "Seamless VAE Load"
    DESCRIPTION = (
        "Load an AutoencoderKL from any format: a VAE file, a diffusers folder, or the VAE inside a checkpoint. "
        "Its output goes into every node that takes a VAE. A file that is no whole AutoencoderKL is refused with a "
        "sentence that says what it is."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("load vae", "vae loader", "autoencoder", "AutoencoderKL", "diffusers vae", "checkpoint vae")
    FUNCTION = "load"
    RETURN_TYPES = ("VAE",)
    RETURN_NAMES = ("vae",)
    OUTPUT_TOOLTIPS = ("The VAE, for the nodes of this pack and for all others.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "vae_name": inputs.choice(
                    host.vae_names(),
                    "demo is a small VAE that comes with this pack. Then the files of models/vae, and diffusers "
                    "folders and checkpoints, marked as such.",
                ),
                "dtype": inputs.choice(
                    ["auto", "float32", "bfloat16", "float16"],
                    "Precision of weights and arithmetic. auto takes what the host would. float16 that overflows is "
                    "run again in a wider type, never shown as a black image.",
                    advanced=True,
                ),
                "device": inputs.choice(
                    ["auto", "cpu", *host.accelerators()],
                    "Where the VAE runs. auto takes the device that the host gives to VAEs.",
                    advanced=True,
                ),
                "latent_scale": inputs.choice(
                    ["auto", *family_names()],
                    "Whose scale and shift Seamless Latent Scale applies. auto goes by the file; choose a family where "
                    "the file does not tell, such as SDXL for 4 channels. Images do not depend on it.",
                    advanced=True,
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, vae_name: str | None = None, device: str | None = None) -> bool | str:
        """Whether a file and a device are there; the host's own check of its lists would tell no remedy.

        Of an input that is linked, the host passes None: it is looked at when it is there.
        """
        try:
            if vae_name is not None:
                host.vae_path(vae_name)
            if device is not None:
                wire.vae_device(device)
        except VAEError as error:
            return str(error)
        return True

    def load(self, vae_name: str, dtype: str = "auto", device: str = "auto", latent_scale: str = "auto") -> tuple[Any]:
        return (wire.load(vae_name, dtype, device, latent_scale),)
