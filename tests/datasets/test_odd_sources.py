"""Sources with names, files and answers that are not the usual ones: each image is read, or listed with its reason."""

from __future__ import annotations

import errno
import functools
import http.server
import io
import json
import logging
import os
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from given.collection import encode
from given.special_files import make_socket
from PIL import Image

from vae_core import AutoencoderKL, DatasetError
from vae_core.datasets import LatentDataset, decode_dataset, transfer, verify_dataset
from vae_core.datasets.folders import open_folder
from vae_core.datasets.records import split_of
from vae_core.datasets.sources import find_splits, read_split


def png(size: tuple[int, int] = (64, 64), colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()


def read(source: object, column: str = "") -> dict[str, bytes | str]:
    """Key -> bytes, or why there are none."""
    splits = [split_of(json.loads(split.to_json())) for split in find_splits(str(source), 10, column)]
    raws = [raw for split in splits for raw in read_split(split, column)]
    return {raw.key: raw.problem if raw.data is None else raw.data for raw in raws}


# Names that have a meaning in URLs, patterns, shells or other systems, and none in a folder.
NAMES = [
    "what?.png", "a#b.png", "st*r.png", "[ab].png", "{a,b}.png", "{1..3}.png", "a::b.png", "zip::memory.png",
    "-dash.png", "a b .png", "new\nline.png", "per%20cent.png", "\U0001f600\u00e9.png", "e\u0301.png", "~tilde.png",
    "UP.PNG", "a..png", "$HOME.png", "\u202ertl.png", "quote\"'.png", "12:30.png", "http:/x.png", "a&b=c;d.png",
    os.fsdecode(b"\xff\xfe.png"),
]  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="a file cannot have these names")
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names(name: str, tmp_path: Path) -> None:
    """Of a file, and of a folder; as a source itself, in one, before a pattern, behind file://, and in a table."""
    inside, folder = tmp_path / "in" / name, tmp_path / name.partition("/")[0].removesuffix(".png")
    for place in (inside, folder / "a.png"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(PNG)
    assert read(tmp_path / "in") == read(f"file://{tmp_path}/in") == {name: PNG}
    assert read(inside) == {inside.name: PNG}
    assert read(folder) == read(f"{folder}/*.png") == {"a.png": PNG}
    if name.isprintable() and '"' not in name and name == name.strip():
        pytest.importorskip("pyarrow")
        (tmp_path / "in" / "table.csv").write_text(f'path\n"{name}"\n', encoding="utf-8")
        assert read(tmp_path / "in" / "table.csv") == {name: PNG}


def test_names_of_tables_and_tars(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("webdataset")
    import tarfile

    (tmp_path / "a.png").write_bytes(PNG)
    for i, stem in enumerate(("what?", "a::b", "{a,b}")):
        table = tmp_path / f"{stem}.CSV"
        table.write_text("path\na.png\n")
        assert read(table) == {"a.png": PNG}
        tar = tmp_path / f"{stem}{i}.tar"
        with tarfile.open(tar, "w") as file:
            file.add(tmp_path / "a.png", "a.png")
        assert read(tar) == {"a.png": PNG}


NOT_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pipe": (lambda place: os.mkfifo(place), "a pipe, not a regular file"),
    "a socket": (make_socket, "a socket, not a regular file"),
    "a device without an end": (lambda place: place.symlink_to("/dev/zero"), "a device, not a regular file"),
    "a link to nothing": (lambda place: place.symlink_to("nowhere"), "No such file"),
    "a link to itself": (lambda place: place.symlink_to(place.name), "symbolic links"),
    "a link to a folder": (lambda place: place.symlink_to("."), "directory"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such files")
@pytest.mark.parametrize("name", NOT_FILES)
def test_what_is_not_a_file(name: str, tmp_path: Path) -> None:
    make, reason = NOT_FILES[name]
    make(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(PNG)
    found = read(tmp_path)
    assert found.pop("b.png") == PNG
    assert reason in str(found.pop("a.png")) and not found


def test_links_to_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are not followed, which might never end, and that is said; a source may be one itself."""
    for place in ("real/a.png", "source/b.png"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_bytes(PNG)
    (tmp_path / "source" / "linked").symlink_to("../real")
    (tmp_path / "source" / "loop").symlink_to(".")
    with caplog.at_level(logging.WARNING, logger="seamless_vae"):
        assert list(read(tmp_path / "source")) == ["b.png"]
    assert "2 links to folders" in caplog.text and "not followed" in caplog.text
    assert list(read(tmp_path / "source" / "linked")) == ["a.png"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EIO])
@pytest.mark.parametrize("source", ["{}", "{}/**/*.png", "local://{}"])
def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(
    number: int, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("open/a.png", "closed/b.png"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_bytes(PNG)
    cache = tmp_path / "closed" / "b_0008x0008_sd.npz"
    cache.write_bytes(b"")
    scandir = os.scandir

    def failing(path: Any) -> Any:
        if "closed" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(DatasetError, match=rf"closed cannot be listed: {os.strerror(number)}"):
        read(source.format(tmp_path))
    with pytest.raises(DatasetError, match=rf"closed cannot be listed: {os.strerror(number)}"):
        open_folder(tmp_path)


def test_archives_and_caches(tmp_path: Path) -> None:
    """What fsspec opens with another link of a chain is opened with it each time."""
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name in ("a.png", "in/b.png", "in/what?.png"):
            archive.writestr(name, PNG)
        archive.writestr("in/table.csv", "path\nb.png\n")
    behind = f"::{tmp_path}/photos.zip"
    assert read(f"zip://**/*.png{behind}") == dict.fromkeys(("a.png", "in/b.png", "in/what?.png"), PNG)
    assert read(f"zip://in{behind}") == dict.fromkeys(("b.png", "what?.png"), PNG)
    assert read(f"zip://a.png{behind}") == {"a.png": PNG}
    pytest.importorskip("pyarrow")
    assert read(f"zip://in/table.csv{behind}") == {"b.png": PNG}
    fsspec.filesystem("memory").pipe({"/odd/a.png": PNG, "/odd/what?.png": PNG})
    try:
        expected = dict.fromkeys(("a.png", "what?.png"), PNG)
        assert read("memory://odd") == read("simplecache::memory://odd") == expected
    finally:
        fsspec.filesystem("memory").rm("/odd", recursive=True)


SOURCES = {
    "": "the source has no name",
    "  ": "the source has no name",
    "nonsense://x": "cannot be opened: Protocol not known",
    "data://x": "cannot be listed: NotImplementedError",
    "~/there is nothing of this name": "does not exist",
    "/nowhere/{a,b}/*.png": "does not exist",
    "/nowhere/{a,b}{.tar": "the braces of .* are not understood \\(Unbalanced braces",
    "/nowhere/{a,b}}.tar": "the braces of .* are not understood \\(Unbalanced braces",
    "/nowhere/{0..99999999}.tar": "stand for more than 1000000 names",
    f"/nowhere/{{{10**30}..-1}}.tar": "stand for more than 1000000 names",
    f"/nowhere/{'{a,b}' * 40}.tar": "stand for more than 1000000 names",
    "memory://{0..9999999}.tar": "stand for more than 1000000 names",
}


@pytest.mark.parametrize("source", SOURCES, ids=ascii)
def test_what_is_not_a_source(source: str) -> None:
    with pytest.raises(DatasetError, match=SOURCES[source]) as error:
        read(source)
    assert "\n" not in str(error.value)


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers with the number that is asked for: /404.png."""

    def do_GET(self) -> None:
        number = int(self.path[1:4])
        self.send_response(number)
        self.send_header("Content-Length", str(len(PNG) if number == 200 else 0))
        self.end_headers()
        if number == 200 and self.command == "GET":
            self.wfile.write(PNG)

    do_HEAD = do_GET  # noqa: N815 (the server's name)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    pytest.importorskip("aiohttp")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Answering)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("number", [200, 400, 404, 410, 451, 401, 403, 407, 408, 429, 500, 502, 503])
def test_answers_of_a_server(number: int, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That there is nothing at one URL is that image's; a refusal or a failure would meet the next one too."""
    monkeypatch.setattr(transfer, "_PAUSE", 0.0)
    url = f"{address}/{number}.png"
    if number == 200:
        assert read(url) == {"200.png": PNG}
    elif number in (400, 404, 410, 451):
        assert read(url) == {f"{number}.png": f"cannot read it: there is nothing at {url}"}
    else:
        with pytest.raises(DatasetError, match=rf"after 4 attempts: ClientResponseError: {number}.*--resume"):
            read(url)


def test_a_server_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(transfer, "_PAUSE", 0.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(DatasetError, match="after 4 attempts: ClientConnector"):
        read(f"http://127.0.0.1:{port}/a.png")


# Rows of a table -> what is said of each; None where the image is read.
ROWS: dict[str, str | None] = {
    "a.png": None,
    '""': "the row has no image",
    '"  "': "the row has no image",
    "NULL": "No such file",
    "a.png\0": "null character",
    "nonsense://x": "fsspec does not know nonsense://",
    "bad::worse://x": "fsspec does not know worse://",
    "memory://nothing.png": "there is nothing at",
    "file:///nothing.png": "No such file",
    "/dev/zero": "not a regular file",
    "/": "Is a directory",
    "x" * 5000: "name too long",
}


def test_rows_of_a_csv(tmp_path: Path) -> None:
    """One that cannot be an image does not stop the others; a cell may have megabytes."""
    pytest.importorskip("pyarrow")
    (tmp_path / "a.png").write_bytes(PNG)
    lines = [f"{row},{'x' * (3_000_000 if i == 2 else 3)}" for i, row in enumerate(ROWS)]
    (tmp_path / "table.csv").write_text("\n".join(["\ufeffpath,caption", *lines]) + "\n", encoding="utf-8")
    (split,) = find_splits(tmp_path / "table.csv", 100)
    for raw, expected in zip(read_split(split), ROWS.values(), strict=True):
        assert raw.data == PNG if expected is None else (raw.data is None and expected in raw.problem)


CSVS: dict[str, tuple[bytes, str]] = {
    "semicolons": (b"path;x\na.png;1\n", r"\(path;x\). Separate the columns by commas\.$"),
    "tabs": (b"path\tx\na.png\t1\n", "Separate the columns by commas"),
    "no names": (b"a.png\nb.png\n", "Name the one with --column"),
    "latin-1": ("path\n\u00e9.png\n".encode("latin-1"), "invalid UTF8.* in UTF-8"),
    "utf-16": ("path,x\na,1\n".encode("utf-16"), "Export it again, in UTF-8"),
    "a row that is short": (b"path,x\na.png,1\nb.png\n", "Expected 2 columns, got 1: b.png. Export"),
    "an open quotation": (b'path,x\n"a.png,1\nb.png,2\n', "Expected 2 columns"),
    "nothing": (b"", "Empty CSV file"),
    "an image": (PNG, "is not a CSV table|has the name of an image column"),
    "names alone": (b"path,x\n", "its tables have no rows"),
}


@pytest.mark.parametrize("name", CSVS)
def test_tables_that_are_not(name: str, vae: AutoencoderKL, tmp_path: Path) -> None:
    """Said in one line, before anything is written."""
    pytest.importorskip("pyarrow")
    data, reason = CSVS[name]
    (tmp_path / "table.csv").write_bytes(data)
    with pytest.raises(DatasetError, match=reason) as error:
        encode(tmp_path / "table.csv", tmp_path / "out", vae)
    assert "\n" not in str(error.value) and ".." not in str(error.value) and not (tmp_path / "out").exists()


def test_tables_of_other_columns(vae: AutoencoderKL, tmp_path: Path) -> None:
    """The second of two lacks the column: known before the first is encoded."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name, columns in {"a": {"jpg": [PNG]}, "b": {"text": ["x"]}}.items():
        parquet.write_table(pyarrow.table(columns), tmp_path / f"{name}.parquet")
    with pytest.raises(DatasetError, match=r"none of the columns of .*b\.parquet"):
        encode(tmp_path, tmp_path / "out", vae)
    with pytest.raises(DatasetError, match=r"b\.parquet has no column 'jpg'"):
        encode(tmp_path, tmp_path / "out", vae, column="jpg")
    assert not (tmp_path / "out").exists()


def test_keys_as_names_of_files(vae: AutoencoderKL, tmp_path: Path) -> None:
    """What a table calls its images does not keep them from being decoded."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = ["a\0b.png", "x" * 300 + "1.png", "x" * 300 + "2.png", "\u00e9" * 200 + ".png", "..", None, "", "a\nb"]
    rows = [{"bytes": PNG, "path": name} for name in names]
    parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "table.parquet")
    encode(tmp_path / "table.parquet", tmp_path / "out", vae)
    decoded = list(decode_dataset(tmp_path / "out", tmp_path / "images", vae))
    assert len({each.file for each in decoded}) == len(names) and all(each.file.is_file() for each in decoded)
    assert all(each.psnr is not None for each in decoded)


# Names of images -> why kohya's trainers cannot have a cache file of them; None where they can.
KOHYAS = {
    "a" * 236 + ".png": None,
    "a" * 237 + ".png": "would have 256 bytes",
    "\u00e9" * 119 + ".png": "would have 257 bytes",
    "a:b.png": "of another place on some systems",
    "\\a.png": "of another place on some systems",
    "a\\..\\..\\b.png": "of another place on some systems",
    "12:30.png": None,
}


@pytest.mark.skipif(os.name == "nt", reason="a file cannot have these names")
def test_names_of_kohyas_files(vae: AutoencoderKL, tmp_path: Path) -> None:
    """An image whose file cannot be is listed, and the others have theirs."""
    (tmp_path / "source").mkdir()
    for name in KOHYAS:
        if len(os.fsencode(name)) < 256:
            (tmp_path / "source" / name).write_bytes(PNG)
    out = tmp_path / "source"
    encode(out, out, vae, layout="kohya", kohya="sdxl", keep="sample")
    failures = (out / ".seamless_vae" / "sdxl" / "failures.jsonl").read_text().splitlines()
    said = {each["key"]: each["reason"] for each in map(json.loads, failures)}
    dataset = LatentDataset(out)
    assert sorted([*said, *(dataset[i]["key"] for i in range(len(dataset)))]) == sorted(KOHYAS)
    for name, reason in KOHYAS.items():
        assert (name in said) == (reason is not None) and (reason or "") in said.get(name, "")
    assert verify_dataset(out).faults == ()
