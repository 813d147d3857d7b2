"""What a pickled checkpoint may name, and what stands in for it. Nothing that a file names is ever imported or called.

Everything here is immutable or made afresh for each file, so that no file can change what the next one meets.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any, NamedTuple

import torch

CONTAINERS: dict[str, type] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.tuple": tuple,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
}
STATE_DICT_METADATA = "_metadata"  # of a state dict: an attribute with the versions of its modules
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
}
# By name, because `getattr(torch, name)` may import what it is asked for.
DTYPES = {str(each).removeprefix("torch."): each for each in vars(torch).values() if isinstance(each, torch.dtype)}
TORCH_ALIASES = {
    **{"double": "float64", "float": "float32", "half": "float16", "cdouble": "complex128", "cfloat": "complex64"},
    **{"chalf": "complex32", "long": "int64", "int": "int32", "short": "int16"},
}

# torch's functions that make a tensor of a storage, a shape and strides; and the others that files of weights call.
REBUILDERS = frozenset(
    (
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_device_tensor_from_numpy",  # Apple devices before torch 2.1, TPUs
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",  # TPUs and other accelerators
        "torch._utils._rebuild_xla_tensor",  # TPUs before torch 1.13
        "torch._utils._rebuild_meta_tensor_no_storage",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_sparse_csr_tensor",  # torch 1.10
        "torch._utils._rebuild_nested_tensor",
        "torch._utils._rebuild_wrapper_subclass",  # of DTensor and of quantised weights
        "torch.serialization._get_layout",
        "torch._tensor._rebuild_from_type_v2",
        "torch.Size",
        "torch.device",
        "collections.defaultdict",
        "_codecs.encode",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "numpy.core.numeric._frombuffer",  # the fifth protocol
        "numpy._core.numeric._frombuffer",
        "numpy.dtype",
        "builtins.bytes",  # how the older protocols write none
    )
)
# Named beside tensors and never called.
MARKERS = frozenset(
    (
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.nn.Parameter",
        "torch.nn.parameter.Buffer",
        "torch.per_tensor_affine",
        "torch.per_channel_affine",
        "torch.per_channel_affine_float_qparams",
        "torch.strided",
        "torch.preserve_format",
        "torch.contiguous_format",
        "torch.channels_last",
        "numpy.ndarray",
        "builtins.int",
        "builtins.long",  # how the older protocols name int
        "builtins.float",
        "builtins.bool",
        "builtins.str",
        "builtins.object",
        "typing.Any",
        "typing.Union",
        "typing.Optional",
    )
)
# Objects that training scripts leave in a checkpoint, by their exact names. They become dummies.
DUMMIES = frozenset(
    (
        *(f"pathlib.{name}" for name in ("Path", "PurePath", "PosixPath", "PurePosixPath", "WindowsPath")),
        *(f"pathlib._local.{name}" for name in ("Path", "PurePath", "PosixPath", "PurePosixPath", "WindowsPath")),
        "pathlib.PureWindowsPath",
        *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
        "argparse.Namespace",
        "types.SimpleNamespace",
        "collections.Counter",
        "collections.deque",
        "decimal.Decimal",
        "fractions.Fraction",
        "uuid.UUID",
        "uuid.SafeUUID",
        "random.Random",
        "builtins.complex",
        "builtins.range",
        "builtins.xrange",  # how the older protocols name range
        "builtins.slice",
        "builtins.bytearray",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.random._pickle.__randomstate_ctor",
        "numpy.random._pickle.__bit_generator_ctor",
        "numpy.random._pickle.__generator_ctor",
        "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
        "numpy.random.bit_generator.SeedSequence",
        "numpy.random._mt19937.MT19937",
        "numpy.random._pcg64.PCG64",
        "numpy.random._pcg64.PCG64DXSM",
        "numpy.random._philox.Philox",
        "numpy.random._sfc64.SFC64",
        "torch.torch_version.TorchVersion",
        "torch.Generator",
        "torch._C.Generator",
    )
)
# Frameworks whose classes become dummies, whichever they are: configurations, callbacks, loss scalers, schedulers; and
# classes of tensors, with what describes them.
FRAMEWORKS = (
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "torchmetrics",
    "omegaconf",
    "deepspeed",
    "accelerate",
    "transformers",
    "apex",
    "megatron",
    "colossalai",
    "torch_xla",
    "torch.distributed",
    "torchao",
    "optimum.quanto",
    "bitsandbytes",
    "torch.optim",
    "torch.amp",
    "torch.cuda.amp",
    "numpy.dtypes",
)
# Libraries whose classes are models: a pickle that names one has a whole model in it.
_MODELS = ("vae_core", "diffusers", "torch.nn.modules", "torchvision", "timm", "ldm", "sgm", "taming", "comfy", "peft")
_CLASS = re.compile(r"_{0,2}[A-Z]\w*")  # the name of a class, not of a function; and not a path through one

Placeholder = type("Placeholder", (), {"__slots__": (), "__doc__": "Stands for an object that is passed over."})
PLACEHOLDER = Placeholder()


class StorageType(NamedTuple):
    """Stands for a storage class."""

    dtype: torch.dtype


class Dummy(NamedTuple):
    """Stands for a class whose objects are passed over."""

    name: str


class Marker(NamedTuple):
    """Stands for a type that is named beside tensors, and does nothing."""

    name: str


class Rebuild(NamedTuple):
    """Stands for one of the functions that a file of weights calls."""

    name: str


def is_model_class(module: str, name: str) -> bool:
    """Whether a name is that of a class of a library of models."""
    is_known = any(module == known or module.startswith(f"{known}.") for known in _MODELS)
    return is_known and _CLASS.fullmatch(name) is not None and "__" not in module


def resolve(module: str, name: str) -> Any:
    """What stands in for a name; None for a name that a file of weights has no use for."""
    module = "builtins" if module == "__builtin__" else module
    full = f"{module}.{name}"
    if full in CONTAINERS:
        return CONTAINERS[full]
    if full in REBUILDERS:
        return Rebuild(full)
    if full in MARKERS:
        return Marker(full)
    if module in ("torch", "torch.storage", "torch.cuda") and name in STORAGE_DTYPES:
        return StorageType(STORAGE_DTYPES[name])
    if module == "torch" and TORCH_ALIASES.get(name, name) in DTYPES:
        return DTYPES[TORCH_ALIASES.get(name, name)]
    is_framework = any(module == known or module.startswith(f"{known}.") for known in FRAMEWORKS)
    if full in DUMMIES or (is_framework and _CLASS.fullmatch(name) and "__" not in module):
        return Dummy(full)
    return None
