"""The first call of a process when no file can be opened any more: what libraries open of their own, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from given.models import SMALL, make

from vae_core import save_single_file
from vae_core.cli.common import DEMO_PHOTOGRAPH

ROOT = Path(__file__).resolve().parents[1]
# Each in a process that has not called anything before. Expressions of `vae`, `z` and `folder`.
CALLS = {
    "reference": "vae.decode_reference(z)",
    "decode": "vae.decode(z).sample",
    "job": "vae_core.decode(vae, z)",
    "plan": "vae_core.plan_decode(vae, z.shape)",
    "tiles": "vae_core.decode(vae, z, tiling=vae_core.TileSpec(8, 2, 'blended'))",
    "image": "image.open_image(folder / 'a.png')",
    "image's name": "image_names.is_image('a.png')",
    "writing an image": "image.write_image(Image.new('RGB', (8, 8)), folder / 'b.png')",
    "from an image": "image.from_pil(Image.new('RGB', (64, 64)), channels=3, multiple=8, fit='crop')",
    "load": "vae_core.load_vae(folder / 'a.safetensors')",
    "inspect": "vae_core.inspect_vae(folder / 'a.safetensors')",
    "inspect a name of the Hub": "vae_core.inspect_vae('org/name')",
    "save": "vae.save_pretrained(folder / 'saved')",
    "save one file": "vae_core.save_single_file(vae, folder / 'b.safetensors')",
    "hub": "vae_core.AutoencoderKL.from_pretrained('org/name')",
    "push": "vae.push_to_hub('org/name')",
    "adapter": "vae.add_adapter(None)",
    "attention": "vae.set_attention_backend('native')",
    "casting": "vae.enable_layerwise_casting()",
    "from diffusers": "vae_core.from_diffusers(vae)",
    "collection": "sources.find_splits(folder, 10)",
    "table": "sources.find_splits(folder / 'a.parquet', 10)",
    "tar": "sources.find_splits(folder / 'a.tar', 10)",
    "command": "main(['encode', str(folder / 'a.png'), '-o', str(folder / 'z.safetensors')])",
    "command for a folder": "main(['convert', str(folder / 'a.safetensors'), str(folder / 'converted')])",
}
SCRIPT = """
import os, resource, sys
from pathlib import Path
from PIL import Image
import torch
import vae_core
from vae_core import image
from vae_core.cli import main
from vae_core.datasets import image_names, sources
from given.inputs import latent
from given.models import SMALL, make

folder = Path(sys.argv[1])
vae, z = make(SMALL), latent(1, 16, 16, model=make(SMALL))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
for name, call in CALLS.items():
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    try:
        while True:
            os.dup(0)
    except OSError:
        pass
    try:
        eval(call)
        said = "done"
    except vae_core.VAEError as error:
        said = f"{type(error).__name__}: {error}"
    except BaseException as error:
        said = f"RAW {type(error).__name__}: {error}"
    os.write(1, f"{name} | {said}\\n".encode())
    os._exit(0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits")
@pytest.mark.thorough
def test_a_first_call_ends_in_a_sentence(tmp_path: Path) -> None:
    save_single_file(make(SMALL), tmp_path / "a.safetensors")
    (tmp_path / "a.png").write_bytes(DEMO_PHOTOGRAPH.read_bytes())
    for name in ("a.parquet", "a.tar"):
        (tmp_path / name).write_bytes(b"")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(
        [sys.executable, "-c", f"CALLS = {CALLS!r}\n{SCRIPT}", str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
    )
    said = dict(line.split(" | ", 1) for line in done.stdout.splitlines() if " | " in line)
    assert said.keys() == CALLS.keys(), done.stdout + done.stderr[-2000:]
    assert not {name: text for name, text in said.items() if text.startswith("RAW")}
