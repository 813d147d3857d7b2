"""The configuration of an AutoencoderKL: the fields of diffusers' `config.json`, checked once."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .config_values import A_COUNT, has_order, is_count, is_number, plain_number, to_json
from .errors import ConfigError, brief
from .read_only import ReadOnlyConfigError as ReadOnlyConfigError
from .read_only import make_read_only

logger = logging.getLogger("seamless_vae")

DOWN_BLOCK_TYPES = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP_BLOCK_TYPES = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")

CLASS_NAME = "AutoencoderKL"
FLUX2_CLASS_NAME = "AutoencoderKLFlux2"
OUR_CLASSES = (CLASS_NAME, FLUX2_CLASS_NAME, "FlaxAutoencoderKL")  # whose configs are read here
FLUX2_FIELDS = ("decoder_block_out_channels", "batch_norm_eps", "batch_norm_momentum", "patch_size")
# diffusers' AutoencoderKLFlux2 has no such fields: a batch norm takes the place of scale and shift, and the first
# releases of it have no force_upcast.
SCALING_FIELDS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast")
# What a model can be given later: it says how the model is used, and shapes no weights.
SETTABLE_FIELDS = (*SCALING_FIELDS, "sample_size")

GUESSED_KEY = "_guessed"  # beside a config's fields: the names of those that are guesses
NORM_EPS = 1e-6  # of every GroupNorm in the model, the attention's included; no config says it
LOGVAR_RANGE = (-30.0, 20.0)  # that a posterior is clamped to
LARGEST_SCALE = 1e30  # what float32 multiplies and divides numbers near 1 by, and has room left

_COUNTS = ("in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups")
_SEQUENCES = (
    *("down_block_types", "up_block_types", "block_out_channels", "decoder_block_out_channels"),
    *("latents_mean", "latents_std", "patch_size", "sample_size"),
)
_FLAGS = ("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")


@dataclass(frozen=True)
class AutoencoderKLConfig(dict[str, Any]):
    """Every hyper-parameter of an AutoencoderKL, under diffusers' names and with diffusers' defaults.

    Reads both as attributes (`config.latent_channels`) and as a dictionary (`config["latent_channels"]`, `{**config}`,
    `json.dumps(config)`), and never changes. Sequences and numbers of any kind (numpy's, OmegaConf's) are taken, and
    kept as tuples and Python's own numbers. What is not a field goes along, behind the fields, as in diffusers: see
    `with_extras`.

    The last four fields are FLUX.2's. A model with a `patch_size` carries a batch norm over latents packed by
    that patch, which stands in for `scaling_factor` and `shift_factor`. A loop over the config of any other model
    leaves them out, because diffusers' AutoencoderKL has no such arguments.

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
            object.__setattr__(self, field.name, _plain(field.name, getattr(self, field.name)))
        self._check_widths()
        self._check_blocks()
        self._check_latents()
        self._check_scaling()
        left_out = () if self.class_name == FLUX2_CLASS_NAME else FLUX2_FIELDS
        dict.update(
            self,
            {
                field.name: getattr(self, field.name)
                for field in dataclasses.fields(self)
                if field.name not in left_out or getattr(self, field.name) != field.default
            },
        )

    def _check_widths(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if not is_count(value):
                raise ConfigError(f"{name} is {brief(value)}; it must be {A_COUNT}.")
        for name in ("block_out_channels", "decoder_block_out_channels"):
            widths = getattr(self, name)
            if widths is None and name == "decoder_block_out_channels":
                continue
            if not isinstance(widths, tuple) or not widths:
                raise ConfigError(f"{name} is {brief(widths)}; give one width per level, such as (128, 256, 512, 512).")
            for width in widths:
                if not is_count(width):
                    raise ConfigError(f"{name} has a width of {brief(width)}; it must be {A_COUNT}.")
                if width % self.norm_num_groups:
                    raise ConfigError(
                        f"{name} has a width of {brief(width)}, which is not a multiple of norm_num_groups "
                        f"({brief(self.norm_num_groups)}). Change the width or the number of groups."
                    )

    def _check_blocks(self) -> None:
        levels = len(self.block_out_channels)
        for name, known in (("down_block_types", DOWN_BLOCK_TYPES), ("up_block_types", UP_BLOCK_TYPES)):
            types = getattr(self, name)
            if not isinstance(types, tuple) or len(types) != levels:
                raise ConfigError(
                    f"{name} is {brief(types)}, but block_out_channels has {levels} levels. Give one each."
                )
            for block_type in types:
                if block_type not in known:
                    raise ConfigError(
                        f"{name} has {brief(block_type)}; an AutoencoderKL is made of {' and '.join(known)}."
                    )
        if self.decoder_block_out_channels is not None and len(self.decoder_block_out_channels) != levels:
            raise ConfigError(
                f"decoder_block_out_channels has {len(self.decoder_block_out_channels)} levels and "
                f"block_out_channels has {levels}. Both need the same number."
            )
        if self.act_fn not in ACTIVATIONS:
            raise ConfigError(f"act_fn is {brief(self.act_fn)}; known are {', '.join(ACTIVATIONS)}.")

    def _check_latents(self) -> None:
        sizes = self.sample_size if isinstance(self.sample_size, tuple) else (self.sample_size,)
        if not sizes or not all(is_count(size) for size in sizes):
            raise ConfigError(f"sample_size is {brief(self.sample_size)}; it must be a size in pixels, such as 512.")
        patch = self.patch_size
        if patch is not None and (
            not isinstance(patch, tuple) or len(patch) != 2 or not all(is_count(side) for side in patch)
        ):
            raise ConfigError(f"patch_size is {brief(patch)}; it must be two whole numbers, such as (2, 2).")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {brief(getattr(self, name))}; it must be True or False.")

    def _check_scaling(self) -> None:
        if not is_number(self.scaling_factor) or self.scaling_factor == 0:
            raise ConfigError(
                f"scaling_factor is {brief(self.scaling_factor)}; it must be a finite number other than 0, such as "
                f"0.18215."
            )
        if not 1 / LARGEST_SCALE <= abs(self.scaling_factor) <= LARGEST_SCALE:
            raise ConfigError(
                f"scaling_factor is {brief(self.scaling_factor)}; latents that are multiplied or divided by it are no "
                f"longer finite. Give one such as 0.18215."
            )
        if self.shift_factor is not None and not _is_level(self.shift_factor):
            raise ConfigError(
                f"shift_factor is {brief(self.shift_factor)}; it must be a number of at most {LARGEST_SCALE:g}, or "
                f"None."
            )
        if not is_number(self.batch_norm_eps) or self.batch_norm_eps <= 0:
            raise ConfigError(
                f"batch_norm_eps is {brief(self.batch_norm_eps)}; it must be a number above 0, such as 1e-4."
            )
        momentum = self.batch_norm_momentum
        if momentum is not None and (not is_number(momentum) or not 0 <= momentum <= 1):
            raise ConfigError(f"batch_norm_momentum is {brief(momentum)}; it must be a number from 0 to 1.")
        for name in ("latents_mean", "latents_std"):
            numbers = getattr(self, name)
            if numbers is None:
                continue
            if not isinstance(numbers, tuple) or not all(_is_level(number) for number in numbers):
                largest = f"a number of at most {LARGEST_SCALE:g}"
                raise ConfigError(f"{name} is {brief(numbers)}; give {largest} for each latent channel.")
            if len(numbers) != self.latent_channels:
                raise ConfigError(
                    f"{name} has {len(numbers)} numbers, but latent_channels is {self.latent_channels}. Give one each."
                )
        if (self.latents_mean is None) != (self.latents_std is None):
            given, absent = (
                ("latents_mean", "latents_std") if self.latents_std is None else ("latents_std", "latents_mean")
            )
            raise ConfigError(
                f"{given} is given without {absent}. Latents are normalised by both: give both, or neither."
            )
        if self.latents_std is not None and min(self.latents_std) < 1 / LARGEST_SCALE:
            raise ConfigError(f"latents_std has {brief(min(self.latents_std))}; a standard deviation must be above 0.")

    # As a dictionary: the same names as keys, and what is not a field.
    def __getitem__(self, key: str) -> Any:
        if key in FIELDS:
            return getattr(self, key)
        return self.extras[key]

    def __contains__(self, key: object) -> bool:
        return key in FIELDS or key in self.extras

    def get(self, key: str, default: Any = None) -> Any:
        is_there = key in self  # also what a loop leaves out
        return self[key] if is_there else default

    def __reduce__(self) -> Any:
        fields = {name: getattr(self, name) for name in FIELDS}
        return _rebuild, (type(self), fields, dict(self.extras))

    @property
    def extras(self) -> Mapping[str, Any]:
        """Values that are not fields, see `with_extras`."""
        return self.__dict__.get("_extras", {})

    def __getattr__(self, name: str) -> Any:
        """What is not a field: see `with_extras`."""
        extras = self.__dict__.get("_extras", {})
        if name not in extras:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return extras[name]

    def with_extras(self, /, **values: Any) -> AutoencoderKLConfig:
        """A copy that also carries values that are not fields (`_class_name`, `_name_or_path`, an EMA's `decay`).

        They are read by name and by key, are among the keys that a loop gives, and are written to `config.json`. They
        do not count when configs are compared.
        """
        copy = self.without_extras()
        copy._keep({**self.extras, **values})
        return copy

    def _keep(self, extras: dict[str, Any]) -> None:
        object.__setattr__(self, "_extras", extras)
        dict.update(self, extras)

    def without_extras(self) -> AutoencoderKLConfig:
        """A copy that has its fields alone."""
        return dataclasses.replace(self)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of each decoder level, finest first."""
        return self.decoder_block_out_channels or self.block_out_channels

    @property
    def downscale_factor(self) -> int:
        """Pixels along one side of one latent pixel: 8 for an f8 model."""
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

    def replace(self, /, **changes: Any) -> AutoencoderKLConfig:
        """A copy with some fields changed. Raises ConfigError for a field that does not exist."""
        given = {name: getattr(self, name) for name in FIELDS}
        config = AutoencoderKLConfig.from_dict({**given, **changes})
        extras = dict(self.extras)
        guesses = extras.get(GUESSED_KEY)
        if isinstance(guesses, list):
            extras[GUESSED_KEY] = [name for name in guesses if name not in FIELDS or config[name] == self[name]]
        return config.with_extras(**extras) if extras else config

    def to_dict(self) -> dict[str, Any]:
        """What is in `config.json`: the fields of this model's diffusers class, and `_class_name`.

        A field that the class lacks is there only if it is not what `from_dict` would assume, so that nothing is lost.
        """
        left_out = SCALING_FIELDS if self.class_name == FLUX2_CLASS_NAME else FLUX2_FIELDS
        assumed = AutoencoderKLConfig.from_dict({"_class_name": self.class_name})
        own = self.without_extras().items()
        fields = {name: value for name, value in own if name not in left_out or value != assumed[name]}
        extras = {name: to_json(value) for name, value in self.extras.items() if name not in _NOT_WRITTEN}
        return {
            "_class_name": self.class_name,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()},
            **extras,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AutoencoderKLConfig:
        """Read a `config.json`. Private keys (`_diffusers_version`, ...) are passed over.

        So are fields that no AutoencoderKL has, with a warning, if a `_class_name` says that this is what was saved:
        trainers leave some there.

        Raises:
            ConfigError: the config is another class's, or has a field that no AutoencoderKL has.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"a config is a mapping of fields, and not {brief(values)}. Give what a config.json has.")
        class_name = values.get("_class_name") or CLASS_NAME
        if class_name not in OUR_CLASSES:
            raise ConfigError(
                f"this config is for {str(class_name)[:80]}, which is not an AutoencoderKL. "
                f"Point to the folder of an AutoencoderKL, often the `vae` folder of a pipeline."
            )
        fields = {name: value for name, value in values.items() if not name.startswith("_")}
        unknown = sorted(set(fields) - set(FIELDS))
        shown = ", ".join(name[:40] for name in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        if unknown and values.get("_class_name"):
            logger.warning("passed over %s in the config: an AutoencoderKL has no such fields.", shown)
        elif unknown:
            raise ConfigError(f"an AutoencoderKL has no {shown}. Its fields are {', '.join(FIELDS)}.")
        if class_name == FLUX2_CLASS_NAME:
            fields = {**_FLUX2_DEFAULTS, **fields}
        others = {name: fields.pop(name) for name in unknown}
        config = cls(**fields)
        return config.with_extras(**others) if others else config


FIELDS = tuple(field.name for field in dataclasses.fields(AutoencoderKLConfig))
# What diffusers keeps in a config and writes into no file, and what `to_dict` writes itself.
_NOT_WRITTEN = ("_class_name", "_use_default_values", "_ignore_files", "_pre_quantization_dtype")


make_read_only(AutoencoderKLConfig)
_fields_alone = AutoencoderKLConfig.__init__


@functools.wraps(_fields_alone)
def _with_private(self: AutoencoderKLConfig, /, *args: Any, **fields: Any) -> None:
    """The constructor, which keeps what is private of a `config.json` or of another config beside its fields."""
    private = {name: fields.pop(name) for name in [*fields] if name.startswith("_")}
    _fields_alone(self, *args, **fields)
    if private:
        self._keep(private)


AutoencoderKLConfig.__init__ = _with_private  # type: ignore[method-assign]


def _rebuild(cls: type[AutoencoderKLConfig], fields: dict[str, Any], extras: dict[str, Any]) -> AutoencoderKLConfig:
    """A config as it was pickled or copied."""
    config = cls(**fields)
    return config.with_extras(**extras) if extras else config


def is_field(name: str) -> bool:
    """Whether an AutoencoderKL has a config field of this name."""
    return name in FIELDS


def _plain(name: str, value: Any) -> Any:
    """A value as Python's own: numbers of other libraries as int and float, sequences as tuples.

    Activations are known by their names in any case, a flag that is None is False, and a size may be a float that is
    whole: as in diffusers.
    """
    if name == "act_fn" and isinstance(value, str):
        return value.lower()
    if name in _SEQUENCES and has_order(value):
        return tuple(plain_number(item) for item in value)
    value = plain_number(value)
    if name in _FLAGS and (value is None or (type(value) is int and value in (0, 1))):
        return bool(value)
    if name == "sample_size" and type(value) is float and value.is_integer():
        return int(value)
    return value


def _is_level(value: Any) -> bool:
    """Whether latents in float32 can have this added, or be multiplied and divided by it."""
    return is_number(value) and abs(value) <= LARGEST_SCALE


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
