"""What other packs set for the whole process changes nothing of what the nodes do, nor do they change it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from given.nodes import Makers, encode
from given.states import CLOSE, compare, faults
from host.stand_in import Host, Pack
from torch import Tensor


class Given:
    def __init__(self, pack: Pack, make: Makers, host: Host) -> None:
        self.pack, self.vae, self.other = pack, make.vae(), make.vae(1, latent_channels=16)
        self.flux2 = make.vae(latent_channels=8, patch_size=(2, 2))
        self.pixels, self.latent, self.mask = make.image(1, 21, 25, 4), make.latent(), torch.zeros(1, 21, 25)
        self.mask[:, 8:12, 8:12] = 1
        self.packed = make.latent(1, 32, 6, 6)
        self.posterior = encode(pack, self.vae, self.pixels)[1]
        file = host.folder / "models" / "vae" / "some.safetensors"
        pack.module("vae_core").save_single_file(make.model(), file)
        lists: dict[str, Any] = {"vae": [self.vae], "filename_prefix": ["set"], "dtype": ["float32"]}
        pack.run("SeamlessLatentSave", samples=[self.latent], layout=["shards"], kohya_family=["auto"], **lists)

    def run(self, node: str, **inputs: Any) -> list[Any]:
        return [each for each in self.pack.run(node, **inputs) if isinstance(each, Tensor | dict | str | float)]


def loaded(given: Given) -> Any:
    (vae,) = given.pack.run("SeamlessVAELoad", vae_name="some.safetensors")
    weights = vae.first_stage_model.autoencoder.state_dict()
    assert not any(weight.is_inference() for weight in weights.values())
    return {**weights, "dtype": vae.vae_dtype, "decoded": vae.decode(given.latent["samples"])}


NODES: dict[str, Callable[[Given], Any]] = {
    "load": loaded,
    "encode": lambda g: list(encode(g.pack, g.vae, g.pixels, sample_mode="sample", seed=2**64 - 1)),
    "encode, flux2": lambda g: list(encode(g.pack, g.flux2, g.pixels, fit="pad")),
    "encode tiled": lambda g: g.run("SeamlessVAEEncodeTiled", pixels=g.pixels, vae=g.vae, mode="exact", tile_size=6),
    "decode": lambda g: g.run("SeamlessVAEDecode", samples=g.latent, vae=g.vae),
    "decode, flux2": lambda g: g.run("SeamlessVAEDecode", samples=g.packed, vae=g.flux2),
    "decode tiled": lambda g: g.run("SeamlessVAEDecodeTiled", samples=g.latent, vae=g.vae, circular="both"),
    "blended": lambda g: g.run(
        "SeamlessVAEDecodeTiled", samples=g.latent, vae=g.vae, mode="blended", tile_size=16, overlap=4
    ),
    "inpaint": lambda g: g.run("SeamlessVAEInpaintEncode", pixels=g.pixels, vae=g.vae, mask=g.mask, grow=2, feather=2),
    "composite": lambda g: g.run(
        "SeamlessVAEInpaintComposite", samples=g.latent, vae=g.vae, original=g.pixels[:, :20, :24], mask=g.mask
    ),
    "swap": lambda g: g.run("SeamlessVAESwap", samples=g.latent, from_vae=g.vae, to_vae=g.other),
    "scale": lambda g: g.run("SeamlessLatentScale", samples=g.latent, vae=g.vae, to="diffusion"),
    "scale, flux2": lambda g: g.run("SeamlessLatentScale", samples=g.packed, vae=g.flux2, to="raw"),
    "sample": lambda g: g.run("SeamlessVAESamplePosterior", posterior=g.posterior, count=2),
    "preview": lambda g: g.run("SeamlessPosteriorPreview", posterior=g.posterior),
    "round trip": lambda g: g.run("SeamlessVAERoundTrip", pixels=g.pixels, vae=g.vae),
    "inspect": lambda g: g.run("SeamlessVAEInspect", vae=g.vae),
    "latents": lambda g: [each["samples"] for each in g.pack.run("SeamlessLatentLoad", folder="set_00001 [output]")[0]],
    "the host's encode": lambda g: g.vae.encode(g.pixels[..., :3]),
    "the host's decode": lambda g: g.vae.decode_tiled(g.latent["samples"], 8, 8, 2),
    "first_stage_model": lambda g: [
        g.vae.first_stage_model.decode(g.latent["samples"]).detach(),
        g.vae.first_stage_model.decode_tiled(g.latent["samples"], tile_x=4, tile_y=4),
        g.flux2.first_stage_model.decode(g.packed["samples"]).detach(),
    ],
}


@pytest.mark.parametrize("node", NODES)
def test_nothing_depends_on_the_process(node: str, pack: Pack, make: Makers, new_host: Host) -> None:
    given = Given(pack, make, new_host)
    times = 10 if node == "round trip" else 1  # whose error map is ten times as bright
    obeyed = {"autocast"} if node == "first_stage_model" else set()  # whose decode is the model's own
    check = partial(compare, atol=times * CLOSE, rel=1e-3)
    assert not faults(lambda: NODES[node](given), check, obeyed)
