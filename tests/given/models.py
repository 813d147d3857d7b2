"""Narrow models of every published family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vae_core import AutoencoderKL
from vae_core.checkpoints.families import FAMILIES, Family

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
BY_NAME = {family.name: family for family in FAMILIES}


def fields(*widths: int, **others: Any) -> dict[str, Any]:
    """Constructor arguments of a model with these widths."""
    return {
        "block_out_channels": widths,
        "down_block_types": (DOWN,) * len(widths),
        "up_block_types": (UP,) * len(widths),
        **others,
    }


def family_fields(family: Family) -> dict[str, Any]:
    """A family's config with narrow levels."""
    shapes = {
        "latent_channels": family.latent_channels,
        "use_quant_conv": family.quant_convs,
        "use_post_quant_conv": family.quant_convs,
        **({"patch_size": (2, 2)} if family.batch_norm else {}),
    }
    return fields(*(32, 32, 64, 32)[: family.levels], **shapes, **family.fields)


FLUX2_SMALL_DECODER = {**family_fields(BY_NAME["FLUX.2"]), "decoder_block_out_channels": (32, 32, 32, 64)}
ATTENTION_EVERYWHERE = {
    **fields(32, 64),
    "down_block_types": (DOWN, "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", UP),
}


SMALL = fields(32, 32, layers_per_block=1)  # of the engine's tests


def make(config: Mapping[str, Any], seed: int = 0) -> AutoencoderKL:
    """A model with random weights, batch norm statistics included."""
    torch.manual_seed(seed)
    model = AutoencoderKL(**config).eval()
    for name, tensor in model.named_buffers():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if name.endswith("var") else torch.randn_like(tensor))
    return model


# Every family, and architectures that none of them has.
MODELS = {family.name: family_fields(family) for family in FAMILIES} | {
    "FLUX.2 with a small decoder": FLUX2_SMALL_DECODER,
    "attention in the levels": ATTENTION_EVERYWHERE,
    "f4": fields(32, 64, 64, scaling_factor=0.3),
    "f16, 8 channels": fields(32, 32, 32, 32, 32, latent_channels=8),
    "grey, 3 layers, no mid attention": fields(
        32, 32, in_channels=1, out_channels=1, layers_per_block=3, mid_block_add_attention=False
    ),
    "rgba": fields(32, 64, in_channels=4, out_channels=4, norm_num_groups=16, act_fn="mish", force_upcast=False),
    "one quant conv": fields(32, use_quant_conv=False),
}
