"""What is an image's own fault is recorded and does not stop a run; anything else stops it, to be resumed."""

from __future__ import annotations

import errno
import io
import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import pytest
from given.collection import contents, encode, make_images, settings
from PIL import Image, ImageFile

from vae_core import AutoencoderKL, DatasetError
from vae_core.datasets import Collection, LatentDataset, LatentStream, decode_dataset, transfer
from vae_core.datasets.prepare import prepare
from vae_core.datasets.sources import find_splits, read_split
from vae_core.datasets.transfer import Raw, fetch


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_PAUSE", 0.0)


class GoneError(Exception):
    status = 410


def system(number: int) -> OSError:
    return OSError(number, "as the system says it")


# (where, what opening it raises) -> whether that is the image's own fault.
ERRORS: dict[str, tuple[str, Exception, bool]] = {
    **{f"a disk's {errno.errorcode[each]}": ("/disk/a.png", system(each), True) for each in
       (errno.ENOENT, errno.EISDIR, errno.EACCES, errno.ENOTDIR, errno.ENAMETOOLONG)},
    **{f"a disk's {errno.errorcode[each]}": ("/disk/a.png", system(each), False) for each in
       (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT)},
    "no object": ("s3://bucket/a.png", FileNotFoundError("a.png"), True),
    "a page that is gone": ("https://example.org/a.png", GoneError(), True),
    "an expired token": ("s3://bucket/a.png", PermissionError("The provided token has expired"), False),
    "a bucket of another's": ("s3://bucket/a.png", PermissionError(errno.EACCES, "Forbidden"), False),
    "a network": ("https://example.org/a.png", ConnectionResetError(errno.ECONNRESET, "reset"), False),
    "too many connections": ("https://example.org/a.png", system(errno.EMFILE), False),
    "a server's mistake": ("https://example.org/a.png", ValueError("not JSON"), False),
    "no memory": ("/disk/a.png", MemoryError(), False),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_reading(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url, error, is_of_the_image = ERRORS[name]
    asked: list[str] = []

    def opening(url: str) -> Any:
        asked.append(url)
        raise error

    monkeypatch.setattr(transfer, "_open", opening)
    if is_of_the_image:
        raw = fetch(url, "a.png")
        assert raw.data is None and raw.problem.startswith("cannot read it: ") and len(asked) == 1
        return
    with pytest.raises(DatasetError, match=r"after 4 attempts: .*run the same command with --resume"):
        fetch(url, "a.png")
    assert len(asked) == 4


@pytest.mark.parametrize("url", ["http://[bad", "https:///a.png", "http://host:99999/a.png", "a\0.png"])
def test_texts_that_are_not_addresses(url: str) -> None:
    """A row of a table may have anything; nothing is asked for it."""
    assert "cannot read it" in fetch(url, "a").problem


def test_a_disk_that_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, real, left = tmp_path / "a.png", transfer._open, [2]
    place.write_bytes(b"bytes")

    def opening(url: str) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise system(errno.EIO)
        return real(url)

    monkeypatch.setattr(transfer, "_open", opening)
    assert fetch(str(place), "a").data == b"bytes"


@pytest.mark.parametrize("target", [(ImageFile.ImageFile, "load"), (Image.Image, "resize"), (Image.Image, "convert")])
def test_memory_that_runs_out(
    target: tuple[Any, str], vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is recorded of the image that was read then; the run goes on where it stopped."""
    source = make_images(tmp_path / "source", 6)
    encode(source, tmp_path / "whole", vae, shard_images=3)

    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(*target, full)
        data = next(source.rglob("*.jpg")).read_bytes()
        with pytest.raises(DatasetError, match="memory ran out while a.jpg was read"):
            prepare(Raw("a.jpg", data), 0, settings(vae), 3)
        with pytest.raises(DatasetError, match="fewer --workers"):
            encode(source, tmp_path / "out", vae, shard_images=3)
    encode(source, tmp_path / "out", vae, shard_images=3, resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["tar", "csv", "parquet"])
def test_files_of_many_images_that_cannot_be_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write_source(tmp_path / f"a.{kind}")
    (split,) = find_splits(place, 10)
    place.unlink()
    with pytest.raises(DatasetError, match=r"cannot read .*No such file.*--resume"):
        list(read_split(split))


def write_source(place: Path, rows: int = 2) -> Path:
    """A tar, a table of paths or images, with two images, or an image."""
    place.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    if place.suffix == ".tar":
        with tarfile.open(place, "w") as tar:
            for i in range(rows):
                member = tarfile.TarInfo(f"{i}.png")
                member.size = len(buffer.getvalue())
                tar.addfile(member, io.BytesIO(buffer.getvalue()))
    elif place.suffix == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"jpg": pyarrow.array([buffer.getvalue()] * rows, "binary")}), place)
    elif place.suffix == ".csv":
        place.write_text("path\n" + "a.png\n" * rows)
    else:
        place.write_bytes(buffer.getvalue() if place.suffix == ".png" else b"{}")
    return place


# Names in a folder -> the kind that is read, and what the warning names beside it.
MIXTURES: dict[str, tuple[list[str], str, list[str]]] = {
    "img2dataset": (["00000.tar", "00000.parquet", "00000_stats.json"], "tar", ["1 tables"]),
    "tars and a preview": (["00000.tar", "00001.tar", "preview.png"], "tar", ["1 image files"]),
    "all": (["a.tar", "a.png", "b.png", "a.csv"], "tar", ["2 image files and 1 tables"]),
    "images and their captions": (["a.png", "metadata.csv"], "files", ["1 tables"]),
    "images": (["a.png", "a.txt"], "files", []),
    "tables": (["a.parquet", "b.csv"], "rows", []),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_folders_of_several_kinds(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("webdataset")
    names, kind, others = MIXTURES[name]
    for each in names:
        write_source(tmp_path / "source" / each)
    with caplog.at_level(logging.WARNING, logger="seamless_vae"):
        splits = find_splits(tmp_path / "source", 10)
    assert {split.kind for split in splits} == {kind}
    assert any(True for split in splits for _ in read_split(split)), "there is something to encode"
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(others)
    assert all(f"{other} beside them, which are not" in line for other, line in zip(others, said, strict=True))


@pytest.mark.parametrize("kind", ["tar", "parquet", "csv", "json"])
def test_a_source_without_images(kind: str, vae: AutoencoderKL, tmp_path: Path) -> None:
    write_source(tmp_path / "source" / f"a.{kind}", rows=0)
    with pytest.raises(DatasetError, match="has no images"):
        encode(tmp_path / "source", tmp_path / "out", vae)
    with pytest.raises(DatasetError):
        LatentDataset(tmp_path / "out")


def test_a_collection_among_the_images_is_not_read(vae: AutoencoderKL, tmp_path: Path) -> None:
    source = make_images(tmp_path / "source", 4)
    for name in ("one", "two"):
        assert encode(source, source / name, vae, layout="webdataset", alpha_mask=True)["images"] == 4


def test_a_record_that_is_missing(vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the workers of a cluster wrote elsewhere is not counted: no totals, and no reader takes it as whole."""
    source, out = make_images(tmp_path / "source", 9), tmp_path / "out"
    encode(source, tmp_path / "whole", vae, shard_images=3)
    real = Collection.commit

    def elsewhere(self: Collection, shard: Any) -> Any:
        place = self if shard.split != 1 else Collection(tmp_path / "elsewhere", self.manifest)
        return real(place, shard)

    with monkeypatch.context() as patched:
        patched.setattr(Collection, "commit", elsewhere)
        with pytest.raises(DatasetError, match=r"000001-0000.json is missing.*--resume.*all of them see"):
            encode(source, out, vae, shard_images=3)
    assert "totals" not in json.loads((out / "manifest.json").read_text())
    with pytest.raises(DatasetError, match="is not finished"):
        LatentDataset(out)
    encode(source, out, vae, shard_images=3, resume=True)
    assert contents(out) == contents(tmp_path / "whole")
    (out / "shards" / "000" / "000001-0000.json").unlink()
    with pytest.raises(DatasetError, match=r"000001-0000.json is missing"):
        list(decode_dataset(out, tmp_path / "images", vae))


def test_a_record_that_lost_an_image(vae: AutoencoderKL, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode(make_images(tmp_path / "source", 5), out, vae, shard_images=3)
    place = out / "shards" / "000" / "000000-0000.json"
    record = json.loads(place.read_text())
    del record["images"][1]
    place.write_text(json.dumps(record))
    dataset = LatentDataset(out)
    assert len(dataset) == 5
    for use in (lambda: dataset[0], lambda: dataset[2], lambda: dataset.image(1), lambda: list(LatentStream(out))):
        with pytest.raises(DatasetError, match=r"000000-0000.json has 2 images, but the list of shards says 3"):
            use()
    assert dataset[3]["key"] and dataset[4]["key"]


@pytest.mark.parametrize("place", ["s3://bucket/out", "gs://bucket/out", "file:///out", "s3:/bucket/out"])
def test_urls_are_not_folders(place: str, vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = make_images(tmp_path / "source", 3)
    with pytest.raises(DatasetError, match=f"{place} is a URL, and collections are written to folders"):
        encode(source, place, vae)  # type: ignore[arg-type]
    encode(source, Path("out"), vae)
    with pytest.raises(DatasetError, match=f"{place} is a URL"):
        list(decode_dataset("out", place, vae))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "source"]


def test_a_folder_is_the_same_from_everywhere(
    vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative one is made absolute at once: workers have other working directories."""
    source, begun = make_images(tmp_path / "source", 3), []
    real = Collection.commit
    monkeypatch.setattr(Collection, "commit", lambda self, shard: begun.append(self.out) or real(self, shard))
    monkeypatch.chdir(tmp_path)
    encode(source, Path("out"), vae)
    assert begun == [tmp_path / "out"]
