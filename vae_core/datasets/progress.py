"""How far a run is: a bar for those who watch, lines for those who read the log afterwards."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

logger = logging.getLogger("seamless_vae")

_EVERY = 15.0  # seconds between lines of the log
# Images per second however few, where tqdm by itself would turn to seconds per image.
_BAR = "{percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} images [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
_BAR_WITHOUT_TOTAL = "{n_fmt} images [{elapsed}, {rate_noinv_fmt}{postfix}]"


class RunProgress:
    """Counts what is done, and shows it as a bar on a terminal or as a line every 15 seconds elsewhere.

    Attributes:
        images, failures, bytes, shards: done in this run.
        busy: seconds that encoders were at work, all together.
    """

    def __init__(self, show: bool = True) -> None:
        self.show = show
        self.images = self.failures = self.bytes = self.shards = 0
        self.busy = 0.0
        self.total: int | None = None
        self._before = 0
        self._shown = self._began = time.monotonic()
        self._bar: tqdm | None = None

    def start(self, total: int | None, before: int) -> None:
        """Begin with so many images in all (None: it is not known) and so many done before."""
        self.total = total
        self._before = before
        self._shown = self._began = time.monotonic()
        if self.show and sys.stderr is not None and sys.stderr.isatty():  # it may be closed
            form = _BAR if total else _BAR_WITHOUT_TOTAL
            self._bar = tqdm(
                total=total, initial=before, unit=" images", dynamic_ncols=True, smoothing=0.05, bar_format=form
            )
            self._tell_bar()

    def advance(self, images: int, failures: int = 0) -> None:
        """So many images more are done; `failures` of them could not be encoded."""
        self.images += images
        self.failures += failures
        if self._bar is not None:
            self._bar.update(images)
        if failures:
            self._tell_bar()
        self._tell()

    def committed(self, shards: int, size: int) -> None:
        """So many shards more are on the disk, of so many bytes."""
        self.shards += shards
        self.bytes += size
        self._tell_bar()
        self._tell()

    def close(self) -> None:
        """Take the bar away, and say the last line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self.show and self.images:
            logger.warning("%s", self.line())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def line(self) -> str:
        """512 of 1000 images, 41.2 images/s, 0:12 left, 3 failed, 18.2 MB written"""
        done = self._before + self.images
        speed = self.images / max(self.seconds, 1e-9)
        parts = [f"{done} images" if self.total is None else f"{done} of {self.total} images", f"{speed:.1f} images/s"]
        if self.total is not None and speed > 0:
            parts.append(f"{in_time((self.total - done) / speed)} left")
        return ", ".join([*parts, f"{self.failures} failed", f"{in_bytes(self.bytes)} written"])

    def _tell_bar(self) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.failures} failed, {in_bytes(self.bytes)}")

    def _tell(self) -> None:
        now = time.monotonic()
        if self.show and self._bar is None and now - self._shown >= _EVERY:
            self._shown = now
            logger.warning("%s", self.line())


def in_bytes(count: float) -> str:
    """18.2 MB"""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def in_time(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
