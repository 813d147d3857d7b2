"""What the nodes refuse, in sentences, before anything heavy starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from given.nodes import Makers
from host.stand_in import Host, Pack

pytestmark = pytest.mark.usefixtures("host")


class Nested:
    is_nested = True
    ndim, shape = 4, (1, 4, 8, 8)


BAD_LATENTS: dict[str, Any] = {
    "16 channels \\(SD3, FLUX.1\\), but this VAE takes 4 channels \\(SD, SDXL\\)": torch.zeros(1, 16, 8, 8),
    "this is a latent of a video of 2 frames: its shape .* has 5 dimensions": torch.zeros(1, 4, 2, 8, 8),
    "this is a latent of audio: its shape .* has 3 dimensions": torch.zeros(1, 64, 8),
    "this latent is empty": torch.zeros(0, 4, 8, 8),
    "this latent is nested": Nested(),
    "this is not a latent": None,
    "this is not a latent: what it has as samples is a ndarray": np.zeros((1, 4, 8, 8)),
    "this is not a latent: what it has as samples is a tensor of torch.complex64": torch.zeros(
        1, 4, 8, 8, dtype=torch.complex64
    ),
}


@pytest.mark.parametrize("message", BAD_LATENTS)
@pytest.mark.parametrize(
    "node",
    [
        "SeamlessVAEDecode",
        "SeamlessVAEDecodeTiled",
        "SeamlessVAESwap",
        "SeamlessLatentScale",
        "SeamlessVAEInpaintComposite",
    ],
)
def test_latents_that_do_not_fit(pack: Pack, make: Makers, host: Host, node: str, message: str) -> None:
    vae = make.vae()
    others = {"from_vae": vae, "to_vae": vae} if node == "SeamlessVAESwap" else {"vae": vae}
    if node == "SeamlessVAEInpaintComposite":
        others |= {"original": make.image(1, 16, 16, 3), "mask": torch.ones(1, 16, 16)}
    with pytest.raises(ValueError, match=message) as caught:
        pack.run(node, samples={"samples": BAD_LATENTS[message]}, **others)
    assert isinstance(caught.value, pack.module("vae_core").VAEError) and str(caught.value).endswith(".")
    assert not host.loads and not host.progress


UINT8 = "This image has dtype uint8; ComfyUI images are floating point from 0 to 1. Divide by 255 before connecting it."
BAD_IMAGES: dict[str, Any] = {
    "not a batch of images": torch.zeros(0, 8, 8, 3),
    "not a batch of images: it has the shape \\(8, 8, 3\\)": torch.zeros(8, 8, 3),
    "not a batch of images: it is a NoneType": None,
    "5 channels has no known colours": torch.zeros(1, 8, 8, 5),
    UINT8: torch.full((1, 8, 8, 3), 255, dtype=torch.uint8),
    "This image has dtype complex64": torch.zeros(1, 8, 8, 3, dtype=torch.complex64),
    "This image has dtype float8_e4m3fn; .* Convert it to float32": torch.zeros(1, 8, 8, 3).to(torch.float8_e4m3fn),
    "already has 192 values that are NaN": torch.full((1, 8, 8, 3), float("nan")),
}


@pytest.mark.parametrize("node", ["SeamlessVAEEncode", "SeamlessVAERoundTrip", "SeamlessVAEInpaintEncode"])
@pytest.mark.parametrize("message", BAD_IMAGES)
def test_images_that_do_not_fit(pack: Pack, make: Makers, host: Host, node: str, message: str) -> None:
    others = {"mask": torch.ones(1, 8, 8)} if node == "SeamlessVAEInpaintEncode" else {}
    with pytest.raises(Exception, match=message) as caught:
        pack.run(node, pixels=BAD_IMAGES[message], vae=make.vae(), **others)
    assert isinstance(caught.value, pack.module("vae_core").VAEError) and str(caught.value).endswith(".")
    assert not host.progress and (not host.loads or "NaN" in message)


@pytest.mark.parametrize("message", [message for message, image in BAD_IMAGES.items() if "NaN" not in message])
def test_originals_that_do_not_fit(pack: Pack, make: Makers, host: Host, message: str) -> None:
    inputs = {"samples": make.latent(1, 4, 4, 4), "mask": torch.ones(1, 8, 8), "vae": make.vae()}
    with pytest.raises(ValueError, match=f"{message}|has 3 channels and the original 5"):
        pack.run("SeamlessVAEInpaintComposite", original=BAD_IMAGES[message], **inputs)
    assert not host.progress


@pytest.mark.parametrize("mask", [None, torch.zeros(0, 8, 8), torch.zeros(2, 8, 8)])
def test_masks_that_do_not_fit(pack: Pack, make: Makers, host: Host, mask: Any) -> None:
    pixels, vae = make.image(3, 8, 8, 3), make.vae()
    for node, inputs in (
        ("SeamlessVAEInpaintEncode", {"pixels": pixels}),
        ("SeamlessVAEInpaintComposite", {"original": pixels, "samples": make.latent(1, 4, 4, 4)}),
    ):
        with pytest.raises(ValueError, match="not a mask|has the shape|do not match"):
            pack.run(node, vae=vae, mask=mask, **inputs)
    assert not host.loads


@pytest.mark.parametrize("call", ["encode", "encode_tiled", "decode", "decode_tiled"])
@pytest.mark.parametrize("what", [None, [1], torch.zeros(8), torch.zeros(1, 8, 8, 3, dtype=torch.complex64)])
def test_what_core_nodes_and_packs_hand_over(pack: Pack, make: Makers, host: Host, call: str, what: Any) -> None:
    with pytest.raises(
        ValueError, match="not a batch of images|This image has|this is not a latent|this is a latent of"
    ):
        getattr(make.vae(), call)(what)
    assert not host.loads


def test_a_latent_without_numbers_in_a_large_batch(pack: Pack, make: Makers, host: Host) -> None:
    """Refused before the items in front of it are decoded."""
    latent = make.latent(4, 4, 64, 64)
    latent["samples"][3, 0, 0, 0] = float("inf")
    with pytest.raises(ArithmeticError, match="this latent already has 1 values that are NaN or infinite, of 65536"):
        pack.run("SeamlessVAEDecode", samples=latent, vae=make.vae())
    assert not host.progress


@pytest.mark.parametrize(
    "node", ["SeamlessVAEDecode", "SeamlessVAEDecodeTiled", "SeamlessVAESwap", "SeamlessVAEInspect"]
)
def test_images_that_no_memory_holds(pack: Pack, make: Makers, host: Host, node: str) -> None:
    """The image alone is more than the machine has, whatever a plan would say of the work."""
    vae, latent = make.vae(), {"samples": torch.zeros(1, 4, 1, 1).expand(1, 4, 40000, 40000)}
    others = {"from_vae": vae, "to_vae": vae} if node == "SeamlessVAESwap" else {"vae": vae}
    with pytest.raises(MemoryError, match="1 image of 80000x80000, which need 71.5 GiB, but cpu has 16.0 GiB in total"):
        pack.run(node, samples=latent, **others)
    assert not host.loads


def test_masks_that_hold_no_numbers(pack: Pack, make: Makers, host: Host) -> None:
    mask = torch.ones(1, 20, 24)
    mask[0, 0, 0] = float("nan")
    with pytest.raises(ArithmeticError, match="this mask already has 1 values that are NaN"):
        pack.run("SeamlessVAEInpaintEncode", pixels=make.image(), vae=make.vae(), mask=mask)
    assert not host.loads


# A host checks what is typed into widgets, but not what other nodes give to them.
LINKED: dict[str, tuple[str, dict[str, Any]]] = {
    "grow is -6; it must be 0 or more": ("SeamlessVAEInpaintEncode", {"grow": -6}),
    "feather is -1": ("SeamlessVAEInpaintEncode", {"feather": -1}),
    "temperature is -0.5": ("SeamlessVAESamplePosterior", {"temperature": -0.5}),
    "temperature is nan": ("SeamlessVAESamplePosterior", {"temperature": float("nan")}),
    "count is 0; it must be 1 or more": ("SeamlessVAESamplePosterior", {"count": 0}),
    "sample_mode is 'mode'; it must be one of mean, sample": ("SeamlessVAESamplePosterior", {"sample_mode": "mode"}),
    "sample_mode is 'Sample'": ("SeamlessVAEEncode", {"sample_mode": "Sample"}),
    "memory_budget is inf": ("SeamlessVAEDecodeTiled", {"memory_budget": float("inf")}),
    "memory_budget is -1.0": ("SeamlessVAEDecodeTiled", {"memory_budget": -1.0}),
    "tile_size is -8": ("SeamlessVAEDecodeTiled", {"tile_size": -8}),
    "overlap is -8": ("SeamlessVAEDecodeTiled", {"mode": "blended", "overlap": -8}),
    "the tiling mode is 'feathered'; it must be one of exact, blended": (
        "SeamlessVAEDecodeTiled",
        {"mode": "feathered"},
    ),
    "circular is 'z'": ("SeamlessVAEDecodeTiled", {"circular": "z"}),
    "to is 'latent'": ("SeamlessLatentScale", {"to": "latent"}),
    "format is 'gguf'": ("SeamlessVAESave", {"format": "gguf"}),
    "latent_scale is 'SD 9'; it must be one of auto, SD 1.x": ("SeamlessVAELoad", {"latent_scale": "SD 9"}),
}


@pytest.mark.parametrize("message", LINKED)
def test_values_that_are_linked_to_widgets(pack: Pack, make: Makers, host: Host, message: str) -> None:
    node, changed = LINKED[message]
    offered: dict[str, Any] = {
        **{"pixels": make.image(), "mask": torch.ones(1, 20, 24), "samples": make.latent(), "vae_name": "demo"},
        "posterior": {**make.latent(), "logvar": torch.zeros(1, 4, 10, 12)},
    }
    if node != "SeamlessVAELoad":
        offered["vae"] = make.vae()
    groups = pack.root.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    with pytest.raises(ValueError, match=message) as caught:
        pack.run(node, **{name: offered[name] for name in groups["required"] if name in offered}, **changed)
    assert isinstance(caught.value, pack.module("vae_core").VAEError) and str(caught.value).endswith(".")
    assert not host.loads


def test_a_posterior_of_complex_numbers(pack: Pack, make: Makers) -> None:
    posterior = {**make.latent(), "logvar": torch.zeros(1, 4, 10, 12, dtype=torch.complex64)}
    with pytest.raises(ValueError, match=r"is \(1, 4, 10, 12\) of torch.complex64"):
        pack.run("SeamlessPosteriorPreview", posterior=posterior)


def test_a_posterior_without_numbers(pack: Pack, make: Makers) -> None:
    posterior = {**make.latent(), "logvar": torch.full((1, 4, 10, 12), float("nan"))}
    with pytest.raises(ArithmeticError, match="this posterior already has 480 values that are NaN or infinite, of 960"):
        pack.run("SeamlessPosteriorPreview", posterior=posterior)


KEYS_OF_OTHERS: dict[str, Any] = {
    "batch_index": [[None, "x"], ["a", "b"], 3, [0]],
    "seamless_fit": [("a", "b", 10, 12), (-3, 0, 10, 12), (0, 24, 10, 12), (3.5, 9, 10, 12), "abcd", 7, None],
}


@pytest.mark.parametrize("key", KEYS_OF_OTHERS)
def test_keys_that_others_wrote_are_no_obstacle(pack: Pack, make: Makers, key: str) -> None:
    vae, latent = make.vae(), make.latent(2, 4, 10, 12)
    (plain,) = pack.run("SeamlessVAEDecode", samples=latent, vae=vae)
    posterior = {**latent, "logvar": torch.zeros(2, 4, 10, 12)}
    (sampled,) = pack.run("SeamlessVAESamplePosterior", posterior=posterior, seed=1)
    for value in KEYS_OF_OTHERS[key]:
        (image,) = pack.run("SeamlessVAEDecode", samples={**latent, key: value}, vae=vae)
        assert torch.equal(image, plain)
        (again,) = pack.run("SeamlessVAESamplePosterior", posterior={**posterior, key: value}, seed=1)
        assert torch.equal(again["samples"], sampled["samples"]) and again[key] == value
