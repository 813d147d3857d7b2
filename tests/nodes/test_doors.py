"""What newer hosts ask of a model that cuts its work to pieces itself, by the host's own methods called past ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from given.nodes import CLOSE, Makers
from host.stand_in import Host, Pack
from torch import Tensor

FLUX2 = {"latent_channels": 8, "patch_size": (2, 2)}


def core() -> Any:
    import comfy.sd  # type: ignore[import-not-found]

    return comfy.sd.VAE


@pytest.mark.parametrize("fields", [{}, FLUX2], ids=["sd", "flux2"])
def test_the_hosts_own_buffer_is_written(new_host: Host, make: Makers, fields: dict[str, Any]) -> None:
    vae = make.vae(**fields)
    z = make.latent(2, vae.latent_channels, 10, 6)["samples"]
    first = vae.first_stage_model
    buffer = torch.full(first.decode_output_shape(z.shape), -5.0)
    assert first.decode(z, output_buffer=buffer) is buffer
    torch.testing.assert_close(buffer, first.decode(z), **CLOSE)
    torch.testing.assert_close(core().decode(vae, z), vae.decode(z), **CLOSE)
    pixels = make.image(1, 21, 25, 3)
    torch.testing.assert_close(core().encode(vae, pixels), vae.encode(pixels), **CLOSE)


@pytest.mark.parametrize("fields", [{}, FLUX2], ids=["sd", "flux2"])
def test_tiles_of_the_host_are_strips(
    new_host: Host, make: Makers, pack: Pack, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    vae = make.vae(**fields)
    z = make.latent(1, vae.latent_channels, 24, 16)["samples"]
    first, options = vae.first_stage_model, []
    module = pack.module("nodes.first_stage")

    def noted(prepare: Any) -> Any:
        def call(model: Any, shape: Any, given: Any = None, **other: Any) -> Any:
            options.append(given)
            return prepare(model, shape, given, **other)

        return call

    for name in ("prepare_decode", "prepare_encode"):
        monkeypatch.setattr(module, name, noted(getattr(module, name)))
    torch.testing.assert_close(core().decode_tiled(vae, z, 8, 8, 2), vae.decode(z), **CLOSE)
    pixels = make.image(1, 48, 64, 3).movedim(-1, 1) * 2 - 1
    torch.testing.assert_close(first.encode_tiled(pixels, tile_x=16, tile_y=32), first.encode(pixels), **CLOSE)
    rows = [each.tiling.size for each in options]
    factor = vae.downscale_ratio // 2  # raw latent pixels in one on the wire
    assert rows == [8 * 8 // 16 * factor, 16 * 32 // 64 // 2]


def test_what_does_not_fit_goes_straight_to_strips(new_host: Host, make: Makers) -> None:
    vae = make.vae()
    z = make.latent(1, 4, 24, 16)["samples"]
    new_host.free = vae.memory_used_decode(z.shape, torch.float32) - 1
    torch.testing.assert_close(core().decode(vae, z), vae.decode(z), **CLOSE)
    assert vae.tiles == (4, 4, 1)


def test_the_mark_is_set_where_a_host_has_it(make: Makers, host: Host) -> None:
    assert vars(make.vae()).get("handles_tiling", False) is host.is_new


def test_callers_of_newer_hosts_say_what_is_no_video(make: Makers, host: Host) -> None:
    vae, pixels = make.vae(), make.image()
    assert torch.equal(vae.encode(pixels, not_video=True), vae.encode(pixels))
    assert torch.equal(vae.encode_tiled(pixels, 16, 16, not_video=True), vae.encode_tiled(pixels, 16, 16))


def test_a_method_that_is_put_back_is_no_patch(make: Makers, pack: Pack, host: Host) -> None:
    """As tools do that exchange `forward` for a run, and then set the method that they found."""
    vae, z = make.vae(), make.latent()["samples"]
    find_patch = pack.module("vae_core.patched").find_patch
    for half in (vae.first_stage_model.encoder, vae.first_stage_model.decoder):
        original = half.forward

        def doubled(x: Tensor, _original: Any = original) -> Tensor:
            return 2 * _original(x)

        half.forward = doubled
        assert "a patched method" in find_patch(half)
        half.forward = original
        assert find_patch(half) is None
    expected = make.vae().decode(z)
    assert torch.equal(vae.decode(z), expected)
    other = make.model().decoder
    vae.first_stage_model.decoder.forward = other.forward  # another's method is a patch
    assert find_patch(vae.first_stage_model.decoder) is not None
