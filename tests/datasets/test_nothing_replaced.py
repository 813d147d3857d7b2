"""What is in the folder of a collection already, and the images that it is made of, are not replaced."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from given.collection import contents, make_images
from PIL import Image

from vae_core.cli import main


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("source") / "few", 3)


class TestNothingOfTheUsersIsReplaced:
    def encoded(self, source: Path, out: Path, vae_folder: Path, *options: object) -> int:
        return run("encode-dataset", source, "--out", out, "--vae", vae_folder, "--workers", 0, "--size", 32, *options)

    @pytest.mark.parametrize("layout", ["shards", "webdataset"])
    @pytest.mark.parametrize("name", ["splits.jsonl", "shards.jsonl", "failures.jsonl", "shards/000/000000-0000.tar"])
    def test_files_of_other_programs(
        self, name: str, layout: str, few: Path, vae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        theirs = tmp_path / "out" / name
        theirs.parent.mkdir(parents=True)
        theirs.write_text("my notes")
        assert self.encoded(few, tmp_path / "out", vae_folder, "--layout", layout) == 1
        assert "is there already" in capsys.readouterr().err
        assert theirs.read_text() == "my notes"
        assert not (tmp_path / "out" / "manifest.json").exists()

    def test_the_list_of_a_run_that_ended_before_its_manifest(
        self, few: Path, vae_folder: Path, tmp_path: Path
    ) -> None:
        assert self.encoded(few, tmp_path / "whole", vae_folder) == 0
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "splits.jsonl").write_bytes((tmp_path / "whole" / "splits.jsonl").read_bytes())
        assert self.encoded(few, tmp_path / "out", vae_folder) == 0
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    def test_the_folder_of_the_images_themselves(
        self, few: Path, vae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = tmp_path / "images"
        shutil.copytree(few, source)
        (tmp_path / "link").symlink_to(source)
        for out in (source, tmp_path / "link", source / "x" / ".."):
            assert self.encoded(source, out, vae_folder) == 1
            assert "would be taken for a collection" in capsys.readouterr().err
        assert self.encoded(source, source / "latents", vae_folder) == 0
        assert self.encoded(source, tmp_path / "other", vae_folder) == 0

    def test_images_that_a_collection_was_made_of(
        self,
        few: Path,
        vae_folder: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        source = tmp_path / "images"
        source.mkdir()
        for name in ("b.png", "b.png.png"):
            Image.new("RGB", (40, 40), (9, 99, 9)).save(source / name)
        before = contents(source)
        assert self.encoded(source, tmp_path / "out", vae_folder) == 0
        command = ("decode-dataset", tmp_path / "out", "--vae", vae_folder, "--out")
        for option in ([], ["--overwrite"]):
            assert run(*command, source, *option) == 1
            assert "Give another" in capsys.readouterr().err
            assert {name: data for name, data in contents(source).items() if name in before} == before
        assert contents(source) == before
        assert run(*command, tmp_path / "out") == 1
        assert "is the folder of the collection" in capsys.readouterr().err
        assert run(*command, tmp_path / "decoded") == 0
        assert "would have the decoded" not in caplog.text
        assert run(*command, source / "below") == 0
        assert "would have the decoded" in caplog.text
        assert run(*command, tmp_path / "decoded", "--overwrite") == 0
