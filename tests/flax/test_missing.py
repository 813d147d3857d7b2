"""Without JAX: everything but vae_core.flax works, and that says what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
sys.modules["jax"] = None  # as if it were not installed
import vae_core
try:
    import vae_core.flax
except vae_core.VAEError as error:
    assert isinstance(error, ImportError) and isinstance(error, vae_core.MissingDependencyError)
    print(error)
from vae_core.cli import main
sys.exit(main(["roundtrip", "--backend", "jax"]))
"""


def test_the_error_says_what_to_install() -> None:
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=root)
    assert result.returncode == 1
    assert result.stdout.startswith("vae_core.flax needs JAX and Flax, and jax cannot be imported")
    assert "pip install seamless-vae[flax]" in result.stdout
    assert result.stderr.startswith("seamless-vae: error: vae_core.flax needs JAX and Flax")
