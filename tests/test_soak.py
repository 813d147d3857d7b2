"""A short soak in a process of its own: nothing grows. `python tools/soak.py` goes on for as long as you like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parents[1] / "tools" / "soak.py"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.thorough
def test_nothing_grows() -> None:
    command = [sys.executable, str(SOAK), "--seconds", "45"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.endswith("nothing grew\n")
