"""Settings of the whole process, as other packs and training scripts leave them, and what is read of them."""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


@contextmanager
def _set(setter: Callable[[Any], Any], value: Any, before: Any) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(before)


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _raised() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        yield


@contextmanager
def _flags() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = torch.get_float32_matmul_precision()
    with (
        _attribute(matmul, "allow_tf32", True),
        _attribute(cudnn, "benchmark", True),
        _set(torch.set_float32_matmul_precision, "high", before),
    ):
        yield


@contextmanager
def _other_seeds() -> Iterator[None]:
    with torch.random.fork_rng():
        states = random.getstate(), np.random.get_state()
        torch.manual_seed(987654)
        random.seed(1)
        np.random.seed(1)
        yield
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _few_threads() -> Iterator[None]:
    with _set(torch.set_num_threads, 1, torch.get_num_threads()):
        yield


@contextmanager
def _lean() -> Iterator[None]:
    gc.disable()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        gc.enable()


def _dtype(dtype: torch.dtype) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: _set(torch.set_default_dtype, dtype, torch.float32)


class _Watching(torch.overrides.TorchFunctionMode):
    """As libraries that look at every call of torch put one in place."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


# What must change neither what is computed nor where it is.
STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default device": lambda: _set(torch.set_default_device, "meta", None),
    "device as a context": lambda: torch.device("meta"),
    "default dtype float64": _dtype(torch.float64),
    "default dtype bfloat16": _dtype(torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "deterministic": lambda: _set(torch.use_deterministic_algorithms, True, False),
    "detect_anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "flags of products": _flags,
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "one thread": _few_threads,
    "seeds": _other_seeds,
    "warnings and NumPy's errors are raised": _raised,
    "no denormals, no garbage collection": _lean,
    "a mode that looks at functions": _Watching,
    "a profiler": torch.profiler.profile,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def settings() -> dict[str, Any]:
    """What a process has set, to be compared before and after."""
    in_new_thread: list[int] = []
    thread = threading.Thread(target=lambda: in_new_thread.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    numpy_state = np.random.get_state()
    return {
        "threads": torch.get_num_threads(),
        "threads of a new thread": in_new_thread[0],
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.empty(0).device,
        "oneDNN": torch.backends.mkldnn.enabled,
        "cuDNN": (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32),
        "TF32": torch.backends.cuda.matmul.allow_tf32,
        "products": torch.get_float32_matmul_precision(),
        "random": torch.get_rng_state().numpy().tobytes(),
        "Python's random": random.getstate(),
        "NumPy's random": (numpy_state[1].tobytes(), numpy_state[2]),  # type: ignore[index, union-attr]
        "NumPy's errors": np.geterr(),
        "filters": list(warnings.filters),
        "collection": gc.isenabled(),
        "recursion": sys.getrecursionlimit(),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "logging": (list(logging.root.handlers), logging.root.level),
    }


def faults(
    run: Callable[[], Any],
    check: Callable[[Any, Any], None],
    obeyed: Container[str] = (),
    drawn: Container[str] = (),
) -> list[str]:
    """Where a state changes what `run` gives, or `run` what the process has set.

    Args:
        check: takes what was found and what is expected; raises AssertionError where they differ.
        obeyed: states that `run` obeys, as it should.
        drawn: settings that `run` changes, as it should.
    """
    expected, wrong = run(), []
    for name, state in STATES.items():
        if name in obeyed:
            continue
        with state():
            before = settings()
            try:
                found = run()
            except Exception as error:
                wrong.append(f"{name}: {type(error).__name__} {error}")
                continue
            after = settings()
            wrong += [f"{name}: changed {key}" for key in before if key not in drawn and before[key] != after[key]]
        try:
            check(found, expected)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    return wrong


CLOSE = 2e-5  # other kernels, of fewer threads or without oneDNN


def compare(found: Any, expected: Any, atol: float = CLOSE, rel: float = 0.0) -> None:
    """Raise AssertionError where values differ, tensors by more than `atol` and single numbers by more than `rel`."""
    assert type(found) is type(expected), (type(found), type(expected))
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for key in found:
            compare(found[key], expected[key], atol, rel)
    elif isinstance(found, list):
        for one, other in zip(found, expected, strict=True):
            compare(one, other, atol, rel)
    elif isinstance(found, Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)  # type and device too
    else:
        assert found == expected or (rel and found == pytest.approx(expected, rel=rel))
