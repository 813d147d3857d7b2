"""How often functions are called, which go on as they are."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest


class Calls:
    """Counts calls in every thread, in `counts`, by what the functions are for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        self._monkeypatch = monkeypatch
        self._lock = threading.Lock()

    def of(self, owner: Any, name: str, what: str, only: Callable[..., bool] = lambda *_: True) -> None:
        """Count the calls of `owner.name` as `what`; those alone whose arguments `only` is true of."""
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if only(*args):
                with self._lock:
                    self.counts[what] += 1
            return original(*args, **kwargs)

        self._monkeypatch.setattr(owner, name, counted)
