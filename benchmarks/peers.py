"""The systems that are compared, with the same weights: this package, diffusers, ComfyUI's own VAE, and runtimes.

ComfyUI is measured by its model class and its `tiled_scale`, which is what its nodes run, without the memory
management around them. COMFYUI_PATH names a checkout of it; without one, or where it cannot be imported, it is left
out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runtimes

import vae_core
from vae_core import AutoencoderKL, AutoencoderKLConfig, TileSpec
from vae_core.checkpoints.single_file import ldm_state_dict

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
# The defaults of ComfyUI's node "VAE Decode (Tiled)", in pixels (its nodes.py, VAEDecodeTiled).
COMFYUI_TILE, COMFYUI_OVERLAP = 512, 64
OURS_TILE = TileSpec(size=64)  # latents: 512 pixels, as the peers

OURS, OURS_TILED, OURS_BUDGET, PLAIN = "Seamless VAE", "Seamless VAE, tiled", "Seamless VAE, budget", "reference path"
DIFFUSERS, CHANNELS_LAST, COMFYUI = "diffusers", "diffusers, channels_last", "ComfyUI"
DIFFUSERS_TILED, COMFYUI_TILED = "diffusers, channels_last, tiled", "ComfyUI, tiled"
SYSTEMS = (
    *(OURS, OURS_TILED, OURS_BUDGET, PLAIN),
    *(DIFFUSERS, CHANNELS_LAST, DIFFUSERS_TILED, COMFYUI, COMFYUI_TILED),
    *runtimes.RUNTIMES,
)


def config_of(*widths: int, **fields: Any) -> AutoencoderKLConfig:
    """A config of SD's kind with other widths."""
    levels = len(widths)
    return AutoencoderKLConfig(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        **{"layers_per_block": 2, "sample_size": 64 * 2 ** (levels - 1), **fields},
    )


CONFIGS = {
    "full": config_of(128, 256, 512, 512),
    # At 4096x4096 attention takes most of a run's time.
    "full-without-attention": config_of(128, 256, 512, 512, mid_block_add_attention=False),
    # The widths of the demo VAE.
    "narrow": config_of(
        *(32, 64, 128, 128),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ),
    "tiny": config_of(32, 32, 64, 64, layers_per_block=1),
}


class NotAvailableError(Exception):
    """A peer that is not installed, or cannot hold this model."""


@dataclass(frozen=True)
class System:
    """One way of running a model: images to the mode of their posterior, and latents to images.

    Attributes:
        make: makes one for a direction and its input's shape; None if any shape will do.
    """

    name: str
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    make: Callable[[str, Tensor], object] | None = None

    def run(self, direction: str, x: Tensor) -> Tensor:
        return self.encode(x) if direction == "encode" else self.decode(x)


@cache
def ours(config: AutoencoderKLConfig, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """This package's model with random weights, the same in every process."""
    torch.manual_seed(0)
    return AutoencoderKL(**config).eval().requires_grad_(False).to(dtype)


def build(
    name: str,
    config: AutoencoderKLConfig,
    budget: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> System:
    """A system, by its name, with weights of a precision on a device; it takes inputs of that kind.

    Of the systems, diffusers alone can be on another device than the CPU.

    Raises:
        NotAvailableError: it is not installed, or has no such model.
    """
    if name in runtimes.RUNTIMES:
        return _runtime(name, ours(config), dtype)
    vae = ours(config, dtype)
    if name in (DIFFUSERS, CHANNELS_LAST, DIFFUSERS_TILED):
        return _diffusers(name, vae, device)
    if name in (COMFYUI, COMFYUI_TILED):
        return _comfyui(name, vae)
    if name == PLAIN:
        return System(name, lambda x: vae.encode_reference(x).chunk(2, dim=1)[0], vae.decode_reference)
    if name == OURS:
        return System(name, lambda x: vae.encode(x).latent_dist.mode(), lambda z: vae.decode(z).sample)
    options: dict[str, Any] = {"tiling": OURS_TILE} if name == OURS_TILED else {"memory_budget": budget}
    return System(name, lambda x: vae_core.encode(vae, x, **options).mode(), partial(vae_core.decode, vae, **options))


def _runtime(name: str, vae: AutoencoderKL, dtype: torch.dtype) -> System:
    try:
        made = runtimes.maker(name, vae, dtype)
    except runtimes.MissingError as error:
        raise NotAvailableError(str(error)) from None
    return System(
        name,
        lambda x: made("encode", x.shape)(x).chunk(2, dim=1)[0],
        lambda z: made("decode", z.shape)(z),
        lambda direction, x: made(direction, x.shape),
    )


def _diffusers(name: str, vae: AutoencoderKL, device: torch.device) -> System:
    try:
        import diffusers
    except ImportError as error:
        raise NotAvailableError(f"diffusers: {error}") from None
    layout = torch.contiguous_format if name == DIFFUSERS else torch.channels_last
    theirs: Any = diffusers.AutoencoderKL.from_config(vae.config.to_dict())
    theirs.load_state_dict(vae.state_dict())
    theirs = theirs.eval().requires_grad_(False).to(device, vae.dtype).to(memory_format=layout)
    if name == DIFFUSERS_TILED:
        theirs.enable_tiling()
    return System(
        name,
        lambda x: theirs.encode(x.to(memory_format=layout)).latent_dist.mode(),
        lambda z: theirs.decode(z.to(memory_format=layout)).sample,
    )


def _comfyui(name: str, vae: AutoencoderKL) -> System:
    config = vae.config
    widths = config.block_out_channels
    if config.norm_num_groups != 32 or any(width % widths[0] for width in widths):
        raise NotAvailableError("ComfyUI: its VAE has 32 groups in every norm and widths that are multiples")
    autoencoder, utils = import_comfyui()
    description = {
        "double_z": True,
        "z_channels": config.latent_channels,
        "resolution": 256,
        "in_channels": config.in_channels,
        "out_ch": config.out_channels,
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config.layers_per_block,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    model = autoencoder.AutoencoderKL(ddconfig=description, embed_dim=config.latent_channels).eval()
    model.load_state_dict(ldm_state_dict(vae.state_dict(), config))
    model.requires_grad_(False).to(vae.dtype)
    decode = model.decode
    if name == COMFYUI_TILED:
        decode = partial(_comfyui_tiled, model.decode, utils.tiled_scale, config.downscale_factor)
    return System(name, model.encode, decode)


def _comfyui_tiled(decode: Callable[[Tensor], Tensor], tiled_scale: Any, factor: int, z: Tensor) -> Tensor:
    """The three tilings of ComfyUI's tiled decode, and their mean."""
    tile, overlap = COMFYUI_TILE // factor, COMFYUI_OVERLAP // factor
    shapes = ((tile // 2, tile * 2), (tile * 2, tile // 2), (tile, tile))
    total = sum(tiled_scale(z, decode, x, y, overlap, upscale_amount=factor) for x, y in shapes)
    return total / 3.0  # type: ignore[return-value]


@cache
def import_comfyui() -> tuple[Any, Any]:
    """ComfyUI's module with the autoencoder and its module of utilities, set to the CPU."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        raise NotAvailableError("ComfyUI: set COMFYUI_PATH to a checkout")
    sys.path.append(path)
    try:
        import comfy.cli_args  # type: ignore[import-not-found]

        comfy.cli_args.args.cpu = True
        import comfy.ldm.models.autoencoder as autoencoder  # type: ignore[import-not-found]
        import comfy.utils as utils  # type: ignore[import-not-found]
    except ImportError as error:
        raise NotAvailableError(f"ComfyUI: {error}") from None
    return autoencoder, utils


def comfyui_version() -> str | None:
    """The version of the checkout; None without one."""
    file = Path(os.environ.get("COMFYUI_PATH", "")) / "comfyui_version.py"
    if not os.environ.get("COMFYUI_PATH") or not file.exists():
        return None
    return file.read_text().split('"')[-2]


def make_input(config: AutoencoderKLConfig, direction: str, size: int, batch: int = 1) -> Tensor:
    """A random latent or image for images of `size` by `size` pixels."""
    generator = torch.Generator().manual_seed(1)
    if direction == "encode":
        return torch.rand(batch, config.in_channels, size, size, generator=generator) * 2 - 1
    side = size // config.downscale_factor
    return torch.randn(batch, config.latent_channels, side, side, generator=generator)
