"""Every method and property of diffusers' class, called on theirs and on ours: the same answers, the same refusals."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import KeysView, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models import attention_processor as processors
from given.calls import CALLS, OTHERWISE
from given.pairs import narrow, theirs_of
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from vae_core import AutoencoderKL

LINES = [line.strip() for lines in CALLS.values() for line in lines.strip().splitlines()]
NEED_GRADIENTS = ("grad", "vjp", "jac", "hvp")
# Beside a config's fields: who wrote it and where, and what theirs notes for itself.
BESIDE = {"_diffusers_version", "_use_default_values", "_name_or_path"}
NEED_A_HUB = {"from_single_file", "push_to_hub"}  # tests/hub calls them


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def answer(line: str, v: Any, p: Path) -> Any:
    """The value of a line, or the exception that it raises."""
    saved = p.with_name(f"{p.name}_saved")
    p.mkdir()
    if "saved" in line.replace("save_", ""):
        v.save_pretrained(saved)
    names = {
        **{"v": v, "cls": type(v), "p": p, "saved": saved, "x": seeded(1, 2, 3, 40, 40), "z": seeded(2, 2, 4, 20, 20)},
        **{"torch": torch, "nn": nn, "copy": copy, "json": json, "pickle": pickle, "files": files},
        **{"processors": processors, "make_fx": make_fx, "float8": torch.float8_e4m3fn},
    }
    torch.manual_seed(7)
    torch._dynamo.reset()
    wants_gradients = any(word in line for word in NEED_GRADIENTS)
    try:
        with torch.set_grad_enabled(wants_gradients):
            return eval(line, names)  # noqa: S307 - lines of given/calls.py
    except Exception as error:
        return error


def differences(theirs: Any, ours: Any, at: str = "") -> list[str]:
    """Where two answers differ."""
    if isinstance(theirs, Exception) or isinstance(ours, Exception):
        both = isinstance(theirs, Exception) and isinstance(ours, Exception)
        return [] if both else [f"{at}: theirs {theirs!r:.200}, ours {ours!r:.200}"]
    if isinstance(theirs, Tensor):
        if (theirs.shape, theirs.dtype, theirs.device) != (ours.shape, ours.dtype, ours.device):
            return [f"{at}: {theirs.shape} {theirs.dtype}, {ours.shape} {ours.dtype}"]
        if theirs.is_meta:
            return []
        tolerance = 2e-4 if theirs.dtype == torch.float32 else 3e-2
        scale = max(1.0, theirs.detach().float().abs().max().item() if theirs.numel() else 0)
        near = torch.allclose(theirs.float(), ours.float(), atol=tolerance * scale, rtol=0, equal_nan=True)
        return [] if near else [f"{at}: other values"]
    if isinstance(theirs, Mapping):
        keys = [[key for key in each if key not in BESIDE] for each in (theirs, ours)]
        if sorted(keys[0], key=str) != sorted(keys[1], key=str):
            return [f"{at}: {keys[0]}, {keys[1]}"]
        return [each for key in keys[0] for each in differences(theirs[key], ours[key], f"{at}[{key!r}]")]
    if isinstance(theirs, KeysView):
        theirs, ours = list(theirs), list(ours)
    if isinstance(theirs, list | tuple):
        theirs, ours = ([v for v in each if not (isinstance(v, str) and v in BESIDE)] for each in (theirs, ours))
        if len(theirs) != len(ours) or not isinstance(ours, list | tuple):
            return [f"{at}: {theirs!r:.200}, {ours!r:.200}"]
        return [
            each
            for i, pair in enumerate(zip(theirs, ours, strict=True))
            for each in differences(pair[0], pair[1], f"{at}[{i}]")
        ]
    if isinstance(theirs, str | int | float | bool | torch.dtype | torch.device | set | None):
        same = theirs == ours and type(theirs) is type(ours)
        return [] if same else [f"{at}: {theirs!r:.300}, {ours!r:.300}"]
    return [] if callable(theirs) or hasattr(ours, "__dict__") else [f"{at}: {type(theirs)}, {type(ours)}"]


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    for cls in (diffusers.AutoencoderKL, AutoencoderKL):
        monkeypatch.setattr(cls, "_auto_class", None)  # which a call sets for its class
    config = narrow(16, 32, sample_size=32)
    theirs = theirs_of(config).eval()
    ours = AutoencoderKL(**config).eval()
    ours.load_state_dict(theirs.state_dict())
    return [theirs, ours]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=pytest.mark.thorough if "compile(" in line else ()) for line in LINES]
)
def test_the_same_answer(line: str, pair: list[Any], tmp_path: Path) -> None:
    answers = [answer(line, each, tmp_path / name) for each, name in zip(pair, ("theirs", "ours"), strict=True)]
    found = differences(answers[0], answers[1], line)
    assert bool(found) == (line in OTHERWISE), found


def test_every_public_name_is_among_the_calls() -> None:
    theirs = diffusers.AutoencoderKL
    names = {name for name in dir(theirs) if not name.startswith("_") and name not in dir(nn.Module)}
    text = "\n".join(LINES)
    assert {name for name in names if f".{name}" not in text} == NEED_A_HUB
    assert set(OTHERWISE) <= set(LINES)
