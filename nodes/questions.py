"""The front end's questions: what a VAE file is, and what a tiled run would do. Both read headers alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from .. import vae_core
from ..vae_core import AutoencoderKL, AutoencoderKLConfig, CheckpointError, VAEError, VAEInfo
from ..vae_core.checkpoints.build import parse_dtype
from ..vae_core.errors import in_one_line
from . import catalogue, host, latents, speeds
from .answers import FileAnswer, NoPlanAnswer, PlanAnswer, RefusedError, UnusableFileAnswer
from .tiling import options_of

# What is planned with while no VAE is known: the shapes of Stable Diffusion's.
_USUAL = AutoencoderKLConfig(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
)
_MAX_SIDE = 2**17  # pixels
_MAX_PIXELS = 2**32  # of one image
_MAX_BATCH = 2**16  # images
_MAX_BUDGET = 2**20  # GiB
_MAX_TILES = 1024  # that are listed one by one


def describe_file(name: str) -> FileAnswer | UnusableFileAnswer:
    """What the VAE of a name of the catalogue is, from its header."""
    try:
        info = _inspected(catalogue.vae_path(name))
    except VAEError as error:
        return {"name": name, "problem": str(error), "seems_to_be": None}
    config = info.config
    if info.problem is not None or config is None:
        return {
            "name": name,
            "problem": info.problem or f"{name} is not an AutoencoderKL.",
            "seems_to_be": info.seems_to_be,
            "container": info.container,
            "file_size": info.file_size,
        }
    assert info.file_size is not None and info.parameters is not None  # as of every file with a config
    return {
        "name": name,
        "problem": None,
        "seems_to_be": None,
        "container": info.container,
        "file_size": info.file_size,
        "family": info.family,
        "family_is_guess": info.family_is_guess,
        "layout": info.layout,
        "prefix": info.prefix,
        "parameters": info.parameters,
        "dtype": str(info.dtype).removeprefix("torch."),
        "latent_channels": latents.wire_channels(config),
        "downscale_factor": latents.wire_factor(config),
        "scaling_factor": None if config.has_batch_norm else config.scaling_factor,
        "shift_factor": config.shift_factor,
        "remarks": list(info.remarks),
    }


def _inspected(path: Path) -> VAEInfo:
    """`inspect_vae`, asked once for each state of a file or folder."""
    files = sorted([*path.glob("*"), *path.glob("vae/*")]) if os.path.isdir(path) else [path]
    state = tuple((str(file), os.stat(file).st_mtime_ns, os.stat(file).st_size) for file in files if file.is_file())
    return _inspect(path, state)


@lru_cache(maxsize=64)
def _inspect(path: Path, _state: tuple) -> VAEInfo:
    info = vae_core.inspect_vae(path)
    if info.container is None:  # not kept: it may be readable in a moment
        raise CheckpointError(info.problem or f"{path} cannot be read.")
    return info


@lru_cache(maxsize=16)
def _model(config: AutoencoderKLConfig, dtype: torch.dtype) -> AutoencoderKL:
    """A model without weights."""
    with torch.device("meta"):
        return AutoencoderKL(**config.without_extras()).eval().requires_grad_(False).to(dtype)


@dataclass(frozen=True)
class Question:
    """What is to be planned. Sizes are pixels; `memory_budget` is GiB, 0 for automatic; `tile_size` 0 likewise."""

    name: str | None
    encode: bool
    width: int
    height: int
    batch: int = 1
    mode: str = "exact"
    tile_size: int = 0
    overlap: int = 0
    memory_budget: float = 0.0
    circular: str = "none"
    device: str = catalogue.AUTO
    dtype: str = catalogue.AUTO

    @classmethod
    def read(cls, body: object) -> Question:
        """From the JSON of a request. Raises RefusedError if it is not a question."""
        if not isinstance(body, dict):
            raise RefusedError(400, "the body of the request is not a JSON object.")
        try:
            question = cls(
                name=None if body.get("name") is None else str(body["name"]),
                encode=body["direction"] == "encode",
                width=int(body["width"]),
                height=int(body["height"]),
                batch=int(body.get("batch", 1)),
                mode=str(body.get("mode", "exact")),
                tile_size=int(body.get("tile_size", 0)),
                overlap=int(body.get("overlap", 0)),
                memory_budget=float(body.get("memory_budget", 0)),
                circular=str(body.get("circular", "none")),
                device=str(body.get("device", catalogue.AUTO)),
                dtype=str(body.get("dtype", catalogue.AUTO)),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RefusedError(400, f"a value of the request is missing or wrong: {in_one_line(error)}.") from None
        sides = (question.width, question.height)
        if not all(0 < side <= _MAX_SIDE for side in sides) or not 0 < question.batch <= _MAX_BATCH:
            raise RefusedError(
                400, f"{sides[0]}x{sides[1]} in a batch of {question.batch} is not a valid size of images."
            )
        if question.width * question.height > _MAX_PIXELS:
            raise RefusedError(
                400, f"{sides[0]}x{sides[1]} is too large to plan on the page: more than {_MAX_PIXELS} pixels."
            )
        tiles = (question.tile_size, question.overlap)
        if not all(0 <= side <= _MAX_SIDE for side in tiles) or not 0 <= question.memory_budget < _MAX_BUDGET:
            raise RefusedError(
                400,
                f"tile_size and overlap must be from 0 to {_MAX_SIDE}, memory_budget from 0 to {_MAX_BUDGET} GiB.",
            )
        return question


def plan(question: Question) -> PlanAnswer | NoPlanAnswer:
    """What a tiled node would do, without doing it."""
    assumed = question.name is None
    try:
        config = _USUAL if question.name is None else _config_of(catalogue.vae_path(question.name))
        return _planned(question, config, assumed)
    except VAEError as error:
        return {"problem": str(error), "assumed_vae": assumed}


def _planned(question: Question, config: AutoencoderKLConfig, assumed: bool) -> PlanAnswer:
    factor = config.downscale_factor
    rows = question.height // factor
    columns = question.width // factor
    if not rows or not columns:
        raise vae_core.ShapeError(
            f"{question.width}x{question.height} pixels are less than one latent pixel ({factor}x{factor} pixels). "
            f"Use a larger image."
        )
    options = options_of(
        factor, question.mode, question.tile_size, question.overlap, question.memory_budget, question.circular
    )
    device = catalogue.device_of(question.device)
    model = _model(config, parse_dtype(question.dtype) or host.vae_dtype(device))

    if question.encode:
        shape = question.batch, config.in_channels, rows * factor, columns * factor
    else:
        shape = question.batch, config.latent_channels, rows, columns
    prepare = vae_core.prepare_encode if question.encode else vae_core.prepare_decode
    job = prepare(model, shape, options, device=device, available=host.available_memory(device))
    cuts = job.cuts
    places = job.plan.places
    rectangles = [] if cuts is None else cuts.rectangles(_MAX_TILES)
    expected = speeds.estimate(job)
    return {
        "problem": None,
        "assumed_vae": assumed,
        "downscale_factor": factor,
        "width": columns * factor,
        "height": rows * factor,
        "device": str(device),
        "way": job.way.name,
        "reason": job.way.reason,
        "tiles": [[factor * side for side in rectangle] for rectangle in rectangles],
        "count": 0 if cuts is None else cuts.count,
        "columns": 0 if cuts is None else cuts.columns,
        "rows": 0 if cuts is None else cuts.rows,
        "passes": job.plan.passes,
        "strips": job.plan.strips,
        "places": {"device": places.device, "cpu": places.cpu, "disk": places.disk},
        "peak_bytes": job.plan.peak_bytes,
        "free_bytes": host.free_memory(device),
        "cost": job.plan.flops / job.plan.untiled_flops,
        "flops": job.plan.flops,
        "seconds": None if expected is None else {"likely": expected[0], "low": expected[1], "high": expected[2]},
    }


def _config_of(path: Path) -> AutoencoderKLConfig:
    info = _inspected(path)
    if info.config is None:
        raise vae_core.CheckpointError(info.problem or f"{path.name} is not an AutoencoderKL.")
    return info.config
