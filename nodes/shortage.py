"""Memory that runs out in a node itself, outside of a job, which has its own ways out: a sentence."""

from __future__ import annotations

import functools
from typing import Any

from ..vae_core.errors import MemoryBudgetError, in_one_line
from ..vae_core.streaming.shortage import is_out_of_memory

_OF_DEVICES = {"OutOfMemoryError", "AcceleratorError"}  # torch's, which hosts know, and unload models for


def say_shortage(node: Any) -> None:
    """Have a node's function raise MemoryBudgetError where the memory of the CPU runs out."""
    run = getattr(node, node.FUNCTION)

    @functools.wraps(run)
    def with_words(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error) or type(error).__name__ in _OF_DEVICES:
                raise
            raise MemoryBudgetError(
                f"memory ran out in {node.DISPLAY_NAME} ({in_one_line(error)}). Give it fewer or smaller images, "
                f"latents or masks, or close other programs."
            ) from error

    setattr(node, node.FUNCTION, with_words)
