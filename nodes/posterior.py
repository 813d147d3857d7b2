"""Seamless VAE Sample Posterior and Seamless Posterior Preview."""

from __future__ import annotations

from typing import Any

from ..vae_core.errors import check_choice
from ..vae_core.preview import posterior_image
from . import checks, inputs, latents, show


class VAESamplePosterior:
    ID = "SeamlessVAESamplePosterior"
    DISPLAY_NAME = "Seamless VAE Sample Posterior"
    DESCRIPTION = (
        "Sample latents from the posterior of an encoded image: mean + temperature * standard deviation * noise. "
        "Several samples of one image show how much detail the latent leaves undetermined."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("sample latent", "posterior sample", "gaussian", "variance", "temperature")
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The samples: first one of every image, then the second of every image, and so on.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "posterior": inputs.wire("VAE_POSTERIOR", "The posterior output of Seamless VAE Encode."),
                "sample_mode": inputs.sample_mode(
                    "sample",
                    "sample draws from the posterior with the seed. mean uses the mean, the most likely latent.",
                ),
                "seed": inputs.seed(
                    "Used by sample only. Sample k of image i, both counted from 0, uses seed + k * batch size + i. "
                    "The noise is generated on the CPU, so the result is the same on every device."
                ),
                "temperature": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.0,
                        "max": 100.0,
                        "step": 0.05,
                        "round": 0.001,
                        "tooltip": "Multiplies the standard deviation. 1 samples the posterior as it is, 0 gives the "
                        "mean, values above 1 exaggerate the variation.",
                    },
                ),
                "count": (
                    "INT",
                    {
                        "default": 1,
                        "min": 1,
                        "max": 4096,
                        "tooltip": "Samples per image. Raising it keeps the earlier samples unchanged.",
                    },
                ),
            }
        }

    def sample(
        self,
        posterior: latents.Latent,
        sample_mode: str = "sample",
        seed: int = 0,
        temperature: float = 1.0,
        count: int = 1,
    ) -> tuple[latents.Latent]:
        check_choice("sample_mode", sample_mode, inputs.SAMPLE_MODES)
        found = latents.posterior_of(posterior)
        repeated = latents.repeat(latents.mean_of(posterior), count)
        indices = latents.batch_indices(repeated)
        if sample_mode == "mean" or temperature == 0:
            return (repeated,)
        many = found.tempered(temperature).repeated(count)
        return ({**repeated, "samples": latents.sample(many, seed, indices)},)


class PosteriorPreview:
    ID = "SeamlessPosteriorPreview"
    DISPLAY_NAME = "Seamless Posterior Preview"
    DESCRIPTION = (
        "Show a posterior. Left: the mean, its first three principal components as RGB. Right: the standard "
        "deviation as a heat map, dark where the encoder is certain."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("preview latent", "latent preview", "variance", "heat map", "show posterior")
    FUNCTION = "preview"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("Mean and standard deviation side by side, 8x8 pixels for each latent pixel.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"posterior": inputs.wire("VAE_POSTERIOR", "The posterior output of Seamless VAE Encode.")},
        }

    def preview(self, posterior: latents.Latent) -> dict[str, Any]:
        found = latents.posterior_of(posterior)
        checks.check_finite(found.parameters, "posterior")
        image = posterior_image(found.mean, found.logvar).movedim(1, -1).contiguous()
        return {"ui": {"images": show.images(image, "posterior")}, "result": (image,)}
