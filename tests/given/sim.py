"""A device that does not exist: torch's tensors without memory, on queues that write down what they are given.

It is registered for a whole process, and torch then takes it for the process's accelerator, so runs on it happen in a
process of their own: `simulate` in a worker. Nothing is computed; each operation is looked at as it is dispatched.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vae_core import AutoencoderKL, TileSpec
from vae_core.halves import decoder_half, encoder_half
from vae_core.streaming import fused, plan, stats, store, transfer
from vae_core.streaming.job import prepare
from vae_core.streaming.options import Options

from .order import CPU, Access, Clock, Order
from .sim_case import KIND, Case, Seen, blocks_of, placed_otherwise, unlike_the_plan

MAIN = "main"
_OF_A_MAP = 2**16  # bytes beyond which a copy is of a map's rows, not of statistics or of a bias
_NO_WORK = ("empty", "alias", "detach", "lift", "set_", "resize_", "_unsafe_view", "_reshape_alias")


class Event:
    def __init__(self, watch: Watch, clock: Clock) -> None:
        self._watch, self.clock = watch, clock

    def synchronize(self) -> None:
        self._watch.order.wait(CPU, self.clock)


class Stream:
    """A queue, with the methods of torch's streams that the engine uses."""

    made = 0

    def __init__(self, device: Any = None, name: str = "") -> None:
        Stream.made += 1
        self.name = name or f"stream {Stream.made}"

    def record_event(self) -> Event:
        return Event(Watch.at_work, Watch.at_work.order.event(self.name))

    def wait_event(self, event: Event) -> None:
        Watch.at_work.order.wait(self.name, event.clock)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def synchronize(self) -> None:
        self.record_event().synchronize()


class _Device:
    """What torch asks a device's module."""

    _is_in_bad_fork = staticmethod(lambda: False)
    is_available = is_initialized = staticmethod(lambda: True)
    manual_seed_all = staticmethod(lambda seed: None)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    is_bf16_supported = staticmethod(lambda: True)


class _DeviceWithStreams(_Device):
    Stream = Stream
    current_stream = staticmethod(lambda device=None: Watch.at_work.current)

    @staticmethod
    @contextmanager
    def stream(stream: Stream) -> Iterator[None]:
        watch = Watch.at_work
        before, watch.current = watch.current, stream
        try:
            yield
        finally:
            watch.current = before


@functools.cache
def register() -> None:
    """Give this process the device, once."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(KIND, backend_module=_Device())
    torch.Tensor.record_stream = lambda tensor, stream: Watch.at_work.keep(tensor, stream)  # type: ignore[method-assign]


@dataclass
class _Buffer:
    alive: StorageWeakRef
    bytes: int
    on_device: bool
    actor: str  # whose queue it was allocated on
    known: set[str] = field(default_factory=set)  # queues that the allocator waits for


class Watch(TorchDispatchMode):
    """Looks at every operation: where its operands are, on which queue it runs, what memory lives."""

    at_work: Watch

    def __init__(self, allow_float64: bool) -> None:
        super().__init__()
        Watch.at_work = self
        self.seen, self.order, self.current = Seen(), Order(), Stream(name=MAIN)
        self.allow_float64 = allow_float64
        self._buffers: dict[int, _Buffer] = {}
        self._left_out: dict[int, _Buffer] = {}
        self._living = 0

    def leave_out(self, tensors: Iterable[Tensor | None]) -> None:
        """What was there before, and stays: its memory does not count."""
        for tensor in tensors:
            if tensor is not None:
                storage = tensor.untyped_storage()
                buffer = _Buffer(StorageWeakRef(storage), 0, _on_device(tensor), self.current.name)
                self._left_out[storage._cdata] = buffer

    def keep(self, tensor: Tensor, stream: Stream) -> None:
        """`Tensor.record_stream`: its memory is not used again before the stream is done with it."""
        self._buffer(tensor)[1].known.add(stream.name)

    def launched(self, name: str, reads: Iterable[Tensor | None], writes: Iterable[Tensor | None]) -> None:
        """A kernel that is not one of torch's operations."""
        read, written = ([self._access(each) for each in tensors if each is not None] for tensors in (reads, writes))
        self.order.work(self.current.name, read, written, name)
        self.seen.launches += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "aten" or func.is_view:  # such as a question for the device
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        operands = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if name == "_local_scalar_dense":  # what nothing was computed for: true, or one
            self.order.work(self._actor(operands), map(self._access, operands), [], name)
            self.order.wait(CPU, self.order.event(self._actor(operands)))
            return True if operands[0].dtype == torch.bool else 1.0
        result = func(*args, **kwargs)
        results = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        self._look(func, name, args, kwargs, operands, results)
        return result

    def _look(
        self, func: Any, name: str, args: Any, kwargs: Any, operands: list[Tensor], results: list[Tensor]
    ) -> None:
        for each in results:
            self._buffer(each)  # whose memory may be what is free by now
            if _on_device(each) and each.dtype == torch.float64 and not self.allow_float64:
                self.seen.faults.append(f"{name} makes float64 on the device")
        if name.startswith(_NO_WORK):
            return
        written = [value for info, value in _arguments(func, args, kwargs) if info is not None and info.is_write]
        writes = [each for each in tree_leaves(written) if isinstance(each, Tensor)]
        reads = [each for each in operands if all(each is not other for other in writes)]
        writes += [each for each in results if all(each is not other for other in writes)]
        actor = self._actor([*operands, *results])
        self.order.work(actor, map(self._access, reads), map(self._access, writes), name)
        if actor == CPU:
            return
        self.seen.launches += 1
        if len({_on_device(each) for each in (*reads, *writes) if each.dim() or _on_device(each)}) > 1:
            self._copied(name, func, args, kwargs, reads, writes, actor)

    def _copied(
        self, name: str, func: Any, args: Any, kwargs: Any, reads: list[Tensor], writes: list[Tensor], actor: str
    ) -> None:
        """Between the device and CPU memory; the CPU waits for it unless it is asked not to."""
        if name not in ("copy_", "_to_copy"):
            self.seen.faults.append(f"{name} has operands on the device and in CPU memory")
        size = writes[0].numel() * writes[0].element_size()
        if size >= _OF_A_MAP:
            if _on_device(writes[0]):
                self.seen.uploaded += size
            else:
                self.seen.downloaded += size
            self.seen.beside += size if actor != MAIN else 0
        options = {argument.name: value for argument, value in _named(func, args, kwargs)}
        if not options.get("non_blocking"):
            self.order.wait(CPU, self.order.event(actor))

    def _actor(self, tensors: list[Tensor]) -> str:
        return self.current.name if any(_on_device(each) for each in tensors) else CPU

    def _access(self, tensor: Tensor) -> Access:
        key, _ = self._buffer(tensor)
        if not tensor.numel():
            return Access(key, 0, 0)
        start = int(tensor.storage_offset()) * tensor.element_size()
        reach = sum(int(size - 1) * int(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        return Access(key, start, start + (int(reach) + 1) * tensor.element_size())

    def _buffer(self, tensor: Tensor) -> tuple[int, _Buffer]:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._left_out:
            return key, self._left_out[key]
        if key not in self._buffers:
            self._bury()
            device = _on_device(tensor)
            actor = self.current.name if device else CPU
            self._buffers[key] = _Buffer(StorageWeakRef(storage), storage.nbytes(), device, actor)
            if device:
                self._living += storage.nbytes()
                self.seen.peak = max(self.seen.peak, self._living)
        return key, self._buffers[key]

    def _bury(self) -> None:
        """Memory without a reference: what a queue may still use of it counts until the CPU has waited for that."""
        expired = torch.UntypedStorage._expired  # asked of hundreds at each allocation, so without Python's layers
        for key in [key for key, buffer in self._buffers.items() if expired(buffer.alive.cdata)]:
            buffer = self._buffers[key]
            if buffer.known - {buffer.actor} and not self.order.is_done(key):
                continue
            self.order.free(key, buffer.actor, buffer.known)
            del self._buffers[key]
            if buffer.on_device:
                self._living -= buffer.bytes


def _on_device(tensor: Tensor) -> bool:
    return tensor.device.type == KIND


@functools.cache
def _parameters(func: Any) -> tuple[list[Any], dict[str, Any]]:
    positional = [each for each in func._schema.arguments if not each.kwarg_only]
    return positional, {each.name: each for each in func._schema.arguments}


def _named(func: Any, args: Any, kwargs: Any) -> list[tuple[Any, Any]]:
    positional, by_name = _parameters(func)
    return [*zip(positional, args, strict=False), *((by_name[name], value) for name, value in kwargs.items())]


def _arguments(func: Any, args: Any, kwargs: Any) -> list[tuple[Any, Any]]:
    return [(each.alias_info, value) for each, value in _named(func, args, kwargs)]


def _placed(vae: AutoencoderKL, case: Case) -> AutoencoderKL:
    """With weights that have no values, where the case has them."""
    for module in vae.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in list(tensors.items()):
                if tensor is not None:
                    dtype = case.dtype if tensor.is_floating_point() else tensor.dtype
                    there = torch.empty(tensor.shape, dtype=dtype, device=case.weights)
                    setattr(module, name, torch.nn.Parameter(there) if tensors is module._parameters else there)
    return vae


def _tritons() -> Any:
    """Triton's kernels, which write down what they read and write, and compute nothing."""
    from vae_core.streaming import triton_kernels

    def activate(x: Tensor, norm: Any, silu: bool, out: Tensor, above: int, left: int) -> None:
        Watch.at_work.launched("activate", [x, *(norm or ())], [out])

    def finish(result: Tensor, bias: Any, residual: Any, out: Any, partial: Tensor, first: int) -> None:
        Watch.at_work.launched("finish", [result, bias, residual], [out, partial])

    def merge(partial: Tensor, row: Tensor) -> None:
        Watch.at_work.launched("merge", [partial], [row])

    def norm(rows: Tensor, groups: int, eps: float, weight: Tensor, bias: Tensor, *made: Tensor) -> None:
        Watch.at_work.launched("norm", [rows, weight, bias], made)

    context = ExitStack()
    for each in (activate, finish, merge, norm):
        context.enter_context(patch.object(triton_kernels, each.__name__, each))
    context.enter_context(
        patch.object(fused, "_kernels", lambda device, dtype: triton_kernels if device.type == KIND else None)
    )
    return context


BREAKS: dict[str, Callable[[], Any]] = {
    "no wait for an upload": lambda: patch.object(Stream, "wait_event", lambda self, event: None),
    "no wait at the end of a pass": lambda: patch.object(transfer.Transfers, "finish", lambda self: None),
    "no word to the allocator": lambda: patch.object(Watch, "keep", lambda self, tensor, stream: None),
    "no wait before a download": lambda: patch.object(Stream, "wait_stream", lambda self, other: None),
    "float64 on the device": lambda: patch.object(
        stats.StripStats,
        "finished",
        lambda self: stats.ChannelStats(self.count, self.mean.double().cpu(), self.squares.double().cpu()),
    ),
}


@contextmanager
def _planning(seen: Seen) -> Iterator[None]:
    """Writes down each dry run, and how often the reference path is planned."""
    kernels, whole = plan.Execution.kernels, plan._planned_whole

    def dry(execution: Any, source: Any, *args: Any) -> Any:
        limits = tuple(execution.store._ledger.limits.items())
        seen.dry_runs.append(f"{tuple(source.shape)} {execution.manner} {limits}")
        return kernels(execution, source, *args)

    def planned(*args: Any) -> Any:
        seen.wholes += 1
        return whole(*args)

    with patch.object(plan.Execution, "kernels", dry), patch.object(plan, "_planned_whole", planned):
        yield


def simulate(case: Case, broken: str | None = None) -> Seen:
    """Run a case on the device.

    Args:
        broken: one of BREAKS, to see that it is found.
    """
    with (
        BREAKS[broken]() if broken is not None else nullcontext(),
        _tritons() if case.kernels else nullcontext(),
        placed_otherwise(case),
    ):
        try:
            return _simulate(case)
        except Exception:  # torch's own often cannot go to another process
            raise AssertionError(traceback.format_exc()) from None


def _simulate(case: Case) -> Seen:
    register()
    from torch._subclasses.fake_tensor import FakeTensorMode

    setattr(torch, KIND, _DeviceWithStreams() if case.streams else _Device())
    transfer._streams.cache_clear()
    store.pages = lambda size, what: torch.empty(size, dtype=torch.uint8)
    watch = Watch(case.dtype == torch.float64)
    with torch.device("meta"):
        vae = AutoencoderKL(**case.config).eval()
    with FakeTensorMode():
        vae = _placed(vae, case)
        half = encoder_half(vae) if case.direction == "encode" else decoder_half(vae)
        channels = vae.config.in_channels if case.direction == "encode" else vae.config.latent_channels
        unit = half.out_unit if case.direction == "decode" else 1
        shape = case.batch, channels, *(side // unit for side in case.size)
        options = Options(TileSpec(size=case.rows), case.budget, case.circular, case.dtype)  # type: ignore[arg-type]
        with _planning(watch.seen):
            available = 2**50 if case.free is None else 2 * case.free
            job = prepare(half, shape, options, device=KIND, available=None if case.budget else available)
            job = job if case.free is None else job.within(case.free)
        source = torch.empty(shape, dtype=case.dtype, device=case.given)
        out = None if case.out is None else torch.empty(job.output_shape, dtype=case.dtype, device=case.out)
        watch.leave_out((*vae.parameters(), *vae.buffers(), source, out))
        with watch:
            result = job.run(source, out)
            del source, out
            watch._bury()
    seen = watch.seen
    seen.faults += [*watch.order.faults, *unlike_the_plan(case, job)]
    kept = job.plan.terms["kept by allocators"]  # beyond what lives: nothing here keeps anything
    seen.planned, seen.strips, seen.places = job.plan.peak_bytes - kept, job.plan.strips, job.plan.places
    passes: Any = job._planned
    seen.blocks = sum(map(blocks_of, passes.planned.planned)) * -(-case.batch // job.plan.items)
    seen.shape, seen.device = tuple(result.shape), result.device.type
    return seen
