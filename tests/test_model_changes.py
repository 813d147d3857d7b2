"""The model in other hands: training, attention processors, hooks, compilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from given.inputs import image, latent
from given.pairs import model

import vae_core
from vae_core import AutoencoderKL, ConfigError, DamagedWeightError


class TestTraining:
    def loss(self, vae: AutoencoderKL) -> torch.Tensor:
        x = image(2, 32, 32)
        posterior = vae.encode(x).latent_dist
        output = vae.decode(posterior.sample(torch.Generator().manual_seed(0))).sample
        return (output - x).abs().mean() + 1e-3 * posterior.kl().mean()

    def gradients(self, vae: AutoencoderKL) -> dict[str, torch.Tensor]:
        vae.zero_grad()
        self.loss(vae).backward()
        return {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}

    @pytest.mark.parametrize("name", ["sd", "sd3", "attention in the levels", "flux2 small decoder"])
    def test_gradients_reach_every_parameter(self, name: str) -> None:
        vae = model(name).train()
        gradients = self.gradients(vae)
        assert gradients.keys() == dict(vae.named_parameters()).keys()
        for parameter, gradient in gradients.items():
            assert gradient.isfinite().all(), parameter
            # A key's bias moves all scores of a query alike, which the softmax undoes.
            assert gradient.abs().max() > 0 or parameter.endswith("to_k.bias"), parameter

    def saved_bytes(self, vae: AutoencoderKL) -> int:
        """Bytes that autograd keeps for the backward pass, the weights aside."""
        weights = {p.untyped_storage().data_ptr() for p in vae.parameters()}
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss(vae)
        assert loss.requires_grad
        return sum(storages.values())

    def test_gradient_checkpointing_saves_memory_and_nothing_else_changes(self) -> None:
        vae = model("sd").train()
        plain, plain_bytes = self.gradients(vae), self.saved_bytes(vae)
        assert not vae.is_gradient_checkpointing
        vae.enable_gradient_checkpointing()
        assert vae.is_gradient_checkpointing
        checkpointed, checkpointed_bytes = self.gradients(vae), self.saved_bytes(vae)
        assert checkpointed_bytes < plain_bytes / 4
        for name, gradient in plain.items():
            assert torch.equal(checkpointed[name], gradient), name
        vae.disable_gradient_checkpointing()
        assert not vae.is_gradient_checkpointing and self.saved_bytes(vae) == plain_bytes

    def test_a_few_steps_lower_the_loss(self) -> None:
        vae = model("f4").train()
        optimizer = torch.optim.Adam(vae.parameters(), 1e-3)
        losses = []
        for _ in range(8):
            optimizer.zero_grad()
            loss = self.loss(vae)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]

    def test_flux2_batch_norm_is_left_alone_in_training(self) -> None:
        vae: Any = model("flux2").train()
        before = vae.bn.running_mean.clone()
        self.loss(vae)
        assert torch.equal(vae.bn.running_mean, before)


class TestAttention:
    def test_names_and_a_missing_one(self) -> None:
        vae = model("sd")
        names = ["encoder.mid_block.attentions.0.processor", "decoder.mid_block.attentions.0.processor"]
        assert sorted(vae.attn_processors) == sorted(names)
        with pytest.raises(ConfigError, match=r"encoder\.mid_block"):
            vae.set_attn_processor({names[0]: vae.attn_processors[names[0]]})

    def test_fusing_twice_and_unfusing_twice(self) -> None:
        vae = model("sd")
        z = latent()
        with torch.no_grad():
            plain, processors, keys = vae.decode(z).sample, vae.attn_processors, list(vae.state_dict())
            vae.fuse_qkv_projections()
            vae.fuse_qkv_projections()
            torch.testing.assert_close(vae.decode(z).sample, plain, rtol=0, atol=1e-5)
            vae.unfuse_qkv_projections()
            vae.unfuse_qkv_projections()
            assert torch.equal(vae.decode(z).sample, plain)
        assert vae.attn_processors == processors and list(vae.state_dict()) == keys

    def test_a_processor_of_ones_own(self) -> None:
        class Skip:
            def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
                return hidden_states

        vae = model("sd")
        with torch.no_grad():
            plain = vae.decode(latent()).sample
            vae.set_attn_processor(Skip())
            assert (vae.decode(latent()).sample - plain).abs().max() > 1e-3
            vae.set_default_attn_processor()
            torch.testing.assert_close(vae.decode(latent()).sample, plain, rtol=0, atol=1e-5)


class TestHooks:
    def test_a_hook_runs_before_encode_and_decode(self) -> None:
        from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

        class Counting(ModelHook):
            calls = 0

            def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
                self.calls += 1
                return args, kwargs

        vae, hook = model("f4"), Counting()
        add_hook_to_module(vae, hook)
        with torch.no_grad():
            vae.encode(image())
            assert hook.calls == 1
            vae.decode(latent())
            assert hook.calls == 2
            vae(image())
        assert hook.calls == 5  # forward itself, and the two within it, as in diffusers
        remove_hook_from_module(vae)
        vae.decode(latent())
        assert hook.calls == 5

    def test_weights_offloaded_by_accelerate(self) -> None:
        from accelerate import cpu_offload

        vae = model("sd")
        x, z = image(), latent()
        with torch.no_grad():
            expected = vae.encode(x).latent_dist.parameters, vae.decode(z).sample, vae(x).sample
            cpu_offload(vae, execution_device=torch.device("cpu"))
            assert next(vae.parameters()).device.type == "meta"
            results = vae.encode(x).latent_dist.parameters, vae.decode(z).sample, vae(x).sample
        for result, wanted in zip(results, expected, strict=True):
            assert torch.equal(result, wanted)


class TestCompilation:
    def check(self, backend: str, tolerance: float, **options: Any) -> None:
        vae = model("sd")
        x, z = image(1, 32, 48), latent(1, 3, 2)
        with torch.no_grad():
            expected = vae.encode(x).latent_dist.parameters, vae.decode(z).sample
            torch._dynamo.reset()
            encode = torch.compile(vae.encode, fullgraph=True, backend=backend, **options)
            decode = torch.compile(vae.decode, fullgraph=True, backend=backend, **options)
            results = encode(x).latent_dist.parameters, decode(z).sample
            as_tuples = encode(x, return_dict=False)[0].mode(), decode(z, return_dict=False)[0]
        torch._dynamo.reset()
        for result, wanted in zip(results, expected, strict=True):
            torch.testing.assert_close(result, wanted, rtol=0, atol=tolerance)
        torch.testing.assert_close(as_tuples[0], expected[0][:, :4], rtol=0, atol=tolerance)
        torch.testing.assert_close(as_tuples[1], expected[1], rtol=0, atol=tolerance)

    @pytest.mark.thorough
    def test_whole_graph(self) -> None:
        self.check("aot_eager", 1e-5)

    @pytest.mark.slow
    def test_whole_graph_with_inductor(self) -> None:
        self.check("inductor", 1e-4)  # fused kernels add in another order

    def test_whole_module(self) -> None:
        vae = model("f4")
        with torch.no_grad():
            expected = vae(image()).sample
            torch._dynamo.reset()
            result = torch.compile(vae, fullgraph=True, backend="eager")(image()).sample
        torch._dynamo.reset()
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


class TestNames:
    """Messages name weights and modules as people know them, whatever is wrapped around the modules."""

    def compiled(self, vae: Any) -> None:
        vae.decoder = torch.compile(vae.decoder, backend="eager")

    def alone(self, vae: Any) -> None:
        vae.decoder = torch.nn.Sequential(vae.decoder)

    def parallel(self, vae: Any) -> None:
        vae.decoder.mid_block = torch.nn.DataParallel(vae.decoder.mid_block)

    def adapted(self, vae: Any) -> None:
        from peft import LoraConfig, get_peft_model

        vae.decoder = get_peft_model(vae.decoder, LoraConfig(r=2, target_modules=["conv1", "to_q"]))

    def parametrized(self, vae: Any) -> None:
        torch.nn.utils.parametrizations.weight_norm(vae.decoder.mid_block.resnets[0].conv1)

    @pytest.mark.parametrize("how", ["compiled", "alone", "parallel", "adapted", "parametrized"])
    @torch.no_grad()
    def test_a_damaged_weight(self, how: str) -> None:
        vae: Any = model("f4")
        vae.decoder.mid_block.resnets[0].conv1.weight[0, 0, 0, 0] = torch.nan
        getattr(self, how)(vae)
        with pytest.raises(DamagedWeightError, match=r"^decoder\.mid_block\.resnets\.0\.conv1\.weight has values"):
            vae.decode(latent())

    def test_a_patch(self) -> None:
        vae: Any = model("f4")
        vae.decoder.mid_block.register_forward_hook(lambda *args: None)
        assert "decoder.mid_block has a hook" in vae_core.prepare_decode(vae, (1, 4, 8, 8)).way.reason
        self.compiled(vae)
        assert "decoder has been compiled" in vae_core.prepare_decode(vae, (1, 4, 8, 8)).way.reason


class TestDamage:
    """NaN in a weight is named however a half is called."""

    CALLS = (
        ("the half itself", lambda vae: vae.decoder(latent())),
        ("compiled decode", lambda vae: torch.compile(vae.decode, backend="eager")(latent())),
        ("compiled decode, whole", lambda vae: torch.compile(vae.decode, backend="eager", fullgraph=True)(latent())),
        ("the model compiled in place", lambda vae: (vae.compile(backend="eager"), vae(image(1, 16, 16)))),
    )

    @pytest.mark.parametrize(("how", "call"), CALLS, ids=[how for how, _ in CALLS])
    @torch.no_grad()
    def test_it_is_named(self, how: str, call: Any) -> None:
        torch._dynamo.reset()
        vae: Any = model("f4")
        call(vae)
        torch._dynamo.reset()
        damaged: Any = model("f4")
        damaged.decoder.mid_block.resnets[0].conv1.weight[0, 0, 0, 0] = torch.nan
        with pytest.raises((DamagedWeightError, RuntimeError), match=r"decoder\.mid_block\.resnets\.0\.conv1\.weight"):
            call(damaged)
        torch._dynamo.reset()

    @torch.no_grad()
    def test_what_comes_in_as_nan_goes_out_as_nan(self) -> None:
        assert model("f4").decoder(torch.full((1, 4, 4, 4), torch.nan)).isnan().any()
