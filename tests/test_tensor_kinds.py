"""Tensors that cannot be computed with as they are, given to everything that takes one: a sentence, and no crash.

Each is of the right shape, so that it is refused for what it is: by everything alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from given.odd_tensors import KINDS
from given.pairs import model
from torch import Tensor

import vae_core
from vae_core import VAEError
from vae_core.image import from_image
from vae_core.latent import from_diffusion, to_diffusion
from vae_core.masks import fit_mask
from vae_core.metrics import psnr, ssim
from vae_core.posterior import DiagonalGaussianDistribution
from vae_core.tensor_kinds import given_obstacle, obstacle

# What takes a tensor, and the shape that it asks for.
TAKERS: dict[str, tuple[Callable[[Any], object], tuple[int, ...]]] = {
    "encode": (lambda x: vae_core.encode(model("f4"), x), (1, 3, 16, 16)),
    "decode": (lambda z: vae_core.decode(model("f4"), z), (1, 4, 8, 8)),
    "vae.encode": (lambda x: model("f4").encode(x), (1, 3, 16, 16)),
    "vae.decode": (lambda z: model("f4").decode(z), (1, 4, 8, 8)),
    "vae.tiled_decode": (lambda z: model("f4").tiled_decode(z), (1, 4, 8, 8)),
    "vae()": (lambda x: model("f4")(x), (1, 3, 16, 16)),
    "run": (lambda z: vae_core.prepare_decode(model("f4"), (1, 4, 8, 8)).run(z), (1, 4, 8, 8)),
    "from_image": (from_image, (1, 16, 16, 3)),
    "fit_mask": (lambda mask: fit_mask(mask, (16, 16)), (1, 16, 16)),
    "to_diffusion": (lambda z: to_diffusion(z, model("f4").config), (1, 4, 8, 8)),
    "from_diffusion": (lambda z: from_diffusion(z, model("f4").config), (1, 4, 8, 8)),
    "posterior": (DiagonalGaussianDistribution, (1, 8, 8, 8)),
    "nll": (DiagonalGaussianDistribution(torch.zeros(1, 8, 8, 8)).nll, (1, 4, 8, 8)),
    "psnr": (lambda x: psnr(torch.zeros(1, 3, 16, 16), x), (1, 3, 16, 16)),
    "ssim": (lambda x: ssim(x, torch.zeros(1, 3, 16, 16)), (1, 3, 16, 16)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("taker", TAKERS)
def test_refused_in_a_sentence(taker: str, kind: str) -> None:
    take, shape = TAKERS[taker]
    change, said = KINDS[kind]
    take(torch.zeros(shape))
    with pytest.raises(VAEError) as error:
        take(change(torch.zeros(shape)))
    assert said.partition(".")[0] in str(error.value)


TAKEN: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "a parameter": torch.nn.Parameter,
    "a view": lambda x: torch.cat([x, x])[1:],
    "every second": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "expanded": lambda x: x[:1, :1].expand_as(x),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "half": lambda x: x.half(),
    "empty": lambda x: x[:0],
    "shared": lambda x: x.clone().share_memory_(),
    "of a mapped file": lambda x: torch.from_numpy(np.array(x.numpy(), copy=True)),
    "on meta": lambda x: x.to("meta"),
    "a subclass without a way of its own": lambda x: x.as_subclass(_Named),
}


class _Named(Tensor):
    """As other programs have them, to carry a name or a colour space along."""


@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_taken(kind: str) -> None:
    x = TAKEN[kind](torch.rand(2, 4, 8, 8))
    assert given_obstacle(x) is None
    assert kind == "on meta" or obstacle(x) is None


def test_within_transforms() -> None:
    """Tensors that stand for others, under torch.func and fake modes, have no memory to ask for."""
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(given_obstacle(x))
        return x.square().sum()

    torch.func.grad(look)(torch.rand(2, 4, 8, 8))
    torch.func.vmap(look)(torch.rand(2, 4, 8, 8))
    torch.func.functionalize(look)(torch.rand(2, 4, 8, 8))
    with torch._subclasses.FakeTensorMode():
        look(torch.rand(2, 4, 8, 8))
    assert seen == [None] * 4
