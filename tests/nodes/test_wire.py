"""What hosts and packs ask of a VAE: one test for each row of the contract, in both ages of the host."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from given.nodes import CLOSE, Makers
from host.ldm import AutoencoderKL, Tiny
from host.stand_in import Host, Pack


@pytest.fixture
def vae(host: Host, make: Makers) -> Any:
    return make.vae()


def plain(vae: Any, z: torch.Tensor) -> torch.Tensor:
    """The image that the modules themselves make, as the wire carries it."""
    image = vae.first_stage_model.autoencoder.decode_reference(z)
    return (image / 2 + 0.5).clamp(0, 1).movedim(1, -1)


def test_it_is_a_vae_of_the_host(vae: Any) -> None:
    import comfy.sd  # type: ignore[import-not-found]

    assert isinstance(vae, comfy.sd.VAE)


def test_decode(vae: Any, make: Makers) -> None:
    z = make.latent(2, 4, 10, 12)["samples"]
    image = vae.decode(z)
    assert image.shape == (2, 20, 24, 3) and image.dtype == torch.float32 and image.is_contiguous()
    torch.testing.assert_close(image, plain(vae, z), **CLOSE)
    torch.testing.assert_close(vae.decode(z, vae_options={}), image, rtol=0, atol=0)
    torch.testing.assert_close(vae.decode(z[:, :, None]), image, rtol=0, atol=0)  # one frame


def test_encode_is_the_mode_of_the_middle(vae: Any, make: Makers) -> None:
    pixels = make.image(2, 21, 25, 4)  # newer hosts hand on every channel, older ones three
    z = vae.encode(pixels)
    cut = pixels[:, :20, :24, :3].movedim(-1, 1) * 2 - 1
    moments = vae.first_stage_model.autoencoder.encode_reference(cut)
    torch.testing.assert_close(z, moments.chunk(2, dim=1)[0], **CLOSE)
    torch.testing.assert_close(vae.encode(pixels[..., :3]), z, rtol=0, atol=0)


@pytest.mark.parametrize(
    "tile", [{}, {"tile_x": 4, "tile_y": 4, "overlap": 1}, {"tile_x": 64, "tile_y": 64, "tile_t": None}]
)
def test_tiled_calls_are_exact(vae: Any, make: Makers, tile: dict[str, Any]) -> None:
    z, pixels = make.latent(1, 4, 25, 13)["samples"], make.image(1, 50, 26, 3)
    torch.testing.assert_close(vae.decode_tiled(z, **tile), vae.decode(z), **CLOSE)
    torch.testing.assert_close(vae.encode_tiled(pixels, **tile), vae.encode(pixels), **CLOSE)


def test_compression(vae: Any) -> None:
    assert vae.spacial_compression_encode() == vae.spacial_compression_decode() == 2
    assert vae.temporal_compression_decode() is None


def test_attributes(vae: Any) -> None:
    expected = {
        "downscale_ratio": 2,
        "upscale_ratio": 2,
        "latent_channels": 4,
        "latent_dim": 2,
        "output_channels": 3,
        "upscale_index_formula": None,
        "downscale_index_formula": None,
        "extra_1d_channel": None,
        "crop_input": True,
        "not_video": False,
        "vae_dtype": torch.float32,
        "device": torch.device("cpu"),
        "output_device": torch.device("cpu"),
        "disable_offload": True,
    }
    assert {name: getattr(vae, name) for name in expected} == expected
    vae.not_video = True  # written by the checkpoint loader


def test_validity(vae: Any) -> None:
    vae.throw_exception_if_invalid()
    vae.first_stage_model = None
    with pytest.raises(ValueError, match="this VAE is empty"):
        vae.throw_exception_if_invalid()


def test_state_dict_has_ldms_names_and_makes_the_same_model(vae: Any, pack: Pack, make: Makers, tmp_path: Any) -> None:
    from safetensors.torch import save_file

    weights = vae.get_sd()
    assert {"encoder.conv_in.weight", "decoder.up.0.block.0.conv1.weight", "decoder.mid.attn_1.q.weight"} <= set(
        weights
    )
    assert weights["decoder.mid.attn_1.q.weight"].ndim == 4
    save_file({key: weight.contiguous() for key, weight in weights.items()}, tmp_path / "again.safetensors")
    again = pack.module("vae_core").load_vae(tmp_path / "again.safetensors")
    z = make.latent()["samples"]
    assert torch.equal(again.decode(z).sample, vae.first_stage_model.decode(z))


def test_first_stage_model(vae: Any, make: Makers) -> None:
    first = vae.first_stage_model
    assert first.encoder is first.autoencoder.encoder and first.decoder is first.autoencoder.decoder
    moments = first.quant_conv(first.encoder(make.image().movedim(-1, 1)))
    mode, _ = first.regularization(moments)
    assert torch.equal(mode, moments.chunk(2, dim=1)[0])
    first.regularization.sample = True  # as some packs do
    assert not torch.equal(first.regularization(moments)[0], mode)


def test_patcher(vae: Any, host: Host) -> None:
    assert vae.patcher.model is vae.first_stage_model
    size = sum(weight.numel() * 4 for weight in vae.first_stage_model.autoencoder.parameters())
    assert vae.model_size() == vae.patcher.model_size() == size
    assert vae.is_dynamic() is False
    vae.patcher.move(torch.device("meta"))  # what a host does to make room
    assert vae.first_stage_model.autoencoder.device.type == "meta"


def test_memory_is_what_the_plan_says(vae: Any, pack: Pack, host: Host, make: Makers) -> None:
    z = make.latent(1, 4, 40, 40)["samples"]
    model, core = vae.first_stage_model.autoencoder, pack.module("vae_core")
    job = core.prepare_decode(model, z.shape)
    assert job.bytes.device == job.plan.peak_bytes + 40 * 40 * (3 * 4 + 4) * 4  # the image, the latent
    assert vae.memory_used_decode(z.shape, torch.float32) == job.bytes.device
    vae.decode(z)
    assert host.loads == [(vae.patcher, job.bytes.device)]
    pixels = (1, 3, 80, 80)
    assert vae.memory_used_encode(pixels, torch.float32) == core.prepare_encode(model, pixels).bytes.device
    assert vae.memory_used_decode((1, 4, 160, 160), torch.float32) < 2178 * 160 * 160 * 64 * 4  # the host's own guess


def test_packs_own_loop(vae: Any, make: Makers) -> None:
    """load, decode with the model, put into range: whose result older code uses, and newer code throws away."""
    z = make.latent()["samples"]
    image = vae.first_stage_model.decode(z.to(vae.vae_dtype).to(vae.device)).to(vae.output_device)
    result = vae.process_output(image)
    torch.testing.assert_close(result.movedim(1, -1), vae.decode(z), **CLOSE)
    assert torch.equal(vae.process_input(torch.ones(1)), torch.ones(1))


def test_process_output_works_in_place_in_new_hosts(new_host: Host, make: Makers) -> None:
    vae = make.vae()
    image = torch.full((1, 3, 2, 2), 5.0)
    vae.process_output(image)
    assert torch.equal(image, torch.ones(1, 3, 2, 2))


def test_what_only_new_hosts_have(new_host: Host, make: Makers) -> None:
    vae, shape = make.vae(), (1, 4, 40, 40)
    assert vae.handles_tiling is True and vae.format_encoded is None and vae.pad_channel_value is None
    needed = vae.memory_used_decode(shape, vae.vae_dtype)
    assert vae.prepare_decode(shape) == 2**33 // needed > 1
    assert new_host.loads == [(vae.patcher, needed)]


def test_a_second_one_for_another_device(new_host: Host, pack: Pack, make: Makers) -> None:
    """As the newer core's Select VAE Device makes it: a copy of the object with a patcher of its own."""
    pack.module("vae_core").save_single_file(make.model(), new_host.folder / "models" / "vae" / "some.safetensors")
    (vae,) = pack.run("SeamlessVAELoad", vae_name="some.safetensors", dtype="bfloat16")
    twin, elsewhere = copy.copy(vae), torch.device("meta")
    twin.patcher = twin.patcher.clone().deepclone_multigpu(elsewhere)
    twin.first_stage_model, twin.device = twin.patcher.model, elsewhere
    theirs, ours = (each.first_stage_model.autoencoder for each in (twin, vae))
    assert theirs is not ours and theirs.dtype == torch.bfloat16
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert torch.equal(one, other) and one.data_ptr() != other.data_ptr()
    assert pack.module("nodes.vaes").open_vae(twin).device == elsewhere
    assert pack.module("nodes.vaes").open_vae(vae).device == torch.device("cpu")


def test_precision_between_nodes(new_host: Host, make: Makers) -> None:
    vae = make.vae()
    new_host.between = torch.float16
    assert vae.vae_output_dtype() == torch.float16
    assert vae.decode(make.latent()["samples"]).dtype == torch.float16
    assert vae.encode(make.image()).dtype == torch.float16


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_are_their_own(vae: Any, make: Makers, copied: Any) -> None:
    z = make.latent()["samples"]
    expected = vae.decode(z)
    twin = copied(vae)
    torch.testing.assert_close(twin.decode(z), expected, rtol=0, atol=0)
    twin.patcher, twin.device = twin.patcher.clone(), torch.device("cpu")
    twin.vae_dtype = torch.float32
    twin.process_output = lambda image: image * 0
    assert not twin.decode(z).any()
    torch.testing.assert_close(vae.decode(z), expected, rtol=0, atol=0)


def test_a_deep_copy_has_weights_of_its_own(vae: Any, make: Makers) -> None:
    z = make.latent()["samples"]
    twin = copy.deepcopy(vae)
    assert twin.patcher.model is twin.first_stage_model
    assert twin.first_stage_model.autoencoder.decoder is twin.first_stage_model.decoder
    expected = vae.decode(z)
    with torch.no_grad():
        twin.first_stage_model.decoder.conv_out.bias.add_(1.0)
    assert not torch.equal(twin.decode(z), expected)
    assert torch.equal(vae.decode(z), expected)


def test_a_copy_with_another_model(vae: Any, make: Makers) -> None:
    """Nothing is kept but on the object: what is set there is what runs."""
    z, other = make.latent()["samples"], make.vae(seed=5)
    twin = copy.copy(vae)
    twin.first_stage_model, twin.patcher = other.first_stage_model, other.patcher
    torch.testing.assert_close(twin.decode(z), other.decode(z), rtol=0, atol=0)


@pytest.mark.usefixtures("no_host")
def test_without_any_host(make: Makers) -> None:
    vae, z = make.vae(), make.latent()["samples"]
    torch.testing.assert_close(vae.decode(z), plain(vae, z), **CLOSE)
    assert vae.patcher is None and vae.latent_dim == 2


def test_flux2_is_packed_on_the_wire(host: Host, make: Makers) -> None:
    vae = make.vae(latent_channels=8, patch_size=(2, 2))
    model = vae.first_stage_model.autoencoder
    model.bn.running_mean.normal_()
    model.bn.running_var.uniform_(0.5, 2)
    assert (vae.latent_channels, vae.downscale_ratio) == (32, 4)
    z = vae.encode(make.image(1, 21, 26, 3))
    assert z.shape == (1, 32, 5, 6)
    raw = model.encode_reference(make.image(1, 21, 26, 3)[:, :20, 1:25].movedim(-1, 1) * 2 - 1)[:, :8]
    std = torch.sqrt(model.bn.running_var + model.config.batch_norm_eps)
    packed = raw.reshape(1, 8, 5, 2, 6, 2).permute(0, 1, 3, 5, 2, 4).reshape(1, 32, 5, 6)
    expected = (packed - model.bn.running_mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(z, expected, **CLOSE)
    torch.testing.assert_close(vae.decode(z), plain(vae, raw), **CLOSE)


class Brighter(torch.nn.Module):
    """A half with another one put in its place: a compiled decoder, say."""

    def __init__(self, half: torch.nn.Module) -> None:
        super().__init__()
        self.inner = half

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + 0.25


@pytest.mark.parametrize("half", ["decoder", "encoder", "post_quant_conv", "quant_conv"])
@pytest.mark.thorough
def test_a_half_that_is_exchanged_is_what_runs(vae: Any, half: str, pack: Pack, make: Makers) -> None:
    """On `first_stage_model`, as packs do; by the host's calls and by our nodes. Undoing it brings the engine back."""
    first, original = vae.first_stage_model, getattr(vae.first_stage_model, half)
    decodes = half in ("decoder", "post_quant_conv")
    latent, pixels = make.latent(), make.image(1, 20, 24, 3)

    def results() -> list[torch.Tensor]:
        if decodes:
            return [vae.decode(latent["samples"]), pack.run("SeamlessVAEDecode", samples=latent, vae=vae)[0]]
        there = {"pixels": pixels, "vae": vae, "sample_mode": "mean", "seed": 0, "fit": "crop"}
        return [vae.encode(pixels), pack.run("SeamlessVAEEncode", **there)[0]["samples"]]

    before, weights = results(), list(vae.get_sd())
    setattr(first, half, Brighter(original))
    exchanged = results()
    setattr(first, half, torch.compile(original, backend="eager"))
    compiled, compiled_weights = results(), list(vae.get_sd())
    setattr(first, half, original)
    assert all(torch.equal(a, b) for a, b in zip(results(), before, strict=True))
    assert pack.module("vae_core.patched").find_patch(getattr(first.autoencoder, half)) is None
    for now, same, then in zip(exchanged, compiled, before, strict=True):
        assert (now - then).abs().max() > 0.01
        torch.testing.assert_close(same, then, **CLOSE)
    torch.testing.assert_close(exchanged[1], exchanged[0], **CLOSE)
    assert compiled_weights == weights


def other_children(first: Any, name: str, part: Any) -> None:
    first._modules = {**first._modules, name: part}


EXCHANGES: dict[str, Any] = {
    "setattr": setattr,
    "add_module": lambda first, name, part: first.add_module(name, part),
    "register_module": lambda first, name, part: first.register_module(name, part),
    "in its children": lambda first, name, part: first._modules.__setitem__(name, part),
    "other children": other_children,
    "on the model": lambda first, name, part: setattr(first.autoencoder, name, part),
    "in the model's children": lambda first, name, part: first.autoencoder._modules.__setitem__(name, part),
}


@pytest.mark.parametrize("half", ["decoder", "encoder"])
@pytest.mark.parametrize("way", EXCHANGES)
def test_every_way_to_exchange_a_half(vae: Any, way: str, half: str, pack: Pack, make: Makers) -> None:
    first, original = vae.first_stage_model, getattr(vae.first_stage_model, half)
    samples, pixels = make.latent()["samples"], make.image(1, 20, 24, 3)

    def result() -> torch.Tensor:
        return vae.decode(samples) if half == "decoder" else vae.encode(pixels)

    before = result()
    EXCHANGES[way](first, half, Brighter(original))
    assert (result() - before).abs().max() > 0.01
    assert getattr(first, half) is getattr(first.autoencoder, half) is not original
    EXCHANGES[way](first, half, original)
    assert torch.equal(result(), before)
    assert pack.module("nodes.vaes").open_vae(vae).decode_job((1, 4, 10, 12)).way.name == "strips"


@pytest.mark.parametrize("kind", ["another of ours", "the host's", "compiled", "of no known kind"])
def test_a_whole_model_that_is_exchanged_is_what_runs(vae: Any, kind: str, pack: Pack, make: Makers) -> None:
    own, other = vae.first_stage_model, make.vae()
    for weight in other.first_stage_model.parameters():
        weight.data = weight.data * 1.1
    latent, pixels = make.latent(), make.image(1, 20, 24, 3)
    torch.manual_seed(5)
    exchanged = {
        "another of ours": other.first_stage_model,
        "the host's": AutoencoderKL(),
        "compiled": torch.compile(other.first_stage_model, backend="eager"),
        "of no known kind": Tiny(),
    }[kind]
    before = vae.decode(latent["samples"]), vae.encode(pixels)
    vae.first_stage_model = exchanged
    with torch.no_grad():
        image = exchanged.decode(latent["samples"]).div(2).add(0.5).clamp(0, 1).movedim(1, -1)
        z = exchanged.encode(pixels.movedim(-1, 1) * 2 - 1)
    torch.testing.assert_close(vae.decode(latent["samples"]), image, **CLOSE)
    torch.testing.assert_close(vae.decode_tiled(latent["samples"], 8, 8, 2), image, **CLOSE)
    torch.testing.assert_close(vae.encode(pixels), z, **CLOSE)
    torch.testing.assert_close(vae.encode_tiled(pixels, 8, 8, 2), z, **CLOSE)
    torch.testing.assert_close(pack.run("SeamlessVAEDecode", samples=latent, vae=vae)[0], image, **CLOSE)
    assert vae.model_size() > 0 and vae.get_sd() and vae.memory_used_decode((1, 4, 10, 12), torch.float32) > 0
    vae.first_stage_model = own
    assert torch.equal(vae.decode(latent["samples"]), before[0]) and torch.equal(vae.encode(pixels), before[1])


@pytest.mark.slow
def test_halves_that_inductor_compiled(new_host: Host, pack: Pack, make: Makers) -> None:
    """As the node TorchCompileVAE of KJNodes exchanges them, with its own backend: minutes on a processor."""
    vae, latent, pixels = make.vae(), make.latent(), make.image(1, 20, 24, 3)
    with torch.inference_mode():
        before = vae.decode(latent["samples"]), vae.encode(pixels)
        for half in ("encoder", "decoder"):
            compiled = torch.compile(getattr(vae.first_stage_model, half), mode="default", backend="inductor")
            setattr(vae.first_stage_model, half, compiled)
        after = vae.decode(latent["samples"]), vae.encode(pixels)
    for found, expected in zip(after, before, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)
    assert not any("_orig_mod" in name for name in vae.get_sd())
