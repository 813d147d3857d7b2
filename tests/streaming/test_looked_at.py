"""What looks at each operation of encode and decode sees the modules: transformations, tracers, counters of FLOPs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from given.inputs import image, latent
from given.models import SMALL, make
from given.runs import SIZE
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from vae_core import AutoencoderKL
from vae_core.halves import decoder_half
from vae_core.streaming.choose import is_watched, why_not_strips


def under_vmap(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return torch.vmap(lambda item: function(item[None])[0])


# What looks at each operation of a function of one tensor.
LOOKING: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "vmap": lambda function, x: under_vmap(function)(x),
    "make_fx": lambda function, x: make_fx(function)(x)(x),
    "make_fx before dispatch": lambda function, x: make_fx(function, pre_dispatch=True)(x)(x),
    "make_fx of vmap": lambda function, x: make_fx(under_vmap(function))(x)(x),
    "jvp": lambda function, x: torch.func.jvp(function, (x,), (x,))[0],
    "vjp": lambda function, x: torch.func.vjp(function, x)[0].detach(),
    "jit.trace": lambda function, x: torch.jit.trace(function, x, check_trace=False)(x),  # pyright: ignore[reportCallIssue]
}


@torch.no_grad()
@pytest.mark.parametrize("by", LOOKING)
@pytest.mark.parametrize("half", ["encode", "decode"])
def test_what_looks_at_each_operation_sees_the_modules(by: str, half: str, engine_calls: list[str]) -> None:
    vae = make(SMALL).requires_grad_(False)
    if by == "jvp":
        vae.set_default_attn_processor()  # torch's fused attention has no forward mode
    x = latent(2, SIZE) if half == "decode" else image(2, 2 * SIZE)
    run = (lambda x: vae.decode(x).sample) if half == "decode" else (lambda x: vae.encode(x).latent_dist.parameters)
    whole = vae.decode_reference if half == "decode" else vae.encode_reference
    assert (LOOKING[by](run, x) - whole(x)).abs().max() < 1e-4
    assert not engine_calls
    assert why_not_strips(decoder_half(vae), latent(1, SIZE)) is None and not is_watched(latent(1, SIZE))


@torch.no_grad()
def test_a_counter_of_flops_counts_what_the_modules_do(vae: AutoencoderKL) -> None:
    counted = []
    for decode in (lambda z: vae.decode(z).sample, vae.decode_reference):
        with FlopCounterMode(display=False) as counter:
            decode(latent(1, SIZE))
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0
