"""Several devices of one machine: the local engine once for each, in a process of its own."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from ..autoencoder_kl import AutoencoderKL
from ..errors import DatasetError, VAEError, in_one_line
from . import local
from .collection import Collection
from .local import Work, end_with_parent
from .progress import RunProgress
from .weights import PackedVAE

_Event = tuple[Any, ...]  # the name of what happened, and its values


def run(
    collection: Collection,
    work: Sequence[Work],
    vae: AutoencoderKL,
    devices: Sequence[str],
    workers: int,
    progress: RunProgress,
) -> None:
    """Encode splits on several devices; see `local.run`. The readers are shared out among them."""
    context = multiprocessing.get_context("spawn")  # a device's driver does not survive a fork
    events = context.Queue()
    packed = PackedVAE.of(vae)
    share = max(1, workers // len(devices)) if workers else 0
    arguments = [
        (collection.out, collection.manifest, list(work[i :: len(devices)]), packed, device, share, events)
        for i, device in enumerate(devices)
    ]
    processes = [context.Process(target=_encode, args=each) for each in arguments]
    for process in processes:
        process.start()
    try:
        ended = 0
        while ended < len(processes):
            try:
                kind, *values = events.get(timeout=1)
            except queue.Empty:
                _check_alive(processes, devices)
                continue
            if kind == "error":
                raise DatasetError(values[0])
            if kind == "end":
                ended += 1
                progress.busy += values[0]
            else:
                getattr(progress, kind)(*values)
    finally:
        for process in processes:
            process.terminate() if process.is_alive() and ended < len(processes) else None
            process.join()


def _check_alive(processes: Sequence[BaseProcess], devices: Sequence[str]) -> None:
    for process, device in zip(processes, devices, strict=True):
        if process.exitcode not in (None, 0):
            raise DatasetError(
                f"the process of {device} ended with code {process.exitcode}. What was finished stays valid: "
                f"run the same command with --resume."
            )


class _Sent(RunProgress):
    """Progress that is sent to the process that shows it."""

    def __init__(self, events: Queue[_Event]) -> None:
        super().__init__(show=False)
        self._events = events

    def advance(self, images: int, failures: int = 0) -> None:
        self._events.put(("advance", images, failures))

    def committed(self, shards: int, size: int) -> None:
        self._events.put(("committed", shards, size))


def _encode(
    out: Path,
    manifest: dict[str, Any],
    work: list[Work],
    packed: PackedVAE,
    device: str,
    workers: int,
    events: Queue[_Event],
) -> None:
    """The process of one device."""
    end_with_parent()
    sent = _Sent(events)
    try:
        local.run(Collection(out, manifest), work, packed.unpack(device), workers, sent)
        events.put(("end", sent.busy))
    except VAEError as error:
        events.put(("error", str(error)))
    except Exception as error:
        events.put(("error", f"on {device}: {type(error).__name__}: {in_one_line(error)}"))
