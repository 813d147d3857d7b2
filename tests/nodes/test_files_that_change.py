"""A file of weights that is cut short or written over while its VAE is loaded in the host: nothing happens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from given.models import fields, make

from vae_core import load_vae, save_single_file

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own, which a fault would end: loaded as the host does it, with the host's precision.
SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], str(Path(sys.argv[2]) / "tests")]
import torch
from host.stand_in import Pack, installed
folder = Path(sys.argv[1])
with installed("new", folder):
    pack = Pack()
    for name, change in (("a.safetensors", "cut"), ("b.safetensors", "over"), ("c.pt", "cut"), ("d [folder]", "cut")):
        (vae,) = pack.run("SeamlessVAELoad", vae_name=name)
        file = folder / "models" / "vae" / name.removesuffix(" [folder]")
        file = file / "diffusion_pytorch_model.safetensors" if file.is_dir() else file
        if sys.platform == "linux":
            assert str(file) not in Path("/proc/self/maps").read_text(), f"{name} is mapped"
        z = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
        with open(file, "r+b") as opened:
            if change == "cut":
                opened.truncate(100)
            else:
                size = file.stat().st_size
                opened.seek(size // 2)
                opened.write(bytes(size // 2))
        image = vae.decode(z)
        torch.testing.assert_close(image, torch.load(folder / "expected.pt"), rtol=0, atol=2e-5)
        print(name, "unchanged", flush=True)
"""


@pytest.mark.thorough
def test_the_host_neither_ends_nor_shows_another_image(tmp_path: Path) -> None:
    vae = make(fields(32, 64))
    folder = tmp_path / "models" / "vae"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        save_single_file(vae, folder / f"{name}.safetensors")
    torch.save(vae.state_dict(), folder / "c.pt")
    vae.save_pretrained(folder / "d")
    z = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    image = (vae.decode(z).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    torch.save(image.detach(), tmp_path / "expected.pt")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    assert done.stdout.count("unchanged") == 4


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_copies_are_what_the_map_is(tmp_path: Path, name: str, dtype: str | None) -> None:
    vae, path = make(fields(32, 64)), tmp_path / name
    save_single_file(vae, path) if name.endswith("safetensors") else torch.save(vae.state_dict(), path)
    mapped, copied = (load_vae(path, disable_mmap=each, dtype=dtype).state_dict() for each in (False, True))
    assert mapped.keys() == copied.keys()
    for key, weight in mapped.items():
        assert torch.equal(copied[key], weight) and copied[key].dtype == weight.dtype
    if dtype is None:
        path.write_bytes(bytes(path.stat().st_size))
        assert torch.equal(copied["decoder.conv_out.bias"], vae.state_dict()["decoder.conv_out.bias"])
