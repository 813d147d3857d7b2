"""Seamless VAE Save."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..vae_core import save_single_file
from ..vae_core.checkpoints.build import parse_dtype
from ..vae_core.checkpoints.generation import guesses_of
from ..vae_core.checkpoints.pretrained import write_folder
from ..vae_core.errors import check_choice
from . import inputs, prefix, show
from .vaes import open_vae

FORMATS = ["diffusers", "single_file"]


class VAESave:
    ID = "SeamlessVAESave"
    DISPLAY_NAME = "Seamless VAE Save"
    DESCRIPTION = (
        "Save a VAE to the output folder, as a diffusers folder or as a single file that ComfyUI, A1111 and diffusers "
        "can read. It is written under a temporary name first, so an interrupted save never leaves a broken file."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("save vae", "convert vae", "export vae", "diffusers", "safetensors")
    FUNCTION = "save"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("Path of the saved file or folder.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "vae": inputs.vae(),
                "filename_prefix": (
                    "STRING",
                    {"default": "vae/seamless", "tooltip": "Name inside the output folder; a number is appended."},
                ),
                "format": inputs.choice(
                    FORMATS,
                    "diffusers is a folder with config.json. single_file is one safetensors file.",
                ),
                "dtype": inputs.choice(
                    inputs.DTYPES,
                    "Precision of the saved weights. auto keeps the VAE's own.",
                ),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save(
        self,
        vae: Any,
        filename_prefix: str = "vae/seamless",
        format: str = "diffusers",
        dtype: str = "auto",
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        check_choice("format", format, FORMATS)
        opened = open_vae(vae).require_autoencoder("saving")
        workflow = extra_pnginfo.get("workflow") if isinstance(extra_pnginfo, Mapping) else None
        name = prefix.fill(filename_prefix, prompt, workflow)
        ending = ".safetensors" if format == "single_file" else ""
        show.numbered_path(name, ending)  # refuses before any work
        model = opened.copy_on_cpu(parse_dtype(dtype))

        def write(path: Path) -> None:
            if format == "single_file":
                save_single_file(model, path, overwrite=False)
            else:
                guessed = guesses_of(model)
                write_folder(path, model.weights_to_save(), model.config, overwrite=False, guessed=guessed)

        path = show.save_numbered(name, ending, write)
        return {"ui": {"text": [str(path)]}, "result": (str(path),)}
