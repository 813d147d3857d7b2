"""A run through a node is one job: checked, planned and laid out once, into the image that the node returns."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from given.allocations import Alive
from given.counts import Calls
from given.nodes import CLOSE, Makers
from host.ldm import AutoencoderKL
from host.stand_in import Host, Pack

BATCH = 8


class PackCalls(Calls):
    """Counts calls of functions of the pack."""

    def __init__(self, pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.pack = pack

    def of_pack(self, what: str, module: str, *names: str) -> None:
        """Count the calls of such as ("vae_core.halves", "decoder_program") as `what`."""
        owner = self.pack.module(module)
        for part in names[:-1]:
            owner = getattr(owner, part)
        self.of(owner, names[-1], what)


@pytest.fixture
def calls(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> PackCalls:
    return PackCalls(pack, monkeypatch)


KERNELS = {
    "direct": "DirectConvolution",
    "compiled_winograd": "CompiledWinograd",
    "torch_winograd": "TorchWinograd",
    "stored_attention": "StoredAttention",
    "packed_attention": "PackedAttention",
}


@pytest.mark.parametrize("batch", [1, BATCH])
@pytest.mark.parametrize("memory_budget", [0.0, 0.03])
def test_everything_is_done_once(
    new_host: Host, pack: Pack, make: Makers, calls: PackCalls, batch: int, memory_budget: float
) -> None:
    vae, latent = make.vae(), make.latent(batch, 4, 48, 40)
    calls.of_pack("checked", "vae_core.autoencoder_kl", "_check_shape")
    calls.of_pack("looked at", "vae_core.streaming.source", "count_not_finite")
    calls.of_pack("built", "vae_core.halves", "decoder_program")
    calls.of_pack("planned", "vae_core.streaming.strips", "plan_program")
    calls.of_pack("dry runs", "vae_core.streaming.plan", "Execution")
    for module, name in KERNELS.items():
        calls.of_pack("layouts", f"vae_core.streaming.{module}", name, "_lay_out")
    calls.of_pack("stores", "vae_core.streaming.strips", "MapStore")
    calls.of_pack("pools", "vae_core.streaming.strips", "WorkerPool")
    pack.run("SeamlessVAEDecodeTiled", samples=latent, vae=vae, memory_budget=memory_budget)
    counts = dict(calls.counts)
    dry_runs, layouts = counts.pop("dry runs"), counts.pop("layouts")
    assert counts == dict.fromkeys(("checked", "looked at", "built", "planned", "stores", "pools"), 1)
    assert memory_budget or dry_runs == 1
    passes = len(pack.module("vae_core").plan_decode(vae.first_stage_model.autoencoder, (1, 4, 48, 40)).pass_flops)
    assert layouts == dry_runs * passes, "laid out by the dry run, and run so"


@pytest.mark.parametrize("kernels", ["auto", "direct", "winograd"])
def test_every_caller_gets_the_same_bits_on_one_thread(kernels: str, new_host: Host, pack: Pack, make: Makers) -> None:
    vae, latent, image = make.vae(), make.latent(5, 4, 40, 36), make.image(3, 70, 60, 3)
    core = pack.module("vae_core")
    to_unit_range = pack.module("vae_core.image").to_unit_range
    model, z, pixels = vae.first_stage_model.autoencoder, latent["samples"], image.movedim(-1, 1) * 2 - 1
    model.memory_budget = 2**40  # for its own methods: without one they take the reference path for a model this narrow
    with core.kernels(kernels), torch.no_grad():
        decoded = core.decode(model, z)
        assert torch.equal(core.prepare_decode(model, z.shape).run(z.split([2, 3])), decoded)
        assert torch.equal(model.decode(z).sample, decoded)
        want = to_unit_range(decoded).clamp(0, 1).movedim(1, -1)
        for node in ("SeamlessVAEDecode", "SeamlessVAEDecodeTiled"):
            assert torch.equal(pack.run(node, samples=latent, vae=vae)[0], want)
        assert torch.equal(vae.decode(z), want)
        mean = core.encode(model, pixels).mean
        assert torch.equal(model.encode(pixels).latent_dist.mean, mean)
        for node in ("SeamlessVAEEncode", "SeamlessVAEEncodeTiled"):
            assert torch.equal(pack.run(node, pixels=image, vae=vae)[0]["samples"], mean)
        assert torch.equal(vae.encode(image), mean)


def test_no_second_image(new_host: Host, pack: Pack, make: Makers) -> None:
    """Of the size of the result, there is never another tensor: strips go to their places in the node's own image."""
    vae, latent = make.vae(), make.latent(2, 4, 64, 60)
    with Alive(2 * 3 * 128 * 120 * 4) as alive:
        (image,) = pack.run("SeamlessVAEDecode", samples=latent, vae=vae)
    assert image.shape == (2, 128, 120, 3) and image.is_contiguous()
    assert alive.most == 1


def test_a_second_image_would_be_seen() -> None:
    with Alive(4000) as alive:
        image = torch.zeros(10, 100)
        copy = image.t().contiguous()
        view = image.t()
    assert alive.most == 2 and copy.shape == view.shape


def test_one_job_for_borrowed_weights(new_host: Host, pack: Pack, make: Makers, calls: PackCalls) -> None:
    """It is planned without weights, and run by the very object that was planned."""
    torch.manual_seed(3)
    theirs, latent = new_host.vae(AutoencoderKL()), make.latent(1, 4, 20, 20)
    pack.run("SeamlessVAEDecode", samples=latent, vae=theirs)  # recognised
    calls.of_pack("built", "vae_core.halves", "decoder_program")
    calls.of_pack("loaded", "vae_core", "AutoencoderKL", "__init__")
    pack.run("SeamlessVAEDecode", samples=latent, vae=theirs)
    assert dict(calls.counts) == {"built": 1}
    opened = pack.module("nodes.vaes").open_vae(theirs)
    assert all(weight.is_meta for weight in opened.model.state_dict().values())


def test_borrowed_weights_in_several_threads(new_host: Host, pack: Pack, make: Makers) -> None:
    torch.manual_seed(3)
    theirs, latent = new_host.vae(AutoencoderKL()), make.latent(1, 4, 60, 60)
    (expected,) = pack.run("SeamlessVAEDecode", samples=latent, vae=theirs)
    images: list[torch.Tensor] = []

    def decode() -> None:
        for _ in range(3):
            images.append(pack.run("SeamlessVAEDecode", samples=latent, vae=theirs)[0])

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(images) == 12
    for image in images:
        torch.testing.assert_close(image, expected, **CLOSE)
    opened = pack.module("nodes.vaes").open_vae(theirs)
    assert all(weight.is_meta for weight in opened.model.parameters())
    gc.collect()


def test_weights_are_given_back_after_a_failure(new_host: Host, pack: Pack, make: Makers) -> None:
    torch.manual_seed(3)
    theirs, latent = new_host.vae(AutoencoderKL()), make.latent()
    latent["samples"][0, 0, 0, 0] = float("nan")
    with pytest.raises(ArithmeticError, match="this latent already has 1 values"):
        pack.run("SeamlessVAEDecode", samples=latent, vae=theirs)
    opened = pack.module("nodes.vaes").open_vae(theirs)
    assert all(weight.is_meta for weight in opened.model.parameters())


@pytest.mark.parametrize("way", ["strips", "tiles", "whole"])
def test_everything_is_done_once_in_every_way(
    way: str, new_host: Host, pack: Pack, make: Makers, calls: PackCalls
) -> None:
    vae, latent = make.vae(), make.latent(2, 4, 40, 32)
    if way == "whole":
        vae.first_stage_model.autoencoder.decoder.register_forward_hook(lambda *_: None)
    calls.of_pack("checked", "vae_core.autoencoder_kl", "_check_shape")
    calls.of_pack("looked at", "vae_core.streaming.source", "count_not_finite")
    calls.of_pack("built", "vae_core.halves", "decoder_program" if way == "strips" else "_nominal_decoder")
    calls.of_pack("planned", "vae_core.streaming.strips", "plan_program")
    for name in ("plan_whole", "plan_tiles"):
        calls.of_pack("planned", "vae_core.streaming.reference", name)
    calls.of_pack("stores", "vae_core.streaming.strips", "MapStore")
    calls.of_pack("pools", "vae_core.streaming.strips", "WorkerPool")
    inputs = {"mode": "blended", "tile_size": 32, "overlap": 8} if way == "tiles" else {}
    pack.run("SeamlessVAEDecodeTiled", samples=latent, vae=vae, **inputs)
    once = ["checked", "looked at", "built", "planned"] + (["stores", "pools"] if way == "strips" else [])
    assert dict(calls.counts) == dict.fromkeys(once, 1)
