"""The command line's manners: what it takes, what it prints, and how it ends."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from given.command import photo, run, three_vaes
from safetensors.torch import load_file

from vae_core import load_vae
from vae_core.cli.common import DEMO_PHOTOGRAPH
from vae_core.image import from_pil, open_image

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def vaes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return three_vaes(tmp_path_factory.mktemp("vaes"))


class TestManners:
    @pytest.mark.parametrize("seed", [0, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63)])
    def test_seeds(self, seed: int, vaes: dict[str, Path], tmp_path: Path) -> None:
        image, files = photo(tmp_path / "a.png"), [tmp_path / "pair.st", tmp_path / "next.st"]
        options = ["--vae", vaes["sdxl"], "--sample"]
        assert run("encode", image, image, "-o", files[0], *options, f"--seed={seed}") == 0
        assert run("encode", image, "-o", files[1], *options, f"--seed={(seed + 1) % 2**64}") == 0
        pair, following = (load_file(file)["latent_tensor"] for file in files)
        assert torch.equal(pair[1:], following) and not torch.equal(pair[0], pair[1])
        vae = load_vae(vaes["sdxl"])
        with torch.no_grad():
            posterior = vae.encode(from_pil(open_image(image)).pixels).latent_dist
        expected = posterior.sample(torch.Generator().manual_seed(seed))
        torch.testing.assert_close(pair[:1], expected, rtol=0, atol=1e-4)

    def test_seeds_of_jax(self) -> None:
        jax = pytest.importorskip("jax")
        from vae_core.cli.jax_model import _key

        seeds = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**63 + 2**31, 2**64 - 2, 2**64 - 1]
        assert len({tuple(_key(seed).tolist()) for seed in seeds}) == len(seeds)
        for seed in seeds[:3]:
            assert _key(seed).tolist() == jax.random.PRNGKey(seed).tolist()

    @pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, "x", ""])
    def test_what_is_not_a_seed(self, seed: object) -> None:
        with pytest.raises(SystemExit):
            run("encode", "a.png", "-o", "b", f"--seed={seed}")

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--device", "nonsense"], "--device is 'nonsense'"),
            (["--device", ""], "--device is ''"),
            (["--device", "cpu:nonsense"], "--device"),
            (["--device", "meta"], "--device is 'meta'"),
            (["--device", "cuda:99"], "--device is 'cuda:99'"),
            (["--device", "vulkan"], "--device is 'vulkan'"),
            (["--memory", "nan"], "--memory is nan"),
            (["--memory", "inf"], "--memory is inf"),
            (["--memory", "-1"], "--memory is -1"),
            (["--memory", "0"], "--memory is 0"),
            (["--memory", "1e-12"], "--memory is 1e-12"),
            (["--memory", "1e300"], "--memory is 1e+300"),
        ],
    )
    @pytest.mark.parametrize("command", ["encode", "roundtrip"])
    def test_options_that_make_no_sense(
        self, command: str, options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = {"encode": ["-o", tmp_path / "l"], "roundtrip": ["--out", tmp_path / "out"]}[command]
        assert run(command, photo(tmp_path / "a.png"), *output, *options) == 1
        said = capsys.readouterr().err
        assert says in said and "unexpected" not in said
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    @pytest.mark.parametrize(
        "arguments",
        [
            ["encode", "", "-o", "x"],
            ["encode", "a\0", "-o", "x"],
            ["encode", "a", "-o", ""],
            ["decode", "", "-o", "x"],
            ["convert", "", "x"],
            ["convert", "x", ""],
            ["roundtrip", ""],
            ["roundtrip", "--vae", ""],
            ["info", ""],
            ["roundtrip", "--out", ""],
        ],
    )
    def test_empty_names(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            run(*arguments)
        assert caught.value.code == 2 and "the name" in capsys.readouterr().err

    @pytest.mark.thorough
    def test_names_that_are_not_text(self, vaes: dict[str, Path], tmp_path: Path) -> None:
        name = os.fsdecode(tmp_path) + "/caf\udce9.png"
        photo(tmp_path / "a.png").rename(name)
        for encoding in ("utf-8", "ascii"):
            environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
            folder = tmp_path / encoding
            file = folder / "l.latent"
            for command in (
                ["encode", name, "-o", str(file), "--vae", str(vaes["sdxl"])],
                ["decode", str(file), "-o", f"{folder}/", "--vae", str(vaes["sdxl"])],
            ):
                command = [sys.executable, "-m", "vae_core", *command]
                result = subprocess.run(command, capture_output=True, env=environment)
                assert (result.returncode, result.stderr) == (0, b"")
                assert b"wrote" in result.stdout
            assert os.path.exists(os.fsencode(folder) + b"/caf\xe9.png")

    @pytest.mark.skipif(sys.platform == "win32", reason="no such names")
    def test_names_that_a_terminal_would_obey(
        self, vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A name of somebody else's file may not clear the screen, retitle the window or fake a line."""
        evil = tmp_path / "a\x1b[2J\x1b]0;title\x07\nseamless-vae: all is well\r\x9b1m"
        evil.mkdir()
        image, vae = photo(evil / "a\x1b[31m.png"), evil / "vae\x1b[31m"
        shutil.copytree(vaes["sdxl"], vae)
        latents = evil / "l\x1b[31m.safetensors"
        for command, code in (
            (["encode", image, "-o", latents, "--vae", vae], 0),
            (["decode", latents, "-o", evil / "b\x1b[31m.png", "--vae", vae], 0),
            (["roundtrip", image, "--vae", vae, "--out", evil / "out"], 0),
            (["convert", vae, evil / "c\x1b[31m.pt"], 0),
            (["info", vae], 0),
            (["info", image], 1),
            (["info", evil / "none"], 1),
            (["encode", evil / "none.png", "-o", latents], 1),
            (["convert", image, evil / "d.safetensors"], 1),
        ):
            assert run(*map(str, command)) == code, command
            for said in capsys.readouterr():
                assert all(line.isprintable() for line in said.split("\n")), (command, said)
                assert not any(line.startswith("seamless-vae: all") for line in said.split("\n"))

    def test_an_interrupt_while_modules_are_imported(self) -> None:
        """The command line is there before torch is, and takes an interrupt at any time from then on."""
        script = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
from vae_core.cli import main
assert "torch" not in sys.modules
class Says:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("ready", flush=True)
sys.meta_path.insert(0, Says())
sys.exit(main(["info"]))
"""
        codes = set()
        for delay in (0, 0.05, 0.2, 0.6):
            with subprocess.Popen(
                [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
            ) as process:
                assert process.stdout is not None and process.stdout.readline() == "ready\n"
                time.sleep(delay)
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=300)
                codes.add(process.returncode)
                assert "Traceback" not in said, said
        assert 130 in codes and codes <= {0, 130}

    def test_an_error_with_no_place_to_go(self, tmp_path: Path) -> None:
        """It does not end up among the results."""
        command = [sys.executable, "-m", "vae_core", "info", tmp_path / "none"]
        script = shlex.join(map(str, command)) + " 2>&-"
        result = subprocess.run(["sh", "-c", script], capture_output=True, cwd=ROOT)
        assert (result.returncode, result.stdout) == (1, b"")

    def test_an_interrupt_that_an_import_takes_for_something_else(self) -> None:
        script = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
class Taking:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(10)
            except KeyboardInterrupt:
                raise RecursionError("taken")
sys.meta_path.insert(0, Taking())
from vae_core.cli import main
sys.exit(main(["info"]))
"""
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=ROOT, text=True)
        said = "seamless-vae: interrupted; no file was left half written\n"
        assert (result.returncode, result.stdout, result.stderr) == (130, "", said)

    @pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX")
    def test_errors_that_go_nowhere(self, tmp_path: Path) -> None:
        """Without a standard error a long run ends as others do; here its bar would begin at once."""
        script = (
            "from vae_core.cli import common;"
            "import functools; common.tqdm = functools.partial(common.tqdm); common.tqdm.keywords['delay'] = 0;"
            "from vae_core.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
        )
        output = tmp_path / "latents.safetensors"
        command = [sys.executable, "-c", script, "encode", str(DEMO_PHOTOGRAPH), "-o", str(output), "--fit", "crop"]
        result = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *command], capture_output=True, cwd=ROOT, text=True)
        assert (result.returncode, result.stderr) == (0, "") and output.exists(), result.stdout

    def test_a_closed_pipe(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "vae_core", "info"]
        result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=ROOT)
        os.close(writing)
        assert (result.returncode, result.stderr) == (141, b"")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device")
    def test_a_full_disk_behind_the_output(self) -> None:
        command = [sys.executable, "-m", "vae_core", "info"]
        with open("/dev/full", "w") as full:
            result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, text=True)
        assert result.returncode == 1 and result.stderr.startswith("seamless-vae: error: ")
        assert "Traceback" not in result.stderr
