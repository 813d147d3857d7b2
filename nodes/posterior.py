"""Seamless VAE Sample Posterior and Seamless Posterior Preview."""

from __future__ import annotations

from typing import Any

from ..vae_core.preview import posterior_image
from . import checks, inputs, latents, show


class VAESamplePosterior:
    ID = "SeamlessVAESamplePosterior"
    DISPLAY_NAME = "Seamless VAE Sample Posterior"
    DESCRIPTION = (
        "Draw latents from what the encoder says of an image: mean + temperature * deviation * noise. Several draws "
        "of one image show what the VAE leaves open."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("sample latent", "posterior sample", "gaussian", "variance", "temperature")
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The draws. Of several images, first one draw of each, then the next.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "posterior": inputs.wire("VAE_POSTERIOR", "The second output of Seamless VAE Encode."),
                "draw": inputs.choice(
                    ["sample", "mode"],
                    "sample draws at random by the seed. mode takes the most likely latent, which is the mean.",
                ),
                "seed": inputs.seed(),
                "temperature": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.0,
                        "max": 100.0,
                        "step": 0.05,
                        "round": 0.001,
                        "tooltip": "Factor of the deviation. 1 draws as the encoder says, 0 gives the mean, more than "
                        "1 exaggerates.",
                    },
                ),
                "count": (
                    "INT",
                    {
                        "default": 1,
                        "min": 1,
                        "max": 4096,
                        "tooltip": "Draws of each image. More leave the first as they are.",
                    },
                ),
            }
        }

    def sample(
        self,
        posterior: latents.Latent,
        draw: str = "sample",
        seed: int = 0,
        temperature: float = 1.0,
        count: int = 1,
    ) -> tuple[latents.Latent]:
        checks.check_choice("draw", draw, inputs.DRAWS)
        checks.check_at_least(0, temperature=temperature)
        checks.check_at_least(1, count=count)
        found = latents.posterior_of(posterior)
        repeated = latents.repeat({key: value for key, value in posterior.items() if key != "logvar"}, count)
        indices = latents.batch_indices(repeated)
        if draw == "mode" or temperature == 0:
            return (repeated,)
        many = found.tempered(temperature).repeated(count)
        return ({**repeated, "samples": latents.draw(many, seed, indices)},)


class PosteriorPreview:
    ID = "SeamlessPosteriorPreview"
    DISPLAY_NAME = "Seamless Posterior Preview"
    DESCRIPTION = (
        "Show a posterior: at the left the mean, its three main directions as colours; at the right the standard "
        "deviation as a heat map, dark where the encoder is sure."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("preview latent", "latent preview", "variance", "heat map", "show posterior")
    FUNCTION = "preview"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("Mean and standard deviation side by side, 8 pixels for each latent position.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"posterior": inputs.wire("VAE_POSTERIOR", "The second output of Seamless VAE Encode.")},
        }

    def preview(self, posterior: latents.Latent) -> dict[str, Any]:
        found = latents.posterior_of(posterior)
        checks.check_finite(found.parameters, "posterior")
        image = posterior_image(found.mean, found.logvar).movedim(1, -1).contiguous()
        return {"ui": {"images": show.images(image, "posterior")}, "result": (image,)}
