"""Images, latents, a whole checkpoint and VAEs of other kinds, from a seed; a ControlNet that shows its hint."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import comfy.clip_model
import comfy.controlnet
import comfy.latent_formats
import comfy.ldm.wan.vae
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.taesd.taesd
import folder_paths
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import load_file, save_file


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


class Conditioning:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return ([[torch.zeros(1, 77, 768), {}]],)


class HintModel(torch.nn.Module):
    """A control model that gives back its hint."""

    def __init__(self):
        super().__init__()
        self.dtype = torch.float32
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, hint, timesteps, context, **_):
        return {"output": [hint.clone()]}


class LatentControlNet:
    """A ControlNet of the host's own kind whose hint is a latent, as those for SD3 and FLUX.1 take it."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("CONTROL_NET",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        format_, device = comfy.latent_formats.SD15(), torch.device("cpu")
        return (
            comfy.controlnet.ControlNet(HintModel(), compression_ratio=1, latent_format=format_, load_device=device),
        )


class Sampling:
    """What a ControlNet asks of the model that is sampled with."""

    model_sampling = property(lambda self: self)

    def timestep(self, sigma):
        return sigma

    def calculate_input(self, sigma, noise):
        return noise


class ControlHint:
    """What a ControlNet gives to a sampler in one step."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "step", ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",), "latent": ("LATENT",)}}

    def step(self, conditioning, latent):
        crossattention, options = conditioning[0]
        control = options["control"]
        control.pre_run(Sampling(), lambda percent: 1000 * (1 - percent))
        noise, sigma = latent["samples"], torch.tensor([500.0])
        given = control.get_control(noise, sigma, {"c_crossattn": crossattention}, 1, {})
        return ({"samples": given["output"][0]},)


class RandomCheckpoint:
    """Writes a checkpoint of Stable Diffusion 1.5's full size, which alone the host recognises, with random weights."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "write", (), True
    UNET = {  # noqa: RUF012
        **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_heads": 8},
        **{"num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "context_dim": 768, "legacy": False},
        **{
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_middle": 1,
            "use_spatial_transformer": True,
        },
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    }

    @classmethod
    def INPUT_TYPES(cls):
        text = ("STRING", {"default": ""})
        return {"required": {"name": text, "vae": text}}

    def write(self, name, vae):
        operations, meta = comfy.ops.disable_weight_init, torch.device("meta")
        config = Path(comfy.clip_model.__file__).with_name("sd1_clip_config.json")
        text = comfy.clip_model.CLIPTextModel(json.loads(config.read_text()), torch.float16, meta, operations)
        parts = {"model.diffusion_model.": UNetModel(**self.UNET, device=meta, operations=operations)}
        parts["cond_stage_model.transformer."] = text
        shapes = {prefix + key: each.shape for prefix, part in parts.items() for key, each in part.state_dict().items()}
        shapes.pop("cond_stage_model.transformer.text_projection.weight")  # which this family lacks
        generator = torch.Generator().manual_seed(1)
        weights = {key: self.draw(key, shape, generator) for key, shape in shapes.items()}
        own = load_file(folder_paths.get_full_path_or_raise("vae", vae))
        weights |= {f"first_stage_model.{key}": weight.half() for key, weight in own.items()}
        save_file(weights, Path(folder_paths.get_folder_paths("checkpoints")[0]) / name)
        return {"ui": {"weights": [len(weights)]}}

    @staticmethod
    def draw(key, shape, generator):
        """Weights that keep a signal's size: of norms 1, of other layers by their inputs, of embeddings small."""
        if len(shape) < 2:
            return torch.full(shape, float(key.endswith(".weight")), dtype=torch.float16)
        scale = 0.02 if "embedding" in key else shape[1:].numel() ** -0.5
        return torch.empty(shape).normal_(0, scale, generator=generator).half()


class ThirdPartyVAE:
    """A VAE of the host's own that is not an AutoencoderKL, with random weights: one of small images, one of video."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("VAE",)
    WAN = {  # noqa: RUF012
        **{"dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2},
        "temperal_downsample": [False, True, True],
    }

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": (["TAESD", "WanVAE"],)}}

    def make(self, kind):
        model = comfy.taesd.taesd.TAESD() if kind == "TAESD" else comfy.ldm.wan.vae.WanVAE(**self.WAN)
        generator = torch.Generator().manual_seed(2)
        weights = model.state_dict()
        for key, weight in weights.items():
            if key.endswith("gamma"):
                weight.fill_(1)
            elif weight.ndim:
                weight.copy_(RandomCheckpoint.draw(key, weight.shape, generator))
        return (comfy.sd.VAE(sd=weights),)


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
