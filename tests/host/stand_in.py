"""A stand-in for the host: the modules that the pack asks, in two ages. It records questions; tests set the answers.

"old" answers as ComfyUI 0.3.64 does, "new" as 0.33.0 where it differs: a cancellation that is not an `Exception`, a
precision between nodes, errors that tell by a code that memory ran out, a VAE whose images are put into range in
place and cropped by itself, more attributes and methods on VAEs.
"""

from __future__ import annotations

import importlib.util
import sys
import types
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ("old", "new")
ENDINGS = (".safetensors", ".ckpt", ".pt")
STUBS = (
    *("comfy", "comfy.sd", "comfy.utils", "comfy.model_management", "comfy.model_patcher"),
    *("comfy_execution", "comfy_execution.utils", "folder_paths", "server"),
)


class OldInterruptError(Exception):
    """What the old host raises when the user has cancelled."""


class NewInterruptError(BaseException):
    """What the new host raises."""


class Patcher:
    """Moves a model between its devices."""

    def __init__(self, model: nn.Module, load_device: Any, offload_device: Any, size: int = 0, **_: Any) -> None:
        self.model, self.load_device, self.offload_device, self.size = model, load_device, offload_device, size
        self.parent: Patcher | None = None
        if getattr(model, "device", None) is None:
            model.device = offload_device

    def model_size(self) -> int:
        return sum(each.nbytes for each in self.model.state_dict().values())

    def loaded_size(self) -> int:
        return self.model_size() if self.model.device == self.load_device else 0

    def move(self, device: Any) -> None:
        self.model.to(device)
        self.model.device = device

    def clone(self) -> Patcher:
        twin = type(self)(self.model, self.load_device, self.offload_device, self.size)
        twin.parent = self
        return twin


class NewPatcher(Patcher):
    cached_patcher_init: tuple[Any, tuple] | None = None

    def is_dynamic(self) -> bool:
        return False

    def get_free_memory(self, device: Any) -> int:
        return 2**33

    def clone(self) -> Patcher:
        twin = super().clone()
        twin.cached_patcher_init = self.cached_patcher_init  # type: ignore[attr-defined]
        return twin

    def deepclone_multigpu(self, new_load_device: Any) -> Patcher:
        """A patcher of the same model for another device, with weights of its own."""
        if self.cached_patcher_init is None:
            raise RuntimeError("the loader that produced this model does not support multigpu")
        make, arguments = self.cached_patcher_init
        twin = self.clone()
        twin.model, twin.load_device = make(*arguments).model, new_load_device
        return twin


class Host:
    """What tests see of the stand-in.

    Attributes:
        progress: (value, total, preview, node) of every update of a progress bar.
        events: (name, data) of what was sent to the page.
        loads: (patcher, memory_required) of every call to load a model.
        cancel_after: so many updates or questions until the user cancels; None for never.
        cleared: how often the new host was shown an error whose code says that memory ran out.
    """

    def __init__(self, profile: str, folder: Path) -> None:
        self.profile, self.folder = profile, folder
        self.interrupt = OldInterruptError if profile == "old" else NewInterruptError
        self.progress: list[tuple[int, int, Any, str | None]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.loads: list[tuple[Patcher, int]] = []
        self.texts: list[str] = []
        self.cancel_after: int | None = None
        self.cleared = 0
        self.free = 2**33
        self.between = torch.float32  # precision between nodes, in the new host
        self.folders = {kind: [folder / "models" / kind] for kind in ("vae", "checkpoints", "diffusers")}
        for folders in self.folders.values():
            folders[0].mkdir(parents=True, exist_ok=True)

    def ask(self) -> None:
        """What `throw_exception_if_processing_interrupted` does."""
        if self.cancel_after is not None:
            self.cancel_after -= 1
            if self.cancel_after < 0:
                self.cancel_after = None
                raise self.interrupt()

    @property
    def is_new(self) -> bool:
        return self.profile == "new"

    def modules(self) -> dict[str, types.ModuleType]:
        found = {name: types.ModuleType(name) for name in STUBS}
        for name, module in found.items():
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(found[parent], child, module)
        found["comfy.model_management"].__dict__.update(self._management())
        found["comfy.model_patcher"].ModelPatcher = NewPatcher if self.is_new else Patcher  # type: ignore[attr-defined]
        found["comfy.sd"].VAE = vae_class(self)  # type: ignore[attr-defined]
        found["comfy.utils"].ProgressBar = self._bar()  # type: ignore[attr-defined]
        found["folder_paths"].__dict__.update(self._paths())
        server = types.SimpleNamespace(client_id="page", last_node_id="7", send_sync=self._send)
        server.send_progress_text = lambda text, node: self.texts.append(text)
        found["server"].PromptServer = types.SimpleNamespace(instance=server)  # type: ignore[attr-defined]
        context = types.SimpleNamespace(node_id="7", prompt_id="p")
        found["comfy_execution.utils"].get_executing_context = lambda: context  # type: ignore[attr-defined]
        return found

    def _send(self, name: str, data: dict[str, Any], client: str | None = None) -> None:
        self.events.append((name, data))

    def _management(self) -> dict[str, Any]:
        cpu = torch.device("cpu")

        def load_models_gpu(
            models: list[Patcher],
            memory_required: int = 0,
            force_patch_weights: bool = False,
            force_full_load: bool = False,
        ) -> None:
            for patcher in models:
                self.loads.append((patcher, memory_required))
                patcher.move(patcher.load_device)

        found: dict[str, Any] = {
            "load_models_gpu": load_models_gpu,
            "throw_exception_if_processing_interrupted": self.ask,
            "soft_empty_cache": lambda force=False: None,
            "get_free_memory": lambda device=None, torch_free_too=False: self.free,
            "get_total_memory": lambda device=None, torch_total_too=False: 2**34,
            "vae_device": lambda: cpu,
            "vae_offload_device": lambda: cpu,
            "intermediate_device": lambda: cpu,
            "vae_dtype": lambda device=None, allowed_dtypes=(): torch.float32,
            "OOM_EXCEPTION": torch.cuda.OutOfMemoryError,
        }
        if self.is_new:
            found["intermediate_dtype"] = lambda: self.between
            found["is_oom"] = self._is_out_of_memory
        return found

    def _is_out_of_memory(self, error: BaseException) -> bool:
        by_code = isinstance(error, RuntimeError) and getattr(error, "error_code", None) == 2
        self.cleared += by_code
        return by_code or isinstance(error, torch.cuda.OutOfMemoryError)

    def _bar(self) -> type:
        host = self

        class ProgressBar:
            def __init__(self, total: int, node_id: str | None = None) -> None:
                self.total, self.node_id = total, node_id

            def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
                host.ask()
                host.progress.append((value, total or self.total, preview, self.node_id))

        return ProgressBar

    def _paths(self) -> dict[str, Any]:
        def files(kind: str) -> list[str]:
            roots = self.folders[kind]
            return sorted(
                str(path.relative_to(root)) for root in roots for path in root.rglob("*") if path.suffix in ENDINGS
            )

        return {
            "get_folder_paths": lambda kind: [str(path) for path in self.folders[kind]],
            "get_filename_list": files,
            "get_input_directory": lambda: str(self.folder / "input"),
            "get_output_directory": lambda: str(self.folder / "output"),
            "get_user_directory": lambda: str(self.folder / "user"),
            "get_temp_directory": lambda: str(self.folder / "temp"),
            "models_dir": str(self.folder / "models"),
        }

    def vae(self, first_stage_model: nn.Module, factor: int = 2) -> Any:
        """A VAE of the host's own."""
        vae = sys.modules["comfy.sd"].VAE(sd={})  # type: ignore[attr-defined]
        vae.first_stage_model = first_stage_model.eval()
        vae.device = vae.output_device = torch.device("cpu")
        vae.vae_dtype = torch.float32
        vae.downscale_ratio = vae.upscale_ratio = factor
        patcher = NewPatcher if self.is_new else Patcher
        vae.patcher = patcher(first_stage_model, vae.device, vae.device)
        return vae


def vae_class(host: Host) -> type:
    """The class of the objects on the VAE wire. Without weights it stops half-way, as the host's does."""

    class VAE:
        device: Any

        def __init__(self, sd: dict[str, Tensor] | None = None, **_: Any) -> None:
            self.memory_used_encode = lambda shape, dtype: 1767 * shape[2] * shape[3] * 4
            self.memory_used_decode = lambda shape, dtype: 2178 * shape[2] * shape[3] * 64 * 4
            self.downscale_ratio: Any = 8
            self.upscale_ratio: Any = 8
            self.latent_channels, self.latent_dim, self.output_channels = 4, 2, 3
            self.process_input = lambda image: image * 2 - 1
            if host.is_new:
                self.process_output = lambda image: image.add_(1).div_(2).clamp_(0, 1)
                self.size, self.handles_tiling, self.pad_channel_value = None, False, None
                self.format_encoded, self.audio_sample_rate = None, 44100
            else:
                self.process_output = lambda image: ((image + 1) / 2).clamp(0, 1)
            self.working_dtypes = [torch.bfloat16, torch.float32]
            self.disable_offload = self.not_video = False
            self.downscale_index_formula = self.upscale_index_formula = self.extra_1d_channel = None
            self.crop_input = True
            self.first_stage_model: Any = None

        def encode(self, pixels: Tensor) -> Tensor:
            if host.is_new:
                height, width = (side // self.downscale_ratio * self.downscale_ratio for side in pixels.shape[1:3])
                top, left = ((side - kept) // 2 for side, kept in zip(pixels.shape[1:3], (height, width), strict=True))
                pixels = pixels[:, top : top + height, left : left + width, : self.output_channels]
            options = {}
            if host.is_new and getattr(self.first_stage_model, "comfy_has_chunked_io", False):
                options = {"device": self.device}  # the model moves them itself
            return self.first_stage_model.encode(self.process_input(pixels).movedim(-1, 1), **options)

        def decode(self, z: Tensor, vae_options: Any = None) -> Tensor:
            first = self.first_stage_model
            needed = self.memory_used_decode(z.shape, torch.float32)
            is_reliable = host.is_new and getattr(first, "comfy_decode_estimate_is_reliable", False)
            if is_reliable and needed > host.free:
                return VAE.decode_tiled(self, z, tile_x=4, tile_y=4, overlap=1)
            if host.is_new and getattr(first, "comfy_has_chunked_io", False):
                image = torch.empty(first.decode_output_shape(z.shape))
                first.decode(z, output_buffer=image)
                self.process_output(image)
                return image.movedim(1, -1)
            return ((self.first_stage_model.decode(z) + 1) / 2).clamp(0, 1).movedim(1, -1)

        def encode_tiled(self, pixels: Tensor, tile_x=None, tile_y=None, overlap=None, **_: Any) -> Tensor:
            self.tiles = (tile_x, tile_y, overlap)
            return self.encode(pixels)

        def decode_tiled(self, z: Tensor, tile_x=None, tile_y=None, overlap=None, **_: Any) -> Tensor:
            self.tiles = (tile_x, tile_y, overlap)
            if host.is_new and self.handles_tiling:
                image = self.first_stage_model.decode_tiled(z, tile_x=tile_x, tile_y=tile_y, overlap=overlap)
                self.process_output(image)
                return image.movedim(1, -1)
            return self.decode(z)

        def get_sd(self) -> dict[str, Tensor]:
            return self.first_stage_model.state_dict()

        def spacial_compression_encode(self) -> int:
            return self.downscale_ratio

        def spacial_compression_decode(self) -> int:
            return self.upscale_ratio

        def temporal_compression_decode(self) -> None:
            return None

        def throw_exception_if_invalid(self) -> None:
            if self.first_stage_model is None:
                raise RuntimeError("ERROR: VAE is invalid")

    if host.is_new:

        def prepare_decode(self: Any, sample_shape: Sequence[int], memory_required: int | None = None) -> int:
            """How many items fit at once, for code that decodes past `decode`."""
            needed = max(1, int(memory_required or self.memory_used_decode(sample_shape, self.vae_dtype)))
            load = sys.modules["comfy.model_management"].load_models_gpu  # type: ignore[attr-defined]
            load([self.patcher], memory_required=needed, force_full_load=self.disable_offload)
            return max(1, int(self.patcher.get_free_memory(self.device) / needed))

        VAE.prepare_decode = prepare_decode  # type: ignore[attr-defined]
        VAE.is_dynamic = lambda self: self.patcher.is_dynamic()  # type: ignore[attr-defined]
        VAE.model_size = lambda self: self.patcher.model_size()  # type: ignore[attr-defined]
        VAE.vae_output_dtype = lambda self: host.between  # type: ignore[attr-defined]
    return VAE


@contextmanager
def installed(profile: str, folder: Path) -> Iterator[Host]:
    """The stand-in as the modules of the host, until the block ends."""
    host = Host(profile, folder)
    with _instead(host.modules()):
        yield host


@contextmanager
def hidden() -> Iterator[None]:
    """No host, whatever was imported before or could be: none of its modules is found until the block ends."""
    with _instead(dict.fromkeys(STUBS)):
        yield


@contextmanager
def _instead(modules: Mapping[str, types.ModuleType | None]) -> Iterator[None]:
    """These modules, and None for such as cannot be imported, in place of all that a host has."""
    roots = {name.partition(".")[0] for name in STUBS}
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in roots}
    for name in before:
        del sys.modules[name]
    sys.modules.update(modules)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in roots]:
            del sys.modules[name]
        sys.modules.update(before)


class Pack:
    """The pack as the host loads it: from its file, under a name that is not a Python name."""

    def __init__(self) -> None:
        self.name = f"custom_nodes/seamless-vae {uuid.uuid4().hex[:6]}"
        spec = importlib.util.spec_from_file_location(self.name, ROOT / "__init__.py")
        assert spec is not None and spec.loader is not None
        self.root = importlib.util.module_from_spec(spec)
        sys.modules[self.name] = self.root
        spec.loader.exec_module(self.root)

    def module(self, name: str) -> Any:
        """A module of the pack, such as nodes.run or vae_core."""
        return importlib.import_module(f"{self.name}.{name}")

    def run(self, node_id: str, **inputs: Any) -> tuple[Any, ...]:
        """The results of a node."""
        done = self.execute(node_id, **inputs)
        return done["result"] if isinstance(done, dict) else done

    def execute(self, node_id: str, **inputs: Any) -> Any:
        """What the function of a node returns, in the mode in which the host calls it."""
        node = self.root.NODE_CLASS_MAPPINGS[node_id]()
        with torch.inference_mode():
            return getattr(node, node.FUNCTION)(**inputs)
