"""The scripts that make images say what they need, called as their first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("playwright")

FOLDER = Path(__file__).resolve().parents[1] / "tools" / "images"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_starts_without_any_setting(script: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("COMFYUI_PATH", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "COMFYUI_PATH is not set. Give the path of a checkout of ComfyUI."
