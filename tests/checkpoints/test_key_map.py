"""Names: LDM's spelled out, and one-to-one with diffusers' for every kind of model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from given.files import deprecated, ldm
from given.models import ATTENTION_EVERYWHERE, FLUX2_SMALL_DECODER, family_fields, fields, make
from safetensors.torch import save_file

from vae_core import AutoencoderKL, AutoencoderKLConfig, load_vae
from vae_core.checkpoints.families import FAMILIES
from vae_core.checkpoints.key_map import (
    count_at_least,
    is_attention_projection,
    ldm_names,
    spellings,
    weight_shapes,
    with_counters,
)
from vae_core.checkpoints.memory import build_around, planned_weights


def both(*layers: str) -> set[str]:
    return {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


RESNET = ("norm1", "conv1", "norm2", "conv2")
# CompVis' names for two levels of widths 32 and 64, one layer each.
LDM_KEYS = (
    both("encoder.conv_in", "encoder.norm_out", "encoder.conv_out", "quant_conv", "post_quant_conv")
    | both(*(f"encoder.down.0.block.0.{layer}" for layer in RESNET), "encoder.down.0.downsample.conv")
    | both(*(f"encoder.down.1.block.0.{layer}" for layer in RESNET), "encoder.down.1.block.0.nin_shortcut")
    | both(*(f"{half}.mid.block_1.{layer}" for half in ("encoder", "decoder") for layer in RESNET))
    | both(*(f"{half}.mid.block_2.{layer}" for half in ("encoder", "decoder") for layer in RESNET))
    | both(*(f"encoder.mid.attn_1.{layer}" for layer in ("norm", "q", "k", "v", "proj_out")))
    | both(*(f"decoder.mid.attn_1.{layer}" for layer in ("norm", "q", "k", "v", "proj_out")))
    | both("decoder.conv_in", "decoder.norm_out", "decoder.conv_out")
    # LDM counts the decoder's levels from the finest: up.1 comes first and is the wide one.
    | both(*(f"decoder.up.1.block.{i}.{layer}" for i in (0, 1) for layer in RESNET), "decoder.up.1.upsample.conv")
    | both(
        *(f"decoder.up.0.block.{i}.{layer}" for i in (0, 1) for layer in RESNET), "decoder.up.0.block.0.nin_shortcut"
    )
)


def test_ldm_keys_are_those_of_the_original() -> None:
    vae = make(fields(32, 64))
    weights = ldm(vae)
    assert set(weights) == LDM_KEYS
    for key, shape in {
        "encoder.mid.attn_1.q.weight": (64, 64, 1, 1),
        "decoder.mid.attn_1.proj_out.weight": (64, 64, 1, 1),
        "decoder.mid.attn_1.norm.weight": (64,),
        "encoder.down.1.block.0.nin_shortcut.weight": (64, 32, 1, 1),
        "decoder.up.1.block.0.conv1.weight": (64, 64, 3, 3),
        "decoder.up.0.block.0.conv1.weight": (32, 64, 3, 3),
        "decoder.up.0.block.0.nin_shortcut.weight": (32, 64, 1, 1),
        "decoder.up.1.upsample.conv.weight": (64, 64, 3, 3),
        "encoder.conv_out.weight": (8, 64, 3, 3),
    }.items():
        assert tuple(weights[key].shape) == shape, key
    query = vae.state_dict()["decoder.mid_block.attentions.0.to_q.weight"]
    assert torch.equal(weights["decoder.mid.attn_1.q.weight"].squeeze(), query)


def test_flux2_has_its_own_places() -> None:
    names = set(ldm(make(FLUX2_SMALL_DECODER)))
    assert both("encoder.quant_conv", "decoder.post_quant_conv") <= names
    assert {"bn.running_mean", "bn.running_var", "bn.num_batches_tracked"} <= names
    assert not both("quant_conv", "post_quant_conv") & names


def test_attention_in_the_levels() -> None:
    names = set(ldm(make(ATTENTION_EVERYWHERE)))
    for stem in ("encoder.down.1.attn.0", "decoder.up.1.attn.0", "decoder.up.1.attn.1"):
        assert both(*(f"{stem}.{layer}" for layer in ("norm", "q", "k", "v", "proj_out"))) <= names
    assert not [name for name in names if name.startswith(("encoder.down.0.attn", "decoder.up.0.attn"))]


@pytest.mark.parametrize(
    "config",
    [
        *map(family_fields, FAMILIES),
        FLUX2_SMALL_DECODER,
        ATTENTION_EVERYWHERE,
        fields(32),
        fields(32, 64, 32, 96, layers_per_block=3, mid_block_add_attention=False),
    ],
)
def test_tables_are_one_to_one_and_complete(config: dict) -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    names = ldm_names(vae.config)
    assert names.keys() == vae.state_dict().keys()
    assert len(set(names.values())) == len(names)
    table = spellings(vae.config)
    assert set(table.values()) == set(names)
    assert all(table[key] == key and table[old] == key for key, old in names.items())
    assert [table[key] for key in deprecated(vae)] == list(vae.state_dict())
    matrices = {key for key, weight in vae.state_dict().items() if weight.ndim == 2}
    assert matrices == {key for key in names if is_attention_projection(key)}


COUNTER = "bn.num_batches_tracked"


def test_counters_of_batch_norm_are_made_where_they_are_needed() -> None:
    weights = {"bn.running_mean": torch.zeros(4)}
    with torch.device("meta"):
        made = with_counters(weights, [*weights, COUNTER])
    assert made[COUNTER].item() == 0 and made[COUNTER].dtype == torch.int64 and made[COUNTER].shape == ()
    assert made["bn.running_mean"] is weights["bn.running_mean"] and COUNTER not in weights
    assert with_counters(weights, weights) == weights, "of a model without one"
    kept = {COUNTER: torch.tensor(7)}
    assert with_counters(kept, [COUNTER])[COUNTER].item() == 7


def without_counter() -> AutoencoderKL:
    """FLUX.2's model as most files have it."""
    model = make(FLUX2_SMALL_DECODER)
    assert model.bn is not None
    model.bn.num_batches_tracked = None
    assert COUNTER not in model.state_dict()
    return model


def read(model: AutoencoderKL, folder: Path) -> Any:
    save_file(model.state_dict(), folder / "vae.safetensors")
    return load_vae(folder / "vae.safetensors", config=model.config).state_dict()[COUNTER]


def built_around(model: AutoencoderKL, folder: Path) -> Any:
    return build_around(AutoencoderKL, model.config, model.state_dict()).state_dict()[COUNTER]


def to_flax(model: AutoencoderKL, folder: Path) -> Any:
    convert = pytest.importorskip("vae_core.flax.convert", exc_type=ImportError)
    return convert.from_torch(model.state_dict(), model.config)["bn"]["num_batches_tracked"]


@pytest.mark.parametrize("way", [read, built_around, to_flax])
def test_a_model_without_its_counter(way: Callable[[AutoencoderKL, Path], Any], tmp_path: Path) -> None:
    counter = way(without_counter(), tmp_path)
    assert counter.shape == () and counter == 0


def test_weights_of_a_plan_are_the_tensors_themselves_as_diffusers_has_them() -> None:
    """LDM's 1x1 kernels of projections as matrices, and all else, 1x1 kernels of shortcuts included, as it is."""
    vae = make(fields(32, 64))
    state, tensors, names = vae.state_dict(), ldm(vae), ldm_names(vae.config)
    found = planned_weights(names, tensors)
    assert found.keys() == state.keys()
    for key, weight in found.items():
        assert weight.shape == state[key].shape and torch.equal(weight, state[key]), key
        assert weight.data_ptr() == tensors[names[key]].data_ptr()
    assert all(weight is state[key] for key, weight in planned_weights({key: key for key in state}, state).items())


@pytest.mark.parametrize("layers", [1, 2, 50])
@pytest.mark.parametrize("widths", [(32,), (32, 64, 64, 64)])
def test_no_model_has_fewer_weights_than_are_counted(widths: tuple[int, ...], layers: int) -> None:
    config = AutoencoderKLConfig(**fields(*widths, layers_per_block=layers))
    assert count_at_least(config) <= len(weight_shapes(config)) < 3 * count_at_least(config) + 100
