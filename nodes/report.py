"""What nodes report: facts, whose text is English here, and in the front end's language on the node's panel.

The texts are those of `locales/en/main.json`, so that a fact and its translations have one key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..vae_core import AutoencoderKLConfig, Job
from ..vae_core.checkpoints.families import FAMILIES, family_of_config
from ..vae_core.units import GIB
from . import host, latents

_LOCALE = Path(__file__).resolve().parents[1] / "locales" / "en" / "main.json"


@cache
def _texts() -> Mapping[str, str]:
    return json.loads(_LOCALE.read_text(encoding="utf-8"))["seamlessVae"]


class Fact:
    """A text by its key, and what stands in its `{places}`: text, a number, another fact, or facts in a row."""

    def __init__(self, key: str, **values: str | int | Fact | Sequence[Fact]) -> None:
        self.key = key
        self.values = values

    def __str__(self) -> str:
        return _texts()[self.key].format(**{name: _english(value) for name, value in self.values.items()})

    def for_page(self) -> dict[str, Any]:
        """What the page's `reported` takes, made of what JSON has."""
        return {"key": self.key, "values": {name: _for_page(value) for name, value in self.values.items()}}


def _english(value: Any) -> Any:
    if isinstance(value, Fact | str | int):
        return str(value)
    return _texts()["report.separator"].join(map(str, value))


def _for_page(value: Any) -> Any:
    if isinstance(value, Fact):
        return value.for_page()
    return value if isinstance(value, str | int) else [each.for_page() for each in value]


Line = Fact | str  # a str is said in English alone: what comes from another pack, or names what a file has


def text_of(lines: Iterable[Line]) -> str:
    """A report in English."""
    return "\n".join(map(str, lines))


def output(lines: Sequence[Line]) -> dict[str, Any]:
    """A report as a node's output on the page."""
    facts = [line.for_page() if isinstance(line, Fact) else line for line in lines]
    return {"text": [text_of(lines)], "facts": facts}


def known(group: str, said: str) -> Line:
    """The text of a group that says this in English; itself if there is none."""
    found = (key for key, text in _texts().items() if key.startswith(f"{group}.") and text == said)
    key = next(found, None)
    return said if key is None else Fact(key)


def counted(key: str, count: int, **values: Any) -> Fact:
    """A fact about a number of things, whose text for one of them has a key of its own."""
    return Fact(f"{key}.one" if count == 1 else f"{key}.many", count=count, **values)


def model_lines(config: AutoencoderKLConfig, parameters: int) -> list[Fact]:
    """What a model of a config is."""
    widths = {"widths": ", ".join(map(str, config.block_out_channels))}
    if config.decoder_widths != config.block_out_channels:
        widths["decoder"] = ", ".join(map(str, config.decoder_widths))
    return [
        Fact("report.family", family=_family(config)),
        Fact("report.images", channels=config.in_channels, factor=latents.wire_factor(config)),
        Fact("report.latents", channels=latents.wire_channels(config), factor=latents.wire_factor(config)),
        Fact("report.scale", scale=_scale(config)),
        Fact("report.parameters", millions=f"{parameters / 1e6:.1f}"),
        Fact("report.widths.two" if "decoder" in widths else "report.widths.one", **widths),
    ]


def _family(config: AutoencoderKLConfig) -> Line:
    family = family_of_config(config)
    if family is not None:
        return family.name
    alike = [each.name for each in FAMILIES if each.has_shapes_of(config)]
    return Fact("report.family.alike", family=alike[0]) if alike else Fact("report.family.none")


def _scale(config: AutoencoderKLConfig) -> Line:
    factor = f"{config.scaling_factor:g}"
    if config.has_batch_norm:
        return Fact("report.scale.batchNorm")
    if config.latents_std is not None:
        return Fact("report.scale.channels", scale=factor)
    return Fact("scaleShift", scale=factor, shift=f"{config.shift_factor:g}") if config.shift_factor else factor


def cost_lines(job: Job) -> list[Fact]:
    """What a decode will take, and whether that is free."""
    batch, _, height, width = job.output_shape
    plan = job.plan
    free = host.free_memory(job.device)
    lines = [
        counted(
            "report.cost", batch, width=width, height=height, flops=f"{plan.flops / 1e12:.2f}", passes=plan.passes,
            memory=_gib(plan.peak_bytes),
        ),
        Fact(f"way.{job.way.name}", reason=known("because", job.way.reason)),
    ]  # fmt: skip
    offloaded = {"cpu": plan.places.cpu, "disk": plan.places.disk}
    lines += [Fact(f"report.offloaded.{place}", memory=_gib(count)) for place, count in offloaded.items() if count]
    if free is not None:
        fits = "fits" if job.bytes.device <= free else "tooLarge"
        lines.append(Fact(f"report.free.{fits}", device=str(job.device), memory=_gib(free)))
    return lines


def _gib(count: int) -> str:
    return f"{count / GIB:.2f}"
