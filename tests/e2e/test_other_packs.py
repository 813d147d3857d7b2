"""Nodes of other packs that go into a VAE past its methods, on our VAE and, where it can be asked, on the host's own
with the same weights. COMFYUI_PACKS names folders of packs; without them, what asks for one is skipped.
"""

from __future__ import annotations

import time

import pytest
from e2e.conftest import HOST_VAE, SMALL_VAE
from e2e.real_host import Comfy, Workflow
from e2e.test_core_nodes import TOLERANCE, both_vaes, difference
from e2e.test_our_nodes import in_memory

LOADED = {"dtype": "auto", "device": "auto", "latent_scale": "auto"}


def ask_for(comfy: Comfy, *names: str) -> None:
    """Skip the test if the host has not all of these nodes."""
    missing = [name for name in names if name not in comfy.get("/object_info")]
    if missing:
        pytest.skip(f"the host has no {missing[0]}: COMFYUI_PACKS does not name its pack")


def unload(comfy: Comfy) -> None:
    """Until no model of ours is there; the host does it when it next looks."""
    for _ in range(50):
        comfy.free()
        time.sleep(0.2)
        if in_memory(comfy, Workflow())[0] == 0:
            return
    raise AssertionError("a model of ours stayed in memory")


def latent_of(workflow: Workflow) -> list:
    return workflow.add("TestSeededLatent", width=64, height=56, batch=1, channels=4, seed=5, frames=0)[0]


def report(comfy: Comfy, workflow: Workflow, vae: list) -> str:
    """Run a workflow; what Inspect says of a VAE in it."""
    (node, _), *_ = workflow.add("SeamlessVAEInspect", vae=vae)
    run = comfy.run(workflow)
    assert run.error is None
    return "\n".join(run.shown[node]["text"])


@pytest.mark.parametrize("fast", [False, True])
def test_tiles_by_hooks_on_the_halves(comfy: Comfy, fast: bool) -> None:
    """Tiled Diffusion's nodes put their own `forward` on a half, which walks its blocks by LDM's attributes."""
    ask_for(comfy, "VAEEncodeTiled_TiledDiffusion", "VAEDecodeTiled_TiledDiffusion")
    workflow = Workflow()
    image = workflow.add("TestSeededImage", width=512, height=448, batch=1, channels=3, seed=5)[0]
    latent = latent_of(workflow)
    for name, vae in both_vaes(workflow).items():
        encoded = workflow.add(
            "VAEEncodeTiled_TiledDiffusion", pixels=image, vae=vae, tile_size=256, fast=fast, color_fix=fast
        )[0]
        decoded = workflow.add("VAEDecodeTiled_TiledDiffusion", samples=latent, vae=vae, tile_size=384, fast=fast)[0]
        workflow.add("TestKeep", name=f"{name}_hooked", image=decoded, latent=encoded)
    assert comfy.run(workflow).error is None
    ours, theirs = (comfy.kept(f"{name}_hooked")[0] for name in ("ours", "theirs"))
    for key in ("image", "samples"):
        assert difference(ours[key], theirs[key]) < TOLERANCE, key

    workflow = Workflow()
    for name, vae in both_vaes(workflow).items():
        decoded = workflow.add("VAEDecode", samples=latent_of(workflow), vae=vae)[0]
        workflow.add("TestKeep", name=f"{name}_after", image=decoded)
    vae = workflow.add("SeamlessVAELoad", vae_name=HOST_VAE, **LOADED)[0]
    text = report(comfy, workflow, vae)
    assert "patched" not in text, "the engine is back"
    after, theirs_after = (comfy.kept(f"{name}_after")[0]["image"] for name in ("ours", "theirs"))
    assert difference(after, theirs_after) < TOLERANCE


COMPILED = {"backend": "inductor", "fullgraph": False, "mode": "default"}


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_compiled_half_is_what_runs(comfy: Comfy, half: str) -> None:
    """KJNodes' Torch Compile VAE puts a compiled module in the place of a half; its graphs are counted as they run."""
    ask_for(comfy, "TorchCompileVAE")
    unload(comfy)  # the node compiles once, and the host has it still if it ran before

    def run(name: str, side: int, compiled: bool) -> tuple[int, int]:
        workflow = Workflow()
        vae = workflow.add("SeamlessVAELoad", vae_name=SMALL_VAE, **LOADED)[0]
        if compiled:
            vae = workflow.add("TestCountedCompiler", vae=vae)[0]
            which = {f"compile_{each}": each == half for each in ("encoder", "decoder")}
            vae = workflow.add("TorchCompileVAE", vae=vae, **COMPILED, **which)[0]
        image = workflow.add("TestSeededImage", width=8 * side, height=48, batch=1, channels=3, seed=7)[0]
        latent = workflow.add("TestSeededLatent", width=side, height=6, batch=1, channels=4, seed=7, frames=0)[0]
        decoded = workflow.add("VAEDecode", samples=latent, vae=vae)[0]
        encoded = workflow.add("VAEEncode", pixels=image, vae=vae)[0]
        workflow.add("TestKeep", name=name, image=decoded, latent=encoded)
        # It runs last: after the half that is compiled, whose result it is given, and the other one.
        (asked, _), *_ = workflow.add("TestCompiledCalls", image=decoded, latent=encoded)
        (inspected, _), *_ = workflow.add("SeamlessVAEInspect", vae=vae)
        done = comfy.run(workflow)
        assert done.error is None
        # Inspect speaks of decoding.
        assert ("compiled" in done.shown[inspected]["text"][0]) == (compiled and half == "decoder")
        found = done.shown[asked]
        return found["calls"][0], found["graphs"][0]

    calls, graphs = run("compiled", 8, compiled=True)
    assert calls >= graphs >= 1
    again, _ = run("again", 16, compiled=True)
    assert again > calls, "each run is of the compiled half"
    unload(comfy)  # the node changes the VAE that it is given, which the host would give once more
    run("plain", 8, compiled=False)
    plain, compiled = (comfy.kept(name)[0] for name in ("plain", "compiled"))
    for key in ("image", "samples"):
        assert difference(plain[key], compiled[key]) < TOLERANCE, key


@pytest.mark.slow
def test_compiled_halves(comfy: Comfy) -> None:
    """KJNodes' Torch Compile VAE puts compiled modules in the place of the halves, in the VAE that it is given."""
    ask_for(comfy, "TorchCompileVAE")
    for name in ("plain", "compiled"):
        workflow = Workflow()
        vae = workflow.add("SeamlessVAELoad", vae_name=SMALL_VAE, **LOADED)[0]
        image = workflow.add("TestSeededImage", width=64, height=48, batch=1, channels=3, seed=7)[0]
        latent = workflow.add("TestSeededLatent", width=8, height=6, batch=1, channels=4, seed=7, frames=0)[0]
        if name == "compiled":
            both = {"compile_encoder": True, "compile_decoder": True}
            vae = workflow.add("TorchCompileVAE", vae=vae, **COMPILED, **both)[0]
        encoded = workflow.add("VAEEncode", pixels=image, vae=vae)[0]
        decoded = workflow.add("VAEDecode", samples=latent, vae=vae)[0]
        workflow.add("TestKeep", name=name, image=decoded, latent=encoded)
        assert comfy.run(workflow).error is None
    plain, compiled = (comfy.kept(name)[0] for name in ("plain", "compiled"))
    for key in ("image", "samples"):
        assert difference(plain[key], compiled[key]) < TOLERANCE, key
