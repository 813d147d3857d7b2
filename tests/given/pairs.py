"""Pairs of models with the same random weights: ours and diffusers'."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from given.models import DOWN, UP, fields
from vae_core import AutoencoderKL


def narrow(*widths: int, **others: Any) -> dict[str, Any]:
    """A config of these widths, small enough to run in milliseconds."""
    tile = 4 * 2 ** (len(widths) - 1)  # of 4 latent pixels
    return fields(*widths, **{"norm_num_groups": 8, "layers_per_block": 1, "sample_size": tile, **others})


FLUX2_FIELDS = {"latent_channels": 8, "patch_size": (2, 2)}
CONFIGS: dict[str, dict[str, Any]] = {
    "sd": narrow(16, 32, 32, 32, layers_per_block=2),
    "sd3": narrow(16, 32, 32, 32, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False),
    "no mid attention": narrow(16, 16, 32, mid_block_add_attention=False),
    "grey": narrow(16, 16, 32, in_channels=1, out_channels=1),
    "rgba": narrow(16, 16, 32, in_channels=4, out_channels=4),
    "1 layer": narrow(16, 32, 16, 24, layers_per_block=1),
    "3 layers": narrow(16, 32, 32, layers_per_block=3),
    "f4": narrow(16, 24, 32),
    "f16": narrow(16, 16, 16, 24, 32),
    "16 groups": narrow(16, 32, 48, norm_num_groups=16),
    "mish": narrow(16, 24, act_fn="mish"),
    "attention in the levels": narrow(
        16,
        16,
        32,
        down_block_types=(DOWN, "AttnDownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", UP, UP),
    ),
    "flux2": narrow(16, 32, 32, **FLUX2_FIELDS),
    "flux2 small decoder": narrow(16, 32, 32, decoder_block_out_channels=(8, 16, 24), **FLUX2_FIELDS),
}
FULL_SIZE_SD: dict[str, Any] = narrow(128, 256, 512, 512, norm_num_groups=32, layers_per_block=2, sample_size=512)


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Random weights everywhere: norms and biases too, which a fresh model has at 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim > 1:
                    parameter.copy_(noise * parameter[0].numel() ** -0.5)
                else:
                    is_scale = isinstance(module, nn.GroupNorm) and name == "weight"
                    parameter.copy_(noise * 0.1 + (1.0 if is_scale else 0.0))


def theirs_of(config: dict[str, Any], seed: int = 0) -> Any:
    """diffusers' model in eval mode. (In training mode it lays tensors out again, which changes the rounding.)"""
    flux2 = "patch_size" in config
    model = (diffusers.AutoencoderKLFlux2 if flux2 else diffusers.AutoencoderKL)(**config)
    randomize(model, seed)
    return model.eval()


def ours_like(theirs: Any) -> AutoencoderKL:
    """Our model with the configuration and the weights of diffusers'."""
    ours = AutoencoderKL.from_config({**theirs.config, "_class_name": type(theirs).__name__})
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.eval()


def pair(name: str = "sd", seed: int = 0, **others: Any) -> tuple[AutoencoderKL, Any]:
    """(ours, diffusers') for an entry of CONFIGS, some fields changed."""
    theirs = theirs_of({**CONFIGS[name], **others}, seed)
    return ours_like(theirs), theirs


def model(name: str = "sd", seed: int = 0, **others: Any) -> AutoencoderKL:
    """Ours alone, with random weights."""
    config = {**CONFIGS[name], **others}
    class_name = "AutoencoderKLFlux2" if "patch_size" in config else "AutoencoderKL"
    ours = AutoencoderKL.from_config({**config, "_class_name": class_name})
    randomize(ours, seed)
    return ours.eval()
