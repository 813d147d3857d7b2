"""Families of latents that a person can choose."""

from __future__ import annotations

from typing import Any

from ..vae_core.checkpoints.families import FAMILIES
from .checks import check_choice


def family_names() -> list[str]:
    """The families that scale their latents by numbers of their own; FLUX.2 carries its statistics in the file."""
    return [family.name for family in FAMILIES if not family.batch_norm]


def family_fields(name: str) -> dict[str, Any]:
    """The config fields by which a family scales its latents.

    Raises:
        ConfigError: no such family.
    """
    check_choice("latent_scale", name, ["auto", *family_names()])
    fields = next(family.fields for family in FAMILIES if family.name == name)
    names = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    return {key: fields.get(key) for key in names}
