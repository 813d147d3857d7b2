"""Weights that are changed, or go, while a run is at work."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import vae_core
from vae_core import AutoencoderKL, Progress, TileSpec, decode


def _load_others(vae: AutoencoderKL) -> None:
    vae.load_state_dict({name: tensor + 1 for name, tensor in vae.state_dict().items()})


CHANGES: dict[str, tuple[Callable[[AutoencoderKL], object], bool]] = {
    "others are loaded": (_load_others, True),
    "one is written to": (lambda vae: nn.init.zeros_(vae.decoder.conv_out.weight), True),
    "another precision": (lambda vae: vae.half(), True),
    "another module": (lambda vae: setattr(vae.decoder, "conv_out", copy.deepcopy(vae.decoder.conv_out).half()), True),
    "a copy": (copy.deepcopy, False),
    "a state that is read": (lambda vae: vae.state_dict(), False),
    "another run": (lambda vae: decode(vae, torch.zeros(1, 4, 4, 4)), False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_weights_that_change_while_they_are_used(
    name: str, vae: AutoencoderKL, threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning says so; what leaves them alone gives none."""
    change, warned = CHANGES[name]
    vae = copy.deepcopy(vae)
    seen: list[object] = []

    def changed(progress: Progress) -> None:
        if len(seen) == 2:
            seen.append(None)
            change(vae)
        else:
            seen.append(progress)

    decode(vae, torch.randn(1, 4, 24, 16), tiling=TileSpec(size=4), progress=changed)
    assert len(seen) > 3
    assert ("the weights of this model were changed while it ran" in caplog.text) == warned


def _give_memory_back(vae: AutoencoderKL) -> None:
    for weight in vae.parameters():
        weight.data = torch.empty(0, dtype=weight.dtype)


GONE: dict[str, Callable[[AutoencoderKL], object]] = {
    "moved to meta": lambda vae: vae.to("meta"),
    "other sizes": _give_memory_back,
    "one of another size": lambda vae: setattr(vae.decoder.conv_out.weight, "data", torch.zeros(5, 3, 3, 3)),
}


@pytest.mark.parametrize("kernels", ["reference", "direct", "winograd"])
@pytest.mark.parametrize("name", GONE)
def test_weights_that_go_while_they_are_used(
    name: str, kernels: Any, vae: AutoencoderKL, threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be computed any more, a sentence says why."""
    vae = copy.deepcopy(vae)
    done: list[object] = []

    def changed(progress: Progress) -> None:
        done.append(progress)
        if len(done) == 3:
            GONE[name](vae)

    try:
        with vae_core.kernels(kernels):
            decode(vae, torch.randn(1, 4, 24, 16), tiling=TileSpec(size=4), progress=changed)
    except vae_core.ConfigError as error:
        assert "meta" in str(error) or "were changed while it ran, which ended it" in str(error)
    else:  # what was packed before was enough
        assert "were changed while it ran" in caplog.text
