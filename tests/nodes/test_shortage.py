"""Memory that runs out in a node, outside of a job."""

from __future__ import annotations

import errno

import pytest
import torch
from given.nodes import Makers
from host.stand_in import Host, Pack

SHORT = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried"),
]
OTHERS = [RuntimeError("shapes"), torch.OutOfMemoryError("CUDA out of memory"), OSError(errno.ENOSPC, "No space")]


def failing(pack: Pack, error: Exception) -> object:
    class Fails:
        FUNCTION = "run"
        DISPLAY_NAME = "A node"

        def run(self, given: int) -> int:
            if given:
                raise error
            return given

    pack.module("nodes.shortage").say_shortage(Fails)
    return Fails()


@pytest.mark.parametrize("error", SHORT)
def test_it_is_said(pack: Pack, error: Exception) -> None:
    node = failing(pack, error)
    assert node.run(given=0) == 0  # type: ignore[attr-defined]
    with pytest.raises(pack.module("vae_core").MemoryBudgetError, match="memory ran out in A node .* close other"):
        node.run(given=1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", OTHERS)
def test_what_is_no_shortage_of_the_cpus_memory_stays_as_it_is(pack: Pack, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        failing(pack, error).run(given=1)  # type: ignore[attr-defined]
    assert caught.value is error


HUGE = torch.zeros(1).expand(1, 4, 2**22, 2**22)  # more than any machine has, once it is written out


@pytest.mark.parametrize("node", ["SeamlessLatentScale", "SeamlessVAESamplePosterior", "SeamlessPosteriorPreview"])
def test_more_than_the_machine_has(pack: Pack, make: Makers, host: Host, node: str) -> None:
    latent = {"samples": HUGE}
    others = {
        "SeamlessLatentScale": {"samples": latent, "vae": make.vae(), "to": "diffusion"},
        "SeamlessVAESamplePosterior": {"posterior": {**latent, "logvar": HUGE}},
        "SeamlessPosteriorPreview": {"posterior": {**latent, "logvar": HUGE}},
    }
    with pytest.raises(pack.module("vae_core").MemoryBudgetError, match="memory ran out in Seamless"):
        pack.run(node, **others[node])
