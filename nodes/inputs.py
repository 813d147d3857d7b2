"""Inputs that several nodes share: each a (type, options) pair as the host wants it."""

from __future__ import annotations

from typing import Any

from ..vae_core.posterior import MAX_SEED
from ..vae_core.streaming import options
from ..vae_core.tiling.grid import MODES as TILING_MODES

CATEGORY = "latent/seamless"
SAMPLE_MODES = ["mean", "sample"]
MODES: list[str] = list(TILING_MODES)
CIRCULAR: list[str] = list(options.CIRCULAR)
DTYPES = ["auto", "float32", "bfloat16", "float16"]

# What people type to find the tiled nodes. In the host's own nodes "seamless" means that a texture repeats.
TILED_ALIASES = (
    *("tiled vae", "seamless tiling", "no seams", "large image", "low memory", "out of memory"),
    *("seamless texture", "tileable", "circular padding"),
)

Input = tuple[Any, dict[str, Any]]


def choice(values: list[str], tooltip: str, **options: Any) -> Input:
    """A choice of names; the first is the default."""
    return values, {"default": values[0], "tooltip": tooltip, **options}


def wire(kind: str, tooltip: str) -> Input:
    """An input for a link."""
    return kind, {"tooltip": tooltip}


def pixels(tooltip: str = "Images to encode. Any size, with or without alpha.") -> Input:
    return wire("IMAGE", tooltip)


def samples(tooltip: str = "Latents to decode.") -> Input:
    return wire("LATENT", tooltip)


def vae() -> Input:
    return wire("VAE", "A VAE from this pack or from any other loader.")


def sample_mode(default: str, tooltip: str) -> Input:
    return choice(sorted(SAMPLE_MODES, key=lambda name: name != default), tooltip)


def seed(
    tooltip: str = "Used by sample only. Image i of a batch uses seed + i. The noise is generated on the CPU, so the "
    "result is the same on every device and for every batch size.",
) -> Input:
    return "INT", {"default": 0, "min": 0, "max": MAX_SEED, "control_after_generate": True, "tooltip": tooltip}


def fit() -> Input:
    return choice(
        ["crop", "pad", "error"],
        "What to do when a side is not a multiple of the VAE's downscale factor (usually 8). crop trims the edges "
        "evenly, like the core nodes. pad extends the image by reflection; Seamless VAE Decode removes the padding. "
        "error stops with a message.",
    )


def clamp() -> Input:
    return "BOOLEAN", {
        "default": True,
        "tooltip": "Clamp pixel values to 0 to 1. Turn it off to keep values beyond black and white.",
    }


def tiling(result: str) -> dict[str, Input]:
    """The inputs that both tiled nodes have, in their order.

    Args:
        result: what the node gives, "image" or "latent".
    """
    return {
        "mode": choice(
            MODES,
            f"exact works in strips and gives the same {result} as the untiled node. blended uses overlapping square "
            f"tiles that fade into each other: an approximation, for comparison with other tiled nodes.",
        ),
        "tile_size": (
            "INT",
            {
                "default": 0,
                "min": 0,
                "max": 16384,
                "step": 8,
                "tooltip": "Height of a strip (exact) or side of a tile (blended), in pixels, rounded down to whole "
                f"latent pixels. 0 is automatic. In exact mode it affects speed and memory only, never the {result}.",
            },
        ),
        "overlap": (
            "INT",
            {
                "default": 128,
                "min": 0,
                "max": 8192,
                "step": 8,
                "tooltip": "Pixels that neighbouring tiles share in blended mode; must be less than the tile size. "
                "Not used in exact mode.",
            },
        ),
        "memory_budget": (
            "FLOAT",
            {
                "default": 0.0,
                "min": 0.0,
                "max": 4096.0,
                "step": 0.05,
                "round": 0.001,
                "tooltip": "Limit on working memory in GiB, not counting the VAE's weights, the input and the output. "
                f"Whatever doesn't fit is offloaded to CPU memory or disk; the {result} is the same. 0 uses the memory "
                "that is free. Exact mode only.",
            },
        ),
        "circular": choice(
            CIRCULAR,
            f"Seamless texture, tileable: the axes along which opposite edges of the {result} meet. Uses circular "
            "padding. Exact mode only.",
        ),
    }
