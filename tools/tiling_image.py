"""Make docs/images/tiling.png, and tiling.zh-CN.png in Chinese: what tiling does to an image, by the ways there are.

    pip install matplotlib
    python tools/tiling_image.py [--photograph FILE] [--enlarge 2] [--tile 256]

The photograph's latent is decoded by the bundled VAE whole, by the reference path in double precision; by diffusers'
blended tiles, by blended tiles of ComfyUI's kind, and by exact ones, all with tiles of the same size. Below each is
its difference to the whole, amplified. The outermost pixels are left out: what the bundled VAE makes at the sides of an
image differs by what is beside them, more than at the seams that are to be seen.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import vae_core  # noqa: E402
from vae_core import TileSpec, load_vae  # noqa: E402
from vae_core.image import from_pil, open_image, to_unit_range  # noqa: E402

AMPLIFY = 100
# By language: the ways, what the differences are to, and how large they are.
TEXTS = {
    "en": (
        ("untiled", "blended tiles, as diffusers", "three blended tilings, as ComfyUI", "exact tiles"),
        f"difference to this,\n{AMPLIFY} times",
        "largest {largest}, mean {mean} of 255 levels",
    ),
    "zh": (
        ("不分块", "混合分块（diffusers 的方式）", "三次混合分块（ComfyUI 的方式）", "精确分块"),  # noqa: RUF001
        f"与此图的差异，\n放大 {AMPLIFY} 倍",  # noqa: RUF001
        "最大 {largest}，平均 {mean}（共 255 级）",  # noqa: RUF001
    ),
}
CHINESE_FONTS = ["Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "PingFang SC"]
MARGIN = 112  # pixels
DEMO = ROOT / "vae_core" / "demo"


def averaged_tilings(
    decode: Callable[[Tensor], Tensor], z: Tensor, tile: int, overlap: int, factor: int, channels: int
) -> Tensor:
    """Decode [B, C, h, w] by three tilings, upright, flat and square, each feathered at its tiles' edges; their mean.

    tile and overlap are in latent positions; a tile's weight rises from its edges as (k + 1) / overlap.
    """
    shapes = ((tile * 2, tile // 2), (tile // 2, tile * 2), (tile, tile))
    return sum(_feathered(decode, z, shape, overlap, factor, channels) for shape in shapes) / 3  # type: ignore[return-value]


def _feathered(
    decode: Callable[[Tensor], Tensor], z: Tensor, tile: tuple[int, int], overlap: int, factor: int, channels: int
) -> Tensor:
    lengths = z.shape[2:]
    starts = [
        range(0, length - overlap, size - overlap) if length > size else range(1)
        for length, size in zip(lengths, tile, strict=True)
    ]
    total = z.new_zeros(z.shape[0], channels, lengths[0] * factor, lengths[1] * factor)
    weights = torch.zeros_like(total)
    for y, x in itertools.product(*starts):
        part = decode(z[:, :, y : y + tile[0], x : x + tile[1]])
        weight = _ramp(part.shape[2], overlap * factor)[:, None] * _ramp(part.shape[3], overlap * factor)
        place = (..., slice(y * factor, y * factor + part.shape[2]), slice(x * factor, x * factor + part.shape[3]))
        total[place] += part * weight
        weights[place] += weight
    return total / weights


def _ramp(length: int, extent: int) -> Tensor:
    """Weights along one side of a tile: rising over `extent` from both ends, or flat where the tile is too short."""
    if extent >= length:
        return torch.ones(length)
    rising = (torch.arange(1, length + 1) / extent).clamp(max=1.0)
    return rising * rising.flip(0)


def draw(panels: list[Tensor], language: str, path: Path) -> None:
    """Images [3, H, W] in [0, 1] beside each other, above their differences to the first."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if language == "zh":
        matplotlib.rcParams["font.sans-serif"] = CHINESE_FONTS
    names, to_this, sizes = TEXTS[language]
    height, width = panels[0].shape[1:]
    inches = 4.2
    size = (inches * len(panels), 2 * (inches * height / width + 0.42))
    figure, axes = pyplot.subplots(2, len(panels), figsize=size, dpi=110)
    for name, panel, (above, below) in zip(names, panels, axes.T, strict=True):
        difference = (panel - panels[0]).abs()
        above.set_title(name, fontsize=12)
        above.imshow(panel.permute(1, 2, 0).numpy())
        if panel is panels[0]:
            below.text(0, 0.5, to_this, fontsize=14, va="center", transform=below.transAxes)
        else:
            below.imshow((difference * AMPLIFY).clamp(0, 1).permute(1, 2, 0).numpy())
            levels, mean = difference.max().item() * 255, difference.mean().item() * 255
            below.set_title(sizes.format(largest=number(levels), mean=number(mean)), fontsize=11)
        above.axis("off")
        below.axis("off")
    figure.tight_layout(pad=0.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def number(value: float) -> str:
    return f"{value:.1f}" if value >= 0.1 else "0" if value == 0 else f"{value:.5f}".rstrip("0")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photograph", type=Path, default=DEMO / "chelsea.png")
    parser.add_argument("--enlarge", type=float, default=2.0)
    parser.add_argument("--tile", type=int, default=256, help="side of a tile, in pixels; a quarter of it overlaps")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "tiling.png")
    options = parser.parse_args()
    vae = load_vae(DEMO, dtype="float32")
    factor = vae.config.downscale_factor
    size, overlap = options.tile // factor, options.tile // factor // 4

    photograph = open_image(options.photograph).convert("RGB")
    larger = photograph.resize([round(side * options.enlarge) for side in photograph.size], Image.Resampling.LANCZOS)
    z = vae_core.encode(vae, from_pil(larger, multiple=factor).pixels).mode()

    results = [
        vae_core.decode(vae, z, tiling=TileSpec(size, overlap, "blended")),
        averaged_tilings(vae.decode_reference, z, size, overlap, factor, vae.config.out_channels),
        vae_core.decode(vae, z, tiling=TileSpec(size)),
    ]
    # Last, for it changes the model. In double precision, so that what is seen is the tiles' doing alone.
    results.insert(0, vae.double().decode_reference(z.double()).float())
    inner = (..., slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    panels = [to_unit_range(result[0]).clamp(0, 1)[inner] for result in results]
    draw(panels, "en", options.out)
    draw(panels, "zh", options.out.with_suffix(f".zh-CN{options.out.suffix}"))
    for name, panel in zip(TEXTS["en"][0], panels, strict=True):
        print(f"{name}: largest difference {(panel - panels[0]).abs().max():.2e}")


if __name__ == "__main__":
    main()
