"""Layouts of tensors in files: scales of 8-bit floats, channels last, fused projections, weight norm; other formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from given.files import assert_same_weights, ldm, refusal, write
from given.models import MODELS, fields, make
from torch import Tensor

from vae_core import AutoencoderKL, CheckpointError, inspect_vae, load_vae

STEM = "diffusion_pytorch_model"
Weights = dict[str, Tensor]
EIGHT_BITS = torch.float8_e4m3fn


# Of which axes of a kernel [out, in, height, width] one scale is made: of all, or of all but one or two.
AXES = {"whole": (0, 1, 2, 3), "output": (1, 2, 3), "input": (0, 2, 3), "output and input": (2, 3)}


def eight_bit(vae: AutoencoderKL, ending: str, per: str = "whole", flat: bool = True) -> tuple[Weights, Weights]:
    """A file of scaled 8-bit floats, and the weights that it stands for.

    Args:
        flat: scales for the outputs are [out], and one scale is a number.
    """
    stored, meant = {}, {}
    for name, weight in ldm(vae).items():
        if weight.ndim < 4:
            stored[name] = meant[name] = weight
            continue
        scale = weight.abs().amax(AXES[per], keepdim=True) / 448
        stored[name] = (weight / scale).to(torch.float8_e4m3fn)
        meant[name] = stored[name].float() * scale
        stored[name.removesuffix(".weight") + ending] = scale.squeeze() if flat else scale
    return stored, meant


@pytest.mark.parametrize(
    ("per", "flat"),
    [
        *(("whole", True), ("whole", False), ("output", True)),
        *(("output", False), ("input", False), ("output and input", False)),
    ],
)
@pytest.mark.parametrize("ending", [".scale_weight", ".weight_scale", ".weight_scale_inv"])
def test_scales_of_8_bit_floats_are_applied(ending: str, per: str, flat: bool, vae: AutoencoderKL, file: Path) -> None:
    stored, meant = eight_bit(vae, ending, per, flat)
    beside = {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn), "decoder.conv_in.scale_input": torch.ones(())}
    write({**stored, **beside}, file)
    loaded, info = load_vae(file), inspect_vae(file)
    assert info.problem is None and info.dtype == torch.float32 and info.remarks == load_vae_remarks(file)
    for name, weight in ldm(loaded).items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight.reshape(meant[name].shape), meant[name]), name
    half = load_vae(file, dtype="float16")
    assert torch.equal(half.decoder.conv_in.weight, meant["decoder.conv_in.weight"].half())


@pytest.mark.parametrize("per", AXES)
def test_scales_turn_with_their_kernels_and_fit_matrices(per: str, vae: AutoencoderKL, file: Path) -> None:
    """Channels last, and attention as matrices [out, in] with scales of two dimensions."""
    stored, meant = eight_bit(vae, ".weight_scale", per, flat=False)
    write({name: each.permute(0, 2, 3, 1) if each.ndim == 4 else each for name, each in stored.items()}, file)
    for name, weight in ldm(load_vae(file)).items():
        assert torch.equal(weight.reshape(meant[name].shape), meant[name]), name
    write(
        {name: each[:, :, 0, 0] if "attn" in name and each.ndim == 4 else each for name, each in stored.items()}, file
    )
    for name, weight in ldm(load_vae(file)).items():
        assert torch.equal(weight.reshape(meant[name].shape), meant[name]), name


def load_vae_remarks(path: Path) -> tuple[str, ...]:
    return tuple(remark for remark in inspect_vae(path).remarks if "scale_input" not in remark)


def test_scales_that_cannot_be_are_refused(vae: AutoencoderKL, file: Path) -> None:
    stored, _ = eight_bit(vae, ".scale_weight")
    q = "decoder.mid.attn_1.q"
    for change, message in (
        ({"decoder.conv_in.scale_weight": torch.ones(7)}, "one for each output"),
        ({f"{q}.weight": torch.zeros(64, 64).to(EIGHT_BITS), f"{q}.scale_weight": torch.ones(1, 32)}, "each output"),
        ({"decoder.conv_in.scale_weight": torch.ones(4)}, r"one for each input as \[1, in\]"),
        (
            {"decoder.conv_in.weight": torch.zeros(64, 4, 3, 3, dtype=torch.int8)},
            "quantised in a way that is not known",
        ),
        ({"decoder.conv_in.scale_weight": torch.tensor(float("nan"))}, "norms and scales, such as decoder.conv_in.sc"),
    ):
        write({**stored, **change}, file)
        with pytest.raises(CheckpointError, match=message) as error:
            load_vae(file)
        assert inspect_vae(file).problem == str(error.value)


SCALE = "decoder.conv_in.scale_weight"
# What may become of the scale of one weight, or of all -> what is said of it; None where the file loads.
ODD_SCALES: dict[str, tuple[Callable[[Weights], Weights], str | None]] = {
    **{
        f"{value}": (lambda stored, value=value: {**stored, SCALE: torch.tensor(value)}, says)
        for value, says in (
            (0.0, "has the scale 0 in decoder.conv_in.scale_weight; a scale of 8-bit floats is above 0"),
            (-0.5, "has the scale -0.5 in decoder.conv_in.scale_weight"),
            (float("nan"), "such as decoder.conv_in.scale_weight): the file is damaged"),
            (float("inf"), "such as decoder.conv_in.scale_weight): the file is damaged"),
            (float("-inf"), "such as decoder.conv_in.scale_weight): the file is damaged"),
        )
    },
    "one of many is 0": (
        lambda stored: {**stored, SCALE: torch.ones(64).index_fill(0, torch.tensor([5]), 0.0)},
        "has the scale 0 in",
    ),
    "one of many is negative": (
        lambda stored: {**stored, SCALE: torch.ones(64).index_fill(0, torch.tensor([5]), -1.0)},
        "has the scale -1 in",
    ),
    "0 for zeros": (
        lambda stored: {
            **stored,
            SCALE: torch.zeros(()),
            "decoder.conv_in.weight": torch.zeros(64, 4, 3, 3).to(EIGHT_BITS),
        },
        None,
    ),
    "empty": (lambda stored: {**stored, SCALE: torch.ones(0)}, "of shape (0,) for a weight of shape (64, 4, 3, 3)"),
    "absent": (
        lambda stored: {name: each for name, each in stored.items() if name != SCALE},
        "has no scale of decoder.conv_in.weight, which is of type float8_e4m3fn",
    ),
    "all absent": (lambda stored: {name: each for name, each in stored.items() if "scale_" not in name}, None),
    "all absent, with the mark": (
        lambda stored: {
            **{name: each for name, each in stored.items() if "scale_" not in name},
            "scaled_fp8": torch.zeros(2).to(EIGHT_BITS),
        },
        "has no scale of ",
    ),
    "twice": (
        lambda stored: {**stored, "decoder.conv_in.weight_scale": torch.ones(())},
        "has two scales of decoder.conv_in.weight",
    ),
    **{
        f"{dtype}": (lambda stored, dtype=dtype: {**stored, SCALE: stored[SCALE].to(dtype)}, says)
        for dtype, says in (
            (torch.float16, None),
            (torch.bfloat16, None),
            (torch.float64, None),
            (torch.int32, "of type int32 for a weight of type float8_e4m3fn"),
            (torch.uint8, "of type uint8 for a weight of type float8_e4m3fn"),
            (torch.bool, "of type bool for a weight of type float8_e4m3fn"),
        )
    },
    "of a wide weight": (
        lambda stored: {**stored, "decoder.conv_in.weight": torch.ones(64, 4, 3, 3)},
        "of type float32 for a weight of type float32",
    ),
    "of no weight": (lambda stored: {**stored, "decoder.conv_mid.scale_weight": torch.ones(())}, "1 weights that no"),
    "a norm in 8 bits without one": (
        lambda stored: {**stored, "decoder.norm_out.weight": stored["decoder.norm_out.weight"].to(EIGHT_BITS)},
        None,
    ),
}


@pytest.mark.parametrize("odd", ODD_SCALES)
def test_what_is_said_of_odd_scales(odd: str, vae: AutoencoderKL, file: Path) -> None:
    change, says = ODD_SCALES[odd]
    write(change(eight_bit(vae, ".scale_weight")[0]), file)
    problem = inspect_vae(file).problem
    if says is None:
        assert problem is None and load_vae(file)
        return
    with pytest.raises(CheckpointError) as error:
        load_vae(file)
    assert problem == str(error.value) and says in str(error.value)


@pytest.mark.parametrize("model", ["SD 1.x", "grey, 3 layers, no mid attention", "FLUX.2 with a small decoder"])
@pytest.mark.parametrize("metadata", [{"format": "mlx"}, None])
def test_kernels_with_channels_last_are_turned(model: str, metadata: dict[str, str] | None, file: Path) -> None:
    vae = make(MODELS[model])
    turned = {k: w.permute(0, 2, 3, 1) if w.ndim == 4 else w for k, w in vae.state_dict().items()}
    write(turned, file, metadata)
    assert inspect_vae(file).problem is None
    given = {name: vae.config[name] for name in ("scaling_factor", "shift_factor", "sample_size")}
    loaded = load_vae(file, **given)
    assert_same_weights(loaded, vae)
    assert all(weight.is_contiguous() for weight in loaded.parameters())
    vae.save_pretrained(file.parent / "folder")
    write(turned, file.parent / "folder" / f"{STEM}.safetensors", metadata)
    assert_same_weights(load_vae(file.parent / "folder"), vae)


def test_scales_of_blocks_are_applied(file: Path) -> None:
    """One for 128 by 128 numbers of a matrix, the last ones smaller."""
    vae = make(fields(32, 160))
    stored, meant = dict(ldm(vae)), dict(ldm(vae))
    name = "decoder.mid.attn_1.q"
    scales = torch.tensor([[0.5, 2.0], [3.0, 0.25]])
    stored[f"{name}.weight"] = stored[f"{name}.weight"].to(torch.float8_e4m3fn)
    stored[f"{name}.weight_scale_inv"] = scales
    spread = scales.repeat_interleave(128, 0)[:160].repeat_interleave(128, 1)[:, :160]
    meant[f"{name}.weight"] = stored[f"{name}.weight"].float() * spread[:, :, None, None]
    assert torch.equal(ldm(load_vae(write(stored, file)))[f"{name}.weight"], meant[f"{name}.weight"])


UNKNOWN_SCALES = (".scale", ".weight.scale", ".weight_scales", ".scale_inv", ".w_scale", ".scale_w", ".zero_point")


@pytest.mark.parametrize("ending", UNKNOWN_SCALES)
def test_scales_of_an_unknown_meaning_are_named(ending: str, vae: AutoencoderKL, file: Path) -> None:
    stored, _ = eight_bit(vae, ending)
    text = refusal(write(stored, file))
    assert "They stand beside weights of type float8_e4m3fn" in text and "quantised in a way that is not known" in text
    assert "another model" not in text


@pytest.mark.parametrize(
    ("dtype", "says"), [(torch.uint32, "uint32"), (torch.int8, "int8"), (torch.uint8, "uint8"), (torch.int32, "int32")]
)
def test_packed_weights_with_scales_are_named(dtype: torch.dtype, says: str, vae: AutoencoderKL, file: Path) -> None:
    """As MLX and others quantise."""
    q = "decoder.mid_block.attentions.0.to_q"
    packed = {f"{q}.weight": torch.zeros(64, 8, dtype=dtype), f"{q}.scales": torch.zeros(64, 1)}
    text = refusal(write({**vae.state_dict(), **packed, f"{q}.biases": torch.zeros(64, 1)}, file))
    assert f"weights of type {says} ({q}.weight)" in text


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz])
def test_every_8_bit_float_is_read(dtype: torch.dtype, vae: AutoencoderKL, tmp_path: Path) -> None:
    stored = {name: weight.to(dtype) if weight.ndim == 4 else weight for name, weight in ldm(vae).items()}
    torch.save(stored, tmp_path / "a.pt")
    for path in (write(stored, tmp_path / "a.safetensors"), tmp_path / "a.pt"):
        loaded = ldm(load_vae(path, dtype="float32"))
        assert all(torch.equal(loaded[name].reshape(weight.shape), weight.float()) for name, weight in stored.items())


def test_flaxs_weights_are_named(vae: AutoencoderKL, file: Path) -> None:
    names = {name.replace(".weight", ".kernel"): weight for name, weight in vae.state_dict().items()}
    assert "It seems to be weights of Flax or Keras" in refusal(write(names, file))


# Channels.


def as_keras(weights: Weights) -> Weights:
    return {k: w.permute(2, 3, 1, 0) if w.ndim == 4 else w for k, w in weights.items()}


def test_kernels_of_keras_are_turned(vae: AutoencoderKL, file: Path) -> None:
    assert_same_weights(load_vae(write(as_keras(ldm(vae)), file)), vae)
    text = refusal(write(as_keras(vae.state_dict()), file))  # with matrices
    assert "nothing shows whether its matrices are transposed" in text


@pytest.mark.parametrize("turned", ["encoder.", "decoder.mid.block_1"])
def test_a_file_that_is_turned_in_part_is_named(turned: str, vae: AutoencoderKL, file: Path) -> None:
    mixed = {k: w.permute(0, 2, 3, 1) if k.startswith(turned) and w.ndim == 4 else w for k, w in ldm(vae).items()}
    assert "some last, and nothing shows which" in refusal(write(mixed, file))


# Attention.


def fused(weights: Weights, word: str, keep: bool) -> Weights:
    found = dict(weights)
    for name in [name for name in weights if name.endswith((".to_q.weight", ".q.weight"))]:
        base, _, first = name.removesuffix(".weight").rpartition(".")
        three = [first.removesuffix("q") + letter for letter in "qkv"]
        for part in ("weight", "bias"):
            found[f"{base}.{word}.{part}"] = torch.cat([weights[f"{base}.{each}.{part}"] for each in three])
            for each in () if keep else three:
                del found[f"{base}.{each}.{part}"]
    return found


@pytest.mark.parametrize("keep", [True, False], ids=["beside the three", "alone"])
@pytest.mark.parametrize("kind", ["LDM", "diffusers"])
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_fused_projections(kind: str, keep: bool, ending: str, vae: AutoencoderKL, tmp_path: Path) -> None:
    weights = fused(ldm(vae) if kind == "LDM" else dict(vae.state_dict()), "qkv" if kind == "LDM" else "to_qkv", keep)
    path = tmp_path / f"vae.{ending}"
    write(weights, path) if ending == "safetensors" else torch.save(weights, path)
    assert_same_weights(load_vae(path), vae)
    assert inspect_vae(path).problem is None
    assert_same_weights(AutoencoderKL.from_single_file(weights), vae)


def test_projections_without_a_number(vae: AutoencoderKL, file: Path) -> None:
    weights = {name.replace("to_out.0.", "to_out."): weight for name, weight in vae.state_dict().items()}
    assert_same_weights(load_vae(write(weights, file)), vae)


# Weight norm.


@pytest.mark.parametrize("old", [True, False], ids=["weight_g", "parametrizations"])
def test_weight_norm_is_folded(old: bool, file: Path) -> None:
    vae = make(fields(32, 64))
    z = torch.randn(1, 4, 5, 5)
    norm = torch.nn.utils.weight_norm if old else torch.nn.utils.parametrizations.weight_norm
    weights = dict(vae.state_dict())
    for name, module in vae.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            alone = torch.nn.utils.skip_init(type(module), **_arguments(module))
            alone.load_state_dict(module.state_dict())
            del weights[f"{name}.weight"]
            weights |= {f"{name}.{key}": each * 1.0 for key, each in norm(alone).state_dict().items()}
    weights["decoder.conv_in.weight_g" if old else "decoder.conv_in.parametrizations.weight.original0"] *= 2
    with torch.no_grad():
        vae.decoder.conv_in.weight *= 2
    loaded = load_vae(write(weights, file))
    torch.testing.assert_close(loaded.decode(z).sample, vae.decode(z).sample, rtol=1e-4, atol=1e-5)
    lengths = [name for name in weights if name.endswith(("weight_g", "original0"))]
    del weights[lengths[0]]
    assert "decoder" in refusal(write(weights, file)) or "encoder" in refusal(file)


def _arguments(module: torch.nn.Module) -> dict:
    names = ("in_features", "out_features", "in_channels", "out_channels", "kernel_size")
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


# What is not a file of weights, or not one of a VAE.

FORMATS = {
    "ONNX": b"\x08\x08\x12\x07pytorch\x1a\x052.4.0:\xf4\x85",
    "ONNX model": b"\x08\x0a:\xd2\xa1\x09\x0a\x1d\x0a\x05image",
    "TensorRT": b"ftrt\0\0\0\0\xef\x00\x00\x00",
    "Core ML": b"\x08\x04\x12\xb9\x01\x0a\x1e\x0a\x05image\x12",
    "TensorFlow Lite": b"\x1c\0\0\0TFL3\x14\0\x20\0",
    "HDF5": b"\x89HDF\r\n\x1a\n\0\0\0\0",
    "OpenVINO": b'<?xml version="1.0"?>\n<net name="vae" version="11">',
    "ncnn": b"7767517\n123 140\nInput in0 0 1 in0\n",
    "ExecuTorch": b"\x30\0\0\0ET12\0\0\0\0",
    "GGUF": b"GGUF\x03\0\0\0\x10\0\0\0",
    "compiled": b"\x7fELF\x02\x01\x01\0\0\0\0\0",
}


@pytest.mark.parametrize("name", FORMATS)
def test_files_of_other_formats_are_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "vae.bin"
    path.write_bytes(FORMATS[name] + bytes(range(256)) * 4)
    text = refusal(path)
    assert name in text and "Get the VAE as safetensors" in text


@pytest.mark.parametrize("is_fused", [False, True], ids=["plain", "fused"])
def test_arrays_of_numpy_in_a_torch_file(is_fused: bool, vae: AutoencoderKL, tmp_path: Path) -> None:
    path = tmp_path / "vae.pt"
    weights = fused(ldm(vae), "qkv", False) if is_fused else ldm(vae)
    torch.save({name: weight.numpy() for name, weight in weights.items()}, path)
    assert_same_weights(load_vae(path), vae)


BESIDE: dict[str, Callable[[Weights], Weights]] = {
    "a LoRA or another adapter": lambda w: {
        "decoder.mid_block.attentions.0.to_q.lora_A.weight": torch.zeros(4, 64),
        "decoder.mid_block.attentions.0.to_q.lora_B.weight": torch.zeros(64, 4),
    },
    "another adapter": lambda w: {"lora_vae_decoder_conv_in.alpha": torch.ones(()), "lora_vae_x.diff": torch.ones(2)},
    "bitsandbytes": lambda w: {
        **w,
        "decoder.mid.attn_1.q.weight": torch.zeros(2048, 1, dtype=torch.uint8),
        "decoder.mid.attn_1.q.weight.absmax": torch.zeros(64),
        "decoder.mid.attn_1.q.weight.quant_map": torch.zeros(16),
    },
    "GPTQ": lambda w: {**w, "decoder.mid.attn_1.q.qweight": torch.zeros(8, 64, dtype=torch.int32)},
    "spectral norm": lambda w: {
        **w,
        "decoder.conv_in.weight_orig": torch.zeros(1),
        "decoder.conv_in.weight_u": torch.zeros(1),
    },
}


@pytest.mark.parametrize("name", BESIDE)
def test_adapters_and_quantised_files_are_named(name: str, vae: AutoencoderKL, file: Path) -> None:
    assert name in refusal(write(BESIDE[name](dict(ldm(vae))), file))


def test_an_onnx_folder_says_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(FORMATS["ONNX"])
    (tmp_path / "config.json").write_text(json.dumps(make(fields(32)).config.to_dict()))
    with pytest.raises(CheckpointError, match="has no weights at all"):
        load_vae(tmp_path)
