"""Files that are not a whole AutoencoderKL: what is wrong, how much of it, what it seems to be, what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from given.files import assert_same_weights, ldm, refusal
from given.models import fields, make
from safetensors.torch import save_file
from torch import Tensor

from vae_core import AutoencoderKL, CheckpointError, inspect_vae, load_vae, save_single_file


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return ldm(make(fields(32, 64)))


def failure(tensors: dict[str, Tensor], path: Path) -> str:
    """What load_vae says of them, which inspect_vae must say too."""
    save_file({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, path)
    with pytest.raises(CheckpointError) as error:
        load_vae(path)
    info = inspect_vae(path)
    assert info.problem == str(error.value)
    assert info.seems_to_be is not None and info.config is None
    assert str(error.value).startswith(path.name)
    assert str(error.value).endswith(".")
    return str(error.value)


def test_ignorable_keys(weights: dict[str, Tensor], tmp_path: Path) -> None:
    beside = {
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.weight": torch.zeros(2, 3, 4, 4),
        "loss.perceptual_loss.net.slice1.0.weight": torch.zeros(2, 3, 3, 3),
        "model_ema.decay": torch.zeros(()),
        "model_ema.encoderconv_inweight": torch.zeros(2),
    }
    save_file(weights, tmp_path / "plain.safetensors")
    save_file({**weights, **beside}, tmp_path / "vae.safetensors")
    assert_same_weights(load_vae(tmp_path / "plain.safetensors"), load_vae(tmp_path / "vae.safetensors"))
    prefixed = {f"first_stage_model.{k}": v for k, v in {**weights, **beside}.items()}
    save_file({**prefixed, "anything.at.all": torch.zeros(1)}, tmp_path / "vae.safetensors")
    assert_same_weights(load_vae(tmp_path / "plain.safetensors"), load_vae(tmp_path / "vae.safetensors"))


def test_missing(weights: dict[str, Tensor], tmp_path: Path) -> None:
    rest = {k: v for k, v in weights.items() if k not in ("decoder.norm_out.bias", "encoder.mid.block_1.conv1.weight")}
    message = failure(rest, tmp_path / "vae.safetensors")
    total = len(weights)
    assert f"lacks 2 of the {total} weights of its AutoencoderKL" in message
    assert "decoder.conv_norm_out.bias, encoder.mid_block.resnets.0.conv1.weight" in message
    assert "The file is incomplete" in message


def test_unknown(weights: dict[str, Tensor], tmp_path: Path) -> None:
    extra = {f"decoder.refiner.{i}.weight": torch.zeros(1) for i in range(5)}
    message = failure({**weights, **extra}, tmp_path / "vae.safetensors")
    assert (
        "has 5 weights that no AutoencoderKL has (decoder.refiner.0.weight, decoder.refiner.1.weight, ...)" in message
    )
    assert "another model, or its config is not the one given" in message


def test_both(weights: dict[str, Tensor], tmp_path: Path) -> None:
    renamed = {k.replace("mid.block_1", "mid.block_7"): v for k, v in weights.items()}
    message = failure(renamed, tmp_path / "vae.safetensors")
    assert "lacks 16 of the" in message and "and has 16 weights that no AutoencoderKL has" in message


def test_a_shape_that_does_not_fit(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    save_file({**weights, "decoder.mid.block_1.conv1.weight": torch.zeros(64, 64, 5, 5)}, path)
    with pytest.raises(
        CheckpointError, match="decoder.mid.block_1.conv1.weight is 64x64x5x5 where 64x64x3x3 is needed"
    ):
        load_vae(path)
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"8x64x3x3 where 16x64x3x3.*leave out the overrides"):
        load_vae(path, latent_channels=8)
    with pytest.raises(
        CheckpointError,
        match=r"has \d+ weights that its config says nothing of .*mid_block_add_attention False and not True",
    ):
        load_vae(path, mid_block_add_attention=False)


@pytest.mark.parametrize("shape", [(64, 64, 1, 1, 1), (1, 64, 64), (64, 64, 3, 3), (64, 1, 64), (4096,), ()])
def test_what_is_no_matrix(shape: tuple[int, ...], weights: dict[str, Tensor], tmp_path: Path) -> None:
    said = failure({**weights, "decoder.mid.attn_1.q.weight": torch.zeros(shape)}, tmp_path / "vae.safetensors")
    size = "x".join(map(str, shape)) or "a single number"
    assert f"decoder.mid.attn_1.q.weight is {size} where 64x64 is needed. " in said


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_how_many_shapes_are_named(count: int, weights: dict[str, Tensor], tmp_path: Path) -> None:
    biases = [f"decoder.mid.attn_1.{layer}.bias" for layer in ("norm", "q", "k", "v", "proj_out")][:count]
    said = failure({**weights, **dict.fromkeys(biases, torch.zeros(7))}, tmp_path / "vae.safetensors")
    assert said.count("is 7 where 64 is needed") == min(count, 3)
    assert (f"needed (and {count - 3} more). " in said) == (count > 3) == ("more" in said)


def test_a_weight_given_twice(weights: dict[str, Tensor], tmp_path: Path) -> None:
    twice = {**weights, "decoder.conv_norm_out.bias": torch.zeros(32)}
    assert "has decoder.conv_norm_out.bias twice" in failure(twice, tmp_path / "vae.safetensors")


def test_several_autoencoders(weights: dict[str, Tensor], tmp_path: Path) -> None:
    pair = {f"{name}.{k}": v.clone() for name in ("a", "b") for k, v in weights.items()}
    assert "has several autoencoders, under a., b. Give a" in failure(pair, tmp_path / "vae.safetensors")
    many = {f"{name}.{k}": v.clone() for name in "edcba" for k, v in weights.items()}
    assert "has several autoencoders, under a., b., c., d. Give a" in failure(many, tmp_path / "vae.safetensors")
    save_file({f"module.{k}": v for k, v in weights.items()}, tmp_path / "one.safetensors")
    assert inspect_vae(tmp_path / "one.safetensors").prefix == ""


def test_a_missing_level(weights: dict[str, Tensor], tmp_path: Path) -> None:
    moved = {k.replace("encoder.down.1.", "encoder.down.2."): v for k, v in weights.items()}
    assert "the encoder has no level 1, though it has level 2" in failure(moved, tmp_path / "vae.safetensors")
    fewer = {k: v for k, v in weights.items() if not k.startswith("encoder.down.1.")}
    assert "the encoder has 1 levels and the decoder 2" in failure(fewer, tmp_path / "vae.safetensors")


def kernel(*shape: int) -> Tensor:
    return torch.zeros(*shape)


C5, C4, C3, V = kernel(2, 2, 3, 3, 3), kernel(2, 2, 3, 3), kernel(2, 2, 3), kernel(2)
OTHERS: dict[str, dict[str, Tensor]] = {
    "a LoRA": {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": C4},
    "a LoRA ": {"transformer.single_blocks.0.attn.to_q.lora_A.weight": V},
    "the state of an optimizer": {"state.0.exp_avg": C4, "state.0.exp_avg_sq": C4, "state.0.step": V},
    "the state of an optimizer ": {"optimizer_state_dict.base_optimizer_state.0.exp_avg": C4},
    "the state of an optimizer  ": {"optimizer_state_dict.single_partition_of_fp32_groups.0": V},
    "the state of an optimizer   ": {"optimizer_state.exp_avg_sq": V},
    "a part of a model that FSDP has flattened": {"_fsdp_wrapped_module._flat_param": V},
    "a part of a model that DeepSpeed has spread": {
        "encoder.conv_in.weight": kernel(0),
        "decoder.conv_in.weight": kernel(0),
    },
    "quantised": {"decoder.conv_in.weight:int_data": C4, "decoder.conv_in.weight:scale": V},
    "quantised ": {"decoder.conv_in._weight_qdata": C4, "decoder.conv_in._weight_scale": V},
    "quantised  ": {"decoder.conv_in.W_q": C4, "decoder.conv_in.meta": V},
    "quantised   ": {"decoder.conv_in.qweight": C4, "decoder.conv_in.lora_down": C4, "decoder.conv_in.wscales": V},
    "a moving average without names": {"shadow_params.0": C4, "shadow_params.1": V},
    "TAESD": {"taesd_decoder.1.weight": C4, "taesd_encoder.0.weight": C4},
    "TAESD ": {"encoder.layers.0.weight": C4, "decoder.layers.1.weight": C4, "decoder.layers.3.conv.0.weight": C4},
    "TAESD  ": {"1.weight": C4, "3.conv.0.weight": C4, "3.conv.0.bias": V},
    "consistency decoder": {"encoder.conv_in.weight": C4, "decoder_unet.conv_in.weight": C4},
    "AsymmetricAutoencoderKL": {"decoder.condition_encoder.layers.0.weight": C4, "encoder.conv_in.weight": C4},
    "a VQ model": {"quantize.embedding.weight": V, "encoder.conv_in.weight": C4, "decoder.conv_in.weight": C4},
    "a VQ model ": {"vquantizer.codebook.weight": V},
    "Stable Video Diffusion": {
        "first_stage_model.decoder.up.0.block.0.time_stack.in_layers.2.weight": C5,
        "first_stage_model.encoder.conv_in.weight": C4,
        "first_stage_model.decoder.conv_in.weight": C4,
    },
    "Wan": {"encoder.conv1.weight": C5, "decoder.middle.0.residual.0.gamma": V},
    "Wan ": {"decoder.mid_block.resnets.0.norm1.gamma": V, "encoder.conv_in.weight": C5, "decoder.conv_in.weight": C5},
    "Cosmos": {"decoder.unpatcher3d.wavelets": V},
    "LTX-Video": {"decoder.up_blocks.0.res_blocks.0.conv1.conv.weight": C5, "per_channel_statistics.std-of-means": V},
    "Mochi": {"decoder.blocks.2.blocks.3.stack.5.weight": C5},
    "causal 3D convolutions": {"encoder.conv_in.conv.weight": C5, "decoder.conv_in.conv.weight": C5},
    "a video VAE (its convolutions are 3D)": {"encoder.stem.weight": C5, "decoder.stem.weight": C5},
    "an audio autoencoder": {"decoder.layers.1.layers.0.beta": V, "encoder.layers.0.weight_v": C3},
    "its convolutions are 1D": {"encoder.stem.weight": C3, "decoder.stem.weight": C3},
    "DC-AE": {"decoder.stages.1.op_list.0.main.conv.conv.bias": V, "encoder.project_in.weight": C4},
    "DC-AE ": {"decoder.up_blocks.0.1.attn.to_qkv_multiscale.0.proj_in.weight": C4},
    "Stable Cascade": {"encoder.backbone.1.0.block.0.1.num_batches_tracked": V},
    "a ControlNet": {"control_model.time_embed.0.weight": V},
    "a diffusion model (UNet)": {"model.diffusion_model.input_blocks.0.0.weight": C4},
    "a diffusion model (UNet) ": {"time_embedding.linear_1.weight": V, "down_blocks.0.resnets.0.conv1.weight": C4},
    "a diffusion transformer": {"double_blocks.0.img_attn.qkv.weight": V},
    "a text encoder": {"text_model.encoder.layers.0.layer_norm1.weight": V},
    "a text encoder ": {"encoder.block.0.layer.0.SelfAttention.q.weight": V},
    "a CLIP vision model": {"vision_model.embeddings.class_embedding": V},
    "an upscaling model": {"RRDB_trunk.0.RDB1.conv1.weight": C4},
    "a textual-inversion embedding": {"emb_params": V},
    "a file of latents": {"latent_tensor": C4, "latent_format_version_0": V},
    "an encoder alone (2 encoder tensors, no decoder)": {"encoder.conv_in.weight": C4, "encoder.conv_in.bias": V},
    "a decoder alone (1 decoder tensors, no encoder)": {"vae.decoder.conv_in.weight": C4},
    "a decoder alone, its keys without": {"conv_in.weight": C4, "up.0.block.0.conv1.weight": C4},
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_else_it_seems_to_be(what: str, tmp_path: Path) -> None:
    message = failure(OTHERS[what], tmp_path / "model.safetensors")
    assert f"It seems to be {what.rstrip()}" in message or what.rstrip() in message
    assert what.rstrip() in (inspect_vae(tmp_path / "model.safetensors").seems_to_be or "")


def test_something_unheard_of(tmp_path: Path) -> None:
    message = failure({"alpha": V, "omega": V, "nu": V}, tmp_path / "model.safetensors")
    assert "has no AutoencoderKL in it (found 3 tensors, such as alpha, nu, ...)" in message
    assert "Give a VAE with LDM's or diffusers' names" in message


def test_kernels_of_which_half_are_3d_are_those_of_no_kind(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"encoder.stem.weight": C5, "decoder.stem.weight": C4}, file)
    assert "a kind that is not known" in (inspect_vae(file).seems_to_be or "")
    assert "Give a VAE with LDM's or diffusers' names" in refusal(file)
    assert "its convolutions are 3D" in failure(
        {"encoder.stem.weight": C5, "encoder.leaf.weight": C5, "decoder.stem.weight": C4}, file
    )


diffusers = pytest.importorskip("diffusers")
SMALL = {"block_out_channels": (32, 32), "norm_num_groups": 32}
TWO = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, **SMALL}
CLASSES = {
    "AutoencoderTiny": ({"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}, "TAESD"),
    "VQModel": (TWO, "VQ model"),
    "AsymmetricAutoencoderKL": (
        {
            "down_block_types": ("DownEncoderBlock2D",),
            "up_block_types": ("UpDecoderBlock2D",),
            "down_block_out_channels": (32,),
            "up_block_out_channels": (32,),
            "layers_per_down_block": 1,
            "layers_per_up_block": 1,
        },
        "AsymmetricAutoencoderKL",
    ),
    "AutoencoderKLTemporalDecoder": (
        {"down_block_types": ("DownEncoderBlock2D",), "block_out_channels": (32,), "layers_per_block": 1},
        "Stable Video Diffusion",
    ),
    "AutoencoderKLWan": ({"base_dim": 8, "z_dim": 4}, "Wan"),
    "AutoencoderKLQwenImage": ({"base_dim": 8, "z_dim": 4}, "Wan"),
    "AutoencoderKLHunyuanVideo": ({"block_out_channels": (32,) * 4, "layers_per_block": 1}, "causal 3D"),
    "AutoencoderKLCogVideoX": ({"block_out_channels": (32,) * 4, "layers_per_block": 1}, "causal 3D"),
    "AutoencoderKLMochi": (
        {"encoder_block_out_channels": (32,) * 4, "decoder_block_out_channels": (32,) * 4},
        "video VAE",
    ),
    "AutoencoderOobleck": ({"encoder_hidden_size": 4, "decoder_channels": 4}, "audio"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_diffusers_other_autoencoders(name: str, tmp_path: Path) -> None:
    """Real state dicts, and their folders, whose config is of another class."""
    options, what = CLASSES[name]
    model = getattr(diffusers, name)(**options)
    assert what in failure(model.state_dict(), tmp_path / "model.safetensors")
    model.save_pretrained(tmp_path / "folder")
    says = f"this config is for {name}, which is not an AutoencoderKL"
    assert says in refusal(tmp_path / "folder")
    with pytest.raises(CheckpointError, match=says):
        AutoencoderKL.from_pretrained(tmp_path / "folder")


def test_metadata_of_ours_that_is_broken(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    for text in ("{", "[1]", '{"block_out_channels": [31]}', '{"what": 1}', '{"latent_channels": "4"}'):
        save_file(weights, path, metadata={"seamless_vae.config": text})
        with pytest.raises(CheckpointError, match="broken seamless_vae.config"):
            load_vae(path)


def test_a_single_file_of_ours_with_less_in_it(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    save_single_file(make(fields(32)), path)
    with pytest.raises(CheckpointError, match="is a folder, which has its own config"):
        make(fields(32)).save_pretrained(tmp_path / "folder")
        load_vae(tmp_path / "folder", config={})
    with pytest.raises(CheckpointError, match="lacks"):
        load_vae(path, config=fields(32, 64))
