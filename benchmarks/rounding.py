"""What products in bfloat16 cost, and where: errors of a decode and of an encode by the engine.

    python benchmarks/rounding.py --size 256

On a processor with instructions for bfloat16 (avx512_bf16) `vae_core.streaming.choose.pass_dtype` says which passes
multiply in it. Here each kind of pass does so alone, then all that the rule allows, then Winograd's everywhere. Maps
are stored in bfloat16 in every case. The model is SD's autoencoder in full size with random weights; errors are
against the modules in float64, relative to the deviation of the result, and beside them stand those of the modules in
bfloat16.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import peers
import torch
import torch.nn.functional as F
from torch import Tensor

import vae_core
from vae_core.streaming import choose, executor, winograd

KINDS = ("attention", "plain", "doubled", "end of a decode", "other Winograd")
CASES: dict[str, tuple[str, ...]] = {
    "products in float32": (),
    **{f"{kind} alone": (kind,) for kind in KINDS[:4]},
    "as it is": KINDS[:4],
    "Winograd's everywhere": KINDS,
}
RULE = choose.pass_dtype


def kind_of(step: Any, kernel: Any, last: bool) -> str:
    if kernel is choose.PackedAttention:
        return "attention"
    if kernel is not choose.CompiledWinograd:
        return "plain"
    return "doubled" if step.scale == "up" else "end of a decode" if last else "other Winograd"


def rule(kinds: tuple[str, ...]) -> Callable[..., torch.dtype]:
    """`choose.pass_dtype` for passes of these kinds; float32 for others."""

    def pass_dtype(step: Any, kernel: Any, dtype: torch.dtype, maps: torch.dtype, last: bool) -> torch.dtype:
        kind = kind_of(step, kernel, last)
        if kind not in kinds:
            return dtype
        return RULE(step, kernel, dtype, maps, last or kind == "other Winograd")

    return pass_dtype


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="of the image, in pixels")
    parser.add_argument("--config", choices=list(peers.CONFIGS), default="full")
    options = parser.parse_args()
    size = options.size
    if not (winograd.compiled() and winograd.jit().BFLOAT16):
        raise SystemExit("This processor has no instructions for bfloat16, or numba is not installed.")
    vae = peers.ours(peers.CONFIGS[options.config], torch.bfloat16)
    exact = copy.deepcopy(vae).double()
    generator = torch.Generator().manual_seed(0)
    channels, factor = vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1)
    coarse = torch.rand(1, 3, size // 8, size // 8, generator=generator) * 2 - 1
    inputs = {
        "decode": torch.randn(1, channels, size // factor, size // factor, generator=generator),
        "encode, smooth": F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1),
        "encode, noise": torch.rand(1, 3, size, size, generator=generator) * 2 - 1,
    }
    for title, x in inputs.items():
        x = x.bfloat16()
        decodes = title == "decode"
        run: Callable[[Tensor], Tensor] = vae.decode_reference if decodes else vae.encode_reference
        found = {"the modules in bfloat16": run(x)}
        wanted = (exact.decode_reference if decodes else exact.encode_reference)(x.double())
        for name, kinds in CASES.items():
            executor.pass_dtype = rule(kinds)  # type: ignore[attr-defined]
            with vae_core.kernels("winograd"):
                found[name] = vae_core.decode(vae, x) if decodes else vae_core.encode(vae, x).parameters
        print(f"{title}, {size}x{size}")
        for name, y in found.items():
            error = (y.double() - wanted) / wanted.std()
            print(f"  {name:26} RMS {error.square().mean().sqrt():.4f}  largest {error.abs().max():.3f}")


if __name__ == "__main__":
    main()
