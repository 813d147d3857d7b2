"""Automatic casting, which callers switch on for all of torch around what they call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Compute in the types that tensors have, on a device and on the CPU, whatever the caller has switched on."""
    with ExitStack() as stack:
        for kind in {device.type, "cpu"}:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
