"""The three commands as their users run them, and collections from end to end with a kill in the middle."""

from __future__ import annotations

import io
import itertools
import logging
import os
import re
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import pytest
from given.collection import CONFIG, contents, encode, make_images, settings
from given.models import make
from PIL import Image

from vae_core import AutoencoderKL, ConfigError, DatasetError
from vae_core.cli import main
from vae_core.datasets import Collection, Engine, LatentDataset, decode_dataset, verify_dataset
from vae_core.datasets.dry_run import _sample, estimate
from vae_core.datasets.progress import RunProgress, in_bytes, in_time
from vae_core.datasets.sources import find_splits

ROOT = Path(__file__).resolve().parents[2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            (["--size", "100"], "multiple of 8"),
            (["--size", "big"], "is not a size"),
            (["--buckets", "64x64:16", "--batch", "0"], "batch is 0"),
            (["--size", "64", "--batch", "two"], "batch is 0"),
            (["--size", "64", "--workers", "-1"], "workers is -1"),
            (["--size", "64", "--layout", "kohya", "--keep", "moments", "--kohya-family", "sd"], "not moments"),
            (["--size", "64", "--kohya-family", "sd"], "for the layout shards"),
            (["--size", "64", "--resume"], None),
        ],
    )
    def test_are_one_line(
        self, options: list[str], problem: str | None, images: Path, vae_folder: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        code = run("encode-dataset", images, "--out", tmp_path / "out", "--vae", vae_folder, "--workers", 0, *options)
        said = capsys.readouterr().err
        if problem is None:
            assert code == 0, "resuming what was not begun begins it"
            return
        assert code == 1 and problem in said
        assert said.startswith("seamless-vae: error: ") and said.count("\n") == 1
        assert not (tmp_path / "out" / "manifest.json").exists()

    def test_other_folders(self, tmp_path: Path, vae_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("verify-dataset", tmp_path) == 1
        assert run("decode-dataset", tmp_path, "--out", tmp_path / "images", "--vae", vae_folder) == 1
        assert capsys.readouterr().err.count("has no manifest.json") == 2

    def test_verification_tells_by_its_exit_code(
        self, images: Path, vae: AutoencoderKL, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        encode(images, tmp_path / "out", vae)
        assert run("verify-dataset", tmp_path / "out") == 0
        next((tmp_path / "out").rglob("*.safetensors")).unlink()
        assert run("verify-dataset", tmp_path / "out") == 1
        assert "is missing" in capsys.readouterr().out

    @pytest.mark.skipif(os.name == "nt", reason="a file cannot have these names")
    def test_names_that_a_terminal_would_obey(
        self, vae: AutoencoderKL, vae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = tmp_path / "source"
        source.mkdir()
        for name in ("a\x1b[31m.png", "b\n\u202e.png", os.fsdecode(b"\xff.png")):
            Image.new("RGB", (64, 64)).save(source / name)
        (source / "c\x1b[2J.jpg").write_bytes(b"not an image")
        options = ["--vae", vae_folder, "--size", 64]
        assert run("encode-dataset", source, "--out", tmp_path / "out", *options, "--dry-run") == 0
        encode(source, tmp_path / "out", vae, layout="kohya", kohya="sd", keep="sample")
        assert run("decode-dataset", tmp_path / "out", "--out", tmp_path / "images", *options[:2]) == 0
        next((tmp_path / "out").glob("a*.npz")).unlink()
        assert run("verify-dataset", tmp_path / "out") == 1
        said = capsys.readouterr().out
        assert all(line.isprintable() for line in said.split("\n"))
        assert {r"a\x1b[31m.png", r"b\n\u202e.png", r"\udcff.png", r"c\x1b[2J.jpg:"} <= set(said.split())

    def test_a_run_is_resumed_by_any_name_of_its_source(
        self, vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = make_images(tmp_path / "source", 4)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        for i, begun in enumerate(("source", "source/", "./source", str(source), f"file://{source}", "source/*/*.*")):
            encode(begun, tmp_path / str(i), vae)
            for again in [begun, str(source)] if i < 5 else [f"{source}/*/*.*"]:
                assert encode(again, tmp_path / str(i), vae, resume=True)["images"] == 4
        monkeypatch.chdir("source")
        assert encode("~/source", tmp_path / "0", vae, resume=True)["images"] == 4
        with pytest.raises(DatasetError, match="source .* instead of"):
            encode("part0", tmp_path / "0", vae, resume=True)

    def test_a_folder_without_a_name(self, images: Path, vae_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("encode-dataset", images, "--out", "", "--vae", vae_folder, "--size", 64) == 1
        assert "the folder has no name" in capsys.readouterr().err


class TestDecode:
    def test_images_come_back(self, images: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
        """Each from its own latent: against the model's decode, and with the PSNR against the source."""
        encode(images, tmp_path / "out", vae, keep="moments", batch=1)
        decoded = {each.key: each for each in decode_dataset(tmp_path / "out", tmp_path / "images", vae)}
        assert len(decoded) == 20
        dataset = LatentDataset(tmp_path / "out")
        for i in (0, 7, 19):
            record = dataset.image(i)
            with Image.open(decoded[record["key"]].file) as image:
                assert list(image.size) == record["bucket"]
        values = [each.psnr for each in decoded.values()]
        assert all(value is not None and 0 < value < 60 for value in values)

    def test_a_limit_and_a_source_that_is_gone(self, vae: AutoencoderKL, tmp_path: Path) -> None:
        folder = make_images(tmp_path / "source", 5)
        encode(folder, tmp_path / "out", vae)
        changed, gone = sorted(place for place in folder.rglob("*") if place.is_file())[:2]
        Image.new("RGB", (50, 50)).save(changed)
        gone.unlink()
        with pytest.raises(ConfigError, match="the limit is -1 images"):
            next(decode_dataset(tmp_path / "out", tmp_path / "images", vae, limit=-1))
        assert not list(decode_dataset(tmp_path / "out", tmp_path / "images", vae, limit=0))
        decoded = list(decode_dataset(tmp_path / "out", tmp_path / "images", vae, limit=3))
        assert [each.psnr is None for each in decoded] == [True, True, False]

    def test_another_vae_is_refused(self, images: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
        encode(images, tmp_path / "out", vae)
        with pytest.raises(DatasetError, match="encoded with another VAE"):
            next(decode_dataset(tmp_path / "out", tmp_path / "images", make(CONFIG, seed=1)))
        with pytest.raises(DatasetError, match="4 channels at 1/8, and this VAE decodes 4 at 1/4"):
            levels = {**CONFIG, **{name: CONFIG[name][:3] for name in CONFIG if name.endswith(("types", "channels"))
                                   and isinstance(CONFIG[name], tuple)}}  # fmt: skip
            next(decode_dataset(tmp_path / "out", tmp_path / "images", make(levels)))

    def test_names_stay_below_the_folder(self, vae: AutoencoderKL, tmp_path: Path) -> None:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        data = next(make_images(tmp_path / "source", 1).rglob("*.png")).read_bytes()
        rows = [{"bytes": data, "path": "../../../escaped.png"}, {"bytes": data, "path": "C:\\x\\y.png"}]
        parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "table.parquet")
        encode(tmp_path / "table.parquet", tmp_path / "out", vae)
        for each in decode_dataset(tmp_path / "out", tmp_path / "images", vae):
            assert (tmp_path / "images").resolve() in each.file.resolve().parents

    def test_equal_keys_of_different_tars(self, vae: AutoencoderKL, tmp_path: Path) -> None:
        """Each is an image of its own, with its own source beside it; so are names that differ in capitals."""
        pytest.importorskip("webdataset")
        files = sorted(place for place in make_images(tmp_path / "source", 9).rglob("*") if place.is_file())
        (tmp_path / "tars").mkdir()
        for number in range(3):
            with tarfile.open(tmp_path / "tars" / f"{number}.tar", "w") as tar:
                for i, file in enumerate(files[3 * number : 3 * number + 3]):
                    tar.add(file, f"{('a', 'A', 'b')[i]}.png")
        encode(tmp_path / "tars", tmp_path / "out", vae, shard_images=2)
        decoded = list(decode_dataset(tmp_path / "out", tmp_path / "images", vae))
        assert len({str(each.file).lower() for each in decoded}) == 9 == len(list((tmp_path / "images").iterdir()))
        assert all(each.psnr is not None for each in decoded), "each is compared with its own source"
        assert [each.file.name for each in decoded[:3]] == ["a.png.png", "A.png_000000-000001.png", "b.png.png"]

    def test_what_exists_is_not_replaced(
        self, images: Path, vae_folder: Path, vae: AutoencoderKL, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        encode(images, tmp_path / "out", vae)
        first = next(Collection.open(tmp_path / "out").all_records())["images"][0]["key"]
        mine = tmp_path / "mine" / f"{first}.png"
        mine.parent.mkdir(parents=True)
        mine.write_bytes(b"mine")
        command = ["decode-dataset", tmp_path / "out", "--out", tmp_path / "mine", "--vae", vae_folder, "--limit", 2]
        assert run(*command) == 1
        assert f"{mine} exists already" in capsys.readouterr().err and mine.read_bytes() == b"mine"
        assert run(*command, "--overwrite") == 0
        assert mine.read_bytes() != b"mine"


class TestDryRun:
    def test_says_what_will_be(self, images: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
        chosen = settings(vae, flip=True)
        found = estimate(str(images), vae, chosen, Engine(workers=0))
        totals = encode(images, tmp_path / "out", vae, flip=True)
        assert found.exact and found.images == totals["images"] + totals["failures"] == 22
        assert found.shards == totals["shards"]
        assert [key for key, _ in found.failures] == ["part0/not_an_image.jpg", "part1/truncated.jpg"]
        latents = sum(
            2 * 4 * item["latents"].numel() for item in (LatentDataset(tmp_path / "out")[i] for i in range(20))
        )
        assert abs(found.bytes - latents) < 0.01 * latents, "all images are in the sample"
        assert abs(sum(found.buckets.values()) - 1) < 1e-9
        records = [image for record in Collection.open(tmp_path / "out").all_records() for image in record["images"]]
        areas = sorted((tuple(image["size"]) for image in records), key=lambda size: size[0] * size[1])
        assert found.sizes == (areas[0], areas[-1])
        counted = Counter(tuple(image["bucket"]) for image in records)
        assert found.buckets == {bucket: count / 20 for bucket, count in counted.items()} and len(counted) > 2
        (w0, h0), (w1, h1) = areas[0], areas[-1]
        (width, height), most = counted.most_common(1)[0]
        text = str(found)
        for part in (
            "22 images in 4 shards; 22 of them were looked at", f"sizes       {w0}x{h0} to {w1}x{h1}\n",
            f"bucket      {width}x{height}: {most / 20:.0%}\n", "time        about 0:0",
            f"bytes       about {in_bytes(found.bytes)}\n", "not_an_image.jpg",
        ):  # fmt: skip
            assert part in text
        assert found.seconds == pytest.approx(22 * (found.read_seconds + found.encode_seconds))

    def test_writes_nothing(self, images: Path, vae_folder: Path, tmp_path: Path) -> None:
        options = ["--vae", vae_folder, "--size", 64, "--dry-run"]
        assert run("encode-dataset", images, "--out", tmp_path / "out", *options) == 0
        assert not (tmp_path / "out").exists()

    def test_samples_evenly(self, vae: AutoencoderKL, tmp_path: Path) -> None:
        folder = tmp_path / "many"
        folder.mkdir()
        for i in range(200):
            Image.new("RGB", (16, 16), (i, i, i)).save(folder / f"{i:03d}.png")
        chosen = settings(vae)
        keys = [int(raw.key[:3]) for raw in _sample(find_splits(str(folder), 6), chosen, 32)]
        assert len(keys) == 32
        assert max(b - a for a, b in itertools.pairwise(keys)) <= 7


class TestProgress:
    def test_lines_for_a_log(self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
        with caplog.at_level(logging.WARNING, logger="seamless_vae"):
            progress = RunProgress()
            progress.start(1000, 100)
            for _ in range(40):
                clock[0] += 1
                progress.advance(10, 1)
                progress.committed(1, 500_000)
            progress.close()
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 3, "every 15 seconds, and at the end"
        assert lines[-1] == "500 of 1000 images, 10.0 images/s, 0:50 left, 40 failed, 20.0 MB written"

    @pytest.mark.parametrize("kind", ["files", "tar"])
    def test_the_bar(
        self, kind: str, images: Path, vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a terminal shows: how far it is, images per second, time left, failures, bytes."""
        if kind == "tar":
            pytest.importorskip("webdataset")
            with tarfile.open(tmp_path / "a.tar", "w") as tar:
                for i, file in enumerate(sorted(place for place in images.rglob("*") if place.is_file())):
                    tar.add(file, f"{i}{file.suffix}")
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        totals = encode(
            images if kind == "files" else tmp_path / "a.tar", tmp_path / "out", vae, progress=RunProgress()
        )
        lines = [line.strip() for line in re.split(r"[\r\n]", terminal.getvalue()) if line.strip()]
        end = rf"[\d.]+ images/s, 2 failed, {re.escape(in_bytes(totals['bytes']))}\]"
        if kind == "files":
            assert re.fullmatch(rf"100%\|.+\| 22 of 22 images \[\d\d:\d\d<00:00, +{end}", lines[-1])
            middle = [line for line in lines if re.search(r"\| 1\d of 22 images \[\d\d:\d\d<\d\d:\d\d, ", line)]
            assert middle, "the time that is left shows on the way"
        else:
            assert re.fullmatch(rf"22 images \[\d\d:\d\d, +{end}", lines[-1])
        assert any(" 1 failed" in line for line in lines)

    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_streams_that_are_closed(
        self, stream: str, images: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(sys, stream, None)
            options = ["--vae", vae_folder, "--size", 64, "--workers", 0]
            assert run("encode-dataset", images, "--out", tmp_path / "out", *options) == 0
        assert verify_dataset(tmp_path / "out").faults == ()

    def test_slow_images_are_images_per_second_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal, clock = Terminal(), [0.0]
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
        progress = RunProgress()
        progress.start(10, 0)
        clock[0] = 20.0
        progress.advance(5)
        progress.committed(1, 1500)
        assert "5 of 10 images [00:20<00:20,  0.25 images/s, 0 failed, 1.5 kB]" in terminal.getvalue()
        progress.close()

    def test_units(self) -> None:
        assert [in_bytes(count) for count in (0, 999, 1000, 1.5e6, 2.25e9, 3e12, 4e15)] == [
            "0 B", "999 B", "1.0 kB", "1.5 MB", "2.2 GB", "3.0 TB", "4000.0 TB",
        ]  # fmt: skip
        assert [in_time(seconds) for seconds in (0, 61, 3599.6, 3723)] == ["0:00", "1:01", "1:00:00", "1:02:03"]


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])  # a minute or more
@pytest.mark.thorough
def test_from_end_to_end_with_a_kill(
    engine: str, count: int, vae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Encoded by the command, killed in the middle, resumed, verified, decoded."""
    if engine == "ray":
        pytest.importorskip("ray")
    source = make_images(tmp_path / "source", count, broken=True)
    command = [
        sys.executable, "-m", "vae_core", "encode-dataset", str(source), "--out", str(tmp_path / "out"),
        "--vae", str(vae_folder), "--buckets", "64x64:16:32:128", "--shard-size", str(max(4, count // 20)),
        "--keep", "moments", "--engine", engine, "--workers", "1", "--memory", "1", "--batch", "4", "--resume",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("out/shards/*/*.json"))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = {place: place.stat().st_mtime_ns for place in tmp_path.glob("out/shards/*/*.json")}
    assert len(done) >= 3
    assert not (tmp_path / "out" / "shards.jsonl").exists(), "it was killed before its end"
    assert subprocess.run(command, env=environment, stderr=subprocess.DEVNULL).returncode == 0
    assert {place: place.stat().st_mtime_ns for place in done} == done, "what was committed is not written again"
    found = verify_dataset(tmp_path / "out")
    assert (found.images, found.failures, found.faults) == (count, 2, ())
    assert run("decode-dataset", tmp_path / "out", "--out", tmp_path / "images", "--vae", vae_folder, "--limit", 5) == 0
    assert re.search(r"mean of 5, from .* dB\nwrote 5 images", capsys.readouterr().out)
    whole = tmp_path / "whole"
    command[command.index(str(tmp_path / "out"))] = str(whole)
    command[command.index(engine)] = "local"
    assert subprocess.run(command, env=environment, stderr=subprocess.DEVNULL).returncode == 0
    assert contents(whole) == contents(tmp_path / "out")
