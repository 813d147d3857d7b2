"""Settings of the whole process change nothing of what is computed, loaded or written, and nothing changes them."""

from __future__ import annotations

import ast
import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given.command import photo, run
from given.files import ldm, write
from given.inputs import image, latent
from given.models import FLUX2_SMALL_DECODER, SMALL, make
from given.states import compare, faults
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vae_core
from vae_core import AutoencoderKL, DiagonalGaussianDistribution, TileSpec, inspect_vae, load_vae
from vae_core.checkpoints.layouts import EIGHT_BIT_FLOATS
from vae_core.image import from_numpy, to_numpy
from vae_core.latent import from_diffusion, logvar_to_diffusion, to_diffusion
from vae_core.masks import fit_mask
from vae_core.metrics import psnr, ssim

ROOT = Path(__file__).resolve().parents[1]
OF_THEIR_INPUT = {"torch.arange", "torch.randint", "torch.randperm"}  # whole numbers unless given others
MAKERS = {
    *("tensor", "zeros", "ones", "empty", "full", "linspace", "logspace", "eye", "rand", "randn", "empty_strided"),
    *("scalar_tensor", "hann_window", *(name.removeprefix("torch.") for name in OF_THEIR_INPUT)),
}


class Given:
    """Files, models and tensors, made before a state is set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.theirs = pytest.importorskip("diffusers").AutoencoderKL(**SMALL)
        self.vae, self.flux2 = make(SMALL), make(FLUX2_SMALL_DECODER)
        self.vae.save_pretrained(folder / "vae")
        self.vae.save_pretrained(folder / "shards", max_shard_size="200KB")
        self.vae.save_pretrained(folder / "bin", safe_serialization=False)
        self.flux2.save_pretrained(folder / "flux2")
        weights = ldm(self.vae)
        write(weights, folder / "ldm.safetensors")
        write({name: each.half() for name, each in weights.items()}, folder / "half.safetensors")
        write({name: each.bfloat16() for name, each in weights.items()}, folder / "bfloat16.safetensors")
        torch.save({"state_dict": weights}, folder / "ldm.ckpt")
        stored: dict[str, Tensor] = {}
        for name, each in weights.items():
            scale = each.abs().max() / 448
            is_kernel = each.ndim == 4
            stored[name] = (each / scale).to(EIGHT_BIT_FLOATS[0]) if is_kernel else each
            stored |= {f"{name.removesuffix('.weight')}.scale_weight": scale} if is_kernel else {}
        write(stored, folder / "scaled.safetensors")
        names = {name: each.permute(0, 2, 3, 1) if each.ndim == 4 else each for name, each in weights.items()}
        write(names, folder / "mlx.safetensors")
        normed = nn.utils.parametrizations.weight_norm(copy.deepcopy(self.vae.decoder.conv_in))
        kept = {name: each for name, each in weights.items() if name != "decoder.conv_in.weight"}
        lengths = {f"decoder.conv_in.{name}": each for name, each in normed.state_dict().items() if name != "bias"}
        write({**kept, **lengths}, folder / "norm.safetensors")
        self.z, self.x, self.z32 = latent(2, 12), image(1, 24), latent(1, 4, channels=32)
        self.moments = torch.randn(2, 8, 4, 6, generator=torch.Generator().manual_seed(5))
        photo(folder / "photo.png")
        save_file({"latents": self.z[:1].contiguous()}, folder / "z.safetensors")
        self.pickled = pickle.dumps(self.vae)
        self.mask = torch.rand(1, 9, 11, generator=torch.Generator().manual_seed(1))

    def out(self, name: str) -> Path:
        (self.folder / "out").mkdir(exist_ok=True)
        return self.folder / "out" / name


def weights(vae: Any) -> dict[str, Any]:
    return {
        **vae.state_dict(),
        "config": dict(vae.config),
        "grad": [weight.requires_grad for weight in vae.parameters()],
        "training": vae.training,
    }


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def content(path: Path) -> Any:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def _save(save: Callable[[Given, Path], Any], name: str) -> Callable[[Given], Any]:
    def entry(given: Given) -> Any:
        save(given, given.out(name))
        return content(given.out(name))

    return entry


def _command(*arguments: str, out: str) -> Callable[[Given], Any]:
    def entry(given: Given) -> Any:
        paths = [str(given.folder / each[1:]) if each.startswith("@") else each for each in arguments]
        assert run(*paths, "-o", given.out(out), "--vae", given.folder / "vae", "--overwrite") == 0
        if out.endswith(".png"):
            return np.asarray(Image.open(given.out(out))).tolist()
        return load_file(given.out(out))

    return entry


def adopted(given: Given) -> Any:
    return weights(vae_core.from_diffusers(given.theirs))


def ours(vae: Any, tiling_mode: Any) -> Any:
    """A copy that decodes in tiles of 4 latent pixels."""
    other = copy.copy(vae)
    other.tile_latent_min_size, other.tile_sample_min_size = 4, 8
    other.enable_tiling(mode=tiling_mode)
    return other


# Every way to get at something: loading, computing, writing.
ENTRIES: dict[str, Callable[[Given], Any]] = {
    **{
        f"load_vae {name}": lambda g, name=name: weights(load_vae(g.folder / name))
        for name in (
            *("vae", "shards", "bin", "flux2", "ldm.safetensors", "ldm.ckpt", "half.safetensors"),
            *("bfloat16.safetensors", "scaled.safetensors", "mlx.safetensors", "norm.safetensors"),
        )
    },
    "load_vae, float16": lambda g: weights(load_vae(g.folder / "ldm.safetensors", dtype="float16")),
    "load_vae, copied": lambda g: weights(load_vae(g.folder / "flux2", disable_mmap=True)),
    "from_pretrained": lambda g: weights(AutoencoderKL.from_pretrained(g.folder / "vae")),
    "from_pretrained, bfloat16": lambda g: weights(
        AutoencoderKL.from_pretrained(g.folder / "flux2", torch_dtype=torch.bfloat16)
    ),
    "from_single_file": lambda g: weights(AutoencoderKL.from_single_file(g.folder / "half.safetensors")),
    "from_single_file, a state dict": lambda g: weights(AutoencoderKL.from_single_file(g.vae.state_dict())),
    "from_pretrained, of other shapes": lambda g: [
        (each.dtype, each.device.type, each.requires_grad, each.isfinite().all().item())
        for each in AutoencoderKL.from_pretrained(
            g.folder / "vae", latent_channels=8, ignore_mismatched_sizes=True
        ).parameters()
    ],
    "inspect_vae": lambda g: str(inspect_vae(g.folder / "flux2")) + str(inspect_vae(g.folder / "scaled.safetensors")),
    "load_config": lambda g: AutoencoderKL.load_config(g.folder / "vae"),
    "from_diffusers": adopted,
    "deepcopy": lambda g: weights(copy.deepcopy(g.vae)),
    "pickle": lambda g: weights(pickle.loads(g.pickled)),
    "save_pretrained": _save(lambda g, path: g.flux2.save_pretrained(path), "folder"),
    "save_pretrained, bin": _save(lambda g, path: g.vae.save_pretrained(path, safe_serialization=False), "bin"),
    "save_single_file": _save(lambda g, path: vae_core.save_single_file(g.vae, path, dtype="float16"), "a.safetensors"),
    "encode": lambda g: vae_core.encode(g.vae, g.x).parameters,
    "decode": lambda g: vae_core.decode(g.vae, g.z),
    "decode, flux2": lambda g: vae_core.decode(g.flux2, g.z32),
    "decode, circular": lambda g: vae_core.decode(g.vae, g.z, circular="both"),
    "decode, blended": lambda g: vae_core.decode(g.vae, g.z, tiling=TileSpec(6, 2, "blended")),
    "decode, direct": lambda g: _direct(g),
    "decode, a budget": lambda g: vae_core.decode(g.vae, g.z, memory_budget=3 * 2**20),
    "decode, bfloat16": lambda g: vae_core.decode(g.vae, g.z, dtype=torch.bfloat16).float() * 1e-4,
    "a plan": lambda g: str(vae_core.plan_decode(g.vae, (1, 4, 32, 32), memory_budget=2**24).passes),
    "a job": lambda g: vae_core.prepare_encode(g.vae, g.x.shape).run(g.x),
    "model.encode": lambda g: g.vae.encode(g.x).latent_dist.parameters.detach(),
    "model.decode": lambda g: g.vae.decode(g.z).sample.detach(),
    "model.forward": lambda g: g.vae(g.x, sample_posterior=True, generator=seeded()).sample.detach(),
    "model.decode, tiles": lambda g: ours(g.vae, "exact").decode(g.z).sample.detach(),
    "model.decode, blended tiles": lambda g: ours(g.vae, "blended").decode(g.z).sample.detach(),
    "model.encode, blended tiles": lambda g: ours(g.vae, "blended").encode(g.x).latent_dist.mean.detach(),
    "posterior": lambda g: [
        (posterior := DiagonalGaussianDistribution(g.moments)).sample(seeded()),
        posterior.sample([seeded(), seeded()]),
        *(posterior.kl(), posterior.nll(posterior.mean), posterior.std, posterior.var),
        posterior.tempered(0.5).logvar,
        DiagonalGaussianDistribution(g.moments, deterministic=True).kl(),
    ],
    "scale": lambda g: [
        from_diffusion(to_diffusion(g.z, g.vae.config), g.vae.config),
        to_diffusion(g.z32, g.flux2.config, g.flux2.bn.running_mean, g.flux2.bn.running_var),
        logvar_to_diffusion(g.z, make_playground()),
        to_diffusion(g.z, make_playground()),
    ],
    "images": lambda g: [
        from_numpy(np.linspace(0, 1, 24 * 20 * 3, dtype=np.float32).reshape(24, 20, 3)).pixels,
        from_numpy(np.arange(24 * 20 * 4, dtype=np.uint8).reshape(24, 20, 4)).pixels,
        to_numpy(g.x).tolist(),
    ],
    "masks": lambda g: [fit_mask(g.mask, (9, 11)), fit_mask((g.mask[..., None] * 255).byte(), (18, 22))],
    "metrics": lambda g: [psnr(g.x, g.x * 0.9), ssim(g.x, g.x * 0.9)],
    "command encode": _command("encode", "@photo.png", out="z.safetensors"),
    "command decode": _command("decode", "@z.safetensors", out="a.png"),
}


def make_playground() -> Any:
    return vae_core.AutoencoderKLConfig(latents_mean=(0.1, 0.2, 0.3, 0.4), latents_std=(1.0, 2.0, 3.0, 4.0))


def _direct(given: Given) -> Tensor:
    with vae_core.kernels("direct"):
        return vae_core.decode(given.vae, given.z)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Given]:
    yield Given(tmp_path_factory.mktemp("states"))


@pytest.mark.parametrize("entry", ENTRIES)
def test_nothing_depends_on_the_process(entry: str, given: Given) -> None:
    def check(found: Any, expected: Any) -> None:
        compare(found, expected)
        made = [each for each in found.values() if isinstance(each, Tensor)] if "load" in entry else []
        assert not any(each.is_inference() for each in made), "weights of inference mode"

    obeyed = {"autocast"} if entry.startswith("model.") else set()  # as torch's modules do
    drawn = {"random"} if entry == "from_pretrained, of other shapes" else set()  # new weights are
    assert not faults(lambda: ENTRIES[entry](given), check, obeyed, drawn)


def test_every_tensor_is_made_of_a_type_and_on_a_device() -> None:
    """Where neither is said, they are those that the process has set."""
    said: set[str | None] = set()
    without = []
    for file in (*ROOT.glob("vae_core/**/*.py"), *ROOT.glob("nodes/**/*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            if not isinstance(call, ast.Call) or name.removeprefix("torch.") not in MAKERS or "torch." not in name:
                continue
            words = {each.arg for each in call.keywords}
            needed = {"device"} if name in OF_THEIR_INPUT else {"device", "dtype"}
            said |= words
            if None not in words and not needed <= words:  # None: of a dictionary that has them
                without.append(f"{file.relative_to(ROOT)}:{call.lineno} {ast.unparse(call)[:80]}")
    assert {"device", "dtype"} <= said and not without
