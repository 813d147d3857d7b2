"""Seamless Latent Load."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..vae_core.datasets.folders import KohyaFiles, open_folder
from ..vae_core.datasets.reader import LatentDataset
from ..vae_core.datasets.settings import Scale
from ..vae_core.errors import ConfigError, DatasetError, ShapeError, VAEError, check_choice
from ..vae_core.posterior import MAX_SEED
from . import catalogue, inputs, latents, report
from .report import Fact
from .vaes import open_vae

JOINS = ["batch", "list"]
MOST = 4096  # images at once
_LISTED = 4  # sizes that a report names
Latents = LatentDataset | KohyaFiles


class LatentLoad:
    ID = "SeamlessLatentLoad"
    DISPLAY_NAME = "Seamless Latent Load"
    DESCRIPTION = (
        "Load latents of a collection that seamless-vae encode-dataset or Seamless Latent Save wrote, or of kohya's "
        "cache files, as raw latents like those of the core nodes. Scaled latents are converted, and the node says so."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("load latent", "dataset", "latent cache", "kohya", "npz", "webdataset", "shards")
    FUNCTION = "load"
    RETURN_TYPES = ("LATENT", "STRING", "STRING")
    RETURN_NAMES = ("latent", "names", "text")
    OUTPUT_IS_LIST = (True, True, False)
    OUTPUT_TOOLTIPS = (
        "Raw latents, the same as the core nodes output.",
        "Names of the images, one a line.",
        "What was loaded, and how its scale was converted.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "folder": inputs.choice(
                    catalogue.latent_folders(),
                    "demo is a small collection included in this pack, for its demo VAE. Below it: folders of the "
                    "input and output folders that have latents, and those of `latents` in extra_model_paths.yaml.",
                ),
                "start": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 2**31 - 1,
                        "tooltip": "The first image, counted from 0. To go through a collection run by run, connect "
                        "ComfyUI's Int node, set to increment.",
                    },
                ),
                "count": (
                    "INT",
                    {
                        "default": 1,
                        "min": 1,
                        "max": MOST,
                        "tooltip": "How many images to load, from start on. At the end of the collection it is fewer.",
                    },
                ),
                "join": inputs.choice(
                    JOINS,
                    "batch gives one latent of all images, which must have the same size. list gives one latent for "
                    "each image, of any size; the nodes that follow run once for each.",
                ),
                "sample_mode": inputs.sample_mode(
                    "mean",
                    "For collections that have moments: mean uses the mean of the posterior, sample draws from it "
                    "with the seed. Other collections have one latent for each image.",
                ),
                "seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": MAX_SEED,
                        "control_after_generate": True,
                        "tooltip": "Used by sample only. The noise depends on it and on the image, so the sample of an "
                        "image is the same at every start and count.",
                    },
                ),
                "flipped": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "advanced": True,
                        "tooltip": "Load the latents of the mirrored images, which are stored if they were encoded "
                        "with --flip.",
                    },
                ),
            },
            "optional": {
                "vae": inputs.wire(
                    "VAE",
                    "Check that the latents fit this VAE. FLUX.2 needs it, because ComfyUI packs and normalizes its "
                    "latents by numbers that only the VAE has.",
                )
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, folder: str | None = None) -> bool | str:
        """Whether the folder exists, or a sentence that says what to do; None for a linked input."""
        try:
            if folder is not None:
                catalogue.latent_folder(folder)
        except VAEError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, folder: str, start: int = 0, count: int = 1, **_: Any) -> str:
        """Another text when the files of these images have changed."""
        found = open_folder(catalogue.latent_folder(folder))
        digest = hashlib.sha256(str(len(found)).encode())
        for index in range(start, min(start + count, len(found))):
            for path in found.files(index):
                status = path.stat()
                digest.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()

    def load(
        self,
        folder: str,
        start: int = 0,
        count: int = 1,
        join: str = "batch",
        sample_mode: str = "mean",
        seed: int = 0,
        flipped: bool = False,
        vae: Any = None,
    ) -> dict[str, Any]:
        check_choice("join", join, JOINS)
        check_choice("sample_mode", sample_mode, inputs.SAMPLE_MODES)
        found = open_folder(catalogue.latent_folder(folder))
        if start >= len(found):
            raise ConfigError(
                f"start is {start}, but {folder} has {len(found)} images, counted from 0. Use a smaller start."
            )
        found.set_epoch(seed if sample_mode == "sample" else None)
        indices = range(start, min(start + count, len(found)))
        items = [found[index] for index in indices]
        samples = _on_wire([_latent(item, flipped) for item in items], found, vae)
        fits = [latents.fit_of(item, z) for item, z in zip(items, samples, strict=True)]
        names = [item["key"] for item in items]
        lines = _report(folder, found, indices, samples, sample_mode, seed)
        if join == "batch":
            samples = [_batch(samples)]
            names = ["\n".join(names)]
            fits = fits[:1] if all(fit == fits[0] for fit in fits) else [{}]
        loaded = [{"samples": z, **fit} for z, fit in zip(samples, fits, strict=True)]
        return {"ui": report.output(lines), "result": (loaded, names, report.text_of(lines))}


def _latent(item: dict[str, Any], flipped: bool) -> Tensor:
    """Raw z of an image, [1, C, h, w] in float32."""
    name = "latents_flipped" if flipped else "latents"
    if name not in item:
        raise DatasetError(
            f"{item['key']} has no latents of the mirrored image. Turn flipped off, or encode the collection with "
            f"--flip."
        )
    return item[name][None]


def _on_wire(found: list[Tensor], folder: Latents, vae: Any) -> list[Tensor]:
    """Raw z as the LATENT wire carries it."""
    if vae is None:
        if isinstance(folder, LatentDataset) and latents.is_packed(folder.collection.config):
            raise ConfigError(
                "these are latents of FLUX.2, which ComfyUI packs and normalizes by statistics of the VAE. Connect "
                "the VAE that they were encoded with."
            )
        return found
    opened = open_vae(vae).require_autoencoder("checking latents", "Disconnect the VAE")
    for z in found:
        opened.model.check_latent_shape(tuple(z.shape))
    with opened.weights() as model:
        return [latents.to_wire(model, z) for z in found]


def _batch(found: Sequence[Tensor]) -> Tensor:
    sizes = Counter(tuple(each.shape[1:]) for each in found)
    if len(sizes) > 1:
        listed = ", ".join(f"{many} of {c} channels, {w}x{h}" for (c, h, w), many in sizes.most_common(4))
        raise ShapeError(
            f"these {len(found)} latents cannot be one batch, because their sizes differ: {listed}"
            f"{', ...' if len(sizes) > 4 else ''}. Set join to list, or choose images of one size."
        )
    return torch.cat(list(found))


def _report(
    folder: str, found: Latents, indices: range, samples: Sequence[Tensor], sample_mode: str, seed: int
) -> list[report.Line]:
    """What was loaded."""
    sizes = Counter(tuple(each.shape[1:]) for each in samples).most_common()
    listed = [Fact("report.size", count=many, channels=c, width=w, height=h) for (c, h, w), many in sizes[:_LISTED]]
    if len(sizes) > _LISTED:
        listed.append(report.counted("report.sizes.more", len(sizes) - _LISTED))
    conversions = {_conversion(found.scale(index)): None for index in indices}
    lines: list[report.Line] = [
        Fact("report.folder", folder=folder, kind=_kind(found)),
        report.counted("report.range", len(indices), first=indices[0], last=indices[-1], total=len(found)),
        Fact("report.sizes", sizes=listed),
        *(Fact("report.files.scaled", formula=each) if each else Fact("report.files.raw") for each in conversions),
    ]
    if isinstance(found, LatentDataset) and found.collection.settings.keep == "moments":
        lines.append(Fact(f"report.moments.{sample_mode}", seed=seed))
    return lines


def _kind(found: Latents) -> Fact:
    layout = "kohya" if isinstance(found, KohyaFiles) else found.collection.settings.layout
    return Fact(f"report.kind.{layout}")


def _conversion(scale: Scale) -> str | None:
    """The formula of latents in files; None where they are raw."""
    return None if scale.convention == "raw" else scale.formula
