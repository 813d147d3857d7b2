"""The web side with the real host: a user runs workflows in the browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="playwright is not installed; it is part of the extra `test`")

from e2e.page import finished, opened, run
from host.browser import FrontEnd
from playwright.sync_api import expect

from vae_core.cli.common import DEMO_PHOTOGRAPH

PHOTOGRAPH = "chelsea.png"
MINUTES = 60_000


@pytest.fixture(scope="module", params=["old-canvas", "new-vue"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontEnd]:
    with opened(request.param, tmp_path_factory.mktemp("page") / "comfy", [Path(DEMO_PHOTOGRAPH)]) as (ui, _):
        yield ui


def test_a_round_trip_is_compared(real: FrontEnd) -> None:
    ui = real
    ui.graph(
        [
            ("SeamlessVAELoad", 80, 150),
            ("LoadImage", 80, 450, {"image": PHOTOGRAPH}),
            ("SeamlessVAERoundTrip", 500, 150),
            ("SeamlessVAEInspect", 850, 150),
            ("SeamlessVAEEncode", 500, 560),
            ("SeamlessPosteriorPreview", 850, 560),
        ],
        [
            (1, 0, 3, "vae"),
            (2, 0, 3, "pixels"),
            (1, 0, 4, "vae"),
            (1, 0, 5, "vae"),
            (2, 0, 5, "pixels"),
            (5, 1, 6, "posterior"),
        ],
    )
    expect(ui.panel("About this VAE file")).to_contain_text("16 channels, 8x downscale")
    run(ui)
    panel = ui.panel("Before and after")
    expect(panel.get_by_role("slider")).to_be_visible(timeout=5 * MINUTES)
    expect(panel).to_contain_text("PSNR 3")
    ui.page.wait_for_function(
        """[...document.querySelectorAll('.seamless-stage img')].length === 2 &&
        [...document.querySelectorAll('.seamless-stage img')].every((each) => each.naturalWidth === 451)"""
    )
    expect(ui.panel("Report").locator("pre")).to_contain_text("family", timeout=5 * MINUTES)
    expect(ui.panel("Posterior").locator("img")).to_be_visible(timeout=5 * MINUTES)


def test_a_long_decode_is_followed_and_cancelled(real: FrontEnd) -> None:
    ui = real
    ui.graph(
        [
            ("SeamlessVAELoad", 80, 150),
            ("LoadImage", 80, 450, {"image": PHOTOGRAPH}),
            ("ImageScaleBy", 420, 450, {"scale_by": 8}),
            ("SeamlessVAEEncodeTiled", 420, 100, {"memory_budget": 0.5}),
            ("SeamlessVAEDecodeTiled", 760, 100),
            ("PreviewImage", 1060, 100),
        ],
        [
            (1, 0, 4, "vae"),
            (2, 0, 3, "image"),
            (3, 0, 4, "pixels"),
            (4, 0, 5, "samples"),
            (1, 0, 5, "vae"),
            (5, 0, 6, "images"),
        ],
    )
    run(ui)
    panel = ui.panel("Run progress").filter(visible=True)
    expect(panel.first).to_be_visible(timeout=5 * MINUTES)
    expect(panel.first).to_contain_text("Pass")
    panel.first.get_by_role("button", name="Cancel").click()
    expect(panel).to_have_count(0, timeout=5 * MINUTES)
    assert finished(ui, 60)["status"]["messages"][-1][0] == "execution_interrupted"
    # The browser writes the host's refusals to the console.
    complaints = [each for each in ui.complaints if "seamless" in each.lower()]
    assert complaints == []
