"""Warnings that are logged once in a process, however often their cause comes back."""

from __future__ import annotations

import logging
import threading


class WarnOnce:
    """Logs a warning the first time that it is called, from any thread."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._done = threading.Event()

    def __call__(self, message: str, *values: object) -> None:
        if not self._done.is_set():
            self._done.set()
            self._logger.warning(message, *values)

    def reset(self) -> None:
        """Log it again the next time."""
        self._done.clear()
