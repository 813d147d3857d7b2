"""Everything that is asked of the host: the only file that imports comfy, folder_paths and server.

Each access is made when it is needed and by what is there, so that the pack loads in old and new hosts, in forks, and
without any.
"""

from __future__ import annotations

import errno
import gc
import importlib
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from ..vae_core.errors import CheckpointError, VAEError
from ..vae_core.streaming.memory import available_bytes

logger = logging.getLogger("seamless_vae")

DEMO_NAME = "demo"
DEMO_PATH = Path(__file__).resolve().parents[1] / "vae_core" / "demo"
# What follows the names of vae_names that are no files of models/vae.
FOLDER_MARK, DIFFUSERS_MARK, CHECKPOINT_MARK = " [folder]", " [diffusers]", " [checkpoint]"
_DIFFUSERS_DEPTH = 3

WORKING_DTYPES = (torch.bfloat16, torch.float32)


def module(name: str) -> Any:
    """A module of the host, or None where there is no such thing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _management(name: str) -> Any:
    return getattr(module("comfy.model_management"), name, None)


# Names and paths.


def vae_names() -> list[str]:
    """The VAEs that can be loaded: `demo`, files of models/vae, then folders and checkpoints, marked as such."""
    folders = [f"{name}{FOLDER_MARK}" for name in _diffusers_folders("vae")]
    pipelines = [f"{name}{DIFFUSERS_MARK}" for name in _diffusers_folders("diffusers")]
    checkpoints = [f"{name}{CHECKPOINT_MARK}" for name in _files("checkpoints")]
    inside = [f"{PurePosixPath(PurePath(name).as_posix())}/" for name in _diffusers_folders("vae")]
    files = [name for name in _files("vae") if not PurePath(name).as_posix().startswith(tuple(inside))]
    return [DEMO_NAME, *files, *folders, *pipelines, *checkpoints]


def vae_path(name: str) -> Path:
    """The file or folder of a name of `vae_names`, which may come from anywhere: only registered folders are looked in.

    Raises:
        CheckpointError: no such VAE, or a name that points out of those folders.
    """
    if name == DEMO_NAME:
        return DEMO_PATH
    if not isinstance(name, str):
        raise CheckpointError(f"{name!r} is no name of a VAE. Choose one from the list.")
    kinds = {FOLDER_MARK: "vae", DIFFUSERS_MARK: "diffusers", CHECKPOINT_MARK: "checkpoints"}
    mark = next((mark for mark in kinds if name.endswith(mark)), "")
    kind, inner = kinds.get(mark, "vae"), name.removesuffix(mark)
    if not inner or "\0" in inner or not stays_inside(inner):
        raise CheckpointError(
            f"{name!r} is no name of a VAE: it points out of the models' folders. Choose one from the list."
        )
    roots = folder_paths(kind)
    is_there = os.path.isdir if mark in (FOLDER_MARK, DIFFUSERS_MARK) else os.path.isfile
    for root in roots:
        for path in (root / inner, root / inner.replace("\\", "/")):  # as workflows made on Windows name them
            if is_there(path):
                return path
    places = " or ".join(str(root) for root in roots) or f"the host's {kind} folder, which is not registered"
    raise CheckpointError(
        f"there is no VAE named {name!r} in {places}. Put it there, refresh the page, and choose it again."
    )


def stays_inside(name: str) -> bool:
    """Whether a relative name leads nowhere but below the folder that it is joined to, on any system."""
    for flavour in (PurePosixPath(name), PureWindowsPath(name)):
        if flavour.is_absolute() or flavour.drive or flavour.root or ".." in flavour.parts:
            return False
    return True


def folder_paths(kind: str) -> list[Path]:
    """The folders that are registered for a kind of model."""
    try:
        return [Path(path) for path in module("folder_paths").get_folder_paths(kind)]
    except (AttributeError, KeyError):
        return []


def _files(kind: str) -> list[str]:
    try:
        return list(module("folder_paths").get_filename_list(kind))
    except (AttributeError, KeyError):
        return []


def _diffusers_folders(kind: str) -> list[str]:
    """Folders below the registered ones that hold a VAE or a pipeline with one, by their names there."""
    found = set()
    for root in folder_paths(kind):
        for depth in range(1, _DIFFUSERS_DEPTH + 1):
            for path in root.glob("/".join(["*"] * depth)):
                if os.path.isfile(path / "vae" / "config.json") or _is_vae_folder(path):
                    found.add(str(path.relative_to(root)))
    # The `vae` folder of a pipeline that is listed itself is no other VAE.
    return sorted(name for name in found if not (PurePath(name).name == "vae" and str(PurePath(name).parent) in found))


def _is_vae_folder(path: Path) -> bool:
    # os.path's takes a folder that may not be entered, such as lost+found, for one without the file.
    return os.path.isfile(path / "config.json") and any(path.glob("diffusion_pytorch_model*"))


# Devices and memory.


def accelerators() -> list[str]:
    """Devices other than the CPU that torch can use, such as cuda:0."""
    found = []
    for kind in ("cuda", "xpu", "npu", "mlu"):
        backend = getattr(torch, kind, None)
        if backend is not None and backend.is_available():
            found += [f"{kind}:{index}" for index in range(backend.device_count())]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def vae_device() -> torch.device:
    """Where the host runs VAEs."""
    return torch.device(_call("vae_device", default="cpu"))


def vae_offload_device() -> torch.device:
    """Where the host keeps VAEs that are not in use."""
    return torch.device(_call("vae_offload_device", default="cpu"))


def vae_dtype(device: torch.device) -> torch.dtype:
    """The precision in which the host would run a VAE of this kind."""
    return _call("vae_dtype", device, list(WORKING_DTYPES), default=torch.float32)


def intermediate_device() -> torch.device:
    """Where images and latents lie between nodes."""
    return torch.device(_call("intermediate_device", default="cpu"))


def intermediate_dtype() -> torch.dtype:
    """The precision of images and latents between nodes."""
    return _call("intermediate_dtype", default=torch.float32)


def free_memory(device: torch.device | str) -> int | None:
    """Bytes that are free on a device; None where nobody knows."""
    device = torch.device(device)
    ask = _management("get_free_memory")
    return int(ask(device)) if ask is not None else available_bytes(device)


def total_memory(device: torch.device) -> int | None:
    """Bytes that a device has; None where nobody knows."""
    ask = _management("get_total_memory")
    return int(ask(device)) if ask is not None else None


def memory_in_use(device: torch.device) -> int | None:
    """Bytes that torch holds on an accelerator, or that this process holds in memory; None where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    psutil = module("psutil")
    return None if psutil is None else int(psutil.Process().memory_info().rss)


def model_patcher(model: torch.nn.Module, device: torch.device, offload_device: torch.device) -> Any:
    """What the host moves a model between devices with; None where there is no such thing."""
    patcher = getattr(module("comfy.model_patcher"), "ModelPatcher", None)
    return None if patcher is None else patcher(model, load_device=device, offload_device=offload_device)


def load_model(patcher: Any, memory_required: int) -> None:
    """Bring a model to its device, with so many bytes left free there for running it."""
    load = _management("load_models_gpu")
    if patcher is None or load is None:
        return
    options = {"memory_required": memory_required, "force_full_load": True}
    known = inspect.signature(load).parameters
    load([patcher], **{name: value for name, value in options.items() if name in known})


def keeps_weights_back(patcher: Any) -> bool:
    """Whether a model's weights stay where they are when it is loaded, and reach the device layer by layer."""
    ask = getattr(patcher, "is_dynamic", None)
    return bool(ask()) if ask is not None else False


def soft_empty_cache() -> None:
    """Give memory that nothing uses back to the device."""
    gc.collect()
    _call("soft_empty_cache")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out; not so for errors of this pack, which say what to do."""
    if isinstance(error, VAEError):
        return False
    kinds = [MemoryError, torch.cuda.OutOfMemoryError]
    own = _management("OOM_EXCEPTION")
    if isinstance(own, type) and own not in (Exception, BaseException):  # what old torch releases leave it at
        kinds.append(own)
        if _call("is_oom", error, default=False):  # newer hosts know codes, and clear what a device keeps of the error
            return True
    if isinstance(error, tuple(kinds)) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError):
        text = str(error).lower()
        return any(part in text for part in ("out of memory", "not enough memory", "alloc_failed", "can't allocate"))
    return False


# The VAE's class.


def vae_class() -> type | None:
    """The class of the objects on the VAE wire; None where there is no host."""
    return getattr(module("comfy.sd"), "VAE", None)


def init_empty_vae(vae: Any) -> None:
    """Give a VAE object the attributes that the host gives to one without weights; none in forks that make no such."""
    root = logging.getLogger()

    def is_other(record: logging.LogRecord) -> bool:
        return "No VAE weights" not in str(record.msg)

    root.addFilter(is_other)
    try:
        vae_class().__init__(vae, sd={})  # type: ignore[misc]
    except (TypeError, KeyError, AttributeError) as error:
        logger.debug("this host makes no VAE without weights: %s", error)
    finally:
        root.removeFilter(is_other)


# Progress, interruption, what is shown.


def check_interrupted() -> None:
    """Raise the host's own exception if somebody has cancelled."""
    _call("throw_exception_if_processing_interrupted")


def progress_bar(total: int, node_id: str | None) -> Callable[[int, Any], None] | None:
    """A function that is told (value, preview or None); a preview is ("JPEG", PIL image, largest side)."""
    bar_class = getattr(module("comfy.utils"), "ProgressBar", None)
    if bar_class is None:
        return None
    takes_node = "node_id" in inspect.signature(bar_class).parameters
    bar = bar_class(total, node_id=node_id) if takes_node else bar_class(total)
    takes_preview = "preview" in inspect.signature(bar.update_absolute).parameters

    def update(value: int, preview: Any) -> None:
        if takes_preview:
            bar.update_absolute(value, total, preview)
        else:
            bar.update_absolute(value, total)

    return update


def prompt_server() -> Any:
    """The host's web server; None where there is none."""
    return getattr(getattr(module("server"), "PromptServer", None), "instance", None)


def current_node(node_id: str | None = None) -> str | None:
    """The id of the node at work: the given one, or what the host says."""
    if node_id is not None:
        return str(node_id)
    context = getattr(module("comfy_execution.utils"), "get_executing_context", lambda: None)()
    found = getattr(context, "node_id", None) or getattr(prompt_server(), "last_node_id", None)
    return None if found is None else str(found)


def send_status(status: Mapping[str, Any]) -> None:
    """Tell the front end how far a node is."""
    server = prompt_server()
    if server is not None:
        server.send_sync("seamless_vae.status", dict(status), getattr(server, "client_id", None))


def tell(node_id: str | None, text: str) -> None:
    """Show a line in the console and, where the host can, on the node."""
    logger.warning("%s", text)
    server, node = prompt_server(), current_node(node_id)
    if node is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, node)


def directory(kind: str) -> Path:
    """The host's folder for "output" or "temp"."""
    ask = getattr(module("folder_paths"), f"get_{kind}_directory", None)
    return Path(ask()) if ask is not None else Path(kind).resolve()


def _call(name: str, *arguments: Any, default: Any = None) -> Any:
    function = _management(name)
    return default if function is None else function(*arguments)
