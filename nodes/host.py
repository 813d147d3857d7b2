"""Everything that is asked of the host: the only file that imports comfy, folder_paths and server.

Each access is made when it is needed, by feature detection, so that the pack loads in old and new hosts, in forks, and
without any.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..vae_core.errors import VAEError, in_one_line
from ..vae_core.streaming import devices, shortage
from ..vae_core.streaming.memory import available_bytes

logger = logging.getLogger("seamless_vae")

WORKING_DTYPES = (torch.bfloat16, torch.float32)


def module(name: str) -> Any:
    """A module of the host, or None if it does not exist."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _management(name: str) -> Any:
    return getattr(module("comfy.model_management"), name, None)


# Files.


def folder_paths(kind: str) -> list[Path]:
    """The folders that are registered for a kind of model."""
    try:
        return [Path(path) for path in module("folder_paths").get_folder_paths(kind)]
    except (AttributeError, KeyError):
        return []


def filenames(kind: str) -> list[str]:
    """The files that are listed for a kind of model, by their names below its folders."""
    try:
        return list(module("folder_paths").get_filename_list(kind))
    except (AttributeError, KeyError):
        return []


# Devices and memory.


def accelerators() -> list[str]:
    """Devices other than the CPU that torch can use, such as cuda:0."""
    return devices.accelerators()


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
    """The device of images and latents between nodes."""
    return torch.device(_call("intermediate_device", default="cpu"))


def intermediate_dtype() -> torch.dtype:
    """The precision of images and latents between nodes."""
    return _call("intermediate_dtype", default=torch.float32)


def free_memory(device: torch.device | str) -> int | None:
    """Bytes that are free on a device; None if unknown."""
    device = torch.device(device)
    ask = _management("get_free_memory")
    return int(ask(device)) if ask is not None else available_bytes(device)


def total_memory(device: torch.device) -> int | None:
    """Bytes of memory that a device has; None if unknown."""
    ask = _management("get_total_memory")
    return int(ask(device)) if ask is not None else None


def available_memory(device: torch.device) -> int | None:
    """Bytes that a plan counts on: all of an accelerator, where the host makes room; None for what is free on a CPU."""
    return None if device.type == "cpu" else total_memory(device)


def memory_in_use(device: torch.device) -> int | None:
    """Bytes allocated by torch on an accelerator, or by this process on the CPU; None if unknown."""
    if device.type != "cpu":
        return devices.allocated_bytes(device)
    psutil = module("psutil")
    return None if psutil is None else int(psutil.Process().memory_info().rss)


def model_patcher(model: torch.nn.Module, device: torch.device, offload_device: torch.device) -> Any:
    """The host's object that moves a model between devices; None in a host without one."""
    patcher = getattr(module("comfy.model_patcher"), "ModelPatcher", None)
    return None if patcher is None else patcher(model, load_device=device, offload_device=offload_device)


def load_model(patcher: Any, memory_required: int) -> None:
    """Move a model to its device, keeping this many bytes free there for running it."""
    load = _management("load_models_gpu")
    if patcher is None or load is None:
        return
    options = {"memory_required": memory_required, "force_full_load": True}
    known = inspect.signature(load).parameters
    load([patcher], **{name: value for name, value in options.items() if name in known})


def settle_patches(patcher: Any) -> None:
    """Have the host put a patcher's objects into the model, and take those of another one out.

    The host does so when it loads the model: what is looked at afterwards is what will run.
    """
    if getattr(patcher, "object_patches", None) or getattr(patcher, "object_patches_backup", None):
        load_model(patcher, 0)


def keeps_weights_back(patcher: Any) -> bool:
    """Whether a model's weights stay where they are when it is loaded, and reach the device layer by layer."""
    ask = getattr(patcher, "is_dynamic", None)
    return bool(ask()) if ask is not None else False


def soft_empty_cache() -> None:
    """Release cached memory that is not in use."""
    gc.collect()
    _call("soft_empty_cache")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means out of memory. False for errors of this pack, which say what to do themselves."""
    if isinstance(error, VAEError):
        return False
    own = _management("OOM_EXCEPTION")
    if isinstance(own, type) and own not in (Exception, BaseException):  # as it is with old releases of torch
        if _call("is_oom", error, default=False):  # newer hosts check codes, and clear the device's error state
            return True
        if isinstance(error, own):
            return True
    return shortage.is_out_of_memory(error)


# The VAE's class.


def vae_class() -> type | None:
    """The class of the objects on the VAE wire; None without a host."""
    return getattr(module("comfy.sd"), "VAE", None)


def init_empty_vae(vae: Any) -> None:
    """Give a VAE object the attributes of the host's empty VAE; nothing in forks that cannot make one."""
    root = logging.getLogger()

    def is_other(record: logging.LogRecord) -> bool:
        return "No VAE weights" not in str(record.msg)

    root.addFilter(is_other)
    try:
        vae_class().__init__(vae, sd={})  # type: ignore[misc]
    except (TypeError, KeyError, AttributeError) as error:
        logger.debug("this host cannot make a VAE without weights: %s", in_one_line(error))
    finally:
        root.removeFilter(is_other)


# Progress, interruption, what is shown.


def check_interrupted() -> None:
    """Raise the host's own exception if the user has cancelled."""
    _call("throw_exception_if_processing_interrupted")


def progress_bar(total: int, node_id: str | None) -> Callable[[int, Any], None] | None:
    """A function of (value, preview or None) for the host's bar; a preview is ("JPEG", PIL image, largest side)."""
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
    """The host's web server, or None."""
    return getattr(getattr(module("server"), "PromptServer", None), "instance", None)


def current_node(node_id: str | None = None) -> str | None:
    """The id of the node that is running: the given one, or what the host says."""
    if node_id is not None:
        return str(node_id)
    context = getattr(module("comfy_execution.utils"), "get_executing_context", lambda: None)()
    found = getattr(context, "node_id", None) or getattr(prompt_server(), "last_node_id", None)
    return None if found is None else str(found)


def send_status(status: Mapping[str, Any]) -> None:
    """Send the progress of a node to the front end."""
    server = prompt_server()
    if server is not None:
        server.send_sync("seamless_vae.status", dict(status), getattr(server, "client_id", None))


def notify(node_id: str | None, text: str) -> None:
    """Show a line in the console and, if the host supports it, on the node."""
    logger.warning("%s", text)
    server = prompt_server()
    node = current_node(node_id)
    if node is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, node)


def directory(kind: str) -> Path:
    """The host's folder for "input", "output" or "temp"."""
    ask = getattr(module("folder_paths"), f"get_{kind}_directory", None)
    return Path(ask()) if ask is not None else Path(kind).resolve()


def user_directory() -> Path | None:
    """The host's folder for what belongs to its users; None without a host."""
    ask = getattr(module("folder_paths"), "get_user_directory", None)
    return None if ask is None else Path(ask())


def _call(name: str, *arguments: Any, default: Any = None) -> Any:
    function = _management(name)
    return default if function is None else function(*arguments)
