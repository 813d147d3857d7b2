"""While a node runs, it says how far it is, and can be stopped."""

from __future__ import annotations

import pytest
from host.browser import FrontEnd
from playwright.sync_api import Locator, expect

pytestmark = pytest.mark.thorough

PANEL = "Run progress"
STATUS = {
    "done": 300,
    "total": 1000,
    "pass": 12,
    "passes": 35,
    "memory": 1.5 * 2**30,
    "seconds_left": 75.2,
    "width": 96,
    "height": 64,
    "batch": 1,
}


def start(ui: FrontEnd, node: str = "SeamlessVAEDecode") -> Locator:
    ui.graph([(node, 420, 120), ("SeamlessVAEEncode", 80, 120)])
    panel = ui.panel(PANEL).filter(has_text="%")
    expect(panel).to_have_count(0)
    ui.send("execution_start", prompt_id="p1")
    ui.send("seamless_vae.status", node="1", **STATUS)
    expect(panel).to_be_visible()
    return panel


def test_the_table_of_nodes_fits_the_back_end(ui: FrontEnd) -> None:
    """What reports its progress shows it, and what is replaced by another node exists and is replaced back."""
    table = ui.js("async () => (await import('/extensions/seamless-vae/js/nodes.js')).NODES")
    info = ui.page.request.get(f"{ui.url}/object_info").json()
    ours = {name: node for name, node in info.items() if node["python_module"].startswith("custom_nodes")}
    assert table.keys() <= ours.keys()
    reporting = {name for name, node in ours.items() if "unique_id" in node["input"].get("hidden", {})}
    assert reporting == {name for name in ours if table.get(name, {}).get("progress")}
    cores = [entry["core"] for entry in table.values() if "core" in entry]
    assert len(cores) == len(set(cores)) and set(cores) <= info.keys() - ours.keys()
    for name, entry in table.items():
        widgets = {**ours[name]["input"].get("required", {}), **ours[name]["input"].get("optional", {})}
        assert entry.get("values", {}).keys() <= widgets.keys()
        assert not entry.get("defaults") or {"mode", "memory_budget"} <= widgets.keys()


@pytest.mark.parametrize("node", ["SeamlessVAEDecode", "SeamlessVAEDecodeTiled", "SeamlessVAERoundTrip"])
def test_a_run_is_followed(ui: FrontEnd, node: str) -> None:
    panel = start(ui, node)
    expect(panel).to_contain_text("30 % · Pass 12 of 35 · 1.5 GiB in use by ComfyUI · 1 min 15 s left")
    expect(panel.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "30")
    ui.send(
        "seamless_vae.status", node="1", **{**STATUS, "done": 900, "pass": 34, "seconds_left": None, "memory": None}
    )
    expect(panel.locator(".seamless-run-text")).to_have_text("90 % · Pass 34 of 35")
    ui.send("executing", node="2", display_node="2", prompt_id="p1")
    expect(panel).not_to_be_visible()


@pytest.mark.parametrize("end", ["executed", "execution_success", "execution_interrupted"])
def test_the_end_is_noticed(ui: FrontEnd, end: str) -> None:
    panel = start(ui)
    ui.send(end, node="1", node_id="1", node_type="X", executed=[], display_node="1", prompt_id="p1", output={})
    expect(panel).not_to_be_visible()
    ui.send("seamless_vae.status", node="1", **STATUS)  # another run
    expect(panel).to_be_visible()
    ui.send("execution_success", prompt_id="p1")


def test_a_run_is_cancelled_from_its_node(ui: FrontEnd) -> None:
    panel = start(ui)
    before = len(ui.requests("/interrupt"))
    panel.get_by_role("button", name="Cancel").click()
    expect(panel.get_by_role("button")).to_have_text("Cancelling…")
    expect(panel.get_by_role("button")).to_be_disabled()
    method, _, body = ui.requests("/interrupt")[before]
    assert method == "POST" and '"p1"' in body
    ui.send("execution_interrupted", prompt_id="p1", node_id="1", node_type="X", executed=[])
    expect(panel).not_to_be_visible()


def test_a_run_whose_start_was_missed_is_cancelled_all_the_same(ui: FrontEnd) -> None:
    """The back end passes over an order to stop another run than the one at work."""
    start(ui)
    ui.reconnect()
    ui.send("seamless_vae.status", node="1", **STATUS)
    panel = ui.panel(PANEL).filter(has_text="%")
    expect(panel).to_be_visible()
    before = len(ui.requests("/interrupt"))
    panel.get_by_role("button", name="Cancel").click()
    expect(panel.get_by_role("button")).to_have_text("Cancelling…")
    assert "p1" not in ui.requests("/interrupt")[before][2]
    ui.send("execution_interrupted", prompt_id="p2", node_id="1", node_type="X", executed=[])
    expect(panel).not_to_be_visible()


def test_a_failed_cancellation_can_be_tried_again(ui: FrontEnd) -> None:
    panel = start(ui)
    ui.page.route("**/interrupt", lambda route: route.abort())
    try:
        for _ in range(2):
            panel.get_by_role("button", name="Cancel").click()
            ui.wait_until_it_says("Failed to fetch", 1)
            expect(panel.get_by_role("button", name="Cancel")).to_be_enabled()
            ui.clear_messages("Failed to fetch")
    finally:
        ui.page.unroute("**/interrupt")
    panel.get_by_role("button", name="Cancel").click()
    expect(panel.get_by_role("button")).to_have_text("Cancelling…")
    ui.send("execution_success", prompt_id="p1")
    ui.forgive_failed_requests()


def test_news_of_unknown_nodes_are_passed_over(ui: FrontEnd) -> None:
    panel = start(ui)
    for node in ("99", "7:3", None, "2:1:5", "x"):
        ui.send("seamless_vae.status", node=node, **STATUS)
    ui.send("seamless_vae.status", node="1", done=0, total=0)
    expect(panel.locator(".seamless-run-text")).to_have_text("0 %")
    ui.send("execution_success", prompt_id="p1")
