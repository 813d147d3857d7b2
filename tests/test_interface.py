"""Everything that diffusers' AutoencoderKL offers is offered here: a table made from their class itself."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.autoencoders import autoencoder_kl as theirs_module
from diffusers.models.modeling_utils import ModelMixin
from given.inputs import image, latent
from given.pairs import CONFIGS, model, theirs_of
from torch import nn
from torch.utils._pytree import tree_map

import vae_core
from vae_core import AutoencoderKL, ConfigError, MissingDependencyError, ShapeError
from vae_core.blocks import ResnetBlock

THEIRS: Any = theirs_module.AutoencoderKL
# Attributes of theirs that are not among ours, and parameters of theirs that a method of ours lacks.
LEFT_OUT_ATTRIBUTES: dict[str, str] = {}
LEFT_OUT_PARAMETERS: dict[tuple[str, str], str] = {
    ("cuda", "args"): "torch's own signature is used",
    ("cuda", "kwargs"): "torch's own signature is used",
}


def attributes_of_theirs() -> list[str]:
    """What their class has beyond torch's Module, private hooks for other parts of diffusers included."""
    common = set(dir(nn.Module))
    return sorted(name for name in dir(THEIRS) if name not in common and not name.startswith("__"))


def own(name: str) -> Any:
    """An attribute of ours, as our own classes define it: not what diffusers' class, a base of ours, lends it."""
    for cls in AutoencoderKL.__mro__:
        if cls.__module__.startswith(("vae_core.", "torch.")) and name in vars(cls):
            return inspect.getattr_static(cls, name)
    return None


@pytest.mark.parametrize("name", [name for name in attributes_of_theirs() if not name.startswith("_")])
def test_every_public_attribute_is_there(name: str) -> None:
    if name in LEFT_OUT_ATTRIBUTES:
        return
    assert any(
        name in vars(cls) for cls in AutoencoderKL.__mro__ if cls.__module__.startswith(("vae_core.", "torch."))
    ), f"{name} is lent by diffusers' class alone"
    kinds = [type(inspect.getattr_static(THEIRS, name)), type(own(name))]
    assert kinds[0] is kinds[1] or not {property, classmethod, staticmethod} & set(kinds)


def methods_and_parameters() -> list[tuple[str, str]]:
    found = []
    for name in [
        *(name for name in attributes_of_theirs() if not name.startswith("_")),
        "__init__",
        "to",
        "half",
        "cuda",
    ]:
        method = getattr(THEIRS, name)
        if callable(method):
            for parameter in inspect.signature(method).parameters.values():
                if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                    found.append((name, parameter.name))
    return found


@pytest.mark.parametrize(("name", "parameter"), methods_and_parameters(), ids="-".join)
def test_every_parameter_is_there(name: str, parameter: str) -> None:
    if (name, parameter) in LEFT_OUT_PARAMETERS:
        return
    ours = inspect.signature(getattr(AutoencoderKL, name)).parameters
    assert parameter in ours or (name == "get_config_dict" and "kwargs" in ours)
    theirs = inspect.signature(getattr(THEIRS, name)).parameters
    default = theirs[parameter].default
    if default is not inspect.Parameter.empty and not callable(default):
        assert ours[parameter].default == default or isinstance(default, torch.device | tuple)
    by_place = [
        [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        for parameters in (ours, theirs)
    ]
    if parameter in by_place[1]:
        assert by_place[0].index(parameter) == by_place[1].index(parameter)


# What diffusers' parts have and ours do not: how attention is computed is chosen for the whole model.
LEFT_OUT_OF_PARTS = {
    ("Attention", "set_use_xla_flash_attention"),
    ("Attention", "set_use_npu_flash_attention"),
    ("Attention", "set_use_memory_efficient_attention_xformers"),
    ("Attention", "set_attention_slice"),
    ("Attention", "norm_encoder_hidden_states"),
}


@pytest.mark.parametrize("name", ["f4", "attention in the levels"])
def test_every_attribute_of_every_part_is_there(name: str) -> None:
    """Packs ask the blocks for them. Values are compared where they are plain."""
    theirs, ours = theirs_of(CONFIGS[name]), model(name)
    parts = dict(ours.named_modules())
    for place, part in theirs.named_modules():
        if not place or isinstance(part, nn.Dropout):
            continue
        kind = type(part).__name__
        for attribute in {*vars(part), *part._modules, *vars(type(part))}:
            if attribute.startswith("_") or (kind, attribute) in LEFT_OUT_OF_PARTS or attribute == "training":
                continue
            assert hasattr(parts[place], attribute), f"{kind}.{attribute}"
            value = getattr(part, attribute)
            of_embedding = attribute == "time_embedding_norm"  # there is none
            if isinstance(value, int | float | str | None) and not of_embedding:
                assert getattr(parts[place], attribute) == value, f"{kind}.{attribute}"


@pytest.mark.parametrize("method", ["from_pretrained", "from_single_file"])
def test_every_keyword_that_they_take_is_taken(method: str) -> None:
    """Arguments behind `**kwargs`: those that their documentation names, and all that their code asks for."""
    source = inspect.getsource(getattr(THEIRS, method))
    names = set(re.findall(r"kwargs\.(?:pop|get)\(\s*\"(\w+)\"", source))
    names |= set(re.findall(r"^ {12}(\w+) \(`", source, re.MULTILINE))
    names = {name for name in names if not name.startswith("pretrained_model_")}  # the first argument itself
    assert {"torch_dtype", "token", "subfolder", "quantization_config", "disable_mmap"} <= names
    demo = Path(vae_core.__file__).parent / "demo"
    path = demo if method == "from_pretrained" else demo / "diffusion_pytorch_model.safetensors"
    for name in sorted(names | {"mirror", "user_agent", "dtype", "resume_download"}):
        value = False if name == "force_download" else None
        found = getattr(AutoencoderKL, method)(path, norm_num_groups=8, **{name: value})
        assert isinstance(found, AutoencoderKL), name


@pytest.mark.parametrize("name", ["use_flashpack", "parallel_config", "quantization_config", "flashpack_kwargs"])
def test_what_is_not_done_is_said(name: str) -> None:
    arguments: dict[str, Any] = {name: {"a": 1}}
    with pytest.raises(vae_core.ConfigError, match=rf"Leave {name} out\.$"):
        AutoencoderKL.from_pretrained(Path(vae_core.__file__).parent / "demo", **arguments)


class TestLikeness:
    def test_diffusers_sees_its_own_class(self) -> None:
        vae = model("f4")
        assert isinstance(vae, THEIRS) and isinstance(vae, ModelMixin) and issubclass(AutoencoderKL, THEIRS)
        assert AutoencoderKL == THEIRS and AutoencoderKL is not THEIRS and len({AutoencoderKL, THEIRS}) == 2
        assert AutoencoderKL != diffusers.AsymmetricAutoencoderKL
        assert vae.__class__ is type(vae) is AutoencoderKL

    def test_nothing_of_theirs_runs(self) -> None:
        """Whatever is called on ours is ours: the base class is for `isinstance`."""
        methods = [
            name for name, each in vars(diffusers.AutoencoderKL).items() if callable(each) and not name.startswith("_")
        ]
        assert {"encode", "decode", "forward", "tiled_encode", "tiled_decode", "blend_v"} <= {*methods}
        for name in methods:
            assert getattr(type(model("f4")), name).__module__.startswith("vae_core."), name

    def test_a_copy_and_a_pickle_are_whole(self) -> None:
        vae = model("f4")
        z = latent()
        expected = vae.decode(z).sample
        for other in (copy.deepcopy(vae), pickle.loads(pickle.dumps(vae)), copy.copy(vae)):
            assert type(other) is AutoencoderKL and other.config == vae.config
            assert torch.equal(other.decode(z).sample, expected)

    @pytest.mark.thorough
    def test_diffusers_may_be_imported_after_the_model_is_made(self) -> None:
        script = """
import sys, vae_core
vae = vae_core.AutoencoderKL()
assert not [name for name in sys.modules if name.split(".")[0] in ("diffusers", "peft", "huggingface_hub")]
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.pipeline_loading_utils import _fetch_class_library_tuple
assert _fetch_class_library_tuple(vae) == ("diffusers", "AutoencoderKL")
from diffusers import AutoencoderKL
assert isinstance(vae, AutoencoderKL) and issubclass(vae.__class__, AutoencoderKL)
"""
        subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(vae_core.__file__).parents[1])


class TestOutputs:
    def test_they_are_mappings_with_attributes(self) -> None:
        output = model("f4").decode(latent())
        assert list(output) == list(output.keys()) == ["sample"] and len(output) == 1
        assert next(iter(output.values())) is output.sample is output.to_tuple()[0] is output[:1][0] is output[-1]
        assert {**output}["sample"] is dict(output)["sample"] is output["sample"]
        assert isinstance(output, dict) and "sample" in output and output.commit_loss is None
        with pytest.raises(KeyError):
            output["nothing"]

    def test_fields_are_set_and_never_removed(self) -> None:
        output = model("f4").decode(latent())
        output.sample = torch.zeros(1)
        assert output["sample"] is output.sample and output.sample.numel() == 1
        output["sample"] = torch.ones(2)
        assert output.sample.sum() == 2
        for change in ("pop", "popitem", "clear", "setdefault", "update"):
            with pytest.raises(TypeError, match="fixed: sample"):
                getattr(output, change)(*([] if change in ("popitem", "clear") else ["sample"]))
        with pytest.raises(TypeError, match="fixed"):
            del output["sample"]

    def test_they_are_copied_and_looked_into(self) -> None:
        output = model("f4").decode(latent())
        for other in (copy.copy(output), pickle.loads(pickle.dumps(output))):
            assert type(other) is type(output) and torch.equal(other.sample, output.sample)
        doubled = tree_map(lambda tensor: 2 * tensor, output)
        assert type(doubled) is type(output) and torch.equal(doubled.sample, 2 * output.sample)


class TestPosterior:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("logvar", [-40.0, -12.0, 0.0, 11.0, 25.0])
    def test_divergences_are_finite_in_any_precision(self, dtype: torch.dtype, logvar: float) -> None:
        moments = torch.cat([torch.full((2, 4, 3, 3), 0.5), torch.full((2, 4, 3, 3), logvar)], dim=1)
        posterior, exact = (vae_core.DiagonalGaussianDistribution(moments.to(each)) for each in (dtype, torch.float64))
        other = vae_core.DiagonalGaussianDistribution(torch.zeros_like(moments).to(dtype))
        sample = torch.zeros(2, 4, 3, 3, dtype=dtype)
        for ours, expected in (
            (posterior.kl(), exact.kl()),
            (posterior.kl(other), exact.kl()),
            (posterior.nll(sample), exact.nll(sample.double())),
        ):
            assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert torch.allclose(ours.double(), expected, rtol=1e-5)


class TestBlocks:
    def test_arguments_that_packs_pass_along(self) -> None:
        vae: Any = model("attention in the levels")
        for block, channels, name in (
            (vae.decoder.mid_block, 32, "hidden_states"),
            (vae.decoder.mid_block.resnets[0], 32, "input_tensor"),
            (vae.decoder.mid_block.attentions[0], 32, "hidden_states"),
            (vae.decoder.up_blocks[0], 32, "hidden_states"),
            (vae.decoder.up_blocks[0].upsamplers[0], 32, "hidden_states"),
            (vae.encoder.down_blocks[0], 16, "hidden_states"),
            (vae.encoder.down_blocks[0].downsamplers[0], 16, "hidden_states"),
            (vae.decoder, 4, "sample"),
        ):
            x = latent(1, 8, 8, channels)
            assert torch.equal(block(x, None), block(x))
            assert torch.equal(block(**{name: x}), block(x))
        up = vae.decoder.up_blocks[0].upsamplers[0]
        assert up(latent(1, 8, 8, 32), (15, 17)).shape == (1, 32, 15, 17)
        assert torch.equal(vae.decoder(latent(), latent_embeds=None), vae.decoder(latent()))

    def test_an_embedding_is_refused(self) -> None:
        vae: Any = model("f4")
        for block, channels in ((vae.decoder, 4), (vae.decoder.mid_block, 32), (vae.decoder.up_blocks[0], 32)):
            with pytest.raises(ShapeError, match=r"\(1, 128\).*take none"):
                block(latent(1, 8, 8, channels), torch.zeros(1, 128))

    def test_half_of_a_decoder_in_half_precision(self) -> None:
        """As SDXL's pipelines do for an old torch: everything before the up blocks in float16 or bfloat16."""
        vae: Any = model("f4")
        expected = vae.decode(latent()).sample
        for part in (vae.post_quant_conv, vae.decoder.conv_in, vae.decoder.mid_block):
            part.to(torch.bfloat16)
        sample = vae.decode(latent().to(torch.bfloat16)).sample
        assert sample.dtype == torch.float32
        assert 0 < (sample - expected).abs().max() < 0.1 * expected.abs().max()

    def test_one_part_checkpoints_by_itself(self) -> None:
        vae: Any = model("f4").train()
        calls: list[str] = []

        def checkpoint(block: nn.Module, *args: Any) -> Any:
            calls.append(type(block).__name__)
            return block(*args)

        vae._set_gradient_checkpointing(True, checkpoint)
        assert vae.is_gradient_checkpointing and vae.decoder.mid_block.gradient_checkpointing
        vae.disable_gradient_checkpointing()
        assert not vae.is_gradient_checkpointing
        vae.decoder.mid_block.gradient_checkpointing = True
        vae.decoder.mid_block._gradient_checkpointing_func = checkpoint
        assert vae.is_gradient_checkpointing
        vae.decode(latent())
        assert calls == ["Attention", "ResnetBlock"]
        vae.enable_gradient_checkpointing(checkpoint)
        calls.clear()
        vae.encode(image(1, 16, 16))
        assert calls[:4] == ["DownBlock"] * 3 + ["UNetMidBlock2D"]
        vae.enable_gradient_checkpointing()
        vae.decode(latent()).sample.sum().backward()
        assert all(p.grad is not None for p in vae.decoder.parameters())


class TestModel:
    def test_memory_and_counts(self) -> None:
        vae = model("sd")
        assert vae.get_memory_footprint() == 4 * vae.num_parameters()
        vae.encoder.requires_grad_(False)
        assert vae.num_parameters(only_trainable=True) < vae.num_parameters()
        flux = model("flux2")
        assert (
            flux.get_memory_footprint() > flux.get_memory_footprint(return_buffers=False) == 4 * flux.num_parameters()
        )

    @pytest.mark.parametrize(
        "kind", ["memory_efficient_attention_xformers", "npu_flash_attention", "xla_flash_attention"]
    )
    def test_other_attention_is_switched_off_and_its_absence_said(self, kind: str) -> None:
        vae = model("f4")
        processors = vae.attn_processors
        getattr(vae, f"set_use_{kind}")(False)
        assert vae.attn_processors == processors
        enable = kind.replace("memory_efficient_attention_xformers", "xformers_memory_efficient_attention")
        getattr(vae, f"disable_{enable}")()
        library = {"m": "xformers", "n": "torch-npu", "x": "torch-xla"}[kind[0]]
        with pytest.raises(
            MissingDependencyError, match=rf"is not installed.*pip install {library}, in the release that"
        ):
            getattr(vae, f"enable_{enable}")()
        assert vae.attn_processors == processors

    def test_an_attention_backend(self) -> None:
        vae, z = model("f4"), latent()
        expected = vae.decode(z).sample
        vae.set_attention_backend("native")
        try:
            assert {type(p).__name__ for p in vae.attn_processors.values()} == {"BackendAttnProcessor"}
            assert torch.allclose(vae.decode(z).sample, expected, atol=1e-5)
            with pytest.raises(ValueError, match="nothing"):
                vae.set_attention_backend("nothing")
        finally:
            vae.reset_attention_backend()
        assert torch.equal(vae.decode(z).sample, expected)

    def test_repeated_blocks_are_compiled(self) -> None:
        vae = model("f4")
        vae.compile_repeated_blocks(backend="eager")
        blocks = [module for module in vae.modules() if isinstance(module, ResnetBlock)]
        assert len(blocks) > 5 and all(block._compiled_call_impl is not None for block in blocks)

    def test_what_cannot_be_done_is_said(self, tmp_path: Path) -> None:
        vae = model("f4")
        with pytest.raises(ConfigError, match="not quantised"):
            vae.dequantize()
        with pytest.raises(ConfigError, match="parallelism"):
            vae.enable_parallelism(config=None)
        with pytest.raises(ConfigError, match="FlashPack"):
            vae.save_pretrained(tmp_path, use_flashpack=True)
        with pytest.raises(ConfigError, match="no argument overwrite"):
            vae.save_pretrained(tmp_path, overwrite=True)

    @pytest.mark.parametrize(
        ("call", "absent"),
        [
            (lambda vae: vae.enable_layerwise_casting(), "diffusers"),
            (lambda vae: vae.enable_group_offload(torch.device("cpu")), "diffusers"),
            (lambda vae: vae.add_adapter(None), "peft"),
            (lambda vae: vae.fuse_lora(), "peft"),
            (lambda vae: vae.set_attention_backend("native"), "diffusers"),
            (lambda vae: vae.push_to_hub("org/name"), "huggingface_hub"),
        ],
    )
    def test_a_library_that_is_absent_is_named_with_its_extra(self, call: Any, absent: str, monkeypatch: Any) -> None:
        vae = model("f4")
        for name in [name for name in sys.modules if name.split(".")[0] == absent]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, absent, None)
        with pytest.raises(MissingDependencyError, match=rf"{absent}.*pip install .seamless-vae\["):
            call(vae)


@pytest.mark.parametrize("fused", [False, True])
def test_attention_takes_a_sequence_as_diffusers_does(fused: bool) -> None:
    """[B, H*W, C] in place of [B, C, H, W]: the same numbers, as a sequence."""
    vae: Any = model("f4")
    if fused:
        vae.fuse_qkv_projections()
    attention = vae.decoder.mid_block.attentions[0]
    x = torch.randn(2, attention.query_dim, 3, 5)
    with torch.no_grad():
        sequence = attention(x.flatten(2).transpose(1, 2))
        assert sequence.shape == (2, 15, attention.query_dim)
        torch.testing.assert_close(sequence.transpose(1, 2).reshape(x.shape), attention(x), rtol=1e-5, atol=1e-5)
