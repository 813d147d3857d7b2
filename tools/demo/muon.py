"""The Muon optimizer for convolutions (torch's own takes matrices alone)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Coefficients of the quintic iteration that drives singular values to about one (Jordan et al., Muon, 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonalised: every direction of a weight matrix learns at the same rate.

    An autoencoder of photographs is ill-conditioned (brightness varies a thousand times more than fine colour), and
    this reached the same error in a quarter of AdamW's steps. Convolutions count as matrices [K, C * taps].
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}  # which are orthogonalised together
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                gradient = weight.grad.lerp(state["momentum"], group["momentum"]).flatten(1)  # Nesterov's look ahead
                alike.setdefault(gradient.shape, []).append((weight, gradient))
            for shape, members in alike.items():
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                steps = orthogonal(torch.stack([gradient for _, gradient in members]))
                for (weight, _), direction in zip(members, steps, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(direction.view_as(weight), alpha=-group["lr"] * scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T of each matrix [N, rows, columns]."""
    a, b, c = NEWTON_SCHULZ
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide is matrices else x.mT
