"""The attributes of the real host's own autoencoder, on ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from e2e.real_host import checkout
from host import ldm_attributes
from host.ldm_attributes import FIELDS, differences

from vae_core import AutoencoderKL

OF_THE_WIRE = ("", "regularization")  # tests/nodes/test_ldm_attributes.py


def test_every_attribute_of_its_halves() -> None:
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    run = subprocess.run(
        [python, ldm_attributes.__file__, checkout()], capture_output=True, text=True, timeout=300, check=True
    )
    theirs: dict[str, Any] = json.loads(run.stdout[run.stdout.index("{") :])
    vae = AutoencoderKL(**FIELDS).train()
    assert not differences(vae, {path: names for path, names in theirs.items() if path not in OF_THE_WIRE})
