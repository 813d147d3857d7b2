"""A pipe, a socket, a device, a folder or a loop of links in the place of any file that is read: an answer soon.

Either a sentence, or what is right without that file.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from given.collection import encode, make_images, small_vae
from given.files import ldm, write
from given.special_files import make_socket

import vae_core
from vae_core import AutoencoderKL, VAEError
from vae_core.cli import main
from vae_core.datasets import LatentDataset, LatentStream, decode_dataset, verify_dataset
from vae_core.datasets.folders import open_folder
from vae_core.image import open_image

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such files")
SECONDS = 5  # a busy machine's; one that waits, waits for ever


KINDS: dict[str, Callable[[Path], Any]] = {
    "a pipe": os.mkfifo,
    "a link to a pipe": lambda place: (os.mkfifo(f"{place}.pipe"), place.symlink_to(f"{place}.pipe")),
    "a socket": make_socket,
    "a device without an end": lambda place: place.symlink_to("/dev/zero"),
    "a device without anything": lambda place: place.symlink_to("/dev/null"),
    "a folder": Path.mkdir,
    "a link to itself": lambda place: place.symlink_to(place.name),
    "a file of the kernel's that waits": lambda place: place.symlink_to("/proc/kmsg"),
}
OFTEN, THOROUGH = ("a pipe", "a device without an end"), pytest.mark.thorough


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return small_vae()


@pytest.fixture(scope="module")
def honest(vae: AutoencoderKL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every reader below reads, before one of its files is another one."""
    folder = tmp_path_factory.mktemp("honest")
    vae.save_pretrained(folder / "model")
    vae.save_pretrained(folder / "shards", max_shard_size=30_000)
    vae.save_pretrained(folder / "pickles", max_shard_size=30_000, safe_serialization=False)
    (folder / "file").mkdir()
    write(ldm(vae), folder / FILE)
    (folder / "file" / "config.json").write_bytes((folder / "model" / "config.json").read_bytes())
    (folder / "original.yaml").write_text("model: {params: {scale_factor: 0.2}}")
    images = make_images(folder / "images", 2)
    shutil.copytree(images, folder / "kohya")
    encode(images, folder / "collection", vae)
    encode(folder / "kohya", folder / "kohya", vae, layout="kohya", kohya="sd")
    cached = folder / "cache" / "models--org--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    shutil.copytree(folder / "model", cached / "snapshots" / "abc")
    ran("encode", folder / IMAGE, "-o", folder / "z.latent")
    return folder


def read_all(dataset: Any) -> int:
    return sum(1 for each in dataset if each["latents"] is not None)


def ran(*arguments: object) -> None:
    """Raise what a command says, if it fails."""
    if main([str(each) for each in arguments]):
        raise VAEError("said")


def collection(folder: Path) -> None:
    dataset = LatentDataset(folder)
    assert [dataset[i] for i in range(len(dataset))]


def cached(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_HUB_CACHE", str(folder / "cache"))
        vae_core.load_vae(folder / "cache" / "models--org--name")


# What is replaced, below the folder -> who reads it.
FILE = "file/a.safetensors"
IMAGE = "images/part0/image0000.png"
MODEL = "model/diffusion_pytorch_model.safetensors"
READERS: list[tuple[str, Callable[[Path], Any]]] = [
    (MODEL, lambda folder: vae_core.load_vae(folder / MODEL)),
    (MODEL, lambda folder: vae_core.load_vae(folder / "model")),
    (MODEL, lambda folder: vae_core.inspect_vae(folder / MODEL)),
    (MODEL, lambda folder: AutoencoderKL.from_pretrained(folder / "model")),
    (MODEL, lambda folder: AutoencoderKL.from_single_file(folder / MODEL)),
    (MODEL, lambda folder: ran("info", folder / MODEL)),
    (MODEL, lambda folder: ran("convert", folder / MODEL, folder / "out.safetensors")),
    *[
        ("model/config.json", each)
        for each in (
            lambda folder: vae_core.load_vae(folder / "model"),
            lambda folder: vae_core.load_vae(folder / MODEL),
            lambda folder: vae_core.inspect_vae(folder / "model"),
            lambda folder: vae_core.inspect_vae(folder / MODEL),
            lambda folder: AutoencoderKL.load_config(folder / "model"),
            lambda folder: AutoencoderKL.from_single_file(folder / MODEL, config=str(folder / "model")),
            lambda folder: vae_core.load_vae(folder / FILE, config=folder / "model" / "config.json"),
            lambda folder: vae_core.load_vae(folder / FILE).save_pretrained(folder / "model"),
            lambda folder: ran("convert", folder / "file", folder / "model", "--overwrite"),
        )
    ],
    ("file/config.json", lambda folder: vae_core.load_vae(folder / FILE)),
    ("file/config.json", lambda folder: vae_core.inspect_vae(folder / FILE)),
    *[
        (f"{form}/diffusion_pytorch_model{name}", lambda folder, form=form: vae_core.load_vae(folder / form))
        for form, name in (
            ("shards", ".safetensors.index.json"),
            ("shards", "-00001-of-*.safetensors"),
            ("pickles", ".bin.index.json"),
            ("pickles", "-00001-of-*.bin"),
        )
    ],
    (
        "original.yaml",
        lambda folder: AutoencoderKL.from_single_file(folder / FILE, original_config=folder / "original.yaml"),
    ),
    (IMAGE, lambda folder: open_image(folder / IMAGE)),
    (IMAGE, lambda folder: ran("encode", folder / IMAGE, "-o", folder / "a.latent")),
    (IMAGE, lambda folder: ran("roundtrip", folder / IMAGE, "--out", folder)),
    ("z.latent", lambda folder: ran("decode", folder / "z.latent", "-o", folder / "c.png")),
    *[
        (f"collection/{name}", each)
        for name in (
            *("manifest.json", "splits.jsonl", "shards.jsonl", "failures.jsonl"),
            *("shards/000/*.json", "shards/000/*.safetensors"),
        )
        for each in (
            lambda folder: collection(folder / "collection"),
            lambda folder: read_all(LatentStream(folder / "collection")),
            lambda folder: verify_dataset(folder / "collection"),
            lambda folder: open_folder(folder / "collection"),
            lambda folder: list(decode_dataset(folder / "collection", folder / "decoded", small_vae())),
        )
    ],
    *[
        (f"kohya/{name}", each)
        for name in ("part*/*.npz", ".seamless_vae/sd/manifest.json", ".seamless_vae/sd/shards/000/*.json")
        for each in (
            lambda folder: open_folder(folder / "kohya"),
            lambda folder: verify_dataset(folder / "kohya"),
            lambda folder: encode(folder / "kohya", folder / "new", small_vae()),
        )
    ],
    ("cache/models--org--name/refs/main", cached),
    ("cache/models--org--name/snapshots/abc/config.json", cached),
]


class Waits(BaseException):
    """Nothing that a reader may take for the file's fault."""


@contextmanager
def soon(seconds: float) -> Iterator[None]:
    def waited(*_: object) -> None:
        raise Waits

    before = signal.signal(signal.SIGALRM, waited)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_without_them_all_is_read(honest: Path, tmp_path: Path) -> None:
    for i, (_, read) in enumerate(READERS):
        shutil.copytree(honest, tmp_path / str(i))
        read(tmp_path / str(i))


@pytest.mark.parametrize("kind", [kind if kind in OFTEN else pytest.param(kind, marks=THOROUGH) for kind in KINDS])
@pytest.mark.parametrize(("pattern", "read"), READERS, ids=[f"{i} {pattern}" for i, (pattern, _) in enumerate(READERS)])
@pytest.mark.filterwarnings("ignore")
def test_an_answer_soon(pattern: str, read: Callable[[Path], Any], kind: str, honest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(honest, folder)
    replaced = sorted(folder.glob(pattern))
    assert replaced
    place = replaced[0]
    place.unlink()
    KINDS[kind](place)
    with soon(SECONDS):
        try:
            read(folder)
        except VAEError as error:
            assert len(str(error)) < 1000
