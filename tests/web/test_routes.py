"""The routes behind the panels: what a file is, what a run would do."""

from __future__ import annotations

import json
import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from given.web_models import sd_fields

import vae_core
from vae_core import AutoencoderKL

pytestmark = pytest.mark.thorough


@pytest.fixture
def url(servers: dict[str, str]) -> str:
    return servers["new"]


def info(url: str, name: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/api/seamless_vae/info?{urllib.parse.urlencode({'name': name})}") as answer:
        return json.load(answer)


def plan(url: str, **question: Any) -> dict[str, Any]:
    body = {"name": "demo", "direction": "decode", "width": 1024, "height": 1024, **question}
    return post(url, json.dumps(body).encode())


def post(url: str, body: bytes) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/seamless_vae/plan", body, headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_a_file_is_described(url: str) -> None:
    found = info(url, "sdxl.safetensors")
    assert (found["problem"], found["seems_to_be"], found["family"]) == (None, None, "SDXL")
    assert (found["latent_channels"], found["downscale_factor"], found["scaling_factor"]) == (4, 8, 0.13025)
    assert found["dtype"] == "float32" and found["layout"] == "LDM"


def test_latents_of_flux2_are_described_as_the_wire_carries_them(url: str) -> None:
    found = info(url, "flux2.safetensors")
    assert (found["latent_channels"], found["downscale_factor"], found["scaling_factor"]) == (128, 16, None)


def test_what_is_no_autoencoder_is_said(url: str) -> None:
    found = info(url, "clip.safetensors")
    assert "text encoder" in found["seems_to_be"] and found["problem"]
    broken = info(url, "broken.safetensors")
    assert "web page" in broken["problem"] and broken["seems_to_be"] is None


@pytest.mark.parametrize(
    "name",
    ["../checkpoints/sd15.safetensors", "/etc/passwd", "..\\x", "", "a\0b", "C:\\x", "missing.safetensors", "x" * 300],
)
def test_names_lead_nowhere_else(url: str, name: str) -> None:
    found = info(url, name)
    assert found["problem"] and "family" not in found


def test_a_checkpoint_of_7_gb_is_answered_in_100_ms(url: str, data: Path) -> None:
    file = data / "models" / "checkpoints" / "sd15.safetensors"
    assert file.stat().st_size > 7e9
    times = [math.inf]
    for step in range(20):  # the fastest of them, because other programs run too
        if min(times) < 0.1:
            break
        os.utime(file, (step, step))  # another state of the file: not from memory
        start = time.perf_counter()
        found = info(url, "sd15.safetensors [checkpoint]")
        times.append(time.perf_counter() - start)
        assert (found["family"], found["prefix"], found["file_size"]) == (
            "SD 1.x",
            "first_stage_model.",
            file.stat().st_size,
        )
    assert min(times) < 0.1


def test_an_exact_plan_is_the_planners_own(url: str) -> None:
    with torch.device("meta"):
        model = AutoencoderKL(**sd_fields())
    expected = vae_core.plan_decode(model, (1, 4, 64, 128), memory_budget=2**28, device="cpu", dtype=torch.float32)
    found = plan(url, name=None, width=1024, height=512, memory_budget=0.25)
    assert found["assumed_vae"] is True
    assert (found["passes"], found["flops"]) == (expected.passes, expected.flops)
    assert found["places"]["disk"] > 0 and found["peak_bytes"] <= 2**28 * 1.01
    assert found["cost"] == 1.0 and found["tiles"] == []


def test_strips_are_where_the_tile_size_says(url: str) -> None:
    found = plan(url, width=520, height=600, tile_size=256)
    assert found["tiles"] == [[0, 0, 520, 256], [0, 256, 520, 256], [0, 512, 520, 88]]


def test_blended_tiles_are_where_the_grid_says(url: str) -> None:
    found = plan(url, name=None, width=1024, height=512, mode="blended", tile_size=512, overlap=128)
    # Stride 384: columns at 0, 384, 768 and rows at 0, 384; the last ones are cut off.
    assert found["tiles"] == [
        [0, 0, 512, 512],
        [384, 0, 512, 512],
        [768, 0, 256, 512],
        [0, 384, 512, 128],
        [384, 384, 512, 128],
        [768, 384, 256, 128],
    ]
    assert found["count"] == 6
    area = sum(width * height for _, _, width, height in found["tiles"]) / (1024 * 512)
    assert 0.9 * area < found["cost"] < area  # all goes by area but attention, which is cheaper in tiles


def test_more_tiles_than_could_be_listed(url: str) -> None:
    found = plan(url, width=65536, height=65536, mode="blended", tile_size=8, overlap=0)
    assert (found["count"], found["columns"], found["rows"]) == (8192**2, 8192, 8192)
    assert found["tiles"] == []  # some of them would look like a part of the image
    assert plan(url, width=64, height=8200, tile_size=8)["tiles"] == []


def test_more_images_take_more(url: str) -> None:
    one, four = (plan(url, width=512, height=512, batch=batch) for batch in (1, 4))
    assert four["flops"] == 4 * one["flops"]


@pytest.mark.parametrize(
    "question, word",
    [
        ({"memory_budget": 0.001}, "memory budget"),
        ({"mode": "blended", "tile_size": 64, "overlap": 64}, "overlap"),
        ({"mode": "blended", "circular": "x"}, "circular"),
        ({"width": 7}, "latent pixel"),
        ({"tile_size": 4}, "tile"),
        ({"name": "clip.safetensors"}, "autoencoder"),
        ({"name": "../x"}, "folders"),
    ],
)
def test_what_cannot_be_planned_is_said(url: str, question: dict[str, Any], word: str) -> None:
    found = plan(url, **question)
    assert word in found["problem"].lower()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"direction": "decode", "width": 1e999, "height": 8}',
        b'{"direction": "decode", "width": "x", "height": 8}',
        b'{"direction": "decode", "width": 999999999, "height": 8}',
        b'{"direction": "decode", "width": 64, "height": 64, "tile_size": -1}',
    ],
)
def test_a_broken_question_is_refused(url: str, body: bytes) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(url, body)
    assert refused.value.code == 400
