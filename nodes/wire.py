"""The object on the VAE wire: a VAE of the host's own class that runs our model.

It is made from the host's empty VAE, so that it has whatever attributes a host gives to its VAEs. Packs copy it and set
its attributes: nothing here keeps state elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..vae_core import AutoencoderKL, Options
from ..vae_core.checkpoints.single_file import ldm_state_dict
from ..vae_core.errors import CheckpointError
from ..vae_core.image import from_image, to_model_range, to_unit_range
from ..vae_core.patched import is_replaced
from . import host, latents
from .autoencoder import Autoencoder
from .checks import checked_image
from .first_stage import FirstStage, strips_of
from .status import NodeStatus

# What another model than ours takes at the size of the image, in numbers for each pixel: the host's own figures.
_USUAL_NUMBERS_ENCODE = 1767
_USUAL_NUMBERS_DECODE = 2178
FRAMES = (4, 5)  # dimensions, of images and of a video's frames


class WireMethods:
    """What the host and packs call on a VAE, answered by our model."""

    first_stage_model: FirstStage
    patcher: Any
    device: torch.device
    output_device: torch.device
    vae_dtype: torch.dtype
    process_output: Any
    downscale_ratio: int
    upscale_ratio: int
    output_channels: int

    # Images and latents, as the host's nodes pass them.

    def encode(self, pixel_samples: Tensor, not_video: bool | None = None) -> Tensor:
        """IMAGE [B, H, W, C], cropped evenly to a multiple of the downscale factor, to raw latents: the mean."""
        return self._encode(checked_image(pixel_samples, FRAMES), Options())

    def encode_tiled(
        self,
        pixel_samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
        not_video: bool | None = None,
    ) -> Tensor:
        """As `encode`, in strips about as large as a tile of so many pixels; the result is that of `encode`."""
        pixels = checked_image(pixel_samples, FRAMES)
        width = pixels.shape[-2]
        return self._encode(pixels, strips_of(tile_x, tile_y, width // self._tile_unit, width))

    def decode(self, samples_in: Tensor, vae_options: Any = None, **_: Any) -> Tensor:
        """Raw latents to IMAGE [B, H, W, C] in [0, 1]."""
        return self._decode(_frame(samples_in), Options())

    def decode_tiled(
        self,
        samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """As `decode`, in strips about as large as a tile of so many latent pixels; equal to `decode`."""
        samples = _frame(samples)
        raw_width = samples.shape[-1] * self.downscale_ratio // self._tile_unit
        return self._decode(samples, strips_of(tile_x, tile_y, raw_width, samples.shape[-1]))

    def _encode(self, pixels: Tensor, options: Options) -> Tensor:
        if pixels.ndim == 5:  # frames of a video, one by one
            pixels = pixels.flatten(0, 1)
        factor = self.spacial_compression_encode()
        own = self._own_model
        channels = self.output_channels if own is None else own.config.in_channels
        image = from_image(pixels, channels=channels, multiple=factor, fit="crop")
        if self._is_replaced("encode"):
            return self._by_the_model("encode", image.pixels, self.memory_used_encode).to(self.vae_output_dtype())
        return self._autoencoder.encode(image, options, NodeStatus()).mean.to(self.vae_output_dtype())

    def _decode(self, samples: Tensor, options: Options) -> Tensor:
        if self._is_replaced("decode"):
            image = self._by_the_model("decode", samples, self.memory_used_decode).movedim(1, -1)
            image = image.to(self.vae_output_dtype())
        else:
            image = self._autoencoder.prepare_decode({"samples": samples}, options).run_to_model_range(NodeStatus())
        result = self.process_output(image)
        return image if result is None else result

    def _is_replaced(self, method: str) -> bool:
        """Whether something else computes: another model, or a method in place of its own, a compiled one say."""
        host.settle_patches(self.patcher)
        return self._own_model is None or is_replaced(self.first_stage_model, method)

    @torch.no_grad()
    def _by_the_model(self, method: str, x: Tensor, memory: Callable[..., int]) -> Tensor:
        """What a method of `first_stage_model` gives for [B, C, H, W], called as the host's VAEs do."""
        host.load_model(self.patcher, memory(x.shape, self.vae_dtype))
        found = getattr(self.first_stage_model, method)(x.to(self.device, self.vae_dtype))
        return found.to(self.output_device)

    @property
    def _tile_unit(self) -> int:
        """Pixels along one side of a raw latent pixel."""
        own = self._own_model
        return self.downscale_ratio if own is None else own.config.downscale_factor

    @property
    def _own_model(self) -> AutoencoderKL | None:
        """The model in `first_stage_model`; None where another one has been put there."""
        first = self.first_stage_model
        return first.autoencoder if isinstance(first, FirstStage) else None

    @property
    def _autoencoder(self) -> Autoencoder:
        return Autoencoder(self, self._model)

    @property
    def _model(self) -> AutoencoderKL:
        return self.first_stage_model.autoencoder

    # What it costs.

    def memory_used_encode(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Bytes that encoding images [B, C, H, W] will use beside the weights."""
        if self._own_model is None:
            return _USUAL_NUMBERS_ENCODE * shape[-2] * shape[-1] * dtype.itemsize
        factor = self._model.config.downscale_factor
        height, width = (max(1, side // factor) * factor for side in shape[-2:])
        return self._autoencoder.encode_job((shape[0], self._model.config.in_channels, height, width)).bytes.device

    def memory_used_decode(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Bytes that decoding latents [B, C, h, w] will use beside the weights."""
        if self._own_model is None:
            return _USUAL_NUMBERS_DECODE * self.upscale_ratio**2 * shape[-2] * shape[-1] * dtype.itemsize
        config = self._model.config
        wire_shape = shape[0], latents.wire_channels(config), max(1, shape[-2]), max(1, shape[-1])
        return self._autoencoder.decode_job(latents.raw_shape(config, wire_shape)).bytes.device

    def model_size(self) -> int:
        """Bytes of weights."""
        return sum(weight.nbytes for weight in self.first_stage_model.state_dict().values())

    # What it is.

    def spacial_compression_encode(self) -> int:
        return self.downscale_ratio

    def spacial_compression_decode(self) -> int:
        return self.downscale_ratio

    def temporal_compression_decode(self) -> None:
        return None  # images, not video

    def throw_exception_if_invalid(self) -> None:
        if getattr(self, "first_stage_model", None) is None:
            raise CheckpointError("this VAE is empty. Load a VAE with Seamless VAE Load.")

    def is_dynamic(self) -> bool:
        return host.keeps_weights_back(self.patcher)

    def vae_output_dtype(self) -> torch.dtype:
        return host.intermediate_dtype()

    def get_sd(self) -> dict[str, Tensor]:
        """The weights under LDM's names, from which the host can build a VAE of its own."""
        if self._own_model is None:
            return self.first_stage_model.state_dict()
        return ldm_state_dict(self._model.weights_to_save(), self._model.config)


def _frame(samples: Any) -> Tensor:
    """Latents of images [B, C, h, w], also of a video of one frame."""
    samples = latents.samples_of({"samples": samples}, FRAMES)
    if samples.ndim == 5 and samples.shape[2] == 1:
        samples = samples[:, :, 0]
    return latents.samples_of({"samples": samples})


def wrap(model: AutoencoderKL, device: torch.device | None = None) -> Any:
    """A model as an object for the VAE wire, under the host's memory management.

    Args:
        device: to run on; None for the one that the host gives to VAEs.
    """
    vae = _wire_class(host.vae_class())()
    factor = latents.wire_factor(model.config)
    vae.first_stage_model = FirstStage(model)
    vae.device = host.vae_device() if device is None else device
    vae.vae_dtype = model.dtype
    vae.output_device = host.intermediate_device()
    vae.downscale_ratio = vae.upscale_ratio = factor
    vae.latent_channels = latents.wire_channels(model.config)
    vae.output_channels = model.config.out_channels
    if hasattr(vae, "handles_tiling"):  # a newer host's own tiled methods then call those of the model
        vae.handles_tiling = True
    vae.disable_offload = True  # its layers are torch's own: they run whole or not at all
    offload_device = torch.device("cpu") if vae.device.type == "cpu" else host.vae_offload_device()
    vae.patcher = host.model_patcher(vae.first_stage_model, vae.device, offload_device)
    return vae


@functools.lru_cache(maxsize=4)
def _wire_class(base: type | None) -> type:
    """The class of our VAEs: the host's class, with our methods before its own."""
    bases = (WireMethods,) if base is None else (WireMethods, base)

    def init(self: Any) -> None:
        if base is not None:
            host.init_empty_vae(self)
        for name in vars(WireMethods):  # what the host keeps as attributes would hide our methods
            self.__dict__.pop(name, None)
        for name, value in _ATTRIBUTES.items():
            self.__dict__.setdefault(name, value)

    return type("SeamlessVAE", bases, {"__init__": init, "__module__": __name__})


def _to_image_range(image: Tensor) -> Tensor:
    return to_unit_range(image, in_place=True).clamp_(0.0, 1.0)  # in place, as newer hosts rely on


# What hosts give to a VAE of images, for those that lack some of it.
_ATTRIBUTES: dict[str, Any] = {
    "latent_dim": 2,
    "process_input": to_model_range,
    "process_output": _to_image_range,
    "working_dtypes": list(host.WORKING_DTYPES),
    "not_video": False,
    "upscale_index_formula": None,
    "downscale_index_formula": None,
    "extra_1d_channel": None,
    "crop_input": True,
    "size": None,
}
