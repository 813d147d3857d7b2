"""What the front end gets: the answers of the routes or a refusal, and the event on the progress of a node."""

from __future__ import annotations

from typing import Literal, TypedDict


class RefusedError(Exception):
    """A question that is not answered: the status of HTTP, and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class UnusableFileAnswer(TypedDict, total=False):
    """On a file that cannot be loaded as a VAE; `name`, `problem` and `seems_to_be` are always there."""

    name: str
    problem: str
    seems_to_be: str | None
    container: str | None
    file_size: int | None


class FileAnswer(TypedDict):
    """On a VAE: what its header tells.

    Attributes:
        file_size: bytes.
        downscale_factor: the downscale factor of its latents on the wire.
    """

    name: str
    problem: None
    seems_to_be: None
    container: str | None
    file_size: int
    family: str | None
    family_is_guess: bool
    layout: str | None
    prefix: str | None
    parameters: int
    dtype: str
    latent_channels: int
    downscale_factor: int
    scaling_factor: float | None
    shift_factor: float | None
    remarks: list[str]


class PlacesAnswer(TypedDict):
    """Bytes of feature maps by place."""

    device: int
    cpu: int
    disk: int


class SecondsAnswer(TypedDict):
    """How long a run will take: likely, and from `low` to `high`."""

    likely: float
    low: float
    high: float


class NoPlanAnswer(TypedDict):
    """On a run that is not possible: why, and whether the VAE was assumed."""

    problem: str
    assumed_vae: bool


class PlanAnswer(TypedDict):
    """On a run as it would be.

    Attributes:
        width, height: pixels that the run takes, whole latent pixels.
        way, reason: how it would run, and why, as the end of a sentence.
        tiles: [x, y, width, height] of tiles or strips in pixels; empty where every pass is cut as suits it, and where
            there are very many.
        count, columns, rows: of tiles, or of strips of a given size; else 0.
        peak_bytes: working memory, beside weights, input and output.
        cost: FLOPs as a multiple of those of an untiled run.
        seconds: by the last runs on this machine; None as long as there were none of the kind.
    """

    problem: None
    assumed_vae: bool
    downscale_factor: int
    width: int
    height: int
    device: str
    way: Literal["whole", "strips", "tiles"]
    reason: str
    tiles: list[list[int]]
    count: int
    columns: int
    rows: int
    passes: int
    strips: int
    places: PlacesAnswer
    peak_bytes: int
    free_bytes: int | None
    cost: float
    flops: int
    seconds: SecondsAnswer | None


# `pass` is a word of Python.
StatusEvent = TypedDict(
    "StatusEvent",
    {
        "node": str | None,
        "done": int,
        "total": int,
        "pass": int,
        "passes": int,
        "memory": int | None,
        "seconds_left": float | None,
        "width": int,
        "height": int,
        "batch": int,
    },
)
"""FLOPs done of the total, the pass at work, bytes of the device in use, and the size of the images in pixels."""
