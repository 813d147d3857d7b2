"""Whatever is called, and in whatever way it runs: everything that has to be found out is found out once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from given.counts import Calls
from given.inputs import image, latent
from given.models import SMALL, make

import vae_core
from vae_core import AutoencoderKL, ConfigError, Options, TileSpec, TilingError, autoencoder_kl, halves
from vae_core.streaming import reference, source, strips
from vae_core.streaming.executor import Execution

BLENDED = TileSpec(size=8, overlap=2, mode="blended")
ONCE = {"tensor": 1, "shape": 1, "patch": 1, "program": 1, "plan": 1, "NaN": 1}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    calls = Calls(monkeypatch)
    calls.of(autoencoder_kl, "check_tensor", "tensor")
    calls.of(source, "check_tensor", "tensor")
    calls.of(autoencoder_kl, "_check_shape", "shape")
    calls.of(halves, "_find_patch", "patch")
    for name in ("encoder_program", "decoder_program"):
        calls.of(halves, name, "program", only=lambda half, _: not half.conv_in.weight.is_meta)
    for name in ("_nominal_encoder", "_nominal_decoder"):  # these have no weights, and are kept
        calls.of(halves, name, "program")
    calls.of(strips, "plan_program", "plan")
    calls.of(reference, "plan_whole", "plan")
    calls.of(reference, "plan_tiles", "plan")
    calls.of(source, "count_not_finite", "NaN")
    calls.of(strips, "MapStore", "store")
    calls.of(strips, "WorkerPool", "pool")
    return calls.counts


def patched() -> AutoencoderKL:
    vae = make(SMALL)
    for half in (vae.encoder, vae.decoder):
        half.register_forward_hook(lambda *_: None)
    return vae


@pytest.mark.parametrize("encode", [False, True], ids=["decode", "encode"])
@pytest.mark.parametrize("way", ["strips", "tiles", "whole"])
def test_by_functions(way: str, encode: bool, seen: Counter[str]) -> None:
    vae = patched() if way == "whole" else make(SMALL)
    tiling = BLENDED if way == "tiles" else None
    if encode:
        vae_core.encode(vae, image(2, 48), tiling=tiling)
    else:
        vae_core.decode(vae, latent(2, 24, 24), tiling=tiling)
    assert dict(seen) == ONCE | ({"store": 1, "pool": 1} if way == "strips" else {})


def by_tiling(vae: AutoencoderKL) -> None:
    vae.tile_latent_min_size = 16
    vae.enable_tiling()
    vae.decode(latent(2, 72, 24))


def by_slicing(vae: AutoencoderKL) -> None:
    vae.enable_slicing()
    vae.decode(latent(3, 24, 24))


def by_gradients(vae: AutoencoderKL) -> None:
    vae.decode(latent(2, 24, 24).requires_grad_())


METHODS: dict[str, tuple[Callable[[AutoencoderKL], Any], dict[str, int]]] = {
    "strips": (lambda vae: vae.decode(latent(2, 24, 24)), {**ONCE, "store": 1, "pool": 1}),
    "strips of a size": (by_tiling, {**ONCE, "store": 1, "pool": 1}),
    "slices": (by_slicing, {**ONCE, "store": 1, "pool": 1}),
    "tiles": (lambda vae: vae.tiled_decode(latent(2, 72, 24)), {"tensor": 1, "shape": 1}),
    "whole": (lambda vae: vae.decode(latent(2, 4, 4)), {"tensor": 1, "shape": 1}),
    "gradients": (by_gradients, {"tensor": 1, "shape": 1}),
}


@pytest.mark.parametrize("name", METHODS)
def test_by_the_models_methods(name: str, seen: Counter[str]) -> None:
    vae, (run, want) = make(SMALL), METHODS[name]
    with torch.set_grad_enabled(name == "gradients"):
        run(vae)
    assert dict(seen) == want


def test_slices_are_one_job(seen: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    vae, z, parts = make(SMALL), latent(3, 24, 24), []
    real = Execution.run

    def run(self: Execution, part: Any, *args: Any) -> None:
        parts.append(len(part))
        real(self, part, *args)

    monkeypatch.setattr(Execution, "run", run)
    with torch.no_grad():
        want = torch.cat([vae.decode(item[None]).sample for item in z])
        parts.clear()
        vae.enable_slicing()
        assert torch.equal(vae.decode(z).sample, want)
    assert parts == [1, 1, 1]


# What changes between planning and running.


def doubled(module: Any, args: Any, result: torch.Tensor) -> torch.Tensor:
    return 2 * result


@pytest.mark.parametrize("options", [Options(), Options(tiling=TileSpec(size=5))])
def test_a_patch_after_planning_is_obeyed(options: Options, caplog: pytest.LogCaptureFixture) -> None:
    vae, z = make(SMALL), latent(1, 24, 24)
    job = vae_core.prepare_decode(vae, z.shape, options)
    before = job.run(z)
    handle = vae.decoder.register_forward_hook(doubled)
    with torch.no_grad():
        want = vae.decode_reference(z)
    assert torch.equal(job.run(z), want) and "has a hook" in caplog.text
    handle.remove()
    assert torch.equal(job.run(z), before)
    patched_job = vae_core.prepare_decode(patched(), z.shape)
    assert patched_job.way.name == "whole"


def test_a_patch_that_is_gone_again_is_not_obeyed() -> None:
    vae, z = make(SMALL), latent(1, 24, 24)
    handle = vae.decoder.register_forward_hook(doubled)
    job = vae_core.prepare_decode(vae, z.shape)
    handle.remove()
    assert torch.equal(job.run(z), vae_core.decode(vae, z))


def test_a_patch_after_planning_circular_axes() -> None:
    vae, z = make(SMALL), latent(1, 24, 24)
    job = vae_core.prepare_decode(vae, z.shape, Options(circular="x"))
    vae.decoder.register_forward_hook(lambda *_: None)
    with pytest.raises(TilingError, match="patched"):
        job.run(z)


@pytest.mark.parametrize("options", [Options(), Options(tiling=BLENDED)], ids=["strips", "tiles"])
def test_weights_that_never_came(options: Options) -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(**SMALL).eval()
    job = vae_core.prepare_decode(vae, (1, 4, 24, 24), options, device="cpu")
    with pytest.raises(ConfigError, match=r"post_quant_conv\.weight is on the meta device.*load"):
        job.run(latent(1, 24, 24))


@pytest.mark.parametrize("options", [Options(), Options(tiling=BLENDED)], ids=["strips", "tiles"])
@pytest.mark.parametrize("name", ["post_quant_conv.weight", "decoder.conv_in.weight", "decoder.conv_norm_out.bias"])
def test_weights_that_are_gone(name: str, options: Options, tmp_path: Path) -> None:
    """Their memory was given back, as sharding and offloading do: reading it would end the process."""
    vae = make(SMALL)
    job = vae_core.prepare_decode(vae, (1, 4, 24, 24), options, device="cpu")
    dict(vae.named_parameters())[name].untyped_storage().resize_(0)
    with pytest.raises(ConfigError, match=rf"{name} has no values: such weights have given their memory back"):
        job.run(latent(1, 24, 24))
    with pytest.raises(vae_core.VAEError, match="given their memory back"):
        vae.save_pretrained(tmp_path / "never")
    assert not (tmp_path / "never").exists()


# Values.


@pytest.mark.parametrize("kernels", ["winograd", "direct"])
def test_values_beyond_the_precision_are_an_error_or_exact(kernels: Any) -> None:
    """Squares of 1e30 are infinite in float32, so a norm by them would make a finite image of nothing."""
    vae = make(SMALL)
    with vae_core.kernels(kernels):
        for given, run in ((latent(1, 24, 24), vae_core.decode), (image(1, 48), vae_core.encode)):
            given = given * 1e30
            want = run(vae, given, dtype=torch.float64)
            try:
                got = run(vae, given)
            except vae_core.NonFiniteError as error:
                assert "went out of the range of float32" in str(error)
                continue
            assert (values(got) - values(want)).abs().max() < 1e-3


def values(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result.parameters
