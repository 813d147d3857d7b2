"""Latents of every program, and hostile ones, on the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given.command import image_of, npz, photo, run, scaled, shaped, three_vaes, z_for
from safetensors.torch import save_file
from torch import Tensor

from vae_core import AutoencoderKL, load_vae
from vae_core.cli.latent_file import raw_latent, read_latents
from vae_core.latent import from_diffusion, pack, unpack


@pytest.fixture(scope="module")
def vaes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return three_vaes(tmp_path_factory.mktemp("vaes"))


KOHYA = {"original_size": np.array([48, 32]), "crop_ltrb": np.array([0, 0, 48, 32])}
MARK = {"latent_format_version_0": torch.tensor([])}
# name: (model, file name, options, what writes the file of raw z)
LATENTS: dict[str, tuple[str, str, list[str], Any]] = {
    "ComfyUI": ("sdxl", "a.latent", [], lambda vae, z, path: save_file({"latent_tensor": z, **MARK}, path)),
    "ComfyUI, early 2023": (
        "sdxl",
        "a.latent",
        [],
        lambda vae, z, path: save_file({"latent_tensor": z * 0.18215}, path),
    ),
    "no mark, but raw": ("sdxl", "a.latent", ["--raw"], lambda vae, z, path: save_file({"latent_tensor": z}, path)),
    "half": ("sdxl", "a.latent", [], lambda vae, z, path: save_file({"samples": z.half().double()}, path)),
    "one frame": ("sdxl", "a.latent", [], lambda vae, z, path: save_file({"samples": z[:, :, None]}, path)),
    "diffusers, scaled": (
        "sdxl",
        "a.safetensors",
        ["--scaled"],
        lambda vae, z, path: save_file({"latents": scaled(vae, z)}, path),
    ),
    "diffusers, shifted": (
        "flux1",
        "a.safetensors",
        ["--scaled"],
        lambda vae, z, path: save_file({"latents": scaled(vae, z)}, path),
    ),
    "diffusers, without its batch": (
        "sdxl",
        "a.safetensors",
        [],
        lambda vae, z, path: save_file({"latents": z[0]}, path),
    ),
    "diffusers, pickled": ("sdxl", "a.pt", [], lambda vae, z, path: torch.save({"latents": z}, path)),
    "scale given": (
        "sdxl",
        "a.safetensors",
        ["--scaled", "--scaling-factor", "0.5", "--shift-factor", "0.25"],
        lambda vae, z, path: save_file({"latents": (z - 0.25) * 0.5}, path),
    ),
    "family given": (
        "sdxl",
        "a.safetensors",
        ["--scaled", "--family", "SD 1.x"],
        lambda vae, z, path: save_file({"latents": z * 0.18215}, path),
    ),
    "FLUX.2, packed": (
        "flux2",
        "a.latent",
        [],
        lambda vae, z, path: save_file({"latent_tensor": scaled(vae, z), **MARK}, path),
    ),
    "FLUX.2, packed, no mark": (
        "flux2",
        "a.latent",
        [],
        lambda vae, z, path: save_file({"samples": scaled(vae, z)}, path),
    ),
    "FLUX.2, packed, without a mark of who made it": (
        "flux2",
        "a.safetensors",
        [],
        lambda vae, z, path: save_file({"latents": scaled(vae, z)}, path),
    ),
    "FLUX.2, packed, one frame": (
        "flux2",
        "a.latent",
        [],
        lambda vae, z, path: save_file({"latent_tensor": scaled(vae, z)[:, :, None], **MARK}, path),
    ),
    "FLUX.2, packed, early mark": (
        "flux2",
        "a.latent",
        [],
        lambda vae, z, path: save_file({"latent_tensor": scaled(vae, z)}, path),
    ),
    "FLUX.2, raw": ("flux2", "a.latent", [], lambda vae, z, path: save_file({"latent_tensor": z, **MARK}, path)),
    "no name, pickled": ("sdxl", "a.pt", [], lambda vae, z, path: torch.save(z, path)),
    "no name nor batch": ("sdxl", "a.pt", [], lambda vae, z, path: torch.save(z[0], path)),
    "no name, scaled": ("sdxl", "a.pt", ["--scaled"], lambda vae, z, path: torch.save(scaled(vae, z), path)),
    "NumPy": ("sdxl", "a.npy", [], lambda vae, z, path: np.save(path, z.numpy())),
    "NumPy, columns first": ("sdxl", "a.npy", [], lambda vae, z, path: np.save(path, np.asfortranarray(z.numpy()))),
    "NumPy, the other byte order": (
        "sdxl",
        "a.npy",
        [],
        lambda vae, z, path: np.save(path, z.numpy().astype(">f4")),
    ),
    "NumPy, several, the other byte order": (
        "sdxl",
        "a.npz",
        [],
        lambda vae, z, path: npz(path, latents=z.numpy().astype(">f8")),
    ),
    "NumPy, several": ("sdxl", "a.npz", [], lambda vae, z, path: npz(path, latents=z.numpy())),
    "NumPy, no name": ("sdxl", "a.npz", [], lambda vae, z, path: np.savez(path, z.numpy())),
    "ComfyUI, pickled": (
        "sdxl",
        "a.pt",
        [],
        lambda vae, z, path: torch.save({"samples": z, "batch_index": [0], "noise_mask": torch.zeros(1, 8, 8)}, path),
    ),
    "a trainer's latent": ("sdxl", "a.pt", [], lambda vae, z, path: torch.save({"latent_image": z[0]}, path)),
    "a trainer's frames": (
        "sdxl",
        "a.safetensors",
        [],
        lambda vae, z, path: save_file({"latents_1x4x6_float32": z[0][:, None]}, path),
    ),
    "kohya, SDXL": ("sdxl", "a_0048x0032_sdxl.npz", [], lambda vae, z, path: npz(path, latents=z[0].numpy(), **KOHYA)),
    "kohya, FLUX.1": (
        "flux1",
        "a_0048x0032_flux.npz",
        [],
        lambda vae, z, path: npz(
            path, latents_4x6=scaled(vae, z)[0].numpy(), **{f"{key}_4x6": value for key, value in KOHYA.items()}
        ),
    ),
    "kohya, FLUX.1, renamed": (
        "flux1",
        "a.npz",
        [],
        lambda vae, z, path: npz(path, latents=scaled(vae, z)[0].numpy(), **KOHYA),
    ),
}


@pytest.mark.parametrize("name", LATENTS)
def test_latents_of_others_decode_to_the_same_image(
    name: str, vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    which, file, options, write = LATENTS[name]
    vae = load_vae(vaes[which])
    z = z_for(vae)
    write(vae, z, tmp_path / file)
    assert run("decode", tmp_path / file, "-o", tmp_path / "image.png", "--vae", vaes[which], *options) == 0
    with torch.no_grad():
        expected = (vae.decode(z).sample[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255
    difference = image_of(tmp_path / "image.png").astype(int) - expected.round().int().numpy()
    assert np.abs(difference).max() <= 1  # one step of a byte: scaling and back rounds
    assert "packed" not in name or "taken as raw" not in capsys.readouterr().err


def unpacked(vae: AutoencoderKL, stored: Tensor) -> Tensor:
    patch = vae.config.patch_size
    return unpack(stored, patch) if patch is not None and stored.shape[1] != vae.config.latent_channels else stored


def from_scaled(vae: AutoencoderKL, stored: Tensor) -> Tensor:
    patch = vae.config.patch_size
    if patch is None:
        return from_diffusion(stored, vae.config)
    packed = stored if stored.shape[1] != vae.config.latent_channels else pack(stored, patch)
    return from_diffusion(packed, vae.config, vae.bn.running_mean, vae.bn.running_var)


@pytest.mark.parametrize(("option", "raw_of"), [("--raw", unpacked), ("--scaled", from_scaled)])
@pytest.mark.parametrize("name", [name for name, (_, _, options, _) in LATENTS.items() if len(options) < 2])
def test_what_an_option_says_of_latents_wins_over_every_file(
    name: str, option: str, raw_of: Callable[[AutoencoderKL, Tensor], Tensor], vaes: dict[str, Path], tmp_path: Path
) -> None:
    """The numbers as they are in the file; only that they are packed shows in their shape."""
    which, file, _, write = LATENTS[name]
    vae = load_vae(vaes[which])
    write(vae, z_for(vae), tmp_path / file)
    [latent] = read_latents(tmp_path / file)
    expected = raw_of(vae, latent.z)
    assert expected.shape == z_for(vae).shape
    assert torch.allclose(raw_latent(latent, vae, option.removeprefix("--")), expected, rtol=1e-6, atol=1e-6)  # type: ignore[arg-type]
    assert run("decode", tmp_path / file, "-o", tmp_path / "image.png", "--vae", vaes[which], option) == 0
    with torch.no_grad():
        pixels = (vae.decode(expected).sample[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255
    assert np.abs(image_of(tmp_path / "image.png").astype(int) - pixels.round().int().numpy()).max() <= 1  # rounding


def test_an_unknown_scale_is_reported(
    vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"latents": torch.randn(1, 4, 4, 4)}, tmp_path / "a.safetensors")
    assert run("decode", tmp_path / "a.safetensors", "-o", tmp_path / "a.png", "--vae", vaes["sdxl"]) == 0
    assert "taken as raw; pass --scaled" in capsys.readouterr().err


def test_tokens_of_flux_say_how_to_unpack_them(
    vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(torch.zeros(1, 6, 64), tmp_path / "a.pt")
    assert run("decode", tmp_path / "a.pt", "-o", tmp_path / "a.png", "--vae", vaes["flux1"]) == 1
    assert "6 tokens of 64 channels, as FLUX's pipelines give them" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["images", "images.v2", "x.exr"])
def test_a_name_without_an_images_ending_says_what_to_write(
    out: str, vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`-o images` for a folder that is not there yet."""
    save_file({"samples": torch.zeros(2, 4, 4, 4)}, tmp_path / "a.latent")
    assert run("decode", tmp_path / "a.latent", "-o", tmp_path / out, "--vae", vaes["sdxl"]) == 1
    said = capsys.readouterr().err
    assert "not have the ending of an image format. Name it .png, .jpg or .webp" in said
    assert ("For a folder, write" in said) == (out == "images")
    assert not list(tmp_path.glob("images*")) and not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("ending", [".pt", ".ckpt", ".npz", ".npy", ".json", ".bin", ".gguf"])
def test_latents_are_not_written_under_the_name_of_another_format(
    ending: str, vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"a{ending}"
    assert run("encode", photo(tmp_path / "a.png"), "-o", out, "--vae", vaes["sdxl"]) == 1
    assert f"{ending} files are not written. Latents are safetensors" in capsys.readouterr().err and not out.exists()


def test_what_is_not_a_file_of_latents_is_not_asked_to_be_a_vae(
    vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "objects.npy", np.array([None], dtype=object))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    for path in (photo(tmp_path / "photo.png"), tmp_path / "objects.npy", tmp_path / "text.npy"):
        assert run("decode", path, "-o", tmp_path / "b.png", "--vae", vaes["sdxl"]) == 1
        said = capsys.readouterr().err
        assert "as latents" in said and "ComfyUI or diffusers wrote" in said and "unexpected" not in said
        assert "Give the file of a VAE" not in said and "Get the VAE" not in said


@pytest.mark.parametrize(("value", "says"), [("inf", "give a finite number."), ("nan", "give a finite number.")])
def test_a_shift_that_is_not_a_number(
    value: str, says: str, vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("convert", vaes["sdxl"], tmp_path / "out", "--shift-factor", value) == 1
    assert says in capsys.readouterr().err


HOSTILE: dict[str, tuple[dict[str, Tensor], dict[str, str]]] = {
    "number in a name": ({"latent_tensor.x": torch.zeros(1, 4, 4, 4)}, {}),
    "long number": ({f"latent_tensor.{'9' * 5000}": torch.zeros(1, 4, 4, 4)}, {}),
    "video": (shaped(1, 4, 3, 4, 4), {}),
    "sound": (shaped(1, 4, 4), {}),
    "nothing in it": (shaped(0, 4, 4, 4), {}),
    "no height": (shaped(1, 4, 0, 4), {}),
    "integers": (shaped(1, 4, 4, 4, dtype=torch.int64), {}),
    "other channels": (shaped(1, 7, 4, 4), {}),
    "opacity of floats": ({**shaped(1, 4, 4, 4), "alpha.0": torch.zeros(4, 4)}, {}),
    "opacity of another size": ({**shaped(1, 4, 4, 4), "alpha.0": torch.zeros(4, 4, dtype=torch.uint8)}, {}),
    "NaN": ({"latent_tensor": torch.full((1, 4, 4, 4), float("nan")), **MARK}, {}),
    **{
        f"metadata {text[:20]}": (shaped(1, 4, 4, 4), {"seamless_vae": text})
        for text in [
            *("", "[]", "1", "null", '{"sizes": 3, "names": [null]}', '{"sizes": [[1]], "names": ["a"]}'),
            *('{"sizes": [[-1, 8]], "names": ["a"]}', '{"sizes": [["8", 8]], "names": ["a"]}', "[" * 100_000),
            *('{"sizes": [[1e400, 8]], "names": ["a"]}', '{"sizes": [[8, 8]], "names": [{}]}', '{"sizes": {}}'),
            '{"sizes": [[8, ' + "9" * 5000 + ']], "names": ["a"]}',
        ]
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_latent_files(
    name: str, vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, metadata = HOSTILE[name]
    save_file(tensors, tmp_path / "a.latent", metadata)
    assert run("decode", tmp_path / "a.latent", "-o", tmp_path / "a.png", "--vae", vaes["sdxl"]) == 1
    said = capsys.readouterr().err
    assert "error: " in said and "unexpected" not in said
    assert not (tmp_path / "a.png").exists()


def test_damaged_latent_files(vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z = torch.zeros(1, 4, 4, 4)
    whole = {"a.npz": b"", "a.latent": b"", "a.pt": b""}
    npz(tmp_path / "a.npz", latents=z[0].numpy(), **KOHYA)
    save_file({"samples": z}, tmp_path / "a.latent")
    torch.save({"latents": z}, tmp_path / "a.pt")
    for name in whole:
        content = (tmp_path / name).read_bytes()
        for seed in range(40):
            damaged = bytearray(content)
            for place in np.random.default_rng(seed).integers(0, len(content), 3):
                damaged[place] ^= 0xFF
            (tmp_path / name).write_bytes(damaged[: len(damaged) - (seed % 2) * seed])
            run("decode", tmp_path / name, "-o", tmp_path / "a.png", "--vae", vaes["sdxl"], "--overwrite")
            assert "unexpected" not in capsys.readouterr().err, (name, seed)
    wrong = {tmp_path: "it is a folder", tmp_path / "none": "it does not exist", photo(tmp_path / "photo.png"): ""}
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        wrong[tmp_path / "pipe"] = "it is not a file"
    for path, why in wrong.items():
        assert run("decode", path, "-o", tmp_path / "b.png", "--vae", vaes["sdxl"]) == 1
        said = capsys.readouterr().err
        assert "cannot read" in said and why in said


TARGETS = {"one.jpg": "mode RGBA", "all.bmp": "transparency", "all.xyz": "the ending of an image format"}


@pytest.mark.parametrize("name", [*TARGETS, "file/all.png", "file/below/all.png"])
def test_targets_that_cannot_be_written(
    name: str, vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Refused before the first latent is decoded, though only the last one has transparency."""
    opacity = torch.zeros(32, 32, dtype=torch.uint8)
    save_file({**shaped(2, 4, 4, 4), "alpha.1": opacity}, tmp_path / "a.latent")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr("vae_core.cli.decode.decode_latent", lambda *_: pytest.fail("it was decoded"))
    assert run("decode", tmp_path / "a.latent", "-o", tmp_path / name, "--vae", vaes["sdxl"]) == 1
    assert TARGETS.get(name, "which is a file and no folder") in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.latent", "file"]


def test_names_that_are_one_to_some_file_systems(vaes: dict[str, Path], tmp_path: Path) -> None:
    """Capitals, and accents as one character or two."""
    names = ["\u00e9", "e\u0301", "\u00c9"]
    sizes = [[32, 32]] * 3
    metadata = {"seamless_vae": json.dumps({"names": names, "sizes": sizes})}
    save_file(shaped(3, 4, 4, 4), tmp_path / "a.latent", metadata)
    assert run("decode", tmp_path / "a.latent", "-o", f"{tmp_path}/", "--vae", vaes["sdxl"]) == 0
    assert {path.stem[-2:] for path in tmp_path.glob("*.png")} == {"-0", "-1", "-2"}
