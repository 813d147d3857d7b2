"""How well Winograd's F(4x4, 3x3) rounds in float32, by the points that its transforms are made for.

    python benchmarks/winograd_points.py [--channels 256] [--all]

The points are 0, a, -a, b, -b and infinity. Each pair (a, b) is tried on random normal inputs, with weights such that
outputs have unit variance, and compared with a direct convolution in float64. A common factor of a row of the input's
transform can be moved to the kernel's; that is of no matter to rounding in itself, and rows are left as Lavin and Gray
have them (Fast Algorithms for Convolutional Neural Networks, 2016).

The error is that of the transforms: products are summed in float32 by torch, as everywhere.
"""

from __future__ import annotations

import argparse
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_core.streaming.transforms import TILE, Transform, as_tensor, winograd

PAIRS = ("1 2", "1/2 1", "1/2 2", "2/3 3/2", "3/4 4/3", "3/5 5/3", "1/2 3/2", "5/8 8/5", "2/3 4/3")


def errors(transform: Transform, x: Tensor, weight: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Root of the mean square and largest error of a convolution of x [1, C, H, W], H and W multiples of 4."""
    out, kernel, inputs = (as_tensor(each) for each in (transform.outputs, transform.kernel, transform.inputs))
    transformed_weight = torch.einsum("ir,kcrs,js->ijkc", kernel, weight.double(), kernel).float()
    tiles = (
        F.pad(x, (1, 1, 1, 1)).unfold(2, transform.reach, TILE).unfold(3, transform.reach, TILE)
    )  # [1, C, y, x, 6, 6]
    inputs, out = inputs.float(), out.float()
    transformed = torch.einsum("ir,ncyxrs->ncyxis", inputs, tiles)
    transformed = torch.einsum("ncyxis,js->ijnyxc", transformed, inputs).flatten(2, 4)  # [6, 6, tiles, C]
    products = transformed @ transformed_weight.transpose(2, 3)
    half = torch.einsum("ai,ijtk->ajtk", out, products)
    result = torch.einsum("ajtk,bj->tkab", half, out)
    rows, columns = x.shape[2] // TILE, x.shape[3] // TILE
    result = result.view(rows, columns, -1, TILE, TILE).permute(2, 0, 3, 1, 4).reshape(wanted.shape)
    error = result.double() - wanted
    return error.square().mean().sqrt().item(), error.abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--all", action="store_true", help="all pairs of simple fractions, best first")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    channels = options.channels
    x = torch.randn(1, channels, options.size, options.size, generator=generator)
    weight = torch.randn(channels, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    wanted = F.conv2d(x.double(), weight.double(), padding=1)
    direct = (F.conv2d(x, weight, padding=1).double() - wanted)[None]
    print(f"{channels} channels, outputs of unit variance; mean-square and largest error against float64")
    print(f"{'direct':>12}  {direct.square().mean().sqrt():.1e}  {direct.abs().max():.1e}")
    pairs = [tuple(Fraction(part) for part in pair.split()) for pair in PAIRS]
    if options.all:
        simple = sorted({Fraction(p, q) for p in range(1, 9) for q in range(1, 9) if 0.25 <= p / q <= 4})
        pairs = [(a, b) for a in simple for b in simple if a < b]
    found = [(errors(winograd(a, b), x, weight, wanted), f"{a}, {b}") for a, b in pairs]
    for (mean, largest), name in sorted(found)[: 20 if options.all else None]:
        print(f"{name:>12}  {mean:.1e}  {largest:.1e}")


if __name__ == "__main__":
    main()
