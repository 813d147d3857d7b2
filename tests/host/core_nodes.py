"""The host's own nodes that stand beside the pack's in tests: their definitions only."""

from __future__ import annotations

from typing import Any

SIZE = {"min": 16, "max": 16384, "step": 8}


def node(inputs: dict[str, Any], outputs: str, output_node: bool = False, **optional: Any) -> type:
    """A node class from its required inputs and the types of its outputs, separated by spaces."""
    groups = {"required": inputs, **({"optional": optional} if optional else {})}
    members = {
        "INPUT_TYPES": classmethod(lambda _: groups),
        "RETURN_TYPES": tuple(outputs.split()),
        "OUTPUT_NODE": output_node,
        "FUNCTION": "run",
        "CATEGORY": "core",
    }
    return type("CoreNode", (), members)


def _image(output_node: bool = False, **inputs: Any) -> type:
    return node({"images": ("IMAGE",), **inputs}, "", output_node)


_TILES = {
    "tile_size": ("INT", {"default": 512, "min": 64, "max": 4096, "step": 32}),
    "overlap": ("INT", {"default": 64, "min": 0, "max": 4096, "step": 32}),
    "temporal_size": ("INT", {"default": 64, "min": 8, "max": 4096, "step": 4}),
    "temporal_overlap": ("INT", {"default": 8, "min": 4, "max": 4096, "step": 4}),
}

# The front end wants to know these by name.
_LOADERS = {
    "ControlNetLoader": "control_net_name",
    "GLIGENLoader": "gligen_name",
    "ImageOnlyCheckpointLoader": "ckpt_name",
    "LoraLoader": "lora_name",
    "LoraLoaderModelOnly": "lora_name",
    "StyleModelLoader": "style_model_name",
    "UNETLoader": "unet_name",
    "UpscaleModelLoader": "model_name",
}

CORE_NODES: dict[str, type] = {
    "VAELoader": node({"vae_name": (["sdxl.safetensors", "flux1.safetensors", "pixel_space"],)}, "VAE"),
    "CheckpointLoaderSimple": node({"ckpt_name": (["sd15.safetensors"],)}, "MODEL CLIP VAE"),
    **{name: node({field: (["model.safetensors"],)}, "MODEL") for name, field in _LOADERS.items()},
    "CLIPTextEncode": node({"clip": ("CLIP",), "text": ("STRING", {"multiline": True})}, "CONDITIONING"),
    "VAEDecode": node({"samples": ("LATENT",), "vae": ("VAE",)}, "IMAGE"),
    "VAEEncode": node({"pixels": ("IMAGE",), "vae": ("VAE",)}, "LATENT"),
    "VAEDecodeTiled": node({"samples": ("LATENT",), "vae": ("VAE",), **_TILES}, "IMAGE"),
    "VAEEncodeTiled": node({"pixels": ("IMAGE",), "vae": ("VAE",), **_TILES}, "LATENT"),
    "VAESave": node(
        {"vae": ("VAE",), "filename_prefix": ("STRING", {"default": "vae/ComfyUI_vae"})}, "", output_node=True
    ),
    "VAEEncodeForInpaint": node(
        {
            "pixels": ("IMAGE",),
            "vae": ("VAE",),
            "mask": ("MASK",),
            "grow_mask_by": ("INT", {"default": 6, "min": 0, "max": 64, "step": 1}),
        },
        "LATENT",
    ),
    "EmptyLatentImage": node(
        {
            "width": ("INT", {"default": 512, **SIZE}),
            "height": ("INT", {"default": 512, **SIZE}),
            "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
        },
        "LATENT",
    ),
    "KSampler": node(
        {
            "model": ("MODEL",),
            "seed": ("INT", {"default": 0, "min": 0, "max": 2**53, "control_after_generate": True}),
            "latent_image": ("LATENT",),
            "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
        },
        "LATENT",
    ),
    "LoadImage": node({"image": (["photo.png"], {"image_upload": True})}, "IMAGE MASK"),
    "ImageScale": node(
        {
            "image": ("IMAGE",),
            "upscale_method": (["nearest-exact", "bilinear", "area"],),
            "width": ("INT", {"default": 512, "min": 0, "max": 16384, "step": 1}),
            "height": ("INT", {"default": 512, "min": 0, "max": 16384, "step": 1}),
            "crop": (["disabled", "center"],),
        },
        "IMAGE",
    ),
    "ImageScaleBy": node(
        {
            "image": ("IMAGE",),
            "upscale_method": (["nearest-exact", "bilinear", "area"],),
            "scale_by": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01}),
        },
        "IMAGE",
    ),
    "OtherPosterior": node({"vae": ("VAE",)}, "VAE_POSTERIOR"),  # of another pack: an output called as its type is
    "ImageUpscaleWithModel": node({"upscale_model": ("UPSCALE_MODEL",), "image": ("IMAGE",)}, "IMAGE"),
    "SaveImage": _image(True, filename_prefix=("STRING", {"default": "ComfyUI"})),
    "PreviewImage": _image(True),
}
