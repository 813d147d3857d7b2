"""LDM's own configuration by its address, as diffusers' examples give it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from given.hub import REPO, SmallHub

from vae_core import AutoencoderKL, ConfigError
from vae_core.checkpoints.json_file import MAX_BYTES
from vae_core.hub_names import content_address

CONTENT = b"model:\n  params:\n    scale_factor: 0.7\n"


@pytest.fixture
def address(hub: SmallHub) -> str:
    hub.repositories[REPO]["v1.yaml"] = CONTENT
    return f"{hub.address}/{REPO}/resolve/main/v1.yaml"


@pytest.mark.parametrize("name", ["original_config", "original_config_file"])
@pytest.mark.parametrize("spelt", [str, lambda address: address.replace("/resolve/", "/blob/"), Path])
def test_an_address_is_fetched(vae: AutoencoderKL, address: str, name: str, spelt: Any) -> None:
    arguments: dict[str, Any] = {name: spelt(address)}
    loaded = AutoencoderKL.from_single_file(vae.state_dict(), norm_num_groups=8, **arguments)
    assert loaded.config.scaling_factor == 0.7


@pytest.mark.parametrize(
    ("content", "arguments", "says"),
    [
        (None, {}, "cannot be read: .*404"),
        (b"<html>", {}, "is not a configuration of LDM"),
        (b"\xff\xfe\x00", {}, "cannot be read"),
        (b"a: [", {}, "cannot be read"),
        (b" " * (MAX_BYTES + 1), {}, f"it has more than {MAX_BYTES} bytes"),
        (CONTENT, {"local_files_only": True}, "local_files_only=True, and it is an address"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(
    vae: AutoencoderKL, hub: SmallHub, address: str, content: bytes | None, arguments: dict[str, Any], says: str
) -> None:
    del hub.repositories[REPO]["v1.yaml"]
    if content is not None:
        hub.repositories[REPO]["v1.yaml"] = content
    with pytest.raises(ConfigError, match=says):
        AutoencoderKL.from_single_file(vae.state_dict(), original_config=address, **arguments)


def test_a_server_that_does_not_answer_is_a_sentence(vae: AutoencoderKL) -> None:
    with pytest.raises(ConfigError, match="cannot be read: .*Pass scaling_factor in its place"):
        AutoencoderKL.from_single_file(vae.state_dict(), original_config="http://127.0.0.1:1/v1.yaml")


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("https://huggingface.co/o/n/blob/main/a.yaml", "https://huggingface.co/o/n/resolve/main/a.yaml"),
        ("https:/HF.co/o/n/blob/main/blob/a.yaml", "https://HF.co/o/n/resolve/main/blob/a.yaml"),
        ("https://huggingface.co/o/n/raw/main/a.yaml", "https://huggingface.co/o/n/raw/main/a.yaml"),
        ("https://example.com/o/n/blob/main/a.yaml", "https://example.com/o/n/blob/main/a.yaml"),
        ("http:/example.com/a.yaml?x=/blob/", "http://example.com/a.yaml?x=/blob/"),
    ],
)
def test_an_address_of_another_server_is_asked_for_as_it_is(address: str, asked: str) -> None:
    assert content_address(address) == asked
