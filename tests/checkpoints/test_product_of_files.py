"""Every naming of weights in every wrapper, container and precision: loaded bit for bit, and decoding as its source."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from given.files import ldm, renamed, write
from given.models import fields, make
from torch import Tensor

from vae_core import AutoencoderKL, load_vae

Weights = dict[str, Tensor]
TO_Q = ((".q.", ".to_q."), (".k.", ".to_k."), (".v.", ".to_v."), (".proj_out.", ".to_out.0."))


def matrices(weights: Weights) -> Weights:
    return {k: w[:, :, 0, 0] if ".attn" in k and w.ndim == 4 else w for k, w in weights.items()}


def kernels(weights: Weights) -> Weights:
    return {k: w[:, :, None, None] if w.ndim == 2 else w for k, w in weights.items()}


NAMINGS: dict[str, Callable[[AutoencoderKL], Weights]] = {
    "diffusers": lambda vae: dict(vae.state_dict()),
    "diffusers, kernels": lambda vae: kernels(vae.state_dict()),
    "LDM": ldm,
    "LDM, matrices": lambda vae: matrices(ldm(vae)),
    "LDM, to_q": lambda vae: renamed(ldm(vae), *TO_Q),
    "LDM, to_q, matrices": lambda vae: matrices(renamed(ldm(vae), *TO_Q)),
}


def below(*path: str) -> Callable[[Weights], Any]:
    """Weights in dictionaries in one another, with the step of the training beside them."""

    def nest(weights: Weights) -> Any:
        content: Any = weights
        for name in reversed(path):
            content = {name: content, "step": torch.tensor(7)}
        return content

    return nest


def behind(prefix: str) -> Callable[[Weights], Any]:
    return lambda weights: {f"{prefix}{name}": weight for name, weight in weights.items()}


def inside(wrapper: str) -> Callable[[Weights], Any]:
    """A wrapper around each half."""
    return lambda weights: renamed(weights, ("encoder.", f"encoder.{wrapper}"), ("decoder.", f"decoder.{wrapper}"))


WRAPPERS: dict[str, Callable[[Weights], Any]] = {
    "none": dict,
    **{
        prefix: behind(prefix)
        for prefix in ("_orig_mod.", "module.", "vae.", "first_stage_model.", "module._orig_mod.")
    },
    **{f"{wrapper} in the halves": inside(wrapper) for wrapper in ("_orig_mod.", "module.")},
    "state_dict": below("state_dict"),
    "model_state_dict": below("model_state_dict"),
    "ema_model.": lambda weights: {"ema_model_state_dict": behind("ema_model.")(weights), "epoch": torch.tensor(3)},
    "vae": below("vae"),
    "state_dict, first_stage_model.": lambda weights: {"state_dict": behind("first_stage_model.")(weights)},
    "three levels": below("checkpoint", "model", "vae"),
    "a UNet beside": lambda weights: {
        **behind("first_stage_model.")(weights),
        "model.diffusion_model.time_embed.0.weight": torch.zeros(4, 4),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.zeros(4),
    },
}


def flat(content: Mapping[str, Any], prefix: str = "") -> Weights:
    """Dictionaries as dotted names, as files without dictionaries have them."""
    found: Weights = {}
    for name, value in content.items():
        found |= {f"{prefix}{name}": value} if isinstance(value, Tensor) else flat(value, f"{prefix}{name}.")
    return found


def sharded(ending: str, save: Callable[[Weights, Path], Any]) -> Callable[[Any, AutoencoderKL, Path], Path]:
    """A folder with the config, an index and two files of weights."""

    def to(content: Any, vae: AutoencoderKL, path: Path) -> Path:
        path.mkdir()
        (path / "config.json").write_text(json.dumps(vae.config.to_dict()), encoding="utf-8")
        weights, where = flat(content), {}
        names = sorted(weights)
        for number, part in enumerate((names[::2], names[1::2]), 1):
            file = f"diffusion_pytorch_model-{number:05}-of-00002.{ending}"
            save({name: weights[name] for name in part}, path / file)
            where |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": where}
        (path / f"diffusion_pytorch_model.{ending}.index.json").write_text(json.dumps(index), encoding="utf-8")
        return path

    return to


def pickled(ending: str, zipped: bool = True) -> Callable[[Any, AutoencoderKL, Path], Path]:
    def to(content: Any, _: AutoencoderKL, path: Path) -> Path:
        path = path.with_suffix(ending)
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        return path

    return to


CONTAINERS: dict[str, Callable[[Any, AutoencoderKL, Path], Path]] = {
    "safetensors": lambda content, _, path: write(flat(content), path.with_suffix(".safetensors")),
    **{f"{ending} zip": pickled(ending) for ending in (".pt", ".ckpt", ".bin")},
    ".ckpt legacy": pickled(".ckpt", zipped=False),
    "folder of safetensors": sharded("safetensors", write),
    "folder of bin": sharded("bin", torch.save),
}
DTYPES = ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn")


def stored(weights: Weights, dtype: str) -> tuple[Weights, Weights]:
    """Weights as a file of this precision has them, 8-bit ones with scales beside them; and what that stands for."""
    if dtype != "float8_e4m3fn":
        kept = {name: weight.to(getattr(torch, dtype)) for name, weight in weights.items()}
        return kept, {name: weight.float() for name, weight in kept.items()}
    kept, meant = dict(weights), dict(weights)
    for name, weight in weights.items():
        if weight.ndim > 1:
            scale = weight.abs().amax() / 448
            kept[name] = (weight / scale).to(torch.float8_e4m3fn)
            meant[name] = kept[name].float() * scale
            kept[f"{name.removesuffix('.weight')}.scale_weight"] = scale
    return kept, meant


class Case(NamedTuple):
    naming: str
    wrapper: str
    container: str
    dtype: str


# Of numbers about 1 that go through some twenty layers: the rounding of the weights, several times over.
TOLERANCES = {"float32": 0, "float64": 0, "float16": 5e-3, "bfloat16": 2e-2, "float8_e4m3fn": 0.25}


def images(vae: AutoencoderKL) -> list[Tensor]:
    z = torch.arange(4 * 5 * 6.0).reshape(1, 4, 5, 6).sin()
    x = torch.arange(3 * 16 * 12.0).reshape(1, 3, 16, 12).cos()
    return [vae.decode(z).sample, vae.encode(x).latent_dist.mode()]


@pytest.fixture(scope="module")
def source() -> AutoencoderKL:
    return make(fields(32, 64, scaling_factor=0.18215))


@torch.no_grad()
def check(case: Case, source: AutoencoderKL, folder: Path) -> None:
    kept, meant = stored(NAMINGS[case.naming](source), case.dtype)
    path = CONTAINERS[case.container](WRAPPERS[case.wrapper](kept), source, folder / "vae")
    loaded = load_vae(path)  # the fixture of this folder has it inspected as well
    expected = NAMINGS[case.naming](loaded.float())
    assert {name for name in meant if not torch.equal(expected[name], meant[name])} == set(), case
    for ours, theirs in zip(images(loaded), images(source), strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=TOLERANCES[case.dtype], msg=lambda text: f"{case}\n{text}"
        )


EVERY = [Case(*values) for values in itertools.product(NAMINGS, WRAPPERS, CONTAINERS, DTYPES)]


@pytest.mark.parametrize("case", random.Random(12).sample(EVERY, 60), ids="-".join)
def test_a_file(case: Case, source: AutoencoderKL, tmp_path: Path) -> None:
    check(case, source, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("naming", NAMINGS)
def test_the_whole_product(naming: str, container: str, source: AutoencoderKL, tmp_path: Path) -> None:
    for number, case in enumerate(each for each in EVERY if (each.naming, each.container) == (naming, container)):
        (tmp_path / str(number)).mkdir()
        check(case, source, tmp_path / str(number))
