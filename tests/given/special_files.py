"""What can stand in a file's place and is none."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest


def make_socket(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one, pytest.MonkeyPatch.context() as patched:
        patched.chdir(place.parent)  # its path may have 108 bytes
        one.bind(place.name)
