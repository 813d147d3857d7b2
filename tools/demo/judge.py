"""How well a model keeps the held-out photographs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lines import Lines, plain_lines
from photographs import held_out
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import vae_core
from vae_core import AutoencoderKL, TileSpec
from vae_core.image import from_pil, to_numpy, write_image
from vae_core.metrics import psnr, ssim

EDGE = 16  # pixels
TILE, OVERLAP = 32, 8  # of blended tiles, in latent pixels
ENLARGED = 2
SHEET_WIDTH, SHEET_COLUMNS, GAP = 360, 2, 6


class Edges(NamedTuple):
    """PSNR in dB of the outermost `EDGE` pixels at each side of an image, and of the rest."""

    left: float
    right: float
    top: float
    bottom: float
    inside: float

    @classmethod
    def of(cls, original: np.ndarray, kept: np.ndarray) -> Edges:
        """Compare bytes [H, W, 3]."""
        error = np.square(original.astype(np.float64) - kept)
        parts = error[:, :EDGE], error[:, -EDGE:], error[:EDGE], error[-EDGE:], error[EDGE:-EDGE, EDGE:-EDGE]
        return cls(*(10 * np.log10(255**2 / part.mean()) for part in parts))


@dataclass(frozen=True)
class Score:
    """How well one held-out photograph is kept."""

    name: str
    size: tuple[int, int]
    psnr: float
    ssim: float
    edges: Edges
    mirrored: Edges  # of the same pixels, the image mirrored so that they are at the opposite side
    lines: dict[str, Lines]  # in plain areas at each side
    enlarged: dict[str, Lines]  # the same of the image at `ENLARGED` times its size


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """(original, reconstruction) as bytes [H, W, 3], of the size that came in."""
    fitted = from_pil(image, multiple=vae.config.downscale_factor)
    decoded = fitted.restore(vae(fitted.pixels).sample)
    return to_numpy(fitted.restore(fitted.pixels))[0], to_numpy(decoded)[0]


def judge(vae: AutoencoderKL, sheet: Path) -> list[Score]:
    """Score every held-out photograph, and write a sheet of originals beside their reconstructions."""
    scores, pairs = [], []
    for name, image in held_out():
        both = reconstruct(vae, image)
        pairs.append(both)
        original, kept = (torch.from_numpy(values.astype(np.float64)).movedim(-1, 0)[None] for values in both)
        noise, similarity = psnr(kept, original, 255).item(), ssim(kept, original, 255).item()
        sideways, upside_down = (
            Edges.of(*(np.flip(values, axis) for values in reconstruct(vae, mirror(image))))
            for mirror, axis in ((ImageOps.mirror, 1), (ImageOps.flip, 0))
        )
        mirrored = sideways._replace(top=upside_down.top, bottom=upside_down.bottom)
        large = image.resize([ENLARGED * side for side in image.size], Image.Resampling.BICUBIC)
        lines, enlarged = (_lines(*each) for each in (both, reconstruct(vae, large)))
        scores.append(Score(name, image.size, noise, similarity, Edges.of(*both), mirrored, lines, enlarged))
    write_image(contact_sheet(pairs), sheet)
    return scores


def _lines(original: np.ndarray, kept: np.ndarray) -> dict[str, Lines]:
    return plain_lines(kept.astype(np.float64) - original, original)


def contact_sheet(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Image.Image:
    """Pairs side by side at one width, two pairs a row."""
    tiles = []
    for pair in pairs:
        height = round(SHEET_WIDTH * pair[0].shape[0] / pair[0].shape[1])
        tile = Image.new("RGB", (2 * SHEET_WIDTH + GAP, height), "white")
        for i, values in enumerate(pair):
            resized = Image.fromarray(values).resize((SHEET_WIDTH, height), Image.Resampling.LANCZOS)
            tile.paste(resized, (i * (SHEET_WIDTH + GAP), 0))
        tiles.append(tile)
    tiles.sort(key=lambda tile: tile.height)  # neighbours of like height waste little
    rows = [tiles[i : i + SHEET_COLUMNS] for i in range(0, len(tiles), SHEET_COLUMNS)]
    heights = [max(tile.height for tile in row) + 3 * GAP for row in rows]
    sheet = Image.new("RGB", (SHEET_COLUMNS * (2 * SHEET_WIDTH + 4 * GAP), sum(heights)), "white")
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            sheet.paste(tile, (j * (2 * SHEET_WIDTH + 4 * GAP), sum(heights[:i])))
    return sheet


class Blended(NamedTuple):
    """Differences of photographs decoded in blended tiles to those decoded whole, in levels of 255."""

    mean: float
    most: float

    @classmethod
    @torch.no_grad()
    def of(cls, vae: AutoencoderKL) -> Blended:
        """Over the held-out photographs."""
        tiling, found = TileSpec(size=TILE, overlap=OVERLAP, mode="blended"), []
        for _, image in held_out():
            z = vae.encode(from_pil(image, multiple=vae.config.downscale_factor).pixels).latent_dist.mode()
            whole = vae_core.decode(vae, z)
            found.append((vae_core.decode(vae, z, tiling=tiling) - whole).abs() * 127.5)
        return cls(float(np.mean([each.mean() for each in found])), float(max(each.max() for each in found)))
