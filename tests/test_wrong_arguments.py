"""Arguments of the wrong kind, of every public function: a sentence, before any work."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given.inputs import image, latent
from given.models import SMALL, make
from PIL import Image

import vae_core
from vae_core import AutoencoderKL, DiagonalGaussianDistribution, Options, TileSpec, VAEError
from vae_core.datasets import (
    LatentDataset,
    LatentStream,
    choose_settings,
    decode_dataset,
    encode_dataset,
    verify_dataset,
)
from vae_core.datasets.folders import open_folder
from vae_core.image import from_image, from_pil, open_image, to_numpy, write_image
from vae_core.metrics import psnr, ssim


class PathOfBytes(os.PathLike[bytes]):
    def __fspath__(self) -> bytes:
        return b"x"


class PathWithoutAName(os.PathLike[str]):
    def __fspath__(self) -> str:
        raise RuntimeError("not mounted")


ODD: dict[str, Any] = {
    "path of bytes": PathOfBytes(),
    "path without a name": PathWithoutAName(),
    **{"1": 1, "-1": -1, "1.5": 1.5, "nan": float("nan"), "True": True, "text": "x", "bytes": b"x"},
    **{"list": [1], "lists": [[]], "dict": {"a": 1}, "object": object(), "tensor": torch.zeros(1), "function": print},
}
VAE = make(SMALL)
Z, X = latent(1, 8, 8, model=VAE), image(1, 16, 16, model=VAE)
MOMENTS = torch.zeros(1, 8, 4, 4)


def _numbers_of_devices() -> str:
    """Which of `ODD` are devices to a torch that was built for accelerators."""
    try:
        torch.device(1)
    except RuntimeError:
        return ""
    return "1"


# What is called with a value of `ODD`, and the values that it takes.
CALLS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "decode, vae": (lambda v: vae_core.decode(v, Z), ""),
    "decode, z": (lambda v: vae_core.decode(VAE, v), ""),
    "encode, image": (lambda v: vae_core.encode(VAE, v), ""),
    "run, source": (lambda v: vae_core.prepare_decode(VAE, Z.shape).run(v), ""),
    "run, out": (lambda v: vae_core.prepare_decode(VAE, Z.shape).run(Z, out=v), ""),
    "run, progress": (lambda v: vae_core.prepare_decode(VAE, Z.shape).run(Z, progress=v), "function"),
    "decode, progress": (lambda v: vae_core.decode(VAE, Z, progress=v), "function"),
    "encode, progress": (lambda v: vae_core.encode(VAE, X, progress=v), "function"),
    "prepare_decode, shape": (lambda v: vae_core.prepare_decode(VAE, v), ""),
    "prepare_decode, options": (lambda v: vae_core.prepare_decode(VAE, Z.shape, v), ""),
    "prepare_encode, options": (lambda v: vae_core.prepare_encode(VAE, X.shape, v), ""),
    "prepare_decode, device": (lambda v: vae_core.prepare_decode(VAE, Z.shape, device=v), _numbers_of_devices()),
    "plan_encode, device": (lambda v: vae_core.plan_encode(VAE, X.shape, device=v), _numbers_of_devices()),
    "prepare_decode, available": (lambda v: vae_core.prepare_decode(VAE, Z.shape, available=v), "1 -1"),
    "Options, tiling": (lambda v: Options(tiling=v), ""),
    "Options, memory_budget": (lambda v: Options(memory_budget=v), "1"),
    "Options, circular": (lambda v: Options(circular=v), "text"),
    "Options, dtype": (lambda v: Options(dtype=v), ""),
    "Options, max_items": (lambda v: Options(max_items=v), "1"),
    "TileSpec, size": (lambda v: TileSpec(size=v), "1"),
    "TileSpec, overlap": (lambda v: TileSpec(overlap=v, mode="blended"), "1"),
    "TileSpec, mode": (lambda v: TileSpec(mode=v), ""),
    "kernels": (lambda v: vae_core.kernels(v).__enter__(), ""),
    "from_diffusers": (lambda v: vae_core.from_diffusers(v), ""),
    "load_vae, path": (lambda v: vae_core.load_vae(v), ""),
    "load_vae, dtype": (lambda v: vae_core.load_vae("no", dtype=v), ""),
    "load_vae, subfolder": (lambda v: vae_core.load_vae("no", subfolder=v), ""),
    "load_vae, variant": (lambda v: vae_core.load_vae("no", variant=v), ""),
    "inspect_vae, path": (lambda v: vae_core.inspect_vae(v), ""),
    "save_single_file, path": (lambda v: vae_core.save_single_file(VAE, v), "text"),
    "save_single_file, vae": (lambda v: vae_core.save_single_file(v, "no.safetensors"), ""),
    "save_pretrained, variant": (lambda v: VAE.save_pretrained("new", variant=v), "text"),
    "save_pretrained, max_shard_size": (lambda v: VAE.save_pretrained("new", max_shard_size=v), "1 1.5 new"),
    "save_pretrained, path": (lambda v: VAE.save_pretrained(v), "text"),
    "from_pretrained, path": (lambda v: AutoencoderKL.from_pretrained(v), ""),
    "from_single_file, path": (lambda v: AutoencoderKL.from_single_file(v), ""),
    "load_config, path": (lambda v: AutoencoderKL.load_config(v), ""),
    "open_image, path": (open_image, ""),
    "write_image, path": (lambda v: write_image(Image.new("RGB", (8, 8)), v), ""),
    "encode_dataset, source": (lambda v: encode_dataset(v, "out", VAE, choose_settings(VAE)), ""),
    "encode_dataset, out": (lambda v: encode_dataset("photos", v, VAE, choose_settings(VAE)), ""),
    "decode_dataset, out": (lambda v: list(decode_dataset(v, "images", VAE)), ""),
    "decode_dataset, images": (lambda v: list(decode_dataset("no", v, VAE)), ""),
    "verify_dataset, out": (verify_dataset, ""),
    "LatentDataset, out": (LatentDataset, ""),
    "LatentStream, out": (LatentStream, ""),
    "open_folder, folder": (open_folder, ""),
    "moments": (lambda v: DiagonalGaussianDistribution(v), ""),
    "sample, generator": (lambda v: DiagonalGaussianDistribution(MOMENTS).sample(v), ""),
    "sample, generators": (lambda v: DiagonalGaussianDistribution(MOMENTS).sample([v]), ""),
    "kl, other": (lambda v: DiagonalGaussianDistribution(MOMENTS).kl(v), ""),
    "nll, sample": (lambda v: DiagonalGaussianDistribution(MOMENTS).nll(v), ""),
    "tempered, temperature": (lambda v: DiagonalGaussianDistribution(MOMENTS).tempered(v), "1 1.5 True"),
    "repeated, count": (lambda v: DiagonalGaussianDistribution(MOMENTS).repeated(v), "1 True"),
    "from_pil, image": (from_pil, ""),
    "to_numpy, dtype": (lambda v: to_numpy(X, v), ""),
    "from_image, multiple": (lambda v: from_image(torch.zeros(1, 8, 8, 3), multiple=v), "1 True"),
    "psnr, data_range": (lambda v: psnr(X, X, v), "1 1.5 True"),
    "ssim, data_range": (lambda v: ssim(X, X, v), "1 1.5 True"),
}
NO_REMEDY = re.compile(r"object has no attribute|not callable|invalid combination|unsupported operand")


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_kind_is_refused(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, taken = CALLS[call]
    for name, value in ODD.items():
        if name in taken.split():
            continue
        with pytest.raises(VAEError) as caught:
            run(value)
        assert str(caught.value).endswith((".", ")", "!")) and not NO_REMEDY.search(str(caught.value)), name
    assert not [path for path in tmp_path.iterdir() if not taken]


OTHER_LATENTS = [(2, 2), (1, 4, 2, 2), (1, 3, 4, 4), (3, 4, 4, 4)]


@pytest.mark.parametrize("shape", OTHER_LATENTS)
def test_a_distribution_beside_other_latents(shape: tuple[int, ...]) -> None:
    """What would be broadcast to a number that means nothing is refused; one item goes with a batch."""
    two = DiagonalGaussianDistribution(MOMENTS.repeat(2, 1, 1, 1))
    assert two.nll(torch.zeros(1, 4, 4, 4)).shape == two.kl(DiagonalGaussianDistribution(MOMENTS)).shape == (2,)
    with pytest.raises(vae_core.ShapeError, match=r"the sample has the shape .* this one \(2, 4, 4, 4\)"):
        two.nll(torch.zeros(shape))
    if len(shape) == 4:
        other = DiagonalGaussianDistribution(torch.zeros(shape[0], 2 * shape[1], *shape[2:]))
        with pytest.raises(vae_core.ShapeError, match="the other distribution has the shape"):
            two.kl(other)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_whole_numbers_of_numpy(kind: type) -> None:
    options = Options(tiling=TileSpec(size=kind(4), overlap=kind(2), mode="blended"), max_items=kind(2))
    assert options == Options(tiling=TileSpec(size=4, overlap=2, mode="blended"), max_items=2)
    assert type(Options(memory_budget=kind(100)).memory_budget) is int
    once: Any = iter(Z.shape)
    assert vae_core.plan_decode(VAE, once) == vae_core.plan_decode(VAE, Z.shape)
