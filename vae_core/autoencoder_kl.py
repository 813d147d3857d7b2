"""AutoencoderKL: encoder, posterior and decoder joined, with the interface of diffusers' class of that name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from .adapters import AdapterMixin
from .attention import AttentionMixin
from .config import FIELDS, FLUX2_CLASS_NAME, AutoencoderKLConfig
from .damage import COMPILERS_CALL_IT, check_weights
from .decoder import Decoder
from .encoder import Encoder
from .errors import ConfigError, ShapeError, in_one_line
from .halves import decoder_half, encoder_half
from .hub_push import HubMixin
from .layers import conv2d
from .likeness import LikenessMeta, LikenessMixin, join_diffusers
from .model_mixin import ModelMixin
from .outputs import AutoencoderKLOutput, DecoderOutput
from .posterior import DiagonalGaussianDistribution
from .pretrained_mixin import PretrainedMixin
from .running import bring_weights_in
from .streaming.half import Half
from .streaming.job import run_method
from .streaming.options import Options
from .streaming.source import check_tensor
from .tiling.blend import blend
from .tiling.grid import TileSpec

Self = TypeVar("Self", bound="AutoencoderKL")
Method = TypeVar("Method", bound=Callable[..., Any])


def apply_forward_hook(method: Method) -> Method:
    """Let an accelerate hook on the module bring its weights in before `method`, as it would before `forward`.

    accelerate's offloading replaces `forward` alone; encode and decode are called past it.
    """

    @functools.wraps(method)
    def wrapper(self: AutoencoderKL, *args: Any, **kwargs: Any) -> Any:
        bring_weights_in(self)
        return method(self, *args, **kwargs)

    return wrapper  # type: ignore[return-value]


class AutoencoderKL(
    PretrainedMixin,
    AttentionMixin,
    AdapterMixin,
    HubMixin,
    ModelMixin,
    LikenessMixin,
    nn.Module,
    metaclass=LikenessMeta,
):
    """A variational autoencoder between images [B, C, H, W] in [-1, 1] and latents z.

    Takes the arguments of diffusers' AutoencoderKL, which are the fields of AutoencoderKLConfig, by position or
    by name. z is raw: the model never scales it (see `latent.py`).

    Attributes:
        config: every argument, as attributes and as a mapping.
        use_slicing, use_tiling, tiling_mode: how `encode` and `decode` work; set by the `enable_*` methods.
        memory_budget: bytes of working memory beside weights, input and output that `encode` and `decode` keep to, as
            the functions of that name do; None for no limit but what is free. Set it where a pipeline calls them.
        tile_sample_min_size, tile_latent_min_size: side of a tile in pixels and in latent pixels. Larger
            inputs are tiled.
        tile_overlap_factor: share of a tile that the next one covers again.
    """

    def __new__(cls: type[Self], /, *args: Any, **kwargs: Any) -> Self:
        """A model of FLUX.2 is of diffusers' class for it, by whose name pipelines save and load it."""
        is_flux2 = kwargs.get("_class_name") == FLUX2_CLASS_NAME or any(
            kwargs.get(name) is not None for name in ("patch_size", "decoder_block_out_channels")
        )
        return object.__new__(AutoencoderKLFlux2 if cls is AutoencoderKL and is_flux2 else cls)  # type: ignore[type-var]

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        join_diffusers(type(self))
        nn.Module.__init__(self)
        # What pipelines write down as the library that loads this model: diffusers reads what `save_pretrained` writes.
        object.__setattr__(self, "__module__", "diffusers")
        config = _bind_config(args, kwargs)
        early: dict[str, Any] = vars(self).pop("_early", {})  # see `register_to_config`
        self._config = config.with_extras(**early) if early else config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        channels = config.latent_channels
        self.quant_conv = conv2d(2 * channels, 2 * channels, 1) if config.use_quant_conv else None
        self.post_quant_conv = conv2d(channels, channels, 1) if config.use_post_quant_conv else None
        if config.patch_size is not None:  # applied by latent.py, not by encode and decode
            self.bn = nn.BatchNorm2d(
                channels * config.patch_size[0] * config.patch_size[1],
                eps=config.batch_norm_eps,
                momentum=config.batch_norm_momentum,
                affine=False,
            )

        sample_size = config.sample_size if isinstance(config.sample_size, int) else config.sample_size[0]
        self.use_slicing = False
        self.use_tiling = False
        self.tiling_mode: Literal["exact", "blended"] = "exact"
        self.memory_budget: int | None = None
        self.tile_sample_min_size = sample_size
        self.tile_latent_min_size = max(1, sample_size // config.downscale_factor)
        self.tile_overlap_factor = 0.25

    # Encoding and decoding.

    @overload
    def encode(self, x: Tensor, return_dict: Literal[True] = True) -> AutoencoderKLOutput: ...
    @overload
    def encode(self, x: Tensor, return_dict: Literal[False]) -> tuple[DiagonalGaussianDistribution]: ...
    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Encode images [B, in_channels, H, W] in [-1, 1].

        H and W of any size; what is over a multiple of the downscale factor at the right and the bottom is dropped.

        Returns:
            The posterior over z [B, latent_channels, H // factor, W // factor], as `.latent_dist`, or in a tuple.

        Raises:
            ShapeError: not four dimensions, another number of channels, an empty batch or a side under one latent.
        """
        posterior = DiagonalGaussianDistribution(self._run(encoder_half(self), x, self.tile_sample_min_size))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    @overload
    def decode(
        self, z: Tensor, return_dict: Literal[True] = True, generator: torch.Generator | None = None
    ) -> DecoderOutput: ...
    @overload
    def decode(
        self, z: Tensor, return_dict: Literal[False], generator: torch.Generator | None = None
    ) -> tuple[Tensor]: ...
    @apply_forward_hook
    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Decode raw latents [B, latent_channels, h, w].

        Args:
            generator: not used; pipelines pass it to every decoder.

        Returns:
            Images [B, out_channels, h * factor, w * factor], about [-1, 1], not clamped, as `.sample`, or in a tuple.

        Raises:
            ShapeError: not four dimensions, another number of channels or an empty batch.
        """
        sample = self._run(decoder_half(self), z, self.tile_latent_min_size)
        return DecoderOutput(sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode images, by the posterior's mean or by a sample of it (`sample_posterior`)."""
        (posterior,) = self.encode(sample, return_dict=False)
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z, return_dict=return_dict)

    def encode_reference(self, x: Tensor) -> Tensor:
        """Images to moments by the reference path: the modules themselves, as gradients need them."""
        return encoder_half(self).reference(x)

    def decode_reference(self, z: Tensor) -> Tensor:
        """Latents to images by the reference path: the modules themselves, as gradients need them."""
        return decoder_half(self).reference(z)

    def _run(self, half: Half, x: Tensor, tile_side: int) -> Tensor:
        """By the slices and tiles that are enabled; `tile_side` is that of a tile in x."""
        if torch.compiler.is_dynamo_compiling() and COMPILERS_CALL_IT:
            check_weights(self)
        check_tensor(x, half.takes)
        tiling = None
        if self.use_tiling and max(x.shape[-2:], default=0) > tile_side:
            blended = self.tiling_mode == "blended"
            tiling = self._blended_tiling(half) if blended else TileSpec(size=self.tile_latent_min_size)
        return run_method(half, x, Options(tiling, self.memory_budget, max_items=1 if self.use_slicing else None))

    def _blended_tiling(self, half: Half) -> TileSpec:
        """diffusers' tiles, as `tile_sample_min_size` or `tile_latent_min_size` and `tile_overlap_factor` say."""
        side = self.tile_latent_min_size if half.in_unit == 1 else self.tile_sample_min_size
        size = max(1, side // half.in_unit)
        stride = max(1, int(side * (1 - self.tile_overlap_factor)) // half.in_unit)
        return TileSpec(size=size, overlap=size - stride, mode="blended")

    def check_image_shape(self, shape: Sequence[int]) -> None:
        """Raise ShapeError unless `encode` takes images of this shape."""
        _check_shape(shape, "image", self.config.in_channels, minimum=self.config.downscale_factor)

    def check_latent_shape(self, shape: Sequence[int]) -> None:
        """Raise ShapeError unless `decode` takes latents of this shape."""
        _check_shape(shape, "latent", self.config.latent_channels, minimum=1)

    # Slicing and tiling.

    def enable_slicing(self) -> None:
        """Run the items of a batch one after the other: less memory, the same result."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Run a batch at once again."""
        self.use_slicing = False

    def enable_tiling(self, use_tiling: bool = True, mode: Literal["exact", "blended"] = "exact") -> None:
        """Run inputs larger than a tile piece by piece.

        Args:
            mode: "exact" for strips of the streaming engine, which change nothing but the memory that is used;
                "blended" for diffusers' overlapping tiles and their numbers. Where the engine cannot run (gradients
                are wanted, the call is being compiled, a module was changed), "exact" runs the whole input.

        Raises:
            TilingError: another mode.
        """
        self.tiling_mode = TileSpec(mode=mode).mode
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Run the whole input at once again."""
        self.use_tiling = False

    @overload
    def tiled_encode(self, x: Tensor, return_dict: Literal[True] = True) -> AutoencoderKLOutput: ...
    @overload
    def tiled_encode(self, x: Tensor, return_dict: Literal[False]) -> tuple[DiagonalGaussianDistribution]: ...
    def tiled_encode(
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Encode in overlapping, blended tiles, whether or not tiling is enabled. See `encode`."""
        half = encoder_half(self)
        check_tensor(x, half.takes)
        posterior = DiagonalGaussianDistribution(run_method(half, x, Options(self._blended_tiling(half))))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    @overload
    def tiled_decode(self, z: Tensor, return_dict: Literal[True] = True) -> DecoderOutput: ...
    @overload
    def tiled_decode(self, z: Tensor, return_dict: Literal[False]) -> tuple[Tensor]: ...
    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Decode in overlapping, blended tiles, whether or not tiling is enabled. See `decode`."""
        half = decoder_half(self)
        check_tensor(z, half.takes)
        sample = run_method(half, z, Options(self._blended_tiling(half)))
        return DecoderOutput(sample) if return_dict else (sample,)

    def blend_v(self, a: Tensor, b: Tensor, blend_extent: int) -> Tensor:
        """`b`, whose first rows fade in from the last rows of `a` above it."""
        return blend(a, b, blend_extent, dim=2)

    def blend_h(self, a: Tensor, b: Tensor, blend_extent: int) -> Tensor:
        """`b`, whose first columns fade in from the last columns of `a` to its left."""
        return blend(a, b, blend_extent, dim=3)


class AutoencoderKLFlux2(AutoencoderKL):
    """The same model under the name of diffusers' class for FLUX.2. `AutoencoderKL(...)` makes it by its config."""


# The families whose latents have so many channels; 128 is FLUX.2's latent packed by 2x2.
_LATENT_FAMILIES = {4: "SD, SDXL", 16: "SD3, FLUX.1", 32: "FLUX.2", 128: "FLUX.2, packed"}


def channels_text(count: int, what: str = "latent") -> str:
    """A number of channels in words, with the families whose latents have so many."""
    family = _LATENT_FAMILIES.get(count) if what == "latent" else None
    return f"{count} channels ({family})" if family else f"{count} channels"


def _check_shape(shape: Sequence[int], what: str, channels: int, minimum: int) -> None:
    shape = tuple(shape)
    if len(shape) != 4:
        remedy = f" Give one frame: {what}[:, :, 0]." if len(shape) == 5 else ""
        raise ShapeError(
            f"this {what} has {len(shape)} dimensions {shape}; 4 are needed: batch, channels, height, width.{remedy}"
        )
    if shape[1] != channels:
        given, taken = (channels_text(count, what) for count in (shape[1], channels))
        remedy = "Use the VAE that goes with the model." if what == "latent" else "Convert the image first."
        raise ShapeError(f"this {what} has {given}, but this VAE takes {taken}. {remedy}")
    if shape[0] == 0 or min(shape[2:]) < minimum:
        raise ShapeError(f"this {what} has shape {shape}; at least one item of {minimum} by {minimum} is needed.")


def _bind_config(args: Sequence[Any], kwargs: Mapping[str, Any]) -> AutoencoderKLConfig:
    """The config that a call of the constructor means: fields, or the content of a `config.json`.

    Raises:
        ConfigError: an argument that does not exist, or a config of another class.
    """
    is_saved = bool(kwargs.get("_class_name"))  # where trainers leave more than the fields
    private = {
        name: value
        for name, value in kwargs.items()
        if name.startswith("_") or name == "quantization_config" or (is_saved and name not in FIELDS)
    }
    fields = {name: value for name, value in kwargs.items() if name not in private}
    try:
        given = inspect.signature(AutoencoderKLConfig).bind(*args, **fields).arguments
    except TypeError as error:
        raise ConfigError(f"AutoencoderKL: {in_one_line(error)}. Its arguments are {', '.join(FIELDS)}.") from None
    beside = {name: value for name, value in private.items() if name != "quantization_config"}
    return AutoencoderKLConfig.from_dict({**beside, **given}).with_extras(**private)


# What help() and diffusers' loaders see as the constructor's parameters.
AutoencoderKL.__init__.__signature__ = inspect.signature(AutoencoderKLConfig.__init__)  # type: ignore[attr-defined]
AutoencoderKL.__new__.__signature__ = inspect.signature(AutoencoderKLConfig.__init__)  # type: ignore[attr-defined]
