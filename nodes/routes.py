"""The web side's questions: what a VAE file is, and what a tiled run would do. Both read headers alone."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .. import vae_core
from ..vae_core import AutoencoderKL, AutoencoderKLConfig, VAEError, VAEInfo
from ..vae_core.checkpoints.build import parse_dtype
from ..vae_core.tiling.grid import spans
from . import catalogue, host, run, unwrap

logger = logging.getLogger("seamless_vae")

# What is planned with where no VAE is known: the shapes of Stable Diffusion's.
_USUAL = AutoencoderKLConfig(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
)
_MAX_SIDE = 2**17  # pixels
_MAX_TILES = 1024  # that are named one by one


def describe(name: str) -> dict[str, Any]:
    """What the VAE of a name in the host's lists is, from its header.

    Returns:
        Under `problem` and `seems_to_be` why it cannot be loaded; both are None if it can.
    """
    try:
        info = _inspected(catalogue.vae_path(name))
    except VAEError as error:
        return {"name": name, "problem": str(error), "seems_to_be": None}
    answer: dict[str, Any] = {
        "name": name,
        "problem": info.problem,
        "seems_to_be": info.seems_to_be,
        "container": info.container,
        "file_size": info.file_size,
    }
    if info.config is not None:
        patch = info.config.patch_size or (1, 1)  # FLUX.2's latents are packed on the wire
        answer |= {
            "family": info.family,
            "family_is_guess": info.family_is_guess,
            "layout": info.layout,
            "prefix": info.prefix,
            "parameters": info.parameters,
            "dtype": str(info.dtype).removeprefix("torch."),
            "latent_channels": info.config.latent_channels * patch[0] * patch[1],
            "ratio": info.config.spatial_ratio * patch[0],
            "scaling_factor": None if info.config.has_batch_norm else info.config.scaling_factor,
            "shift_factor": info.config.shift_factor,
            "remarks": list(info.remarks),
        }
    return answer


def _inspected(path: Path) -> VAEInfo:
    """`inspect_vae`, asked once for each state of a file or folder."""
    files = sorted([*path.glob("*"), *path.glob("vae/*")]) if path.is_dir() else [path]
    state = tuple((str(file), os.stat(file).st_mtime_ns, os.stat(file).st_size) for file in files if file.is_file())
    return _inspect(path, state)


@lru_cache(maxsize=64)
def _inspect(path: Path, _state: tuple) -> VAEInfo:
    return vae_core.inspect_vae(path)


@lru_cache(maxsize=16)
def _model(config: AutoencoderKLConfig) -> AutoencoderKL:
    """A model without weights."""
    with torch.device("meta"):
        return AutoencoderKL(**config).eval().requires_grad_(False)


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
    device: str = "auto"
    dtype: str = "auto"

    @classmethod
    def read(cls, body: object) -> Question:
        """From the JSON of a request. Raises ValueError, with a sentence, for what makes no question."""
        if not isinstance(body, dict):
            raise ValueError("the body of the request is not a JSON object.")
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
                device=str(body.get("device", "auto")),
                dtype=str(body.get("dtype", "auto")),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"a value of the request is missing or wrong: {error}.") from None
        sides = (question.width, question.height)
        if not all(0 < side <= _MAX_SIDE for side in sides) or not 0 < question.batch <= 2**16:
            raise ValueError(f"{sides[0]}x{sides[1]} in a batch of {question.batch} is not a valid size of images.")
        if question.tile_size < 0 or question.overlap < 0 or not 0 <= question.memory_budget < 2**20:
            raise ValueError("tile_size, overlap and memory_budget must not be negative.")
        return question


def plan(question: Question) -> dict[str, Any]:
    """What a tiled node would do, without doing it.

    Returns:
        Under `problem` a sentence where no run is possible. Else `tiles`, [x, y, width, height] of each in pixels of
        the image (empty where the planner cuts every pass as it suits, and where there are very many), and what the
        run costs: `cost` is the arithmetic as a multiple of an untiled run's, `peak_bytes` is beside weights, input and
        output.
    """
    assumed = question.name is None
    try:
        config = _USUAL if question.name is None else _config_of(catalogue.vae_path(question.name))
        ratio = config.spatial_ratio
        rows, columns = question.height // ratio, question.width // ratio
        if not rows or not columns:
            raise vae_core.ShapeError(
                f"{question.width}x{question.height} pixels are less than one latent pixel ({ratio}x{ratio} pixels). "
                f"Use a larger image."
            )
        device = _device(question.device)
        how = unwrap.tiling_options(
            ratio, question.mode, question.tile_size, question.overlap, question.memory_budget, question.circular
        )
        frame = {"ratio": ratio, "width": columns * ratio, "height": rows * ratio, "assumed_vae": assumed}
        frame["device"] = str(device)
        answer = _blended if question.mode == "blended" else _exact
        planned = answer(question, _model(config), how, (rows, columns), device)
        return {**frame, "free_bytes": host.free_memory(device), "problem": None, **planned}
    except VAEError as error:
        return {"problem": str(error), "assumed_vae": assumed}


def _config_of(path: Path) -> AutoencoderKLConfig:
    info = _inspected(path)
    if info.config is None:
        raise vae_core.CheckpointError(info.problem or f"{path.name} is not an AutoencoderKL.")
    return info.config


def _device(name: str) -> torch.device:
    return torch.device(name if name in ("cpu", *host.accelerators()) else host.vae_device())


def _dtype(name: str, device: torch.device) -> torch.dtype:
    return parse_dtype(name) or host.vae_dtype(device)


def _planner(encode: bool) -> Callable[..., vae_core.Plan]:
    return vae_core.plan_encode if encode else vae_core.plan_decode


def _shape(question: Question, config: AutoencoderKLConfig, rows: int, columns: int, batch: int) -> tuple[int, ...]:
    ratio = config.spatial_ratio
    if question.encode:
        return batch, config.in_channels, rows * ratio, columns * ratio
    return batch, config.latent_channels, rows, columns


def _exact(
    question: Question, model: AutoencoderKL, how: run.Options, size: tuple[int, int], device: torch.device
) -> dict[str, Any]:
    ratio = model.config.spatial_ratio
    plan = _planner(question.encode)(
        model,
        _shape(question, model.config, *size, question.batch),
        tiling=how.tiling,
        memory_budget=how.memory_budget,
        device=device,
        dtype=_dtype(question.dtype, device),
    )
    strip = how.tiling.size if how.tiling else None
    bands = spans(size[0], strip, strip) if strip else []
    tiles = [[0, top * ratio, size[1] * ratio, (bottom - top) * ratio] for top, bottom in bands]
    return {
        "tiles": tiles if len(tiles) <= _MAX_TILES else [],
        "way": "strips",
        "reason": "exact mode is chosen",
        "count": 0,
        "columns": 0,
        "rows": 0,
        "passes": plan.passes,
        "strips": plan.strips,
        "places": plan.places._asdict(),
        "peak_bytes": plan.peak_bytes,
        "cost": 1.0,
        "flops": plan.flops,
    }


def _blended(
    question: Question, model: AutoencoderKL, how: run.Options, size: tuple[int, int], device: torch.device
) -> dict[str, Any]:
    tile, ratio = how.tiling, model.config.spatial_ratio
    assert tile is not None and tile.size is not None
    rows, columns = (spans(length, tile.size, tile.stride) for length in size)
    count = len(rows) * len(columns)
    tiles = [
        [left * ratio, top * ratio, (right - left) * ratio, (bottom - top) * ratio]
        for (top, bottom), (left, right) in (itertools.product(rows, columns) if count <= _MAX_TILES else ())
    ]
    # Tiles of one size are planned once: there can be hundreds of millions.
    heights, widths = (Counter(stop - start for start, stop in cuts) for cuts in (rows, columns))
    dtype = _dtype(question.dtype, device)

    def plan_of(height: int, width: int) -> vae_core.Plan:
        shape = _shape(question, model.config, height, width, 1)
        return _planner(question.encode)(model, shape, memory_budget=run.NO_LIMIT, device=device, dtype=dtype)

    with vae_core.kernels("plain"):
        plans = [
            (plan_of(height, width), high * wide) for height, high in heights.items() for width, wide in widths.items()
        ]
        whole = plan_of(*size)
    arithmetic = sum(plan.flops * count for plan, count in plans)
    peak = max(plan.peak_bytes for plan, _ in plans) * question.batch
    return {
        "way": "tiles",
        "reason": "blended mode is chosen",
        "tiles": tiles,
        "count": count,
        "columns": len(columns),
        "rows": len(rows),
        "passes": count,
        "strips": 0,
        "places": {"device": peak, "cpu": 0, "disk": 0},
        "peak_bytes": peak,
        "cost": arithmetic / whole.flops,
        "flops": arithmetic * question.batch,
    }


def register() -> None:
    """Add the routes to the host's server, if there is one."""
    server = host.prompt_server()
    routes = getattr(server, "routes", None)
    if routes is None:
        return
    from aiohttp import web

    def reply(content: object) -> web.Response:
        return web.Response(text=json.dumps(content, default=str, allow_nan=False), content_type="application/json")

    async def answered(work: Callable[..., dict[str, Any]], *arguments: Any) -> web.Response:
        try:
            return reply(await asyncio.get_running_loop().run_in_executor(None, work, *arguments))
        except Exception:  # a question of the web side must never end the server's request without an answer
            logger.exception("the web side's question could not be answered")
            return web.Response(status=500, text="The question could not be answered; see the log.")

    @routes.get("/seamless_vae/info")
    async def info(request: web.Request) -> web.Response:
        return await answered(describe, request.query.get("name", ""))

    @routes.post("/seamless_vae/plan")
    async def plan_route(request: web.Request) -> web.Response:
        try:
            question = Question.read(await request.json())
        except ValueError as error:
            return web.Response(status=400, text=str(error))
        return await answered(plan, question)
