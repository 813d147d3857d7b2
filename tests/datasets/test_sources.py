"""Every kind of source gives the same images, and says what is wrong with it."""

from __future__ import annotations

import csv
import functools
import http.server
import io
import json
import shutil
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from given.collection import contents, encode, make_images

from vae_core import AutoencoderKL, DatasetError, MissingDependencyError
from vae_core.datasets import Engine, LatentDataset, transfer, verify_dataset
from vae_core.datasets.records import split_of
from vae_core.datasets.sources import find_splits, read_split

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("webdataset")
import pyarrow.parquet as parquet  # noqa: E402


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("source") / "few", 10)


@pytest.fixture(scope="module")
def files(few: Path) -> list[Path]:
    return sorted(place for place in few.rglob("*") if place.is_file())


@pytest.fixture(scope="module")
def expected(files: list[Path]) -> list[bytes]:
    return [place.read_bytes() for place in files]


def read(source: object, images: int = 4, column: str = "") -> tuple[list[str], list[bytes | None]]:
    """Keys and bytes of all images of a source."""
    splits = [split_of(json.loads(split.to_json())) for split in find_splits(str(source), images)]
    raws = [raw for split in splits for raw in read_split(split, column)]
    counts = [split.count for split in splits]
    assert None in counts or sum(count or 0 for count in counts) == len(raws)
    return [raw.key for raw in raws], [raw.data for raw in raws]


def make_tars(folder: Path, files: list[Path], per_tar: int = 4) -> Path:
    folder.mkdir(parents=True)
    for start in range(0, len(files), per_tar):
        with tarfile.open(folder / f"shard-{start // per_tar:03d}.tar", "w") as tar:
            for i, place in enumerate(files[start : start + per_tar], start):
                tar.add(place, f"{i:04d}{place.suffix}")
                caption = tarfile.TarInfo(f"{i:04d}.txt")
                caption.size = 5
                tar.addfile(caption, io.BytesIO(b"a cat"))
    return folder


def test_folder(few: Path, files: list[Path], expected: list[bytes], tmp_path: Path) -> None:
    keys, data = read(few)
    assert data == expected
    assert keys == [place.relative_to(few).as_posix() for place in files]
    assert read(f"{few}/")[0] == keys
    extra = shutil.copytree(few, tmp_path / "copy")
    (extra / ".hidden").mkdir()
    shutil.copy(files[0], extra / ".hidden" / "a.png")
    (extra / "notes.txt").write_text("text")
    assert read(extra) == (keys, data)


def test_glob_and_file(few: Path, files: list[Path], expected: list[bytes]) -> None:
    keys, data = read(f"{few}/*/*.png")
    wanted = [(place, each) for place, each in zip(files, expected, strict=True) if place.suffix == ".png"]
    assert data == [each for _, each in wanted]
    assert keys == [place.relative_to(few).as_posix() for place, _ in wanted]
    assert read(f"{few}/**/*.png") == (keys, data)
    assert read(files[0]) == ([files[0].name], [expected[0]])


def test_tars(files: list[Path], expected: list[bytes], tmp_path: Path) -> None:
    folder = make_tars(tmp_path / "tars", files)
    keys, data = read(folder)
    assert data == expected
    assert keys == [f"{i:04d}{place.suffix}" for i, place in enumerate(files)]
    for source in (f"{folder}/*.tar", f"{folder}/shard-{{000..002}}.tar"):
        assert read(source) == (keys, data)
    assert read(folder / "shard-001.tar")[1] == expected[4:8]


@pytest.mark.parametrize("kind", ["path", "bytes", "struct"])
def test_parquet(kind: str, files: list[Path], expected: list[bytes], tmp_path: Path) -> None:
    columns = {
        "path": {"path": [str(place) for place in files]},
        "bytes": {"jpg": expected},
        "struct": {"image": [{"bytes": each, "path": place.name} for place, each in zip(files, expected, strict=True)]},
    }[kind]
    place = tmp_path / "table.parquet"
    parquet.write_table(pyarrow.table({"caption": ["a cat"] * 10, **columns}), place, row_group_size=3)
    for images in (1, 4, 7, 100):
        assert read(place, images)[1] == expected, "as many row groups as have so many images"
    assert [split.count for split in find_splits(place, 4)] == [6, 4]
    name = next(iter(columns))
    assert read(place, column=name)[1] == expected
    with pytest.raises(DatasetError, match=r"no column 'picture'.*caption"):
        read(place, column="picture")


def test_csv_with_relative_paths(few: Path, files: list[Path], expected: list[bytes], tmp_path: Path) -> None:
    copy = shutil.copytree(few, tmp_path / "copy")
    with open(copy / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["caption", "file_name"])
        writer.writerows(["a cat", place.relative_to(few).as_posix()] for place in files)
    assert read(copy / "table.csv")[1] == expected
    (tmp_path / "bad.csv").write_text("caption,text\na,b\n")
    with pytest.raises(DatasetError, match="--column"):
        read(tmp_path / "bad.csv")


def test_a_csv_is_read_as_texts(files: list[Path], expected: list[bytes], tmp_path: Path) -> None:
    """Captions of several lines, and names that look like numbers until the last row, far behind the first block."""
    for i in range(3000):
        shutil.copy(files[0], tmp_path / str(i)) if i % 1000 == 0 else None
    shutil.copy(files[1], tmp_path / "last.jpg")
    with open(tmp_path / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["caption", "path"])
        writer.writerows([f"line {i},\n{'x' * 1000}", str(i)] for i in range(3000))
        writer.writerow(["", "last.jpg"])
    (split,) = find_splits(tmp_path / "table.csv", 4)
    assert split.count == 3001
    found = list(read_split(split, wanted=[0, 1000, 2000, 3000]))
    assert [raw.key for raw in found] == ["0", "1000", "2000", "last.jpg"]
    assert [raw.data for raw in found] == [expected[0]] * 3 + [expected[1]]


@pytest.mark.parametrize("kind", ["csv", "parquet", "tar"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.thorough
def test_each_row_is_read_once(
    kind: str, workers: int, files: list[Path], vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many shards it is divided into; and nothing before the place where a run goes on."""
    place = tmp_path / f"table.{kind}"
    if kind == "csv":
        place.write_text("path\n" + "".join(f"{file}\n" for file in files))
    elif kind == "parquet":
        parquet.write_table(pyarrow.table({"path": [str(file) for file in files]}), place, row_group_size=5)
    else:
        make_tars(tmp_path / "tars", files, per_tar=10)
        place = tmp_path / "tars" / "shard-000.tar"
    opened: list[str] = []
    real = transfer._open
    monkeypatch.setattr(transfer, "_open", lambda url: opened.append(url) or real(url))
    options: dict[str, Any] = {"shard_images": 2, "engine": Engine(workers=workers)}
    assert encode(place, tmp_path / "out", vae, **options) == encode(place, tmp_path / "other", vae, shard_images=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "other")
    found = verify_dataset(tmp_path / "out")
    # Each row group is a split of its own, of 5 rows: shards of 2, 2 and 1.
    assert (found.images, found.shards, found.faults) == (10, 6 if kind == "parquet" else 5, ())
    # Killed behind the second shard of each split, it goes on there.
    for record in (tmp_path / "out" / "shards").rglob("*.json"):
        if record.stem[-4:] >= "0002":
            record.unlink()
    opened.clear()
    encode(place, tmp_path / "out", vae, resume=True, **{**options, "engine": Engine(workers=0)})
    assert contents(tmp_path / "out") == contents(tmp_path / "other")
    images = [Path(url).name for url in opened if url != str(place)]
    wanted = {"csv": files[4:], "parquet": [files[4], files[9]], "tar": []}[kind]
    assert images == [file.name for file in wanted]
    assert opened.count(str(place)) == (2 if kind == "parquet" else 1)


def test_memory(files: list[Path], expected: list[bytes], few: Path) -> None:
    system = fsspec.filesystem("memory")
    for place, data in zip(files, expected, strict=True):
        system.pipe(f"/few/{place.relative_to(few).as_posix()}", data)
    try:
        assert read("memory://few")[1] == expected
        assert read("memory://few/part1/*.jpg")[1] == [
            data for place, data in zip(files, expected, strict=True) if place.match("part1/*.jpg")
        ]
    finally:
        system.rm("/few", recursive=True)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server's address, and the folder that it gives."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}", folder
        served.shutdown()


def test_http(
    server: tuple[str, Path], few: Path, files: list[Path], expected: list[bytes], vae: AutoencoderKL, tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp")
    address, folder = server
    shutil.copytree(few, folder / "few")
    make_tars(folder / "tars", files)
    parquet.write_table(pyarrow.table({"jpg": expected}), folder / "table.parquet")
    assert read(f"{address}/few/")[1] == expected
    assert read(f"{address}/tars/*.tar")[1] == expected
    assert read(f"{address}/tars/shard-000.tar")[1] == expected[:4]
    assert read(f"{address}/table.parquet")[1] == expected
    encode(f"{address}/few/", tmp_path / "remote", vae)
    encode(few, tmp_path / "local", vae)
    remote, local = LatentDataset(tmp_path / "remote"), LatentDataset(tmp_path / "local")
    assert len(remote) == len(local) == 10
    for theirs, ours in ((remote[i], local[i]) for i in range(10)):
        assert theirs["key"] == ours["key"]
        assert theirs["latents"].equal(ours["latents"])


def test_a_server_that_fails_ends_the_run_and_an_image_that_is_missing_does_not(
    server: tuple[str, Path], few: Path, files: list[Path], vae: AutoencoderKL, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(transfer, "_PAUSE", 0.0)
    address, folder = server
    shutil.copytree(few, folder / "few")
    names = [place.relative_to(few).as_posix() for place in files]
    (folder / "table.csv").write_text("url\n" + "\n".join(f"{address}/few/{name}" for name in [*names, "none.png"]))
    assert encode(f"{address}/table.csv", tmp_path / "out", vae)["failures"] == 1

    real, calls = Quiet.do_GET, []

    def failing(self: Quiet) -> None:
        calls.append(self.path)
        return self.send_error(503) if self.path.endswith(names[7]) else real(self)

    monkeypatch.setattr(Quiet, "do_GET", failing)
    with pytest.raises(DatasetError, match=r"after 4 attempts.*--resume"):
        encode(f"{address}/table.csv", tmp_path / "again", vae)
    assert len([path for path in calls if path.endswith(names[7])]) == 4
    monkeypatch.setattr(Quiet, "do_GET", real)
    encode(f"{address}/table.csv", tmp_path / "again", vae, resume=True)
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_a_tar_of_many_shards(files: list[Path], vae: AutoencoderKL, tmp_path: Path) -> None:
    """How many images a tar has shows only at its end; a run that stopped inside goes on there."""
    folder = make_tars(tmp_path / "tars", files, per_tar=6)
    totals = encode(folder, tmp_path / "out", vae, shard_images=2)
    assert (totals["images"], totals["shards"]) == (10, 5)
    whole = contents(tmp_path / "out")
    for name in list(whole):
        if "000000-0000" not in name and name not in ("manifest.json", "splits.jsonl"):
            (tmp_path / "out" / name).unlink()
    encode(folder, tmp_path / "out", vae, shard_images=2, resume=True)
    assert contents(tmp_path / "out") == whole


def test_damaged_tars(files: list[Path], vae: AutoencoderKL, tmp_path: Path) -> None:
    folder = make_tars(tmp_path / "tars", files)
    place = folder / "shard-001.tar"
    place.write_bytes(place.read_bytes()[: place.stat().st_size // 3])
    totals = encode(folder, tmp_path / "out", vae)
    assert 6 <= totals["images"] < 10 and totals["failures"] == 1
    assert "damaged from here on" in (tmp_path / "out" / "failures.jsonl").read_text()


def test_files_that_vanish_are_problems_of_their_own(few: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(few, tmp_path / "copy")
    splits = find_splits(copy, 100)
    gone = copy / splits[0].keys[3]
    gone.unlink()
    raws = list(read_split(splits[0]))
    assert [raw.key for raw in raws if raw.data is None] == [splits[0].keys[3]]
    assert "No such file" in raws[3].problem


@pytest.mark.parametrize(("package", "ending"), [("pyarrow", ".parquet"), ("pyarrow", ".csv"), ("webdataset", ".tar")])
def test_missing_extras(package: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"source{ending}").write_bytes(b"")
    for name in list(sys.modules):
        if name.partition(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"the package {package} is needed.*seamless-vae\[datasets\]"):
        find_splits(tmp_path / f"source{ending}", 10)
