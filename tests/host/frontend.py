"""The releases of the real front end that the tests run against, fetched once into `build/frontend/`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "frontend"
VERSIONS = {"old": "1.27.10", "new": "1.58.1"}  # of ComfyUI 0.3.64, and the newest


def static_files(version: str) -> Path:
    """The folder of a front end's static files. Installs the package beside the environment if it is not there yet.

    Raises:
        RuntimeError: pip could not fetch it.
    """
    folder = CACHE / version
    static = folder / "comfyui_frontend_package" / "static"
    if not (static / "index.html").is_file():
        package = f"comfyui-frontend-package=={version}"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), package]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{package} could not be installed: {done.stderr.strip()[-500:]}")
    return static


if __name__ == "__main__":  # fetch them all beforehand
    for each in VERSIONS.values():
        static_files(each)
