"""What the nodes refuse, in sentences, before anything heavy starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from host.stand_in import Host, Pack
from node_makers import Makers

pytestmark = pytest.mark.usefixtures("host")


class Nested:
    is_nested = True
    ndim, shape = 4, (1, 4, 8, 8)


BAD_LATENTS: dict[str, Any] = {
    "16 channels \\(SD3, FLUX.1\\), but this VAE takes 4 channels \\(SD, SDXL\\)": torch.zeros(1, 16, 8, 8),
    "this latent is of video: it has 5 dimensions": torch.zeros(1, 4, 2, 8, 8),
    "this latent is of sound: it has 3 dimensions": torch.zeros(1, 64, 8),
    "this latent is empty": torch.zeros(0, 4, 8, 8),
    "this latent is nested": Nested(),
    "this is no latent": None,
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


BAD_PICTURES: dict[str, Any] = {
    "no batch of pictures": torch.zeros(0, 8, 8, 3),
    "no batch of pictures: \\(8, 8, 3\\)": torch.zeros(8, 8, 3),
    "no batch of pictures: NoneType": None,
    "5 channels has no known colours": torch.zeros(1, 8, 8, 5),
    "already holds 192 values that are NaN": torch.full((1, 8, 8, 3), float("nan")),
}


@pytest.mark.parametrize("node", ["SeamlessVAEEncode", "SeamlessVAERoundTrip", "SeamlessVAEInpaintEncode"])
@pytest.mark.parametrize("message", BAD_PICTURES)
def test_pictures_that_do_not_fit(pack: Pack, make: Makers, node: str, message: str) -> None:
    others = {"mask": torch.ones(1, 8, 8)} if node == "SeamlessVAEInpaintEncode" else {}
    with pytest.raises(Exception, match=message) as caught:
        pack.run(node, pixels=BAD_PICTURES[message], vae=make.vae(), **others)
    assert isinstance(caught.value, pack.module("vae_core").VAEError) and str(caught.value).endswith(".")


@pytest.mark.parametrize("mask", [None, torch.zeros(0, 8, 8), torch.zeros(2, 8, 8)])
def test_masks_that_do_not_fit(pack: Pack, make: Makers, host: Host, mask: Any) -> None:
    pixels, vae = make.image(3, 8, 8, 3), make.vae()
    for node, inputs in (
        ("SeamlessVAEInpaintEncode", {"pixels": pixels}),
        ("SeamlessVAEInpaintComposite", {"original": pixels, "samples": make.latent(1, 4, 4, 4)}),
    ):
        with pytest.raises(ValueError, match="no mask|is none|do not go together"):
            pack.run(node, vae=vae, mask=mask, **inputs)
    assert not host.loads
