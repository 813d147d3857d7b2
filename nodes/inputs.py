"""Inputs that several nodes share: each a (type, options) pair as the host wants it."""

from __future__ import annotations

from typing import Any

CATEGORY = "latent/seamless"
MAX_SEED = 2**64 - 1
DRAWS = ["mode", "sample"]
MODES, WRAPS = ["exact", "blended"], ["none", "x", "y", "both"]

Input = tuple[Any, dict[str, Any]]


def choice(values: list[str], tooltip: str, **options: Any) -> Input:
    """A choice of names; the first is the default."""
    return values, {"default": values[0], "tooltip": tooltip, **options}


def wire(kind: str, tooltip: str) -> Input:
    """An input for a link."""
    return kind, {"tooltip": tooltip}


def pixels() -> Input:
    return wire("IMAGE", "Images to encode, of any size, with or without alpha.")


def samples() -> Input:
    return wire("LATENT", "Latents of images.")


def vae() -> Input:
    return wire("VAE", "A VAE of this pack or of any other loader.")


def draw() -> Input:
    return choice(
        DRAWS,
        "mode takes the most likely latent, which is the same every time. "
        "sample draws one at random by the seed, as training does.",
    )


def seed() -> Input:
    return "INT", {
        "default": 0,
        "min": 0,
        "max": MAX_SEED,
        "control_after_generate": True,
        "tooltip": "For sample. Image i of a batch is drawn with seed + i, on the CPU, so that the result is the "
        "same on every device and for every batch size.",
    }


def fit() -> Input:
    return choice(
        ["crop", "pad", "error"],
        "For sides that are no multiple of the VAE's ratio (mostly 8 pixels). crop cuts the edges evenly, as the core "
        "nodes do. pad extends the image by reflection, and Seamless VAE Decode takes that off again. "
        "error stops with a message.",
    )


def clamp() -> Input:
    return "BOOLEAN", {
        "default": True,
        "tooltip": "Limit the image to 0 to 1. Switch it off to keep what lies beyond white and black.",
    }


def tiling() -> dict[str, Input]:
    """The inputs that both tiled nodes have, in their order."""
    return {
        "mode": choice(
            MODES,
            "exact works in strips and gives the very image that the untiled node gives. "
            "blended works in square tiles that are faded into each other: approximate, for comparison with others.",
        ),
        "tile_size": (
            "INT",
            {
                "default": 0,
                "min": 0,
                "max": 16384,
                "step": 8,
                "tooltip": "Pixels: the height of a strip (exact) or the side of a tile (blended), rounded down to "
                "whole latent positions. 0 chooses for you. In exact mode it changes speed and memory alone.",
            },
        ),
        "overlap": (
            "INT",
            {
                "default": 128,
                "min": 0,
                "max": 8192,
                "step": 8,
                "tooltip": "Pixels that neighbouring tiles share in blended mode; less than the tile size. "
                "Exact mode needs none.",
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
                "tooltip": "Working memory in GiB to keep to, beside the VAE's weights, the input and the result. What "
                "does not fit goes to a temporary file; the image is the same. 0 takes what is free.",
            },
        ),
        "wrap": choice(
            WRAPS,
            "Axes along which the image continues at its other side, for seamless textures. Exact mode only.",
        ),
    }
