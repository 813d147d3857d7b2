"""A host's own VAE on our nodes: an AutoencoderKL is adopted with its own weights, anything else calls its methods."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from typing import Any

import pytest
import torch
from given.models import FLUX2_SMALL_DECODER
from given.models import make as model_of
from given.nodes import CLOSE, Makers
from host.ldm import AutoencoderKL, Tiny
from host.stand_in import Host, Pack
from torch import nn

THERE = {"vae": None, "sample_mode": "mean", "seed": 0, "fit": "crop"}


@pytest.fixture
def theirs(host: Host) -> Any:
    torch.manual_seed(3)
    return host.vae(AutoencoderKL())


def test_the_same_image_and_latent(theirs: Any, pack: Pack, make: Makers) -> None:
    pixels, latent = make.image(2, 20, 24, 3), make.latent(2, 4, 10, 12)
    encoded, posterior, _ = pack.run("SeamlessVAEEncode", **{**THERE, "pixels": pixels, "vae": theirs})
    torch.testing.assert_close(encoded["samples"], theirs.encode(pixels), **CLOSE)
    logvar = theirs.first_stage_model.quant_conv(theirs.first_stage_model.encoder(pixels.movedim(-1, 1) * 2 - 1)).chunk(
        2, dim=1
    )[1]
    torch.testing.assert_close(posterior["logvar"], logvar, **CLOSE)
    (image,) = pack.run("SeamlessVAEDecode", samples=latent, vae=theirs)
    torch.testing.assert_close(image, theirs.decode(latent["samples"]), **CLOSE)


def test_no_weight_is_copied(theirs: Any, pack: Pack) -> None:
    opened = pack.module("nodes.vaes").open_vae(theirs)
    own = {weight.data_ptr() for weight in theirs.first_stage_model.parameters()}
    with opened.weights() as model:
        used = [weight.data_ptr() for weight in model.parameters()]
    assert set(used) == own and len(used) == len(own)
    assert model is opened.model and all(weight.is_meta for weight in model.parameters())


def test_nothing_is_held_after_a_run(theirs: Any, host: Host, pack: Pack, make: Makers) -> None:
    """Else weights that the host has moved elsewhere, or dropped, would stay in memory."""
    held = []
    for weight in theirs.first_stage_model.parameters():
        array = weight.detach().numpy().copy()
        weight.data = torch.from_numpy(array)  # memory whose end can be seen
        held.append(weakref.ref(array))
    del array, weight
    pack.run("SeamlessVAEDecode", samples=make.latent(), vae=theirs)
    assert all(each() is not None for each in held)
    theirs.first_stage_model = theirs.patcher = None
    host.loads.clear()
    gc.collect()
    assert not [each for each in held if each() is not None]


def test_weights_that_change_are_seen(theirs: Any, pack: Pack, make: Makers) -> None:
    """A host patches weights, moves them, and exchanges them, between two runs."""
    latent = make.latent()
    pack.run("SeamlessVAEDecode", samples=latent, vae=theirs)
    decoder = theirs.first_stage_model.decoder
    decoder.conv_out.bias = nn.Parameter(decoder.conv_out.bias + 0.5)
    decoder.mid.attn_1.q.weight.data = decoder.mid.attn_1.q.weight.data * 2
    (image,) = pack.run("SeamlessVAEDecode", samples=latent, vae=theirs)
    torch.testing.assert_close(image, theirs.decode(latent["samples"]), **CLOSE)


def test_it_goes_through_the_hosts_memory_management(theirs: Any, host: Host, pack: Pack, make: Makers) -> None:
    (image,) = pack.run("SeamlessVAEDecode", samples=make.latent(), vae=theirs)
    ((patcher, required),) = host.loads
    assert patcher is theirs.patcher and required > image.numel() * 4


def test_room_for_weights_that_the_host_keeps_back(theirs: Any, host: Host, pack: Pack, make: Makers) -> None:
    """Newer hosts can leave weights in memory and bring each to the device when its layer runs; ours take them all."""
    pack.run("SeamlessVAEDecode", samples=make.latent(), vae=theirs)
    theirs.patcher.is_dynamic = lambda: True
    pack.run("SeamlessVAEDecode", samples=make.latent(), vae=theirs)
    (_, before), (_, after) = host.loads
    assert after - before == sum(weight.numel() * 4 for weight in theirs.first_stage_model.parameters())


def test_precision_of_its_weights(theirs: Any, pack: Pack, make: Makers) -> None:
    theirs.first_stage_model.to(torch.bfloat16)
    theirs.vae_dtype = torch.bfloat16
    latent = make.latent()
    (image,) = pack.run("SeamlessVAEDecode", samples=latent, vae=theirs)
    assert image.dtype == torch.float32
    expected = theirs.decode(latent["samples"].bfloat16()).float()
    assert (image - expected).abs().max() < 0.03  # bfloat16 has 8 bits: 1/256, through a few layers


def test_exact_tiles_and_circular_padding(theirs: Any, pack: Pack, make: Makers) -> None:
    latent = make.latent(1, 4, 25, 14)
    (image,) = pack.run("SeamlessVAEDecode", samples=latent, vae=theirs)
    (tiled,) = pack.run("SeamlessVAEDecodeTiled", samples=latent, vae=theirs, mode="exact", tile_size=8)
    torch.testing.assert_close(tiled, image, **CLOSE)
    (circled,) = pack.run("SeamlessVAEDecodeTiled", samples=latent, vae=theirs, circular="x")
    assert (circled - image).abs().max() > 0.01


def hooked(first: AutoencoderKL) -> None:
    first.decoder.conv_in.register_forward_hook(lambda *args: args[2] * 2)


def circular(first: AutoencoderKL) -> None:
    first.decoder.conv_in.padding_mode = "circular"


def patched(first: AutoencoderKL) -> None:
    forward = first.decoder.forward
    first.decoder.forward = lambda z: forward(z) * 0.5  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [hooked, circular, patched])
def test_a_patched_model_is_run_as_it_is(theirs: Any, host: Host, pack: Pack, make: Makers, change: Any) -> None:
    latent = make.latent()
    (before,) = pack.run("SeamlessVAEDecode", samples=latent, vae=theirs)
    change(theirs.first_stage_model)
    (image,) = pack.run("SeamlessVAEDecode", samples=latent, vae=theirs)
    torch.testing.assert_close(image, theirs.decode(latent["samples"]), rtol=0, atol=0)
    assert not torch.equal(image, before) or change is circular
    assert "this VAE has been patched" in host.texts[-1] and "not available" in host.texts[-1]


def test_a_part_that_is_put_back_brings_the_engine_back(theirs: Any, pack: Pack, make: Makers) -> None:
    first, opened = theirs.first_stage_model, pack.module("nodes.vaes").open_vae
    before = pack.run("SeamlessVAEDecode", samples=make.latent(), vae=theirs)[0]
    for name, wrapped in (
        ("decoder", nn.Sequential),
        ("decoder", Wrapped),
        ("decoder", Halved),
        ("quant_conv", Doubled),
    ):
        own = getattr(first, name)
        setattr(first, name, wrapped(own))
        assert type(opened(theirs)).__name__ == "ThirdPartyVAE"
        setattr(first, name, own)
        assert type(opened(theirs)).__name__ == "Autoencoder"
    assert torch.equal(pack.run("SeamlessVAEDecode", samples=make.latent(), vae=theirs)[0], before)


def class_of(part: nn.Module, factor: float | None) -> type:
    """A class with a part's very weights that computes something else, or the same by other methods if it is None."""
    if factor is None:
        return type("Quiet", (type(part),), {"extra": 1})

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return super(other, self).forward(x) * factor  # type: ignore[misc]

    other = type("Sharp", (type(part),), {"forward": forward})
    return other


@pytest.mark.parametrize("looked_at", [True, False], ids=["looked at before", "new"])
@pytest.mark.parametrize("way", ["another object", "another class", "a patched class"])
@pytest.mark.parametrize("name", ["decoder", "decoder.mid", "decoder.up.0.block.0", "decoder.mid.attn_1", ""])
def test_a_part_of_another_class_with_the_same_weights_is_what_runs(
    name: str, way: str, looked_at: bool, theirs: Any, host: Host, pack: Pack, make: Makers, monkeypatch: Any
) -> None:
    """As packs give a VAE a decoder of their own: its weights alone do not tell."""
    first, latent = theirs.first_stage_model, make.latent()
    part = first.get_submodule(name)
    plain = theirs.decode(latent["samples"])
    opened = pack.module("nodes.vaes").open_vae
    if looked_at:
        assert type(opened(theirs)).__name__ == "Autoencoder"
    owner, last = first.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    other = copy.deepcopy(part)
    if way == "a patched class":
        method = "forward" if name else "decode"
        own = getattr(type(part), method)
        monkeypatch.setattr(type(part), method, lambda self, x: own(self, x) * 0.5)
    elif not name:
        other.__class__ = type("Other", (type(part),), {"decode": lambda self, z: type(part).decode(self, z) * 0.5})
        theirs.first_stage_model = other
    else:
        other.__class__ = class_of(part, 0.5)
        setattr(owner, last, other)
    assert type(opened(theirs)).__name__ == "ThirdPartyVAE"
    (image,) = pack.run("SeamlessVAEDecode", samples=latent, vae=theirs)
    torch.testing.assert_close(image, theirs.decode(latent["samples"]), rtol=0, atol=0)
    assert (image - plain).abs().max() > 1e-3 and "computes in its own way" in host.texts[-1]
    monkeypatch.undo()
    if way != "a patched class" and name:
        setattr(owner, last, part)
        assert type(opened(theirs)).__name__ == "Autoencoder"
        other.__class__ = class_of(part, None)  # with nothing of its own
        setattr(owner, last, other)
        assert type(opened(theirs)).__name__ == "Autoencoder"


class Wrapped(nn.Module):
    """Under the name that torch's own wrappers have for what is in them."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.module = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x) / 2


class Doubled(nn.Module):
    """Without weights, as a model without its convolution would be."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Halved(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.part(*args, **kwargs) / 2


PATCHED = ["decoder", "decoder.mid.attn_1", "decoder.norm_out", "decoder.up.0.block.0", "decode"]


@pytest.mark.parametrize("ours", [False, True], ids=["the host's", "ours"])
@pytest.mark.parametrize(
    "name", ["decoder", "decoder.mid.attn_1", "decoder.norm_out", "decoder.up.0.block.0", "decode"]
)
def test_what_a_patcher_puts_in_when_it_loads_is_what_runs(
    ours: bool, name: str, theirs: Any, pack: Pack, make: Makers, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As packs do with `patcher.add_object_patch`: on a copy of the VAE whose patcher is a clone."""
    vae, latent = make.vae() if ours else theirs, make.latent()
    first, backup = vae.first_stage_model, {}
    owner = first.get_submodule(name.rpartition(".")[0])
    last = name.rpartition(".")[2]

    def load_models_gpu(patchers: list[Any], **_: Any) -> None:
        for key, value in backup.items():
            setattr(owner, key, value)
        backup.clear()
        for key, value in patchers[0].object_patches.items():
            backup[key] = getattr(owner, key)
            setattr(owner, key, value)

    monkeypatch.setattr(sys.modules["comfy.model_management"], "load_models_gpu", load_models_gpu)
    patched = copy.copy(vae)
    patched.patcher = copy.copy(vae.patcher)
    own = getattr(owner, last)
    other = Halved(own) if isinstance(own, nn.Module) else lambda *args, **kwargs: own(*args, **kwargs) / 2
    for patcher, patches in ((vae.patcher, {}), (patched.patcher, {last: other})):
        patcher.object_patches, patcher.object_patches_backup = patches, backup

    def decoded(of: Any) -> torch.Tensor:
        return pack.run("SeamlessVAEDecode", samples=latent, vae=of)[0]

    before = decoded(vae)
    now = decoded(patched)
    assert (now - before).abs().max() > 1e-3
    torch.testing.assert_close(now, patched.decode(latent["samples"]), **CLOSE)
    assert torch.equal(decoded(vae), before) and not backup
    if ours:
        assert (patched.decode(latent["samples"]) - before).abs().max() > 1e-3
        torch.testing.assert_close(vae.decode(latent["samples"]), before, **CLOSE)


class Packed(torch.Tensor):
    """As packs keep weights that they unpack in their own layers."""


def test_weights_of_another_kind_are_left_to_their_own_layers(
    theirs: Any, host: Host, pack: Pack, make: Makers
) -> None:
    conv = theirs.first_stage_model.decoder.conv_in
    conv.weight = nn.Parameter(conv.weight.detach().as_subclass(Packed))
    latent = make.latent()
    (image,) = pack.run("SeamlessVAEDecode", samples=latent, vae=theirs)
    torch.testing.assert_close(image, theirs.decode(latent["samples"]), rtol=0, atol=0)
    assert "the weights of AutoencoderKL are quantised or of a type of their own" in host.texts[-1]


@pytest.fixture
def tiny(host: Host) -> Any:
    torch.manual_seed(4)
    return host.vae(Tiny())


def test_other_kinds_call_their_own_methods(tiny: Any, host: Host, pack: Pack, make: Makers) -> None:
    pixels, latent = make.image(1, 21, 24, 3), make.latent()
    encoded, posterior, _ = pack.run("SeamlessVAEEncode", **{**THERE, "pixels": pixels, "vae": tiny})
    torch.testing.assert_close(encoded["samples"], tiny.encode(pixels[:, :20]), **CLOSE)
    assert torch.equal(posterior["logvar"], torch.full_like(posterior["samples"], -30))
    (image,) = pack.run("SeamlessVAEDecode", samples=latent, vae=tiny)
    torch.testing.assert_close(image, tiny.decode(latent["samples"]), rtol=0, atol=0)
    assert host.texts[-1].startswith("Seamless VAE: Tiny is not an AutoencoderKL")
    blended = {"mode": "blended", "tile_size": 16, "overlap": 4}
    pack.run("SeamlessVAEDecodeTiled", samples=latent, vae=tiny, **blended)
    assert tiny.tiles == (8, 8, 2)
    pack.run("SeamlessVAEEncodeTiled", **{**THERE, "pixels": pixels, "vae": tiny}, **blended)
    assert tiny.tiles == (16, 16, 4)


def test_video_of_other_kinds_becomes_a_batch(tiny: Any, pack: Pack, make: Makers) -> None:
    tiny.latent_dim = 3
    tiny.decode = lambda z: torch.zeros(1, 3, 20, 24, 3)
    (image,) = pack.run("SeamlessVAEDecode", samples=make.latent(1, 4, 3, 10, 12), vae=tiny)
    assert image.shape == (3, 20, 24, 3)


def test_a_round_trip_of_frames_compares_those_that_come_back(tiny: Any, pack: Pack, make: Makers) -> None:
    """As VAEs of video do that code four frames in one, after the first, and drop what fills no whole group."""
    pixels = make.image(7, 20, 24, 3)
    tiny.latent_dim = 3
    tiny.encode = lambda frames: frames[:1, :10, :12].movedim(-1, 1)[:, :, None].repeat(1, 1, 2, 1, 1)
    tiny.decode = lambda z: pixels[None, :5] * 0.9
    tiny.latent_channels = 3
    done = pack.execute("SeamlessVAERoundTrip", pixels=pixels, vae=tiny)
    image, error, quality, _ = done["result"]
    assert image.shape == error.shape == (5, 20, 24, 3)
    expected = -10 * torch.log10((0.1 * pixels[:5]).double().square().mean(dim=(1, 2, 3)))
    assert quality == pytest.approx(float(expected.mean()), abs=1e-3)
    assert "over the first 5 of 7 frames" in done["ui"]["text"][0] and len(done["ui"]["images"]) == 15


def test_what_other_kinds_cannot_do(tiny: Any, pack: Pack, make: Makers, host: Host) -> None:
    latent = make.latent()
    with pytest.raises(ValueError, match="circular padding is not available for this VAE: Tiny is not an"):
        pack.run("SeamlessVAEDecodeTiled", samples=latent, vae=tiny, circular="both")
    with pytest.raises(ValueError, match="saving is not possible with this VAE"):
        pack.run("SeamlessVAESave", vae=tiny)
    with pytest.raises(ValueError, match="scaling is not possible with this VAE"):
        pack.run("SeamlessLatentScale", samples=latent, vae=tiny)
    (text,) = pack.run("SeamlessVAEInspect", vae=tiny)
    assert text.startswith("third-party VAE: Tiny")
    with pytest.raises(ValueError, match=r"8 channels, but this VAE takes 4 channels \(SD, SDXL\)"):
        pack.run("SeamlessVAEDecode", samples=make.latent(1, 8, 4, 4), vae=tiny)
    tiny.encode = tiny.decode = None  # refused before either is called
    with pytest.raises(ValueError, match="sampling is not possible with this VAE: Tiny.*Set sample_mode to mean"):
        pack.run("SeamlessVAEEncode", **{**THERE, "pixels": make.image(), "vae": tiny, "sample_mode": "sample"})
    tiny.latent_dim = 1
    with pytest.raises(ValueError, match="an audio VAE"):
        pack.run("SeamlessVAEDecode", samples=latent, vae=tiny)
    host.loads.clear()
    with pytest.raises(ValueError, match="an audio VAE"):
        pack.run("SeamlessVAESwap", samples=latent, from_vae=make.vae(), to_vae=tiny)
    assert not host.loads, "nothing was decoded for it"
    tiny.first_stage_model = None
    with pytest.raises(ValueError, match="this VAE is empty"):
        pack.run("SeamlessVAEDecode", samples=latent, vae=tiny)


def test_saving_and_inspecting_an_adopted_one(theirs: Any, host: Host, pack: Pack, make: Makers) -> None:
    (path,) = pack.run("SeamlessVAESave", vae=theirs, filename_prefix="x/theirs", format="single_file")
    again = pack.module("vae_core").load_vae(path)
    z = make.latent()["samples"]
    torch.testing.assert_close(
        (again.decode(z).sample + 1).div(2).clamp(0, 1).movedim(1, -1), theirs.decode(z), **CLOSE
    )
    (text,) = pack.run("SeamlessVAEInspect", vae=theirs, samples={"samples": z})
    assert "weights are used in place" in text and "1 image of 24x20" in text


def test_both_ways_in_one_swap(theirs: Any, pack: Pack, make: Makers) -> None:
    ours, latent = make.vae(latent_channels=16), make.latent(1, 4, 10, 12)
    there, _ = pack.run("SeamlessVAESwap", samples=latent, from_vae=theirs, to_vae=ours)
    back, image = pack.run("SeamlessVAESwap", samples=there, from_vae=ours, to_vae=theirs)
    assert there["samples"].shape == (1, 16, 10, 12) and back["samples"].shape == (1, 4, 10, 12)
    assert image.shape == (1, 20, 24, 3)


def test_flux2_without_its_counter(pack: Pack) -> None:
    """The count of training steps of its batch norm, which few files have."""
    theirs = model_of(FLUX2_SMALL_DECODER)
    assert theirs.bn is not None
    theirs.bn.num_batches_tracked = None
    found, why = pack.module("nodes.adopt").borrowed(theirs)
    assert not why
    with found.weights() as model:
        assert model.bn.num_batches_tracked == 0
        assert model.bn.get_buffer("running_var").data_ptr() == theirs.bn.get_buffer("running_var").data_ptr()
