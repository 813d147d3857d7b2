"""Nodes that the tests put into the host: pictures and latents from a seed, and tensors written as they are."""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import comfy.model_management
import folder_paths
import psutil
import torch
from safetensors.torch import save_file


class SeededImage:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        size = ("INT", {"default": 64, "min": 1, "max": 16384})
        return {"required": {"width": size, "height": size, "batch": size, "channels": size, "seed": size}}

    def make(self, width, height, batch, channels, seed):
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(batch, channels, 8, 8, generator=generator)
        image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
        return (image.movedim(1, -1).contiguous(),)


class SeededLatent:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        size = ("INT", {"default": 64, "min": 1, "max": 16384})
        frames = ("INT", {"default": 0, "min": 0, "max": 64})
        required = {"width": size, "height": size, "batch": size, "channels": size, "seed": size, "frames": frames}
        return {"required": required}

    def make(self, width, height, batch, channels, seed, frames):
        shape = (batch, channels, frames, height, width) if frames else (batch, channels, height, width)
        samples = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return ({"samples": samples, "kept": "travels"},)


class HalfMask:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("MASK",)

    @classmethod
    def INPUT_TYPES(cls):
        size = ("INT", {"default": 64, "min": 1, "max": 16384})
        return {"required": {"width": size, "height": size}}

    def make(self, width, height):
        mask = torch.zeros(1, height, width)
        mask[:, :, width // 2 :] = 1
        return (mask,)


class Keep:
    """Writes what comes in to the output folder."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "keep", (), True

    @classmethod
    def INPUT_TYPES(cls):
        optional = {"image": ("IMAGE",), "latent": ("LATENT",), "mask": ("MASK",), "posterior": ("VAE_POSTERIOR",)}
        return {"required": {"name": ("STRING", {"default": "kept"})}, "optional": optional}

    def keep(self, name, image=None, latent=None, mask=None, posterior=None):
        tensors, metadata, latent = {"image": image, "mask": mask}, {}, posterior or latent
        if latent is not None:
            tensors |= {key: value for key, value in latent.items() if isinstance(value, torch.Tensor)}
            metadata["keys"] = " ".join(sorted(latent))
        found = {key: value.contiguous() for key, value in tensors.items() if value is not None}
        save_file(found, Path(folder_paths.get_output_directory()) / f"{name}.safetensors", metadata)
        return {"ui": {"kept": [name]}}


class Memory:
    """Tells how many bytes the process holds once what comes in is there."""

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


class Conditioning:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return ([[torch.zeros(1, 77, 768), {}]],)


class CopiedVAE:
    """What packs do to a VAE to change it for themselves alone."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "copied", ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae": ("VAE",), "how": (["copy", "deepcopy"],)}}

    def copied(self, vae, how):
        found = getattr(copy, how)(vae)
        if how == "copy":
            found.patcher = vae.patcher.clone()
        found.device = torch.device("cpu")
        return (found,)


class OwnLoop:
    """How packs decode past the VAE's own method."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "decode", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",), "vae": ("VAE",)}}

    def decode(self, samples, vae):
        z = samples["samples"]
        memory = vae.memory_used_decode(z.shape, vae.vae_dtype)
        comfy.model_management.load_models_gpu([vae.patcher], memory_required=memory)
        image = vae.first_stage_model.decode(z.to(vae.vae_dtype).to(vae.device)).to(vae.output_device).float()
        return (vae.process_output(image).movedim(1, -1),)


NODE_CLASS_MAPPINGS = {
    "TestConditioning": Conditioning,
    "TestCopiedVAE": CopiedVAE,
    "TestOwnLoop": OwnLoop,
    "TestSeededImage": SeededImage,
    "TestSeededLatent": SeededLatent,
    "TestHalfMask": HalfMask,
    "TestKeep": Keep,
    "TestMemory": Memory,
}
