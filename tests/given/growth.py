"""How far a process grows while something runs: its anonymous memory on Linux, sampled by a thread."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from types import TracebackType

from vae_core.streaming.memory import give_back_freed

INTERVAL = 0.001  # seconds from one look to the next
_STATUS = Path("/proc/self/status")


def anonymous_bytes(status: Path = _STATUS) -> int:
    """Memory that a process has and no file: what it allocated and touched."""
    lines = status.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


class Growth:
    """In a `with` block: `bytes` is how much more than at its beginning there was at most."""

    def __enter__(self) -> Growth:
        gc.collect()
        give_back_freed()  # what was freed before is not growth when it is used again
        self._before = self._most = anonymous_bytes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        return self._most - self._before

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL):
            self._most = max(self._most, anonymous_bytes())
