"""Our nodes in a real host: images, the host's own VAE on their inputs, progress, cancelling, errors, memory."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from e2e.conftest import HOST_VAE, PHOTOGRAPH, SMALL_VAE
from e2e.real_host import Comfy, Run, Workflow
from given.growth import anonymous_bytes

import vae_core
from vae_core.cli.common import DEMO, DEMO_PHOTOGRAPH
from vae_core.image import from_pil, open_image, to_image
from vae_core.metrics import psnr

TOLERANCE = 1e-4
LOAD = {"dtype": "auto", "device": "auto", "latent_scale": "auto"}
TILED = {"mode": "exact", "tile_size": 0, "overlap": 128, "memory_budget": 0.0, "circular": "none"}
MIB = 2**20


def load(workflow: Workflow, name: str) -> list:
    return workflow.add("SeamlessVAELoad", vae_name=name, **LOAD)[0]


def test_the_nodes_are_there(comfy: Comfy) -> None:
    nodes = {name: node for name, node in comfy.get("/object_info").items() if name.startswith("Seamless")}
    assert len(nodes) == 16
    for node in nodes.values():
        assert node["category"] == "latent/seamless" and node["description"]
        assert node["python_module"] == "custom_nodes.seamless-vae"
    names = nodes["SeamlessVAELoad"]["input"]["required"]["vae_name"][0]
    assert names[0] == "demo"
    assert {HOST_VAE, SMALL_VAE, "demo_pipeline [diffusers]"} <= set(names)


def test_a_photograph_through_the_demo(comfy: Comfy) -> None:
    workflow = Workflow()
    image = workflow.add("LoadImage", image=PHOTOGRAPH)[0]
    vae = load(workflow, "demo")
    latent, posterior, _, *_ = workflow.add(
        "SeamlessVAEEncode", pixels=image, vae=vae, sample_mode="mean", seed=0, fit="pad"
    )
    decoded = workflow.add("SeamlessVAEDecode", samples=latent, vae=vae, clamp=True)[0]
    workflow.add("SaveImage", images=decoded, filename_prefix="photograph")
    workflow.add("TestKeep", name="photograph", image=decoded, posterior=posterior)
    other = load(workflow, "demo_pipeline [diffusers]")
    workflow.add("TestKeep", name="folder", image=workflow.add("VAEDecode", samples=latent, vae=other)[0])
    rounds = workflow.add("SeamlessVAERoundTrip", pixels=image, vae=vae)
    preview = workflow.add("SeamlessPosteriorPreview", posterior=posterior)
    run = comfy.run(workflow)
    assert run.error is None

    image = from_pil(open_image(DEMO_PHOTOGRAPH))
    model = vae_core.load_vae(DEMO, dtype="float32")
    mode = vae_core.encode(model, image.pixels).mode()
    expected = to_image(image.restore(vae_core.decode(model, mode)))
    kept, metadata = comfy.kept("photograph")
    assert kept["image"].shape == expected.shape
    assert (kept["image"] - expected).abs().max() < TOLERANCE
    assert metadata["keys"] == "logvar samples seamless_fit"
    quality = float(psnr(kept["image"].movedim(-1, 1), to_image(image.restore(image.pixels)).movedim(-1, 1)))
    assert quality > 30, "the demo is known to keep this image at 32 dB and more"

    saved = comfy.folder / "output" / "photograph_00001_.png"
    assert open_image(saved).size == open_image(DEMO_PHOTOGRAPH).size
    shown = run.shown[rounds[0][0]]
    assert shown["text"][0].startswith(f"PSNR {quality:.2f} dB")
    assert len(shown["images"]) == 3 and len(run.shown[preview[0][0]]["images"]) == 1
    for file in shown["images"]:
        assert (comfy.folder / "temp" / file["filename"]).is_file()


def test_the_hosts_vae_in_our_nodes(comfy: Comfy) -> None:
    workflow = Workflow()
    image = workflow.add("TestSeededImage", width=160, height=128, batch=1, channels=3, seed=5)[0]
    vae = workflow.add("VAELoader", vae_name=HOST_VAE)[0]
    theirs = workflow.add("VAEEncode", pixels=image, vae=vae)[0]
    ours = workflow.add("SeamlessVAEEncode", pixels=image, vae=vae, sample_mode="mean", seed=0, fit="crop")
    workflow.add("TestKeep", name="core", latent=theirs, image=workflow.add("VAEDecode", samples=theirs, vae=vae)[0])
    decoded = workflow.add("SeamlessVAEDecode", samples=theirs, vae=vae, clamp=True)[0]
    workflow.add("TestKeep", name="adopted", posterior=ours[1], image=decoded)
    tiles = {**TILED, "tile_size": 32}
    tiled = workflow.add("SeamlessVAEDecodeTiled", samples=theirs, vae=vae, clamp=True, **tiles)[0]
    workflow.add("TestKeep", name="adopted_tiled", image=tiled)
    inspected = workflow.add("SeamlessVAEInspect", vae=vae, samples=theirs)
    run = comfy.run(workflow)
    assert run.error is None
    core, adopted, tiles_kept = (comfy.kept(name)[0] for name in ("core", "adopted", "adopted_tiled"))
    assert (core["samples"] - adopted["samples"]).abs().max() < TOLERANCE
    assert (core["image"] - adopted["image"]).abs().max() < TOLERANCE
    assert (adopted["image"] - tiles_kept["image"]).abs().max() < TOLERANCE
    assert adopted["logvar"].shape == adopted["samples"].shape
    text = run.shown[inspected[0][0]]["text"][0]
    assert "SD 1.x" in text and "weights are used in place" in text and "160x128" in text


@pytest.mark.parametrize("kind", ["TAESD", "WanVAE"])
def test_vaes_of_other_kinds(comfy: Comfy, kind: str) -> None:
    workflow = Workflow()
    image = workflow.add("TestSeededImage", width=64, height=48, batch=7, channels=3, seed=5)[0]
    vae = workflow.add("TestThirdPartyVAE", kind=kind)[0]
    encode = {"pixels": image, "vae": vae, "seed": 0, "fit": "crop"}
    theirs, ours = (
        workflow.add("VAEEncode", pixels=image, vae=vae),
        workflow.add("SeamlessVAEEncode", sample_mode="mean", **encode),
    )
    decoded = workflow.add("SeamlessVAEDecode", samples=theirs[0], vae=vae, clamp=True)[0]
    core = workflow.add("VAEDecode", samples=theirs[0], vae=vae)[0]
    workflow.add("TestKeep", name="core", latent=theirs[0], image=core)
    workflow.add("TestKeep", name="called", latent=ours[0], image=decoded)
    rounds = workflow.add("SeamlessVAERoundTrip", pixels=image, vae=vae)
    inspected = workflow.add("SeamlessVAEInspect", vae=vae)
    run = comfy.run(workflow)
    assert run.error is None
    (core, _), (called, _) = comfy.kept("core"), comfy.kept("called")
    for key in ("samples", "image"):
        assert (core[key] - called[key]).abs().max() < TOLERANCE
    frames = 7 if kind == "TAESD" else 5  # the first, and a group of four
    assert called["image"].shape == (frames, 48, 64, 3)
    shown = run.shown[rounds[0][0]]
    assert len(shown["images"]) == 3 * frames and ("first 5 of 7" in shown["text"][0]) == (frames == 5)
    assert run.shown[inspected[0][0]]["text"][0].startswith(f"third-party VAE: {kind}")
    assert f"Seamless VAE: {kind} is not an AutoencoderKL, so its own methods are used." in comfy.log()

    workflow = Workflow()
    vae = workflow.add("TestThirdPartyVAE", kind=kind)[0]
    image = workflow.add("TestSeededImage", width=64, height=48, batch=7, channels=3, seed=5)[0]
    sampled = workflow.add("SeamlessVAEEncode", sample_mode="sample", **{**encode, "pixels": image, "vae": vae})[0]
    workflow.add("TestKeep", name="never", latent=sampled)
    error = comfy.run(workflow).error
    assert error is not None and "sampling is not possible with this VAE" in error


def test_inpainting_keeps_what_is_not_masked(comfy: Comfy) -> None:
    workflow = Workflow()
    image = workflow.add("TestSeededImage", width=101, height=77, batch=1, channels=3, seed=6)[0]
    mask = workflow.add("TestHalfMask", width=101, height=77)[0]
    vae = load(workflow, "demo")
    latent = workflow.add("SeamlessVAEInpaintEncode", pixels=image, vae=vae, mask=mask, grow=4, feather=3)[0]
    done = workflow.add("SeamlessVAEInpaintComposite", samples=latent, vae=vae, original=image, mask=mask)[0]
    workflow.add("TestKeep", name="original", image=image, latent=latent)
    workflow.add("TestKeep", name="composite", image=done)
    assert comfy.run(workflow).error is None
    original, composite = comfy.kept("original")[0], comfy.kept("composite")[0]["image"]
    assert torch.equal(original["image"][:, :, :50], composite[:, :, :50])
    assert (original["image"][:, :, 50:] != composite[:, :, 50:]).float().mean() > 0.9
    assert original["noise_mask"].shape == (1, 1, 80, 104)


def resident(comfy: Comfy) -> int:
    """Bytes of memory of its own that the host's process has; pages of mapped files are the system's to take."""
    return anonymous_bytes(Path(f"/proc/{comfy.process.pid}/status"))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("name", "budget"), [("demo", 512 * MIB), pytest.param(HOST_VAE, 1024 * MIB, marks=pytest.mark.slow)]
)
def test_a_large_decode_within_its_budget(
    comfy: Comfy, name: str, budget: int, record_property: Callable[[str, object], None]
) -> None:
    channels = 4 if name == HOST_VAE else 16
    workflow = Workflow()
    vae = load(workflow, name)
    latent = workflow.add("TestSeededLatent", width=256, height=256, batch=1, channels=channels, seed=7, frames=0)[0]
    options = {**TILED, "memory_budget": budget / 2**30}
    decoded = workflow.add("SeamlessVAEDecodeTiled", samples=latent, vae=vae, clamp=True, **options)
    workflow.add("TestKeep", name="large", image=decoded[0])
    samples: list[int] = []
    working, finished = threading.Event(), threading.Event()

    def sample() -> None:
        while not finished.wait(0.01):
            if working.is_set():
                samples.append(resident(comfy))

    def watch(message: dict) -> bool:
        if message["type"] == "executing":
            (working.set if message["data"]["node"] == decoded[0][0] else working.clear)()
        return False

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        run = comfy.run(workflow, watch)
    finally:
        finished.set()
        sampler.join()
    assert run.error is None and len(samples) > 10
    image = comfy.kept("large")[0]["image"]
    assert image.shape == (1, 2048, 2048, 3)
    # Beside the budget: the decoded image, of which there is one alone, and what allocators keep.
    output = image.numel() * 4
    grown = max(samples) - samples[0]
    record_property(f"MiB beside the image, of {budget // MIB}", (grown - output) // MIB)  # for --junitxml
    assert grown < budget + output + 32 * MIB, f"grew by {grown / MIB:.0f} MiB"

    workflow = Workflow()
    vae = load(workflow, name)
    latent = workflow.add("TestSeededLatent", width=256, height=256, batch=1, channels=channels, seed=7, frames=0)[0]
    workflow.add("TestKeep", name="whole", image=workflow.add("VAEDecode", samples=latent, vae=vae)[0])
    assert comfy.run(workflow).error is None
    assert (comfy.kept("whole")[0]["image"] - image).abs().max() < TOLERANCE


def in_memory(comfy: Comfy, workflow: Workflow, **inputs: list) -> tuple[int, int]:
    """Models of ours that exist at the end of a workflow, and models that the host counts as loaded."""
    asked = workflow.add("TestAlive", **inputs)[0][0]
    run = comfy.run(workflow)
    assert run.error is None
    return run.shown[asked]["ours"][0], run.shown[asked]["loaded"][0]


def test_our_vae_is_unloaded_with_everything_else(comfy: Comfy) -> None:
    images = []
    for _ in range(2):
        workflow = Workflow()
        vae, theirs = load(workflow, SMALL_VAE), workflow.add("VAELoader", vae_name=HOST_VAE)[0]
        latent = workflow.add("TestSeededLatent", width=8, height=8, batch=1, channels=4, seed=1, frames=0)[0]
        first, second = (
            workflow.add("SeamlessVAEDecode", samples=latent, vae=each, clamp=True)[0] for each in (vae, theirs)
        )
        both = workflow.add("ImageBatch", image1=first, image2=second)[0]
        workflow.add("TestKeep", name="unloaded", image=both)
        ours, loaded = in_memory(comfy, workflow, image=both)
        assert ours >= 1 and loaded >= 2
        images.append(comfy.kept("unloaded")[0]["image"])
        comfy.free()
        for _ in range(50):
            if in_memory(comfy, Workflow()) == (0, 0):
                break
            time.sleep(0.2)
        assert in_memory(comfy, Workflow()) == (0, 0)
    assert torch.equal(*images)


def test_progress_previews_and_status(comfy: Comfy) -> None:
    workflow = Workflow()
    vae = load(workflow, "demo")
    latent = workflow.add("TestSeededLatent", width=96, height=96, batch=2, channels=16, seed=8, frames=0)[0]
    decoded = workflow.add("SeamlessVAEDecode", samples=latent, vae=vae, clamp=True)
    workflow.add("TestKeep", name="progress", image=decoded[0])
    times: list[float] = []
    run = comfy.run(workflow, lambda message: times.append(time.monotonic()) or False)  # type: ignore[func-returns-value]
    assert run.error is None
    values = [each["value"] / each["max"] for each in run.of("progress") if each["node"] == decoded[0][0]]
    assert len(values) >= 5 and values == sorted(values) and values[-1] == 1
    assert run.previews, "a preview of the latent"
    events = run.of("seamless_vae.status")
    assert events and all(event["node"] == decoded[0][0] for event in events)
    for before, after in itertools.pairwise(events):
        assert before["done"] <= after["done"] <= after["total"] == before["total"]
        assert before["pass"] <= after["pass"] <= after["passes"]
    assert all(event["memory"] > 0 for event in events)
    assert len(events) <= 4 * run.seconds + 1


def test_cancelling_in_the_middle_of_an_untiled_decode(comfy: Comfy) -> None:
    workflow = Workflow()
    vae = load(workflow, "demo")
    latent = workflow.add("TestSeededLatent", width=320, height=320, batch=1, channels=16, seed=9, frames=0)[0]
    workflow.add("TestKeep", name="never", image=workflow.add("VAEDecode", samples=latent, vae=vae)[0])
    cancelled: list[float] = []

    def cancel(message: dict) -> bool:
        if message["type"] == "progress" and message["data"]["value"] > 100:
            cancelled.append(time.monotonic())
            return True
        return False

    run = comfy.run(workflow, cancel)
    assert run.interrupted and run.error is None
    assert time.monotonic() - cancelled[0] < 5, "a strip, not an image"
    assert not (comfy.folder / "output" / "never.safetensors").exists()
    test_inpainting_keeps_what_is_not_masked(comfy)  # the host goes on working


ERRORS = {
    "channels": ({"channels": 16}, {}, ["16 channels (SD3, FLUX.1)", "4 channels (SD, SDXL)"]),
    "video": ({"frames": 3}, {}, ["latent of a video", "(1, 4, 3, 8, 8)"]),
    "tile": ({}, {"tile_size": 8, "mode": "blended", "overlap": 8}, ["overlap of 8", "tiles of 8"]),
    "circular": ({}, {"mode": "blended", "circular": "x"}, ["blended tiles cannot be circular"]),
    "budget": ({"width": 512, "height": 512}, {"memory_budget": 0.001}, ["memory budget is too small", "at least"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_sentences(comfy: Comfy, case: str) -> None:
    changed, options, parts = ERRORS[case]
    workflow = Workflow()
    vae = load(workflow, SMALL_VAE)
    shape = {"width": 8, "height": 8, "batch": 1, "channels": 4, "seed": 1, "frames": 0, **changed}
    latent = workflow.add("TestSeededLatent", **shape)[0]
    decoded = workflow.add("SeamlessVAEDecodeTiled", samples=latent, vae=vae, clamp=True, **{**TILED, **options})[0]
    workflow.add("TestKeep", name="never", image=decoded)
    run = comfy.run(workflow)
    assert run.error is not None
    for part in parts:
        assert part in run.error
    assert run.error.endswith(".")


@pytest.mark.parametrize(
    "changed, part",
    [
        ({"vae_name": "gone.safetensors"}, "cannot find a VAE named 'gone.safetensors' in"),
        ({"vae_name": "../../secret.safetensors"}, "points outside the models folders"),
        ({"device": "cuda:7"}, "device cuda:7 is not available, only cpu"),
    ],
)
def test_a_workflow_from_another_machine(comfy: Comfy, changed: dict, part: str) -> None:
    workflow = Workflow()
    vae = workflow.add("SeamlessVAELoad", **{"vae_name": "demo", **LOAD, **changed})[0]
    workflow.add("SeamlessVAEInspect", vae=vae)
    with pytest.raises(AssertionError, match=part):
        comfy.run(workflow)


def swap_run(comfy: Comfy, seed: int) -> Run:
    workflow = Workflow()
    ours, theirs = load(workflow, "demo"), workflow.add("VAELoader", vae_name=HOST_VAE)[0]
    latent = workflow.add("TestSeededLatent", width=8, height=8, batch=1, channels=16, seed=seed, frames=0)[0]
    there = workflow.add("SeamlessVAESwap", samples=latent, from_vae=ours, to_vae=theirs)[0]
    back = workflow.add("SeamlessVAESwap", samples=there, from_vae=theirs, to_vae=ours)
    workflow.add("TestKeep", name="swapped", latent=back[0], image=back[1])
    workflow.add("TestMemory", latent=back[0])
    return comfy.run(workflow)


def test_swapping_forty_times_leaves_memory_where_it_was(comfy: Comfy) -> None:
    held = []
    for seed in range(40):
        run = swap_run(comfy, seed + 1)
        assert run.error is None
        held.append(next(each["bytes"][0] for each in run.shown.values() if "bytes" in each))
    assert comfy.kept("swapped")[1]["keys"] == "kept samples"
    # The first runs fill caches; after them nothing is to add up. A copy of either model would be 16 or 335 MB.
    settled, last = max(held[5:15]), min(held[-5:])
    assert last - settled < 8 * MIB, [each // MIB for each in held]
