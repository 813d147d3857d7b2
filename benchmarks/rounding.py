"""What bfloat16 costs a fast convolution, and where: errors of a whole decode and encode, simulated in float32.

    python benchmarks/rounding.py --size 128

Maps are rounded to bfloat16 between passes, as they are stored, and what is multiplied is rounded as each rule says:
nothing; both factors of a plain convolution; the transformed factors of F(2x2, 3x3) or F(4x4, 3x3) everywhere; those of
F(4x4, 3x3) at the image's own size. Convolutions of a doubled map are plain. The model is SD's autoencoder in full size
with random weights. Errors are against float64, relative to the deviation of the result; beside them stand those of
the modules in bfloat16, which are those of diffusers'. `vae_core.streaming.choose.pass_dtype` follows from them.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable
from fractions import Fraction

import peers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vae_core
from vae_core.streaming.transforms import WINOGRAD, as_tensor

Rule = Callable[[str], str]  # of a convolution's name, how its factors are rounded

_HALF = Fraction(1, 2)
F2 = (
    ((1, 0, 0), (_HALF, _HALF, _HALF), (_HALF, -_HALF, _HALF), (0, 0, 1)),
    ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    ((1, 1, 1, 0), (0, 1, -1, -1)),
)
TRANSFORMS = {
    "F(2x2)": tuple(as_tensor(tuple(tuple(map(Fraction, row)) for row in each), torch.float32) for each in F2),
    "F(4x4)": tuple(as_tensor(each, torch.float32) for each in (WINOGRAD.kernel, WINOGRAD.inputs, WINOGRAD.outputs)),
}


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def convolve(x: Tensor, conv: nn.Conv2d, how: str) -> Tensor:
    """A 3x3 convolution whose factors are rounded."""
    if how == "float32":
        return F.conv2d(x, conv.weight, conv.bias, padding=1)
    if how == "plain":
        return F.conv2d(rounded(x), rounded(conv.weight), conv.bias, padding=1)
    of_kernels, of_inputs, of_outputs = TRANSFORMS[how]
    (tile, reach), (_, _, height, width) = of_outputs.shape, x.shape
    padded = F.pad(x, (1, 1 + -width % tile, 1, 1 + -height % tile))
    tiles = padded.unfold(2, reach, tile).unfold(3, reach, tile)
    inputs = rounded(torch.einsum("ai,nchwij,bj->abnhwc", of_inputs, tiles, of_inputs))
    kernels = rounded(torch.einsum("ai,kcij,bj->abck", of_kernels, conv.weight, of_kernels))
    products = torch.einsum("abnhwc,abck->abnhwk", inputs, kernels)
    y = torch.einsum("oa,abnhwk,pb->nkhowp", of_outputs, products, of_outputs)
    assert conv.bias is not None
    return y.flatten(4, 5).flatten(2, 3)[:, :, :height, :width] + conv.bias[:, None, None]


@torch.no_grad()
def simulate(half: nn.Module, x: Tensor, rule: Rule) -> Tensor:
    """A half of a model whose maps are stored in bfloat16."""
    half = copy.deepcopy(half)

    def forward(x: Tensor, conv: nn.Conv2d, how: str, stored: bool) -> Tensor:
        y = convolve(x, conv, how)
        return rounded(y) if stored else y

    for name, module in half.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.stride == (1, 1):
            small = min(module.in_channels, module.out_channels) < 64
            how = "float32" if small else "plain" if "upsamplers" in name else rule(name)
            stored = not name.endswith(("conv_out", "conv2"))  # what follows is part of the same pass
            module.forward = functools.partial(forward, conv=copy.copy(module), how=how, stored=stored)
        elif type(module).__name__ == "ResnetBlock":
            module.register_forward_hook(lambda module, inputs, output: rounded(output))
    return half(x)


def rules(direction: str) -> dict[str, Rule]:
    finest = "up_blocks.3." if direction == "decode" else "down_blocks.0."
    return {
        "products in float32": lambda name: "float32",
        "plain": lambda name: "plain",
        "F(2x2)": lambda name: "F(2x2)",
        "F(4x4)": lambda name: "F(4x4)",
        "F(4x4) at the image's size": lambda name: "F(4x4)" if finest in name else "float32",
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="of the image, in pixels")
    size = parser.parse_args().size
    half = peers.ours(peers.CONFIGS["full"], torch.bfloat16)
    vae = copy.deepcopy(half).float()
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, size // 8, size // 8, generator=generator) * 2 - 1
    cases = {
        "decode": ("decode", torch.randn(1, 4, size // 8, size // 8, generator=generator)),
        "encode, smooth": ("encode", F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)),
        "encode, noise": ("encode", torch.rand(1, 3, size, size, generator=generator) * 2 - 1),
    }
    with vae_core.kernels("reference"):
        for title, (direction, x) in cases.items():
            x = rounded(x)
            if direction == "decode":  # by the decoder alone, without the convolution before it
                x = rounded(vae.post_quant_conv(x)) if vae.post_quant_conv is not None else x
            module = vae.decoder if direction == "decode" else vae.encoder
            exact = copy.deepcopy(module).double()(x.double())
            reference = getattr(half, f"{direction}r")(x.bfloat16())
            found = {"torch in bfloat16": reference}
            found |= {name: simulate(module, x, rule) for name, rule in rules(direction).items()}
            print(f"{title}, {size}x{size}")
            for name, y in found.items():
                error = (y.double() - exact) / exact.std()
                print(f"  {name:28} RMS {error.square().mean().sqrt():.4f}  largest {error.abs().max():.3f}")


if __name__ == "__main__":
    main()
