"""The object on the VAE wire, and how a host's own VAE is adopted."""

from __future__ import annotations

from typing import Any


def load(name: str, dtype: str = "auto", device: str = "auto", latent_scale: str = "auto") -> Any:
    """The VAE of a name of `host.vae_names`, as the host's nodes take it."""
    raise NotImplementedError
