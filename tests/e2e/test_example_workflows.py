"""The example workflows, from their files to their images, in a real host."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from e2e.conftest import HOST_VAE
from e2e.real_host import ROOT, Comfy, Run, Workflow, checkout
from PIL import Image, ImageStat

from vae_core import AutoencoderKL, load_vae
from vae_core.cli.common import DEMO
from vae_core.datasets import LatentDataset, verify_dataset

FOLDER = ROOT / "example_workflows"
FILES = sorted(FOLDER.glob("*.json"))
NEEDS_A_MODEL = "tiled_upscale_with_sampler"
# An image of 2048x2048 takes minutes on two cores.
SLOW = {"tiled_upscale"}
SOURCE_IMAGE = "example.png"
VIRTUAL = {"MarkdownNote", "Note", "Reroute", "PrimitiveNode"}
CHOICE_OF_WIDGETS = "COMFY_DYNAMICCOMBO_V3"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def to_prompt(saved: dict[str, Any], definitions: dict[str, Any]) -> Workflow:
    """A workflow as the front end saves it in the form that the host runs.

    Raises:
        AssertionError: a node that the host lacks, a link to nowhere, values that do not go with the widgets.
    """
    sources = {link[0]: [str(link[1]), link[2]] for link in saved["links"]}
    workflow = Workflow()
    for node in saved["nodes"]:
        if node["type"] in VIRTUAL:
            continue
        assert node["type"] in definitions, f"the host has no {node['type']}"
        assert node["mode"] == 0
        groups = definitions[node["type"]]["input"]
        values, inputs = list(node.get("widgets_values") or []), {}
        for name, (kind, *options) in {**groups.get("required", {}), **groups.get("optional", {})}.items():
            if (isinstance(kind, list) or kind in WIDGETS) and not (options and options[0].get("forceInput")):
                inputs[name] = values.pop(0)
                extra = options[0] if options else {}
                if extra.get("control_after_generate") or name in ("seed", "noise_seed") or extra.get("image_upload"):
                    values.pop(0)
                if isinstance(kind, list):
                    assert inputs[name] in kind or name == "ckpt_name", (node["type"], name, inputs[name])
            elif kind == CHOICE_OF_WIDGETS:
                inputs[name] = values.pop(0)
                (chosen,) = (each["inputs"] for each in options[0]["options"] if each["key"] == inputs[name])
                inputs |= {f"{name}.{inner}": values.pop(0) for group in chosen.values() for inner in group}
        links = {each["name"]: each["link"] for each in node["inputs"] if each.get("link") is not None}
        inputs |= {name: sources[link] for name, link in links.items()}
        missing = set(groups.get("required", {})) - set(inputs)
        assert not missing, f"{node['type']} lacks {missing}"
        workflow.nodes[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    for node in workflow.nodes.values():
        for value in node["inputs"].values():
            assert not isinstance(value, list) or value[0] in workflow.nodes
    return workflow


@pytest.fixture(scope="session")
def definitions(comfy: Comfy) -> dict[str, Any]:
    shutil.copy(checkout() / "input" / SOURCE_IMAGE, comfy.folder / "input" / SOURCE_IMAGE)
    return comfy.get("/object_info")


def shown_images(comfy: Comfy, run: Run, saved: dict[str, Any], type_: str) -> list[Image.Image]:
    """What the nodes of a type have shown."""
    ids = [str(node["id"]) for node in saved["nodes"] if node["type"] == type_]
    files = [file for node_id in ids for file in run.shown[node_id]["images"]]
    folders = [comfy.folder / file["type"] / file["subfolder"] / file["filename"] for file in files]
    return [Image.open(path).convert("RGB") for path in folders]


def difference(one: Image.Image, other: Image.Image, box: tuple[int, int, int, int] | None = None) -> float:
    """Mean absolute difference of two images in units of 8 bits."""
    from PIL import ImageChops

    return sum(ImageStat.Stat(ImageChops.difference(one, other).crop(box)).mean) / 3


def read_exr(path: Path) -> np.ndarray:
    """An OpenEXR file of uncompressed rows of 32-bit floats in channels B, G, R, as an array [height, width, 3] of RGB.

    The layout is that of https://openexr.com/en/latest/OpenEXRFileLayout.html.
    """
    data, at, attributes = path.read_bytes(), 8, {}
    assert data[:4] == bytes.fromhex("762f3101")
    while data[at]:
        name, kind, rest = data[at:].split(b"\0", 2)
        start = at + len(name) + len(kind) + 2 + 4
        attributes[name] = rest[4 : 4 + int.from_bytes(rest[:4], "little")]
        at = start + len(attributes[name])
    left, top, right, bottom = np.frombuffer(attributes[b"dataWindow"], "<i4")
    width, height = right - left + 1, bottom - top + 1
    assert attributes[b"compression"] == b"\0"
    rows = np.frombuffer(data, np.uint8, offset=at + 1 + 8 * height).reshape(height, 8 + 12 * width)[:, 8:]
    return np.ascontiguousarray(rows).view("<f4").reshape(height, 3, width)[:, ::-1].transpose(0, 2, 1)


def open_and_run(comfy: Comfy, definitions: dict[str, Any], name: str) -> tuple[dict[str, Any], Run]:
    saved = read(FOLDER / f"{name}.json")
    run = comfy.run(to_prompt(saved, definitions))
    assert run.error is None
    return saved, run


def extracted(run: Run) -> AutoencoderKL:
    """The VAE that the extraction has saved."""
    (text,) = [shown["text"] for shown in run.shown.values() if "text" in shown and "output" in shown["text"][0]]
    return load_vae(text[0])


@pytest.fixture
def checkpoint(comfy: Comfy, definitions: dict[str, Any]) -> Iterator[str]:
    """The name of a checkpoint with random weights, of 2 GB."""
    path = comfy.folder / "models" / "checkpoints" / "random.safetensors"
    workflow = Workflow()
    workflow.add("TestRandomCheckpoint", name=path.name, vae=HOST_VAE)
    try:
        assert comfy.run(workflow).error is None
        yield path.name
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.slow
def test_the_workflow_with_a_model_runs(comfy: Comfy, definitions: dict[str, Any], checkpoint: str) -> None:
    """In small; the checkpoint's own VAE gives what it gives on the host's nodes."""
    workflow = to_prompt(read(FOLDER / f"{NEEDS_A_MODEL}.json"), definitions)
    (loader,), (scale,), (encode,), (sampler,), (decode,) = (
        [node_id for node_id, node in workflow.nodes.items() if node["class_type"] == kind]
        for kind in (
            *("CheckpointLoaderSimple", "ImageScale", "SeamlessVAEEncodeTiled", "KSampler", "SeamlessVAEDecodeTiled"),
        )
    )
    workflow.nodes[loader]["inputs"]["ckpt_name"] = checkpoint
    workflow.nodes[scale]["inputs"] |= {"width": 192, "height": 128}
    workflow.nodes[sampler]["inputs"]["steps"] = 2
    core = {"vae": [loader, 2]}
    workflow.nodes |= {
        "core encode": {"class_type": "VAEEncode", "inputs": {"pixels": [scale, 0], **core}},
        "core decode": {"class_type": "VAEDecode", "inputs": {"samples": [sampler, 0], **core}},
        **{
            name: {"class_type": "TestKeep", "inputs": {"name": name, **inputs}}
            for name, inputs in {
                "ours": {"latent": [encode, 0], "image": [decode, 0]},
                "core": {"latent": ["core encode", 0], "image": ["core decode", 0]},
                "sampled": {"latent": [sampler, 0]},
            }.items()
        },
    }
    run = comfy.run(workflow)
    assert run.error is None
    ours, core, sampled = (comfy.kept(name)[0] for name in ("ours", "core", "sampled"))
    assert ours["image"].shape == (1, 128, 192, 3)
    for key in ("samples", "image"):
        assert (ours[key] - core[key]).abs().max() < 1e-4
    assert sampled["samples"].isfinite().all() and (sampled["samples"] - ours["samples"]).abs().mean() > 0.1
    progress = {message["node"] for message in run.of("progress")}
    assert {encode, sampler, decode} <= progress


@pytest.mark.slow
def test_the_vae_of_a_checkpoint_is_extracted(comfy: Comfy, definitions: dict[str, Any], checkpoint: str) -> None:
    workflow = to_prompt(read(FOLDER / "extract_vae.json"), definitions)
    (loader,) = (key for key, node in workflow.nodes.items() if node["class_type"] == "SeamlessVAELoad")
    workflow.nodes[loader]["inputs"]["vae_name"] = f"{checkpoint} [checkpoint]"
    run = comfy.run(workflow)
    assert run.error is None
    found = extracted(run).state_dict()
    expected = load_vae(comfy.folder / "models" / "checkpoints" / checkpoint).state_dict()
    baked = load_vae(comfy.folder / "models" / "vae" / HOST_VAE).state_dict()
    assert found.keys() == expected.keys() == baked.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    # The host wrote the checkpoint in half precision.
    assert all(torch.equal(found[key].half(), baked[key].half()) for key in found)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(file.stem, marks=[pytest.mark.slow] if file.stem in SLOW else [])
        for file in FILES
        if file.stem != NEEDS_A_MODEL
    ],
)
def test_a_workflow_runs(comfy: Comfy, definitions: dict[str, Any], name: str) -> None:
    saved, run = open_and_run(comfy, definitions, name)
    original = Image.open(comfy.folder / "input" / SOURCE_IMAGE).convert("RGB")
    if name == "encode_and_decode":
        ours, core = shown_images(comfy, run, saved, "PreviewImage")
        assert difference(ours, original) < 6 and difference(ours, core) < 0.01
    elif name == "tiled_upscale":
        (large,) = shown_images(comfy, run, saved, "SaveImage")
        assert large.size == (2048, 2048) and difference(large.resize(original.size), original) < 6
    elif name == "swap_vae":
        between, shown = shown_images(comfy, run, saved, "PreviewImage")
        assert difference(between, original) < 6 and difference(shown, original) < 9
    elif name == "posterior_grid":
        samples = shown_images(comfy, run, saved, "PreviewImage")
        assert len(samples) == 9 and difference(samples[0], samples[1]) > 1
    elif name == "inpaint_with_composite":
        (shown,) = shown_images(comfy, run, saved, "PreviewImage")
        assert difference(shown, original, (0, 0, 768, 300)) == 0
        assert difference(shown, original, (240, 320, 528, 576)) > 1
    elif name == "compare_vaes":
        (row,) = shown_images(comfy, run, saved, "PreviewImage")
        side, step = 384, 384 + 8
        assert row.size == (4 * step - 8, side)
        parts = [row.crop((step * i, 0, step * i + side, side)) for i in range(4)]
        assert difference(parts[0], original.resize((side, side), Image.Resampling.BOX)) < 1
        assert all(0 < difference(part, parts[0]) < 6 for part in parts[1:]) and difference(parts[1], parts[2]) > 0
    elif name == "extract_vae":
        found = extracted(run).state_dict()
        expected = load_vae(DEMO).state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    elif name == "dataset_latents":
        assert len(shown_images(comfy, run, saved, "PreviewImage")) == 6
        (folder,) = (comfy.folder / "output" / "latents").iterdir()
        assert not verify_dataset(folder).faults and len(LatentDataset(folder)) == 1
    elif name == "float_exr":
        (path,) = (comfy.folder / "output").glob("seamless_00001*.exr")
        linear = read_exr(path)
        assert linear.shape == (original.height, original.width, 3)
        assert linear.min() < -1e-4 and linear.max() > 1.001, "what lies beyond black and white is kept"
        encoded = np.where(linear > 0.0031308, 1.055 * np.abs(linear) ** (1 / 2.4) - 0.055, linear * 12.92)
        seen = Image.fromarray((encoded.clip(0, 1) * 255).round().astype(np.uint8))
        assert difference(seen, shown_images(comfy, run, saved, "PreviewImage")[0]) < 1
    else:
        assert name == "seamless_texture"
        (shown,) = shown_images(comfy, run, saved, "PreviewImage")
        assert shown.size == (384, 1024)
        assert difference(shown.crop((0, 0, 384, 512)), shown.crop((0, 512, 384, 1024))) == 0
