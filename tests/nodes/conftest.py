"""The pack, loaded once as a host loads it, in stand-in hosts of both ages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from given.nodes import Makers
from host.stand_in import PROFILES, Host, Pack, hidden, installed


@pytest.fixture(scope="session")
def pack() -> Pack:
    return Pack()


@pytest.fixture(params=PROFILES)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    with installed(request.param, tmp_path) as found:
        yield found


@pytest.fixture
def new_host(tmp_path: Path) -> Iterator[Host]:
    with installed("new", tmp_path) as found:
        yield found


@pytest.fixture
def no_host() -> Iterator[None]:
    with hidden():
        yield


@pytest.fixture
def make(pack: Pack) -> Makers:
    return Makers(pack)
