"""What numba keeps on disk serves everybody who loads this package, under whatever name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

DECODE = """
import importlib.util, sys
name, folder = sys.argv[1:]
spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py", submodule_search_locations=[folder])
package = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
import torch
from importlib import import_module
convolution = import_module(name + ".streaming.convolution")
convolution._FEW_CHANNELS = convolution._WINOGRAD_ARITHMETIC = convolution._WINOGRAD_UPSAMPLED = 0
vae = package.AutoencoderKL(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2,
                            up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1).eval()
z = torch.randn(1, 4, 12, 12)
with torch.no_grad():
    assert (package.decode(vae, z) - vae.decode_plain(z)).abs().max() < 1e-4
print(import_module(name + ".streaming.winograd").compiled())
"""


def test_compiled_code_is_found_under_another_name(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    package = tmp_path / "vae_core"
    shutil.copytree(ROOT / "vae_core", package, ignore=shutil.ignore_patterns("__pycache__", "demo"))
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    for name in ("custom_nodes/pack 1", "vae_core"):
        done = subprocess.run(
            [sys.executable, "-c", DECODE, name, str(package)], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0 and done.stdout.strip() == "True", done.stderr[-2000:]
