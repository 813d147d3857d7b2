"""Torch weights to Flax parameters and back: names, layouts, every bit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.core import freeze
from flax.traverse_util import flatten_dict
from given.files import deprecated, ldm
from given.pairs import CONFIGS, model
from given.twins import same_tree

from vae_core import CheckpointError
from vae_core.flax import FlaxAutoencoderKL, from_torch, to_torch

OTHER_TYPES = [(name, dtype) for name in ("sd", "flux2") for dtype in (torch.bfloat16, torch.float16)]


def shapes(tree: Any) -> dict[Any, tuple[int, ...]]:
    leaves: Any = flatten_dict(tree)
    return {path: leaf.shape for path, leaf in leaves.items()}


QUICK = ("sd", "flux2 small decoder", "attention in the levels", "grey")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=() if name in QUICK or dtype == torch.float16 else pytest.mark.slow)
        for name, dtype in [(name, torch.float32) for name in CONFIGS] + OTHER_TYPES
    ],
)
@pytest.mark.thorough
def test_there_and_back(name: str, dtype: torch.dtype) -> None:
    vae = model(name).to(dtype)
    if name.startswith("flux2"):
        buffers = dict(vae.named_buffers())
        buffers["bn.running_mean"].normal_()
        buffers["bn.num_batches_tracked"] += 70_001
    weights = vae.state_dict()
    params = from_torch(weights, vae.config)
    expected = jax.eval_shape(FlaxAutoencoderKL.from_config(vae.config).init_weights, jax.random.PRNGKey(0))
    assert shapes(params) == shapes(expected)
    for tree in (params, freeze(params), jax.device_get(params)):
        back = to_torch(tree, vae.config)
        assert back.keys() == weights.keys()
        for key, weight in weights.items():
            assert back[key].dtype == weight.dtype and torch.equal(back[key], weight), key
    vae.load_state_dict(back, strict=True)
    assert same_tree(from_torch(vae.state_dict(), vae.config), params)


def test_names_and_layouts_of_diffusers_flax() -> None:
    vae = model("attention in the levels")
    params: Any = flatten_dict(from_torch(vae.state_dict(), vae.config), sep="/")
    assert {
        "encoder/conv_in/kernel",
        "encoder/down_blocks_0/resnets_0/norm1/scale",
        "encoder/down_blocks_1/downsamplers_0/conv/kernel",
        "encoder/down_blocks_1/attentions_0/query/kernel",
        "encoder/mid_block/attentions_0/group_norm/bias",
        "encoder/mid_block/attentions_0/proj_attn/bias",
        "encoder/mid_block/resnets_1/conv2/bias",
        "decoder/up_blocks_0/resnets_0/conv1/kernel",
        "decoder/up_blocks_1/upsamplers_0/conv/kernel",
        "decoder/up_blocks_1/resnets_0/conv_shortcut/kernel",
        "decoder/conv_norm_out/scale",
        "quant_conv/kernel",
        "post_quant_conv/bias",
    } <= params.keys()
    weights = vae.state_dict()
    kernel: Any = params["encoder/conv_in/kernel"]
    assert kernel.shape == (3, 3, 3, 16)
    assert kernel[0, 2, 1, 5] == weights["encoder.conv_in.weight"][5, 1, 0, 2].item()
    query: Any = params["encoder/mid_block/attentions_0/query/kernel"]
    assert query[3, 7] == weights["encoder.mid_block.attentions.0.to_q.weight"][7, 3].item()


def test_other_spellings_and_fused_projections() -> None:
    vae = model("sd")
    expected = from_torch(vae.state_dict(), vae.config)
    assert same_tree(from_torch(deprecated(vae), vae.config), expected)
    assert same_tree(from_torch(ldm(vae), vae.config), expected)
    vae.fuse_qkv_projections()
    assert same_tree(from_torch(vae.state_dict(), vae.config), expected)


def test_a_parameter_is_no_view_of_the_tensor() -> None:
    vae = model("sd")
    params = from_torch(vae.state_dict(), vae.config)
    before = np.array(params["encoder"]["conv_out"]["bias"])
    with torch.no_grad():
        dict(vae.named_parameters())["encoder.conv_out.bias"].zero_()
    assert np.array_equal(params["encoder"]["conv_out"]["bias"], before) and before.any()


def test_what_is_missing_or_unknown() -> None:
    vae = model("sd")
    weights = dict(vae.state_dict())
    del weights["decoder.conv_in.weight"]
    with pytest.raises(CheckpointError, match=r"the state dict lacks 1 of 244 weights \(decoder.conv_in.weight\)"):
        from_torch(weights, vae.config)
    no_values = {key: weight.to("meta") for key, weight in vae.state_dict().items()}
    with pytest.raises(CheckpointError, match="244 weights, such as encoder.conv_in.weight, have no values here"):
        from_torch(no_values, vae.config)
    params = from_torch(vae.state_dict(), vae.config)
    params["opt"] = {"step": jnp.zeros(())}
    with pytest.raises(CheckpointError, match=r"params has 1 that the model does not have \(opt/step\)"):
        to_torch(params, vae.config)


def test_weights_of_another_shape() -> None:
    """Their names are the same: only shapes tell."""
    vae, other = model("16 groups"), model("16 groups", block_out_channels=(16, 32, 64))
    says = r"decoder.conv_in.bias has the shape \(64,\) where \(48,\) is needed"
    with pytest.raises(CheckpointError, match=f"the state dict: {says}"):
        from_torch(other.state_dict(), vae.config)
    params = from_torch(other.state_dict(), other.config)
    with pytest.raises(CheckpointError, match=f"params: {says.replace('r.', 'r/').replace('n.b', 'n/b')}"):
        to_torch(params, vae.config)
    replicated = jax.tree_util.tree_map(lambda leaf: jnp.stack([leaf] * 2), params)
    with pytest.raises(CheckpointError, match="the axis of devices that replication adds: give those of one device"):
        to_torch(replicated, other.config)
    with pytest.raises(CheckpointError, match="conv_in/bias has the type int32. Give floating-point weights"):
        to_torch(jax.tree_util.tree_map(lambda leaf: leaf.astype(jnp.int32), params), other.config)


def test_eight_bits_become_sixteen() -> None:
    vae = model("f4")
    small = {key: weight.to(torch.float8_e4m3fn) for key, weight in vae.state_dict().items()}
    expected = {key: weight.bfloat16() for key, weight in small.items()}
    assert same_tree(from_torch(small, vae.config), from_torch(expected, vae.config))
