"""Progress where the modules run as they are: counted from outside, and ended from there."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from given.inputs import image, latent
from given.models import ATTENTION_EVERYWHERE, SMALL, make
from given.runs import SIZE, StoppedError
from torch import nn

import vae_core
from vae_core import AutoencoderKL
from vae_core.attention import AttnProcessor
from vae_core.streaming.progress import _IN_FLIGHT, Report, Watched

CPU = torch.device("cpu")


def changed(config: dict[str, Any] = SMALL) -> AutoencoderKL:
    vae = make(config)
    for half in (vae.encoder, vae.decoder):
        half.conv_out.register_forward_hook(lambda *_: None)
    return vae


@pytest.mark.parametrize("config", [SMALL, ATTENTION_EVERYWHERE], ids=["small", "attention in the levels"])
@pytest.mark.parametrize("encoding", [False, True])
def test_a_patched_model_reports_its_progress(config: dict[str, Any], encoding: bool) -> None:
    vae, seen = changed(config), []
    if encoding:
        plan = vae_core.plan_encode(vae, image(2, 2 * SIZE).shape)
        vae_core.encode(vae, image(2, 2 * SIZE), progress=lambda step: seen.append(step[:2]))
    else:
        plan = vae_core.plan_decode(vae, latent(2, SIZE).shape)
        vae_core.decode(vae, latent(2, SIZE), progress=lambda step: seen.append(step[:2]))
    done = [step for step, _ in seen]
    total = seen[0][1]
    assert {each for _, each in seen} == {total} and done == sorted(done) and done[-1] == total
    assert abs(total / plan.flops - 1) < 2e-3  # the 1x1 convolution beside the half is not counted on
    assert max(after - before for before, after in zip([0, *done], done, strict=False)) < total / 4


def test_what_progress_raises_ends_the_reference_path(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, called = changed(), []
    vae.decoder.conv_norm_out.register_forward_hook(lambda *_: called.append(True))

    def stop(step: vae_core.Progress) -> None:
        if step.done > step.total / 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        vae_core.decode(vae, latent(1, SIZE), progress=stop)
    assert not called
    vae_core.decode(vae, latent(1, SIZE))
    assert called  # and the next one is whole


def test_another_kind_of_attention_is_counted() -> None:
    vae = make(ATTENTION_EVERYWHERE)
    vae.set_attn_processor(AttnProcessor())
    seen: list[tuple[int, int]] = []
    vae.decoder.conv_out.register_forward_hook(lambda *_: None)
    vae_core.decode(vae, latent(1, SIZE), progress=lambda step: seen.append(step[:2]))
    assert 0.95 * seen[-1][1] < seen[-2][0] <= seen[-1][1]  # counted, and not just closed


def test_a_compiled_model_is_not_looked_into() -> None:
    vae, seen = make(SMALL), []
    want = vae.decode_reference(latent(1, SIZE))
    vae.decoder.compile(backend="eager")
    try:
        with torch.no_grad():
            vae.decode_reference(latent(1, SIZE))
        got = vae_core.decode(vae, latent(1, SIZE), progress=lambda step: seen.append(step[:2]))
    finally:
        torch._dynamo.reset()
    assert (got - want).abs().max() < 1e-4
    assert len(seen) == 1 and seen[0][0] == seen[0][1]


@pytest.mark.parametrize(
    ("run", "cost"),
    [
        (lambda: F.conv2d(torch.ones(2, 3, 5, 6), torch.ones(4, 3, 3, 3)), 2 * 27 * 4 * 2 * 3 * 4),
        (lambda: nn.Conv2d(4, 6, 1, groups=2)(torch.ones(1, 4, 2, 2)), 2 * 2 * 6 * 4),
        (lambda: nn.Linear(3, 5)(torch.ones(7, 3)), 2 * 3 * 5 * 7),
        (lambda: torch.ones(2, 3, 4) @ torch.ones(2, 4, 5), 2 * 4 * 2 * 3 * 5),
        (lambda: torch.bmm(torch.ones(2, 3, 4), torch.ones(2, 4, 5)), 2 * 4 * 2 * 3 * 5),
        (lambda: torch.baddbmm(torch.ones(2, 3, 5), torch.ones(2, 3, 4), torch.ones(2, 4, 5)), 2 * 4 * 2 * 3 * 5),
        (
            lambda: F.scaled_dot_product_attention(
                torch.ones(1, 2, 3, 4), torch.ones(1, 2, 9, 4), torch.ones(1, 2, 9, 4)
            ),
            4 * 9 * 2 * 3 * 4,
        ),
        (lambda: torch.ones(3) + 1, 0),
    ],
)
def test_what_an_operation_costs(run: Any, cost: int) -> None:
    counted: list[int] = []
    with Watched(CPU, counted.append):
        run()
    assert sum(counted) == cost


def test_other_threads_are_not_counted() -> None:
    counted: list[int] = []
    with Watched(CPU, counted.append):
        thread = threading.Thread(target=lambda: F.linear(torch.ones(2, 2), torch.ones(2, 2)))
        thread.start()
        thread.join()
    assert not counted


def test_on_an_accelerator_what_is_done_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[object] = []

    class Event:
        def record(self) -> None:
            waiting.append(self)

        def synchronize(self) -> None:
            assert waiting.pop(0) is self  # in the order of the queue

    monkeypatch.setattr(torch, "cuda", SimpleNamespace(Event=Event))
    report, most = Report(None), 0
    report.expect(10 * 8, 1)
    with Watched(torch.device("cuda"), report) as watched:
        for _ in range(10):
            F.linear(torch.ones(1, 2), torch.ones(2, 2))
            most = max(most, len(waiting))
    assert most == len(waiting) == _IN_FLIGHT and report.done == (10 - _IN_FLIGHT) * 8
    watched.finish()
    assert not waiting and report.done == report.total
