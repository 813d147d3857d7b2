"""What the tests of collections share: images, settings, and a collection as a table of its bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from given.models import fields, make
from vae_core import AutoencoderKL
from vae_core.datasets import Buckets, Engine, Settings, choose_settings, encode_dataset

# Four levels, so that the downscale factor is 8; a shift and a scale, so that both show.
CONFIG = fields(8, 8, 8, 8, norm_num_groups=4, layers_per_block=1, scaling_factor=0.5, shift_factor=0.25)
BUCKETS = Buckets.parse("64x64:16:32:128")


def small_vae() -> AutoencoderKL:
    return make(CONFIG)


def make_images(folder: Path, count: int, broken: bool = False, seed: int = 0) -> Path:
    """So many smooth images of 40 to 120 pixels in three folders, half JPEG and half PNG, some with alpha or grey."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        width, height = (int(side) for side in rng.integers(40, 121, 2))
        values = rng.integers(0, 256, (4, 4, 4 if i % 5 == 4 else 3), dtype=np.uint8)
        image = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)
        if i % 7 == 3:
            image = image.convert("L")
        place = folder / f"part{i % 3}" / f"image{i:04d}.{'jpg' if i % 2 else 'png'}"
        place.parent.mkdir(parents=True, exist_ok=True)
        (image.convert("RGB") if i % 2 and image.mode == "RGBA" else image).save(place)
    if broken:
        (folder / "part0" / "not_an_image.jpg").write_bytes(b"this is text")
        whole = next((folder / "part1").glob("*.jpg")).read_bytes()
        (folder / "part1" / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def settings(vae: AutoencoderKL, **changes: Any) -> Settings:
    """Shards of six images, batches of three."""
    given = {"buckets": BUCKETS, "shard_images": 6, "batch": 3, "memory_budget": 2**30, "threads": 1, **changes}
    return choose_settings(vae, given.pop("buckets"), **given)


def encode(source: object, out: Path, vae: AutoencoderKL, **options: Any) -> dict[str, int]:
    """Encode in this process; options of `encode_dataset`, and of `settings` the rest."""
    run = {name: options.pop(name) for name in ("engine", "resume", "progress") if name in options}
    run.setdefault("engine", Engine(workers=0))
    return encode_dataset(str(source), out, vae, settings(vae, **options), **run)


def encode_and_die(n: int, source: object, out: Path, vae: AutoencoderKL, **options: Any) -> None:
    """Encode in a process of its own, and end it at once before the n-th time that a file is flushed or renamed."""
    left = n

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **given: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                os._exit(9)
            return real(*arguments, **given)

        return step

    for name in ("fsync", "replace"):
        setattr(os, name, dying(getattr(os, name)))
    encode(source, out, vae, **options)


def committed(out: Path) -> dict[str, int]:
    """The files of shards whose record is there -> when each was written, in ns: what a run must not do again."""
    stems = {place.with_suffix("") for place in out.glob("shards/*/*.json")}
    return {
        str(place): place.stat().st_mtime_ns for place in out.glob("shards/*/*.*") if place.with_suffix("") in stems
    }


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too -> SHA-256 of its bytes."""
    return {
        str(place.relative_to(folder)): hashlib.sha256(place.read_bytes()).hexdigest()
        for place in sorted(folder.rglob("*"))
        if place.is_file()
    }
