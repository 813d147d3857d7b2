"""Seamless Latent Scale."""

from __future__ import annotations

from typing import Any

from ..vae_core.errors import check_choice
from ..vae_core.latent import from_diffusion, to_diffusion
from . import inputs, latents
from .vaes import open_vae

SCALES = ["diffusion", "raw"]


class LatentScale:
    ID = "SeamlessLatentScale"
    DISPLAY_NAME = "Seamless Latent Scale"
    DESCRIPTION = (
        "Convert between raw latents, which ComfyUI passes between nodes, and scaled latents, which diffusion models "
        "see and other programs save: (raw - shift) * scale. Use it to exchange latents with other programs."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("scaling factor", "shift factor", "latent format", "0.18215", "normalize latent")
    FUNCTION = "scale"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The converted latent.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": inputs.samples("Latents to convert."),
                "vae": inputs.wire(
                    "VAE", "The VAE whose scale and shift are used; see latent_scale of Seamless VAE Load."
                ),
                "to": inputs.choice(
                    SCALES,
                    "diffusion converts raw latents to what the diffusion model sees. raw converts back.",
                ),
            }
        }

    def scale(self, samples: latents.Latent, vae: Any, to: str = "diffusion") -> tuple[latents.Latent]:
        check_choice("to", to, SCALES)
        opened = open_vae(vae).require_autoencoder("scaling")
        z = latents.samples_of(samples)
        config = opened.config
        opened.model.check_latent_shape(latents.raw_shape(config, z.shape))
        if latents.is_packed(config) and z.shape[1] == latents.wire_channels(config) and to == "diffusion":
            return (samples,)  # the wire carries this family's latents as the diffusion model sees them
        convert = to_diffusion if to == "diffusion" else from_diffusion
        with opened.weights() as model:
            statistics = (model.bn.running_mean, model.bn.running_var) if latents.is_packed(config) else ()
            return ({**samples, "samples": convert(z.float(), config, *statistics)},)
