"""Which kernels may be used: a choice of the caller's, for a block of code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from ..errors import ConfigError

KernelMode = Literal["auto", "plain"]
_mode: ContextVar[KernelMode] = ContextVar("seamless_vae_kernels", default="auto")


@contextmanager
def kernels(mode: KernelMode) -> Iterator[None]:
    """Choose the kernels of a `with` block: "auto", the fastest for each pass, or "plain", torch's own alone.

    With "plain", AutoencoderKL runs its modules as they are, with torch's own rounding.
    """
    if mode not in ("auto", "plain"):
        raise ConfigError(f"the kernels are {mode!r}; they are 'auto' or 'plain'.")
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


def plain_kernels() -> bool:
    """Whether only torch's own kernels may be used."""
    return _mode.get() == "plain"
