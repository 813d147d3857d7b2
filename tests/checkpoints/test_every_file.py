"""Files as people have them: names half converted, helpers beside the model, neighbours, damaged numbers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from given.files import assert_same_weights, ldm, refusal, renamed, write
from given.models import MODELS, fields, make
from torch import Tensor

import vae_core
from vae_core import (
    AutoencoderKL,
    CheckpointError,
    ConfigError,
    DamagedWeightError,
    inspect_vae,
    load_vae,
    save_single_file,
)
from vae_core.checkpoints.finite import is_finite
from vae_core.checkpoints.key_map import spellings, weight_shapes

DEMO = Path(vae_core.__file__).parent / "demo"
STEM = "diffusion_pytorch_model"
Weights = dict[str, Tensor]


@pytest.mark.parametrize("model", MODELS)
def test_shapes_of_a_config_are_those_of_its_model(model: str) -> None:
    with torch.device("meta"):
        made = AutoencoderKL(**MODELS[model])
    assert dict(weight_shapes(made.config)) == {key: tuple(w.shape) for key, w in made.state_dict().items()}


# Names.

ATTENTION = ((".q.", ".to_q."), (".k.", ".to_k."), (".v.", ".to_v."), (".proj_out.", ".to_out.0."))
HALFWAY: dict[str, Callable[[AutoencoderKL], Weights]] = {
    "LDM's attention in diffusers' words": lambda vae: renamed(ldm(vae, "first_stage_model."), *ATTENTION),
    "the same as matrices": lambda vae: {
        name: weight.squeeze() if ".attn_1." in name else weight
        for name, weight in renamed(ldm(vae, "first_stage_model."), *ATTENTION).items()
    },
    "and its norm": lambda vae: renamed(ldm(vae), *ATTENTION, ("attn_1.norm.", "attn_1.group_norm.")),
    "old words": lambda vae: renamed(
        ldm(vae), (".q.", ".query."), (".k.", ".key."), (".v.", ".value."), ("proj_out", "proj_attn")
    ),
    "shortcuts and last norms": lambda vae: renamed(
        ldm(vae), ("nin_shortcut", "conv_shortcut"), ("norm_out", "conv_norm_out")
    ),
    "the middle alone is diffusers'": lambda vae: renamed(
        ldm(vae), ("mid.block_1", "mid_block.resnets.0"), ("mid.block_2", "mid_block.resnets.1"), ("mid.", "mid_block.")
    ),
    "one half each": lambda vae: (
        {k: w for k, w in ldm(vae).items() if k.startswith("encoder.")}
        | {k: w for k, w in vae.state_dict().items() if not k.startswith("encoder.")}
    ),
    "diffusers' attention in LDM's words": lambda vae: renamed(
        vae.state_dict(), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"), ("group_norm", "norm")
    ),
    "diffusers' as 1x1 kernels": lambda vae: {
        k: w[:, :, None, None] if w.ndim == 2 else w for k, w in vae.state_dict().items()
    },
    "shortcuts as matrices": lambda vae: {k: w.squeeze() if "shortcut.w" in k else w for k, w in ldm(vae).items()},
    "a compiled decoder": lambda vae: renamed(vae.state_dict(), ("decoder.", "decoder._orig_mod.")),
    "data parallel halves": lambda vae: renamed(
        ldm(vae), ("decoder.", "decoder.module."), ("encoder.", "encoder.module.")
    ),
    "compiled blocks": lambda vae: renamed(
        vae.state_dict(), ("mid_block.", "mid_block._orig_mod."), (".conv1.", ".conv1._orig_mod.")
    ),
    "wrapped outside": lambda vae: renamed(
        vae.state_dict(),
        ("encoder.", "module._orig_mod.encoder."),
        ("decoder.", "module._orig_mod.decoder."),
        ("quant_conv", "module._orig_mod.quant_conv"),
        ("post_module._orig_mod.", "module._orig_mod.post_"),
    ),
    "under model.": lambda vae: {f"model.{k}": w for k, w in ldm(vae).items()},
    "a moving average": lambda vae: (
        {f"ema_model.{k}": w for k, w in vae.state_dict().items()} | {"initted": torch.ones(()), "step": torch.ones(())}
    ),
    "MLX's": lambda vae: {
        name: weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight
        for name, weight in renamed(
            vae.state_dict(),
            *(("mid_block.resnets.0", "mid_blocks.0"), ("mid_block.resnets.1", "mid_blocks.2")),
            *(("mid_block.attentions.0", "mid_blocks.1"), ("downsamplers.0.conv", "downsample")),
            *(("upsamplers.0.conv", "upsample"), ("to_out.0", "out_proj"), ("quant_conv", "quant_proj")),
            *(("to_q", "query_proj"), ("to_k", "key_proj"), ("to_v", "value_proj")),
        ).items()
    },
    "MLX's, in modules around each convolution": lambda vae: renamed(
        vae.state_dict(),
        *(
            ("conv_in.", "conv_in.conv2d."),
            ("conv_out.", "conv_out.conv2d."),
            ("conv_norm_out.", "conv_norm_out.norm."),
        ),
    ),
    "a merged LoRA": lambda vae: renamed(
        vae.state_dict(), ("to_q.", "to_q.base_layer."), ("conv1.", "conv1.base_layer.")
    ),
}


@pytest.mark.parametrize("name", HALFWAY)
def test_names_of_every_kind_load_bit_for_bit(name: str, vae: AutoencoderKL, file: Path) -> None:
    write(HALFWAY[name](vae), file)
    assert_same_weights(load_vae(file), vae)
    assert inspect_vae(file).problem is None


@pytest.mark.parametrize("model", ["SD 1.x", "FLUX.2 with a small decoder", "attention in the levels", "f4"])
def test_any_mixture_of_spellings(model: str, file: Path) -> None:
    """Each weight by one of its names, chosen at random."""
    vae = make(MODELS[model])
    choices: dict[str, list[str]] = {}
    for name, key in spellings(vae.config).items():
        choices.setdefault(key, []).append(name)
    generator = np.random.default_rng(0)
    state = vae.state_dict()
    for _ in range(3):
        write({str(generator.choice(choices[key])): weight for key, weight in state.items()}, file)
        given = {name: vae.config[name] for name in ("scaling_factor", "shift_factor", "sample_size")}
        assert_same_weights(load_vae(file, **given), vae)


def test_a_weight_under_two_names_is_refused(vae: AutoencoderKL, file: Path) -> None:
    write({**ldm(vae), "decoder._orig_mod.conv_out.bias": torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match=r"has 1 weights that no AutoencoderKL has \(decoder._orig_mod.conv_out"):
        load_vae(file)


# Beside the model.


def test_helpers_of_training_are_passed_over_with_a_remark(
    vae: AutoencoderKL, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    beside = {
        "foundation_model.model.cls_token": torch.zeros(1, 1, 4),
        "linear_proj.weight": torch.zeros(2, 2),
        "disc.blocks.0.weight": torch.zeros(2),
        "quantize.embedding.weight": torch.zeros(16, 4),
        "loss.logvar": torch.zeros(()),
    }
    write({**ldm(vae), **beside}, file)
    with caplog.at_level(logging.WARNING, "seamless_vae"):
        assert_same_weights(load_vae(file), vae)
    assert "passed over 4 tensors beside the autoencoder (disc.blocks.0.weight, foundation_model" in caplog.text


@pytest.mark.parametrize(
    "extra",
    [
        {"decoder.refiner.weight": torch.zeros(1)},
        {"encoder.mid.attn_2.q.weight": torch.zeros(1)},
        {"decoder.mid.attn_1.q.lora_A.weight": torch.zeros(4, 64)},
        {"bn.running_mean": torch.zeros(7)},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_inside_the_model_everything_stays_strict(extra: Weights, vae: AutoencoderKL, file: Path) -> None:
    write({**ldm(vae), **extra}, file)
    with pytest.raises(CheckpointError) as error:
        load_vae(file)
    assert inspect_vae(file).problem == str(error.value)
    assert "remove" not in str(error.value).lower() and "delete" not in str(error.value).lower()


CODEBOOKS = ("quantize.embedding.weight", "quantizer._codebook.embed", "vq.codebook.weight", None)


@pytest.mark.parametrize("codebook", CODEBOOKS)
@pytest.mark.parametrize("quant_convs", [True, False])
def test_an_encoder_without_a_variance_is_refused(codebook: str | None, quant_convs: bool, file: Path) -> None:
    """As that of a VQ model is, or of an autoencoder with `double_z: false`, whatever is beside it."""
    vae = make(fields(32, 64, use_quant_conv=quant_convs, use_post_quant_conv=quant_convs))
    weights = {
        name: weight[:4] if name.startswith("encoder.conv_out.") else weight for name, weight in ldm(vae).items()
    }
    if quant_convs:
        weights |= {"quant_conv.weight": torch.zeros(4, 4, 1, 1), "quant_conv.bias": torch.zeros(4)}
    said = refusal(write(weights | ({codebook: torch.zeros(16, 4)} if codebook else {}), file))
    assert (
        "has an encoder that gives 4 channels for latents of 4" in said and "a mean and a variance for each, 8" in said
    )
    assert ("VQ model" in said) == (codebook in CODEBOOKS[:2])


@pytest.mark.parametrize("codebook", CODEBOOKS[:3])
def test_a_codebook_beside_a_whole_model_is_passed_over(codebook: str, vae: AutoencoderKL, file: Path) -> None:
    path = write({**ldm(vae), codebook: torch.zeros(16, 4)}, file)
    assert_same_weights(load_vae(path), vae)
    assert f"passed over 1 tensors beside the autoencoder ({codebook})" in " ".join(inspect_vae(path).remarks)
    write({name: w for name, w in ldm(vae).items() if "conv_out.bias" not in name} | {codebook: torch.zeros(4)}, file)
    assert "VQ" not in refusal(file)


def test_several_copies_take_the_weights_and_say_so(vae: AutoencoderKL, file: Path) -> None:
    other = make(fields(32, 64), seed=1)
    write({f"model.{k}": w for k, w in ldm(vae).items()} | {f"ema_model.{k}": w for k, w in ldm(other).items()}, file)
    assert_same_weights(load_vae(file), vae)
    assert "took the one under model., not ema_model." in " ".join(inspect_vae(file).remarks)


@pytest.mark.parametrize("average", ["student_ema.", "ema.net.", "swa.", "averaged_"])
def test_a_moving_average_beside_weights_under_any_name(average: str, vae: AutoencoderKL, file: Path) -> None:
    other = make(fields(32, 64), seed=1)
    write(
        {f"student.{k}": w for k, w in ldm(vae).items()} | {f"{average}x.{k}": w for k, w in ldm(other).items()}, file
    )
    assert_same_weights(load_vae(file), vae)
    assert "took the one under student., not" in " ".join(inspect_vae(file).remarks)


# The config beside a file.


def test_a_file_uses_the_config_beside_it() -> None:
    path = DEMO / f"{STEM}.safetensors"
    loaded = load_vae(path)
    assert loaded.config == load_vae(DEMO).config
    assert loaded.config.norm_num_groups == 8
    assert AutoencoderKL.from_single_file(path).config == loaded.config
    info = inspect_vae(path)
    assert info.origins["norm_num_groups"] == "config.json beside the file" and info.remarks == ()
    assert load_vae(path, norm_num_groups=16).config.norm_num_groups == 16
    assert load_vae(path, config={**loaded.config, "norm_num_groups": 4}).config.norm_num_groups == 4


@pytest.mark.parametrize("name", ["anything.safetensors", f"{STEM}.fp16.safetensors", "vae.pt"])
def test_whatever_the_file_is_called(name: str, tmp_path: Path) -> None:
    made = make(fields(32, 64, norm_num_groups=16, scaling_factor=0.7))
    made.save_pretrained(tmp_path)
    (tmp_path / f"{STEM}.safetensors").unlink()
    write(ldm(made), tmp_path / name) if name.endswith("safetensors") else torch.save(ldm(made), tmp_path / name)
    assert load_vae(tmp_path / name).config == made.config
    assert load_vae(tmp_path).config == made.config


def test_a_config_of_other_shapes_is_not_used(vae: AutoencoderKL, tmp_path: Path) -> None:
    make(fields(32, 32, norm_num_groups=4)).save_pretrained(tmp_path)
    path = write(ldm(vae), tmp_path / "other.safetensors")
    assert load_vae(path).config.norm_num_groups == 32
    assert "of other shapes, so it was not used" in inspect_vae(path).remarks[0]
    for text in ("{", "[]", '{"_class_name": "UNet2DConditionModel"}'):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        assert load_vae(path).config.norm_num_groups == 32


def test_what_a_file_says_of_itself_wins_over_its_neighbour(tmp_path: Path) -> None:
    made = make(fields(32, 32, 32, 32, scaling_factor=0.18215))
    made.save_pretrained(tmp_path)
    path = write(ldm(made), tmp_path / "xl.safetensors", {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"})
    info = inspect_vae(path)
    assert info.scaling_factor == 0.13025 and "so it was not used" in info.remarks[0]


def test_a_number_of_groups_that_is_a_guess_is_called_one(file: Path) -> None:
    write(ldm(make(fields(32, 64, 128, 128, norm_num_groups=8))), file)
    info = inspect_vae(file)
    assert info.config is not None and info.config.norm_num_groups == 32
    assert info.origins["norm_num_groups"] == "default (a guess)"
    assert "32 is a guess, and images depend on it" in " ".join(info.remarks)
    assert "Images are the same" not in " ".join(info.remarks)
    info = inspect_vae(file, norm_num_groups=8)
    assert info.origins["norm_num_groups"] == "override" and "norm_num_groups" not in " ".join(info.remarks)


def test_published_widths_have_groups_that_are_known(file: Path) -> None:
    with torch.device("meta"):
        shapes = AutoencoderKL(**fields(128, 256, 512, 512, layers_per_block=2)).config
    header: dict = {}
    at = 0
    for key, shape in weight_shapes(shapes).items():
        size = int(np.prod(shape)) * 4
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + at)  # sparse: zeros
    info = inspect_vae(file)
    assert info.problem is None and info.origins["norm_num_groups"] == "family default"
    assert not [remark for remark in info.remarks if "norm_num_groups" in remark]


# Fields of others in config.json.


@pytest.mark.parametrize(
    "others",
    [
        {"decay": 0.9999, "optimization_step": 100, "inv_gamma": 1.0, "use_ema_warmup": False},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"a field of tomorrow": None},
    ],
    ids=str,
)
def test_fields_of_others_are_passed_over_with_a_remark(others: dict, vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**values, **others}), encoding="utf-8")
    for path in (tmp_path, tmp_path / f"{STEM}.safetensors"):
        assert_same_weights(load_vae(path), vae)
        assert load_vae(path).config == vae.config
        assert f"passed over {min(others)}" in " ".join(inspect_vae(path).remarks)
    assert_same_weights(AutoencoderKL.from_pretrained(tmp_path), vae)
    with pytest.raises(ConfigError, match="has no decay"):
        load_vae(tmp_path, decay=0.9)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("a", "passed over a in config.json: an AutoencoderKL has no such fields."),
        ("abcde", "passed over a, b, c, d, e in config.json: an"),
        ("abcdef", "passed over a, b, c, d, e, ... in config.json: an"),
        (["n" * 41], f"passed over {'n' * 40} in config.json: an"),
        ([], None),
    ],
)
def test_how_many_of_them_are_named(names: Iterable[str], says: str | None, vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**values, **dict.fromkeys(names, 1)}), encoding="utf-8")
    remarks = inspect_vae(tmp_path).remarks
    assert len(remarks) == (says is not None) and all(each.startswith(says or "") for each in remarks)


# Damaged numbers.


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_one_damaged_number_is_found_with_its_name(number: float, vae: AutoencoderKL, file: Path) -> None:
    weights = {name: weight.clone() for name, weight in ldm(vae).items()}
    weights["decoder.up.0.block.0.conv1.weight"][3, 1, 0, 2] = number
    write(weights, file)
    key = "decoder.up_blocks.1.resnets.0.conv1.weight"
    loaded = load_vae(file)  # only views of the file: nothing has read this weight
    with pytest.raises(DamagedWeightError, match=key):
        vae_core.decode(loaded, torch.zeros(1, 4, 8, 8))
    kind = "NaN" if np.isnan(number) else "infinity"
    with pytest.raises(CheckpointError, match=f"{key} has {kind} in it: the file is damaged"):
        load_vae(file, dtype="float16")  # which reads all weights


@pytest.mark.parametrize("scale", [None, 1.0, 0.0])
def test_inspection_maps_nothing(
    scale: float | None, vae: AutoencoderKL, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may be cut short while it is looked at, and a map of it would end the process."""
    weights = {
        name: weight.to(torch.float8_e4m3fn) if scale is not None else weight for name, weight in ldm(vae).items()
    }
    if scale is not None:
        weights |= {
            name.replace(".weight", ".scale_weight"): torch.tensor(scale)
            for name, weight in ldm(vae).items()
            if weight.ndim > 1
        }
    write(weights, file)
    monkeypatch.setattr("vae_core.checkpoints.tensor_file.read_mapped", lambda *_: pytest.fail("mapped"))
    problem = inspect_vae(file).problem
    assert problem is None if scale != 0 else "a scale of 8-bit floats is above 0" in (problem or "")


def test_a_negative_variance_is_damage(file: Path) -> None:
    """Latents would be divided by its root: a black image."""
    vae = make(MODELS["FLUX.2"])
    assert vae.bn is not None and vae.bn.running_var is not None
    vae.bn.running_var[3] = -0.5
    with pytest.raises(CheckpointError, match=r"negative variance in bn\.running_var \(-0\.5\)") as error:
        load_vae(write(vae.state_dict(), file))
    assert inspect_vae(file).problem == str(error.value)


def test_large_finite_weights_are_no_damage(file: Path) -> None:
    vae = make(fields(32))
    torch.nn.init.constant_(vae.decoder.conv_in.weight, 3e38)  # its sum overflows
    save_single_file(vae, file)
    assert load_vae(file, dtype="bfloat16").dtype == torch.bfloat16
    assert is_finite(vae.decoder.conv_in.weight)
