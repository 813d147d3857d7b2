"""What training scripts and memory tricks of diffusers do with a VAE, done with ours."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32, convert_to_fp32, send_to_device
from diffusers.training_utils import EMAModel
from given.inputs import image, latent
from given.pairs import CONFIGS, model, ours_like, theirs_of
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch.utils._pytree import tree_map

import vae_core
from vae_core import AutoencoderKL

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
LORA = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1"])


def one_step(vae: Any) -> float:
    """Train on one image; the loss."""
    optimizer = torch.optim.SGD([p for p in vae.parameters() if p.requires_grad], lr=0.1)
    x = image(1, 16, 16)
    vae.train()
    posterior = vae.encode(x).latent_dist
    loss = (vae.decode(posterior.mode()).sample - x).pow(2).mean() + 1e-6 * posterior.kl().mean()
    loss.backward()
    optimizer.step()
    vae.eval()
    return loss.item()


def pair() -> tuple[AutoencoderKL, Any]:
    theirs = theirs_of(CONFIGS["f4"])
    return ours_like(theirs), theirs


OUTPUTS: dict[str, Any] = {
    "made again": lambda output: type(output)(dict(output)),
    "accelerate's types": lambda output: convert_to_fp32(output),
    "accelerate's devices": lambda output: send_to_device(output, torch.device("cpu")),
    "torch's trees": lambda output: tree_map(lambda each: each, output),
}


@pytest.mark.parametrize("way", OUTPUTS)
def test_outputs_that_were_gone_through_stay_what_they_are(way: str) -> None:
    for vae in pair():
        for output in (vae.decode(latent()), vae.encode(image(1, 16, 16))):
            found = OUTPUTS[way](output)
            assert type(found) is type(output) and list(found) == list(output)
            assert type(found[0]) is type(output[0]) and getattr(found, next(iter(output))) is found[0]


def test_mixed_precision_gives_outputs_in_float32() -> None:
    for vae in pair():
        wrapped: Any = copy.deepcopy(vae)
        wrapped.forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(wrapped.forward))
        sample = wrapped(image(1, 16, 16)).sample
        assert sample.dtype == torch.float32
        assert 0 < (sample - vae(image(1, 16, 16)).sample).abs().max() < 0.2


class TestLora:
    def adapted(self) -> tuple[AutoencoderKL, Any]:
        """Ours and theirs with the same adapter, trained one step."""
        both = pair()
        for vae in both:
            vae.requires_grad_(False)
            torch.manual_seed(0)
            vae.add_adapter(LORA)
        losses = [one_step(vae) for vae in both]
        assert abs(losses[0] - losses[1]) < 1e-5
        return both

    def test_it_trains_as_in_diffusers(self) -> None:
        ours, theirs = self.adapted()
        weights = [get_peft_model_state_dict(vae) for vae in (ours, theirs)]
        assert weights[0].keys() == weights[1].keys() and weights[0]
        assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-5) for key in weights[0])
        z = latent()
        with torch.no_grad():
            assert torch.allclose(ours.decode(z).sample, theirs.decode(z).sample, atol=1e-5)
        assert ours.active_adapters() == theirs.active_adapters() == ["default"]

    def test_it_is_saved_and_loaded(self, tmp_path: Path) -> None:
        ours, _ = self.adapted()
        z = latent()
        ours.save_lora_adapter(tmp_path)
        with torch.no_grad():
            expected = ours.decode(z).sample
            plain = pair()[0].decode(z).sample
            assert (expected - plain).abs().max() > 1e-5
            for fresh in pair():
                fresh.load_lora_adapter(tmp_path, prefix=None, adapter_name="mine", use_safetensors=True)
                assert torch.allclose(fresh.decode(z).sample, expected, atol=1e-5)
                fresh.disable_lora()
                assert torch.allclose(fresh.decode(z).sample, plain, atol=1e-5)
                fresh.enable_lora()
                fresh.set_adapters("mine", 0.0)
                assert torch.allclose(fresh.decode(z).sample, plain, atol=1e-5)
                fresh.delete_adapters("mine")
                assert torch.allclose(fresh.decode(z).sample, plain, atol=1e-5)

    def test_it_is_fused_unfused_and_unloaded(self, tmp_path: Path) -> None:
        ours, _ = self.adapted()
        z = latent()
        with torch.no_grad():
            expected = ours.decode(z).sample
            ours.fuse_lora()
            assert torch.allclose(ours.decode(z).sample, expected, atol=1e-5)
            ours.unfuse_lora()
            assert torch.allclose(ours.decode(z).sample, expected, atol=1e-5)
            ours.fuse_lora()
            ours.save_pretrained(tmp_path)
            loaded = AutoencoderKL.from_pretrained(tmp_path)
            assert torch.allclose(loaded.decode(z).sample, expected, atol=1e-5)
            ours.unload_lora()
            assert list(ours.state_dict()) == list(loaded.state_dict())
            assert torch.allclose(ours.decode(z).sample, expected, atol=1e-5)
            assert torch.allclose(vae_core.decode(ours, z), expected, atol=1e-5)


class TestHooks:
    def test_layerwise_casting(self) -> None:
        both, z = pair(), latent()
        for vae in both:
            vae.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
            assert vae.dtype == torch.float32 and vae.decoder.conv_in.weight.dtype == torch.bfloat16
        with torch.no_grad():
            samples = [vae.decode(z).sample for vae in both]
            assert torch.allclose(samples[0], samples[1], atol=1e-5)
            assert (samples[0] - pair()[0].decode(z).sample).abs().max() > 1e-4

    @pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16, torch.float32])
    @pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float8_e5m2])
    def test_layerwise_casting_to_eight_bits(self, storage: torch.dtype, compute: torch.dtype) -> None:
        """Norms stay in float32, and each layer casts by itself."""
        both, z = pair(), latent().to(compute)
        for vae in both:
            vae.enable_layerwise_casting(storage_dtype=storage, compute_dtype=compute)
        with torch.no_grad():
            ours, theirs = (vae.decode(z).sample for vae in both)
            assert ours.dtype == theirs.dtype
            assert (ours - theirs).abs().float().mean() < (1e-6 if compute == torch.float32 else 5e-3)
            assert vae_core.decode(both[0], z).isfinite().all()
            both[0].decoder.conv_out.weight.data[0, 0, 0, 0] = torch.nan
            with pytest.raises(vae_core.DamagedWeightError, match=r"decoder\.conv_out\.weight"):
                both[0].decode(z)

    @pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
    def test_group_offloading(self, kind: str) -> None:
        ours, theirs = pair()
        z, x = latent(), image(1, 16, 16)
        with torch.no_grad():
            expected = [ours.decode(z).sample, ours.encode(x).latent_dist.mean]
            for vae in (ours, theirs):
                vae.enable_group_offload(torch.device("cpu"), offload_type=kind, num_blocks_per_group=1)
                assert set(hooked(ours)) <= set(hooked(vae)) and hooked(vae)
                assert vae.device == torch.device("cpu")
                assert torch.allclose(vae.decode(z).sample, expected[0], atol=1e-5)
                assert torch.allclose(vae.encode(x).latent_dist.mean, expected[1], atol=1e-5)
        assert ours.to("cpu") is ours

        assert hooked(ours) == hooked(theirs)

    def test_tiling_with_hooks_runs_the_modules(self) -> None:
        ours, z = pair()[0], latent(1, 24, 24)
        with torch.no_grad():
            expected = ours.decode(z).sample
            ours.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
            ours.enable_tiling()
            assert (ours.decode(z).sample - expected).abs().max() < 0.05


def hooked(vae: torch.nn.Module) -> dict[str, list[str]]:
    """The hooks of diffusers' that are on each module."""
    found = {name: getattr(part, "_diffusers_hook", None) for name, part in vae.named_modules()}
    return {name: sorted(registry.hooks) for name, registry in found.items() if registry is not None}


class TestScripts:
    def test_an_average_of_the_weights(self, tmp_path: Path) -> None:
        """EMAModel keeps its own numbers in the config of the model that it saves."""
        vae: Any = model("f4")
        average = EMAModel(vae.parameters(), decay=0.5, model_cls=AutoencoderKL, model_config=vae.config)
        one_step(vae)
        average.step(vae.parameters())
        average.save_pretrained(tmp_path)
        again = EMAModel.from_pretrained(tmp_path, AutoencoderKL)
        assert again.optimization_step == average.optimization_step == 1 and again.decay == 0.5
        assert all(torch.equal(a, b) for a, b in zip(again.shadow_params, average.shadow_params, strict=True))
        loaded = AutoencoderKL.from_pretrained(tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), average.shadow_params, strict=True))
        again.copy_to(vae.parameters())
        assert torch.equal(vae.decode(latent()).sample, loaded.decode(latent()).sample)

    def test_accelerates_hooks_for_saving_and_loading(self, tmp_path: Path) -> None:
        accelerator = Accelerator(cpu=True)
        vae = accelerator.prepare(model("f4"))

        def save(models: list[Any], weights: list[Any], output: str) -> None:
            for each in models:
                unwrapped = accelerator.unwrap_model(each)
                assert isinstance(unwrapped, AutoencoderKL)
                unwrapped.save_pretrained(Path(output) / "vae", is_main_process=True, save_function=accelerator.save)
                weights.pop()

        def load(models: list[Any], folder: str) -> None:
            while models:
                each = models.pop()
                stored = AutoencoderKL.from_pretrained(folder, subfolder="vae")
                each.register_to_config(**stored.config)
                each.load_state_dict(stored.state_dict())

        accelerator.register_save_state_pre_hook(save)
        accelerator.register_load_state_pre_hook(load)
        expected = vae.decode(latent()).sample
        accelerator.save_state(str(tmp_path))
        one_step(vae)
        assert (vae.decode(latent()).sample - expected).abs().max() > 1e-5
        accelerator.load_state(str(tmp_path))
        assert torch.equal(vae.decode(latent()).sample, expected)

    def test_both_classes_train_alike(self) -> None:
        losses = [[one_step(vae) for _ in range(3)] for vae in pair()]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][0] != losses[0][-1]
