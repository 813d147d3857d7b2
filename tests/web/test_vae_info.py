"""Load VAE says what the chosen file is."""

from __future__ import annotations

import pytest
from host.browser import FrontEnd
from playwright.sync_api import expect

pytestmark = pytest.mark.thorough

PANEL = "About this VAE file"


def test_the_chosen_file_is_described(ui: FrontEnd) -> None:
    ui.graph([("SeamlessVAELoad", 100, 150)])
    panel = ui.panel(PANEL)
    expect(panel).to_contain_text("16 channels, 8x downscale")
    ui.choose(1, "vae_name", "sdxl.safetensors")
    expect(panel).to_contain_text("SDXL")
    expect(panel).to_contain_text("4 channels, 8x downscale")
    expect(panel).to_contain_text("0.13025")
    ui.choose(1, "vae_name", "sd15.safetensors [checkpoint]")
    expect(panel).to_contain_text("SD 1.x")
    expect(panel).to_contain_text("6.5 GiB")


def test_a_file_that_is_no_vae_is_warned_of(ui: FrontEnd) -> None:
    ui.graph([("SeamlessVAELoad", 100, 150)])
    ui.set(1, "vae_name", "clip.safetensors")
    warning = ui.panel(PANEL).get_by_role("alert")
    expect(warning).to_contain_text("cannot be loaded: it looks like")
    ui.set(1, "vae_name", "broken.safetensors")
    expect(warning).to_contain_text("web page")
    ui.set(1, "vae_name", "sdxl.safetensors")
    expect(warning).to_have_count(0)


def test_each_file_is_asked_for_once(ui: FrontEnd) -> None:
    ui.graph([("SeamlessVAELoad", 100, 150)])
    expect(ui.panel(PANEL)).to_contain_text("channels")
    before = len(ui.requests("/seamless_vae/info"))
    ui.page.wait_for_timeout(600)
    assert len(ui.requests("/seamless_vae/info")) == before
