"""What a workflow left behind: tensors written as they are, memory, models."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import comfy.model_management
import folder_paths
import psutil
import torch
from safetensors.torch import save_file

from .in_use import blocks_in_use, bytes_in_use  # copied beside this file when the host is prepared


class Keep:
    """Writes what comes in to the output folder."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "keep", (), True

    @classmethod
    def INPUT_TYPES(cls):
        kinds = {"image": "IMAGE", "latent": "LATENT", "mask": "MASK", "posterior": "VAE_POSTERIOR"}
        optional = {name: (kind,) for name, kind in {**kinds, "conditioning": "CONDITIONING"}.items()}
        return {"required": {"name": ("STRING", {"default": "kept"})}, "optional": optional}

    def keep(self, name, image=None, latent=None, mask=None, posterior=None, conditioning=None):
        tensors, metadata, latent = {"image": image, "mask": mask}, {}, posterior or latent
        for _, options in conditioning or []:
            tensors |= {key: value for key, value in options.items() if isinstance(value, torch.Tensor)}
        if latent is not None:
            tensors |= {key: value for key, value in latent.items() if isinstance(value, torch.Tensor)}
            metadata["keys"] = " ".join(sorted(latent))
        found = {key: value.contiguous() for key, value in tensors.items() if value is not None}
        save_file(found, Path(folder_paths.get_output_directory()) / f"{name}.safetensors", metadata)
        return {"ui": {"kept": [name]}}


class Memory:
    """Shows how many bytes the process has allocated once its input is there."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "tell", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",)}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def tell(self, latent):
        gc.collect()
        return {"ui": {"bytes": [psutil.Process().memory_info().rss]}}


class Alive:
    """Tells how many models of ours are in memory, how many models of any kind the host counts as loaded, and what the
    process holds, once what comes in is there.
    """

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "tell", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}, "optional": {"image": ("IMAGE",)}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def tell(self, image=None):
        gc.collect()
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # what is free within the heap is no memory that is held
        ours = sum(type(each).__name__ == "FirstStage" for each in gc.get_objects())
        loaded = len(comfy.model_management.current_loaded_models)
        held = {"bytes": [bytes_in_use()], "blocks": [blocks_in_use()]}
        return {"ui": {"ours": [ours], "loaded": [loaded], **held}}
