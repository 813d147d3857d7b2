"""The configuration of an AutoencoderKL: the fields of diffusers' `config.json`, checked once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError

DOWN_BLOCK_TYPES = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP_BLOCK_TYPES = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")

CLASS_NAME = "AutoencoderKL"
FLUX2_CLASS_NAME = "AutoencoderKLFlux2"
FLUX2_FIELDS = ("decoder_block_out_channels", "batch_norm_eps", "batch_norm_momentum", "patch_size")
# diffusers' AutoencoderKLFlux2 has no such fields: a batch norm takes the place of scale and shift, and the first
# releases of it have no force_upcast.
SCALING_FIELDS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast")


@dataclass(frozen=True)
class AutoencoderKLConfig(Mapping[str, Any]):
    """Every hyper-parameter of an AutoencoderKL, under diffusers' names and with diffusers' defaults.

    Reads both as attributes (`config.latent_channels`) and as a mapping (`config["latent_channels"]`).

    The last four fields are FLUX.2's. A model with a `patch_size` carries a batch norm over latents packed by
    that patch, which stands in for `scaling_factor` and `shift_factor`.

    Raises:
        ConfigError: a field is out of its range, or two fields contradict each other.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, ...] = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    decoder_block_out_channels: tuple[int, ...] | None = None
    batch_norm_eps: float = 1e-4
    batch_norm_momentum: float = 0.1
    patch_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # JSON has no tuples
                object.__setattr__(self, field.name, tuple(value))
        self._check_widths()
        self._check_blocks()
        self._check_latents()

    def _check_widths(self) -> None:
        for name in ("in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1.")
        for name in ("block_out_channels", "decoder_block_out_channels"):
            widths = getattr(self, name)
            if widths is None and name == "decoder_block_out_channels":
                continue
            if not isinstance(widths, tuple) or not widths:
                raise ConfigError(f"{name} is {widths!r}; give one width per level, such as (128, 256, 512, 512).")
            for width in widths:
                if not isinstance(width, int) or width < 1 or width % self.norm_num_groups:
                    raise ConfigError(
                        f"{name} has a width of {width!r}, which is no multiple of norm_num_groups "
                        f"({self.norm_num_groups}). Change the width or the number of groups."
                    )

    def _check_blocks(self) -> None:
        levels = len(self.block_out_channels)
        for name, known in (("down_block_types", DOWN_BLOCK_TYPES), ("up_block_types", UP_BLOCK_TYPES)):
            types = getattr(self, name)
            if not isinstance(types, tuple) or len(types) != levels:
                raise ConfigError(f"{name} is {types!r}, but block_out_channels has {levels} levels. Give one each.")
            for block_type in types:
                if block_type not in known:
                    raise ConfigError(f"{name} has {block_type!r}; an AutoencoderKL is made of {' and '.join(known)}.")
        if self.decoder_block_out_channels is not None and len(self.decoder_block_out_channels) != levels:
            raise ConfigError(
                f"decoder_block_out_channels has {len(self.decoder_block_out_channels)} levels and "
                f"block_out_channels has {levels}. Both need the same number."
            )
        if self.act_fn not in ACTIVATIONS:
            raise ConfigError(f"act_fn is {self.act_fn!r}; known are {', '.join(ACTIVATIONS)}.")

    def _check_latents(self) -> None:
        for name in ("latents_mean", "latents_std"):
            numbers = getattr(self, name)
            if numbers is not None and len(numbers) != self.latent_channels:
                raise ConfigError(
                    f"{name} has {len(numbers)} numbers, but latent_channels is {self.latent_channels}. Give one each."
                )
        sizes = self.sample_size if isinstance(self.sample_size, tuple) else (self.sample_size,)
        if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
            raise ConfigError(f"sample_size is {self.sample_size!r}; it must be a size in pixels, such as 512.")
        if self.patch_size is not None and (len(self.patch_size) != 2 or min(self.patch_size) < 1):
            raise ConfigError(f"patch_size is {self.patch_size!r}; it must be two whole numbers, such as (2, 2).")

    # Mapping: the same names as keys.
    def __getitem__(self, key: str) -> Any:
        if key not in _FIELDS:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(_FIELDS)

    def __len__(self) -> int:
        return len(_FIELDS)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of each decoder level, finest first."""
        return self.decoder_block_out_channels or self.block_out_channels

    @property
    def spatial_ratio(self) -> int:
        """Pixels along one side of one latent position: 8 for an f8 model."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def has_batch_norm(self) -> bool:
        """True for FLUX.2, whose latents are normalised by a batch norm."""
        return self.patch_size is not None

    @property
    def class_name(self) -> str:
        """The diffusers class that reads this configuration."""
        flux2 = self.has_batch_norm or self.decoder_block_out_channels is not None
        return FLUX2_CLASS_NAME if flux2 else CLASS_NAME

    def replace(self, **changes: Any) -> AutoencoderKLConfig:
        """A copy with some fields changed. Raises ConfigError for a field that does not exist."""
        return AutoencoderKLConfig.from_dict({**self, **changes})

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds: the fields of this model's diffusers class, and `_class_name`.

        A field that the class lacks is there only if it is not what `from_dict` would assume, so that nothing is lost.
        """
        left_out = SCALING_FIELDS if self.class_name == FLUX2_CLASS_NAME else FLUX2_FIELDS
        assumed = AutoencoderKLConfig.from_dict({"_class_name": self.class_name})
        fields = {name: value for name, value in self.items() if name not in left_out or value != assumed[name]}
        return {
            "_class_name": self.class_name,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AutoencoderKLConfig:
        """Read a `config.json`. Private keys (`_diffusers_version`, ...) are passed over.

        Raises:
            ConfigError: the config is another class's, or has a field that no AutoencoderKL has.
        """
        class_name = values.get("_class_name", CLASS_NAME)
        if class_name not in (CLASS_NAME, FLUX2_CLASS_NAME, "FlaxAutoencoderKL"):
            raise ConfigError(
                f"this config is for {class_name}, which is not an AutoencoderKL. "
                f"Point to the folder of an AutoencoderKL, often the `vae` folder of a pipeline."
            )
        fields = {name: value for name, value in values.items() if not name.startswith("_")}
        unknown = sorted(set(fields) - set(_FIELDS))
        if unknown:
            raise ConfigError(f"an AutoencoderKL has no {', '.join(unknown)}. Its fields are {', '.join(_FIELDS)}.")
        if class_name == FLUX2_CLASS_NAME:
            fields = {**_FLUX2_DEFAULTS, **fields}
        return cls(**fields)


_FIELDS = tuple(field.name for field in dataclasses.fields(AutoencoderKLConfig))

# What diffusers' AutoencoderKLFlux2 assumes where its config.json says nothing.
_FLUX2_DEFAULTS: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 32,
    "sample_size": 1024,
    "scaling_factor": 1.0,
    "patch_size": (2, 2),
}
