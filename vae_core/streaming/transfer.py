"""Strips on their way between maps in CPU memory and the device, beside the computation where the device allows it."""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .devices import with_streams
from .maps import joined

_IN_FLIGHT = 2  # strips that may be computed or on their way back before the next one is begun


@dataclass
class Arriving:
    """A strip's windows on the device, or on their way there, each in pieces of rows below one another."""

    windows: tuple[list[Tensor], ...]
    event: Any = None  # None where all of them were on the device before
    current: Any = None  # the current stream, where there is an event

    def here(self) -> tuple[list[Tensor], ...]:
        """The windows, for use on the current stream."""
        if self.event is not None:
            self.current.wait_event(self.event)
            for piece in chain(*self.windows):
                piece.record_stream(self.current)
        return self.windows


class Transfers:
    """Uploads and downloads of one pass. Where a device has one queue alone, they happen in it.

    Where it has streams (CUDA, ROCm, XPU, NPU) each direction has one of its own, so the next strip's upload and the
    last one's download run while a strip is computed, if the maps are page-locked, see `page_locks`. The
    CPU runs at most `_IN_FLIGHT` strips ahead, which bounds the device's memory.

    Args:
        dtype: of what arrives, which is converted where it comes from.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self._module = with_streams(device)
        self._up, self._down = (None, None) if self._module is None else _streams(device)
        self._finished: deque[Any] = deque()

    @property
    def overlap(self) -> bool:
        """Whether an upload that is asked for early happens beside the computation."""
        return self._up is not None

    def upload(self, *windows: list[Tensor]) -> Arriving:
        """Windows on the device: what is there as it is, what is elsewhere as one contiguous piece."""
        here = [all(piece.device == self.device for piece in pieces) for pieces in windows]
        if self._up is None or all(here):
            return Arriving(
                tuple(
                    pieces if stays else [joined([piece.to(self.device, self.dtype) for piece in pieces])]
                    for pieces, stays in zip(windows, here, strict=True)
                )
            )
        # Not before the work that is queued, so that strips which wait for theirs do not fill the device.
        current = self._module.current_stream(self.device)
        self._up.wait_stream(current)
        with self._module.stream(self._up):
            arriving = tuple(
                pieces if stays else [copied_to(pieces, self.device, self.dtype)]
                for pieces, stays in zip(windows, here, strict=True)
            )
        return Arriving(arriving, self._up.record_event(), current)

    def download(self, result: Tensor, target: Tensor) -> None:
        """target[:] = result, sooner or later; `finish` waits for it."""
        if self._down is None:
            target.copy_(result)
            return
        current = self._module.current_stream(self.device)
        if target.device == self.device:
            target.copy_(result)
            self.computed()
            return
        self._down.wait_stream(current)
        with self._module.stream(self._down):
            _copy_items(result, target)
            result.record_stream(self._down)
        self._wait_for(self._down.record_event())

    def computed(self) -> None:
        """A strip's work is queued, and its result stays on the device."""
        if self._down is not None:
            self._wait_for(self._module.current_stream(self.device).record_event())

    def _wait_for(self, event: Any) -> None:
        """Let the CPU run no more than some strips ahead of the device."""
        self._finished.append(event)
        if len(self._finished) > _IN_FLIGHT:
            self._finished.popleft().synchronize()

    def finish(self) -> None:
        """Wait until nothing is on its way, also uploads that were not used: maps in CPU memory may go after this."""
        for stream in (self._up, self._down):
            if stream is not None:
                stream.synchronize()
        self._finished.clear()


@functools.cache
def _streams(device: torch.device) -> tuple[Any, Any]:
    """Two streams for all passes: what torch keeps of memory that one has used serves no other."""
    module = with_streams(device)
    return module.Stream(device), module.Stream(device)


def copied_to(pieces: list[Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    batch, _, width, channels = pieces[0].shape
    counts = [piece.shape[1] for piece in pieces]
    there = torch.empty((batch, sum(counts), width, channels), dtype=dtype, device=device)
    for piece, place in zip(pieces, there.split(counts, dim=1), strict=True):
        _copy_items(piece, place)
    return there


def _copy_items(source: Tensor, target: Tensor) -> None:
    """Item by item: whole rows of one item are in one piece, and only such copies run beside the computation."""
    for here, there in zip(source, target, strict=True):
        there.copy_(here, non_blocking=True)
