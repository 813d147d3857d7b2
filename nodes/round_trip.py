"""Seamless VAE Round Trip."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..vae_core.image import to_unit_range
from ..vae_core.metrics import SSIM_WINDOW, psnr, ssim
from ..vae_core.preview import error_map
from . import coding, inputs, report, show
from .report import Fact
from .status import NodeStatus


class VAERoundTrip:
    ID = "SeamlessVAERoundTrip"
    DISPLAY_NAME = "Seamless VAE Round Trip"
    DESCRIPTION = (
        "Encode and decode an image, and show what the VAE preserves: the reconstruction, a heat map of the error, "
        "PSNR in dB and SSIM (1 means identical)."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("reconstruction", "compare vae", "psnr", "ssim", "vae quality", "error map")
    FUNCTION = "round_trip"
    RETURN_TYPES = ("IMAGE", "IMAGE", "FLOAT", "FLOAT")
    RETURN_NAMES = ("image", "error", "psnr", "ssim")
    OUTPUT_TOOLTIPS = (
        "The reconstruction.",
        "Heat map of the absolute error: black is none, white is a tenth of the value range or more.",
        "Peak signal-to-noise ratio in dB; higher is better. Averaged over a batch.",
        "Structural similarity; 1 means identical. Averaged over a batch.",
    )
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "pixels": inputs.pixels("Images to encode and decode. Any size, with or without alpha."),
                "vae": inputs.vae(),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def round_trip(self, pixels: Tensor, vae: Any, unique_id: str | None = None) -> dict[str, Any]:
        opened, options = coding.opened(vae)
        status = NodeStatus(unique_id, stages=(1 - coding.DECODE_SHARE, coding.DECODE_SHARE))
        encoded = coding.encode(opened, pixels, "pad", options, status)
        image = coding.decode(opened, encoded.latent(), options, status)
        fitted = encoded.image
        original = to_unit_range(fitted.restore(fitted.pixels))
        count = min(len(original), len(image))  # VAEs of video drop frames that fill no whole group
        image = image[:count]
        original = original[:count]
        kept = image.movedim(-1, 1).to(original)
        error = error_map(kept, original).movedim(1, -1).contiguous()
        quality = float(psnr(kept, original).mean())
        small = min(kept.shape[-2:]) < SSIM_WINDOW
        similarity = float("nan") if small else float(ssim(kept, original).mean())
        similar = Fact("report.quality.tooSmall") if small else f"{similarity:.4f}"
        facts = [Fact("report.quality", psnr=f"{quality:.2f}", ssim=similar)]
        if count < len(pixels):
            facts.append(Fact("report.quality.frames", count=count, given=len(pixels)))
        rows = {"original": original.movedim(1, -1), "reconstruction": image, "error": error}
        shown = [shown for name, batch in rows.items() for shown in show.images(batch, name)]
        return {"ui": {"images": shown} | report.output(facts), "result": (image, error, quality, similarity)}
