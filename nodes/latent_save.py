"""Seamless Latent Save."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from ..vae_core.checkpoints.families import family_of_config
from ..vae_core.datasets import kohya
from ..vae_core.datasets.collection import Collection
from ..vae_core.datasets.latents import NamedLatent, save_latents
from ..vae_core.datasets.settings import STORED, KohyaFamily, Layout, Scale
from ..vae_core.errors import ConfigError, DatasetError, check_choice
from . import checks, host, inputs, latents, prefix, report, show
from .autoencoder import Autoencoder
from .catalogue import AUTO
from .vaes import open_vae

LAYOUTS = list(get_args(Layout))
FAMILIES = [AUTO, *get_args(KohyaFamily)]


class LatentSave:
    ID = "SeamlessLatentSave"
    DISPLAY_NAME = "Seamless Latent Save"
    DESCRIPTION = (
        "Save latents to a new folder of the output folder, as a collection that Seamless Latent Load, seamless-vae "
        "decode-dataset and training scripts read, or as cache files of kohya's trainers. The scale that a format "
        "asks for is applied, and the node says so."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("save latent", "dataset", "latent cache", "kohya", "npz", "webdataset", "shards")
    FUNCTION = "save"
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("path", "text")
    OUTPUT_TOOLTIPS = ("Path of the new folder.", "What was saved, and how its scale was converted.")
    OUTPUT_NODE = True
    INPUT_IS_LIST = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": inputs.wire(
                    "LATENT,VAE_POSTERIOR",
                    "Latents to save, of any sizes. Of a posterior, its moments are saved: mean and log-variance.",
                ),
                "vae": inputs.wire("VAE", "The VAE that the latents belong to. Its fingerprint is saved with them."),
                "filename_prefix": (
                    "STRING",
                    {"default": "latents/seamless", "tooltip": "Name inside the output folder; a number is appended."},
                ),
                "layout": inputs.choice(
                    LAYOUTS,
                    "shards are safetensors files. webdataset is tar files of arrays. kohya is one .npz file for each "
                    "image, which the trainers of kohya-ss/sd-scripts take as their own cache.",
                ),
                "kohya_family": inputs.choice(
                    FAMILIES,
                    "Used by kohya only: the model that is trained, which is part of the files' names. auto takes "
                    "that of the VAE. Files of flux and lumina are scaled and shifted, the others are raw.",
                    advanced=True,
                ),
                "dtype": inputs.choice(
                    list(STORED),
                    "Number type of the latents in the files. Those of kohya are always float32.",
                    advanced=True,
                ),
            },
            "optional": {
                "names": (
                    "STRING",
                    {
                        "forceInput": True,
                        "tooltip": "Names of the images without their endings, one a line, such as the names output of "
                        "Seamless Latent Load. Without them the images are numbered.",
                    },
                )
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save(
        self,
        samples: Sequence[Mapping[str, Any]],
        vae: Sequence[Any],
        filename_prefix: Sequence[str],
        layout: Sequence[str],
        kohya_family: Sequence[str],
        dtype: Sequence[str],
        names: Sequence[str] | None = None,
        prompt: Sequence[Any] | None = None,
        extra_pnginfo: Sequence[Any] | None = None,
    ) -> dict[str, Any]:
        check_choice("layout", layout[0], LAYOUTS)
        check_choice("kohya_family", kohya_family[0], FAMILIES)
        check_choice("dtype", dtype[0], list(STORED))
        opened = open_vae(vae[0]).require_autoencoder("saving latents")
        given = _named(samples, opened, names)
        options = {
            "layout": layout[0],
            "stored": dtype[0] if layout[0] != "kohya" else "float32",
            "kohya": _family(kohya_family[0], opened) if layout[0] == "kohya" else None,
            "keep": "moments" if "logvar" in samples[0] else "mean",
        }
        info = extra_pnginfo[0] if extra_pnginfo else None
        workflow = info.get("workflow") if isinstance(info, Mapping) else None
        name = prefix.fill(filename_prefix[0], prompt[0] if prompt else None, workflow)
        saved: list[Collection] = []

        def write(path: Path) -> None:
            with opened.weights() as model:
                saved.append(save_latents(path, given, model, **options))

        path = show.save_numbered(name, "", write)
        place = f"output/{path.relative_to(host.directory('output')).as_posix()}"
        lines = [
            report.counted("report.saved", len(given), place=place),
            report.Fact("report.layout", layout=layout[0]),
            _conversion(saved[-1].scale),
        ]
        return {"ui": report.output(lines), "result": (str(path), report.text_of(lines))}


def _named(samples: Sequence[Mapping[str, Any]], vae: Autoencoder, names: Sequence[str] | None) -> list[NamedLatent]:
    """What goes into the collection: raw z, or moments, of each image."""
    found = [each for latent in samples for each in _latents_of(latent, vae)]
    lines = [line for text in names or [] for line in text.splitlines() if line.strip()]
    if lines and len(lines) != len(found):
        raise DatasetError(f"{len(lines)} names were given for {len(found)} latents. Give one for each, or none.")
    lines = lines or [f"{number:05d}" for number in range(1, len(found) + 1)]
    return [NamedLatent(name, z, size) for name, (z, size) in zip(lines, found, strict=True)]


def _latents_of(latent: Mapping[str, Any], vae: Autoencoder) -> Iterator[tuple[torch.Tensor, tuple[int, int]]]:
    """Raw z or moments of each image of a batch, and the image's (width, height) without what was padded."""
    z = latents.samples_of(latent)
    checks.check_finite(z, "latent")
    vae.model.check_latent_shape(latents.raw_shape(vae.config, z.shape))
    height, width = latents.fitted_size(latent, *(side * vae.downscale_factor for side in z.shape[-2:]))
    if "logvar" in latent:
        if latents.is_packed(vae.config):
            raise ConfigError(
                "the moments of FLUX.2 cannot be saved, because the posterior is that of packed and normalized "
                "latents. Connect the latent output instead."
            )
        z = latents.posterior_of(latent).parameters
        checks.check_finite(z, "posterior")
    else:
        with vae.weights() as model:
            z = latents.from_wire(model, z.float())
    yield from ((each, (width, height)) for each in z)


def _family(name: str, vae: Autoencoder) -> str:
    if name != AUTO:
        return name
    family = family_of_config(vae.config)
    found = kohya.family_of(family.name if family else None, vae.config)
    if found is None:
        raise ConfigError(
            f"kohya's files are named after the model that is trained, and this VAE is of "
            f"{family.name if family else 'a family that is not known'}. Set kohya_family."
        )
    return found


def _conversion(scale: Scale) -> report.Fact:
    if scale.convention == "raw":
        return report.Fact("report.saved.raw")
    return report.Fact("report.saved.scaled", formula=scale.formula)
