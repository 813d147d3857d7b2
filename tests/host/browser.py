"""The real front end in a headless browser: a page, what it complained about, and what a user does with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from host.frontend import static_files
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

SERVER = Path(__file__).with_name("server.py")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --force-color-profile=srgb --font-render-hinting=none"
)
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Release.Status": "dismissed",
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Queue.QPOV2": False,
    "LiteGraph.Canvas.MaximumFps": 20,
}
PATIENCE = 1000 * int(os.environ.get("SEAMLESS_VAE_PATIENCE", "60"))  # milliseconds, for machines that are busy
# What the old front end says of itself.
OWN_COMPLAINTS = ("Attempted to cleanup event listeners for graph that was never set up",)
# An image that tests show though there is none; the front end asks for it whenever it next draws.
LOST_IMAGE = "gone.png"
READY = "window.app?.canvas && window.graph && window.app.extensionManager?.workflow?.activeWorkflow"
SAYS = """(text) => [...document.querySelectorAll('body *')].filter((each) =>
    !each.children.length && each.tagName !== 'P' && each.textContent.includes(text)).length"""
MAKE_GRAPH = """async ([nodes, links]) => {
    await app.loadGraphData({last_node_id: 0, last_link_id: 0, nodes: [], links: [], groups: [], config: {}, extra: {},
        version: 0.4}, true, false, app.extensionManager.workflow.activeWorkflow)
    nodes.forEach(([type, x, y, values], index) => {
        const node = LiteGraph.createNode(type)
        if (!node) throw new Error(`no node ${type}`)
        node.pos = [x, y]
        node.id = index + 1
        app.canvas.graph.add(node)
        for (const [name, value] of Object.entries(values ?? {})) {
            const widget = node.widgets.find((each) => each.name === name)
            widget.value = value
        }
    })
    const node = (id) => app.canvas.graph.getNodeById(id)
    for (const [from, output, to, input] of links) {
        const slot = node(to).inputs.findIndex((each) => each.name === input)
        if (!node(from).connect(output, node(to), slot)) throw new Error(`no link ${from} ${to} ${input}`)
    }
    app.nodeOutputs = {}
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [0, 0]
    app.canvas.draw(true, true) // the canvas knows under a pointer only what it has drawn
}"""

# Nothing is asked for, loaded or to be drawn any more, and panels stay where they are for some frames.
SETTLED = """async () => {
    const busy = () => app.canvas.dirty_canvas || app.canvas.dirty_bgcanvas || document.fonts.status !== 'loaded' ||
        document.querySelector('.seamless-panel:not(.seamless-hidden) .seamless-content[aria-busy="true"]') ||
        [...document.querySelectorAll('.seamless-panel img')].some((each) => !each.complete)
    const look = () => JSON.stringify([...document.querySelectorAll('.seamless-panel, .seamless-panel *')].map(
        (each) => each.getBoundingClientRect()))
    const before = look()
    for (let frame = 0; frame < 3; frame++) {
        await new Promise(requestAnimationFrame)
        if (busy() || look() !== before) return false
    }
    return true
}"""


def find_chromium() -> str | None:
    return next((path for name in CHROMIUM if (path := shutil.which(name))), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser. Without Chromium, what asks for it is skipped."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium is installed (`apt-get install chromium`)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS.split())
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def front_end(browser: Browser, url: str, renderer: str, **context: Any) -> Iterator[FrontEnd]:
    """A page for a front end, not loaded yet; `renderer` is canvas or vue."""
    opened = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "locale": "en-US", **context})
    try:
        yield FrontEnd(opened.new_page(), url, renderer == "vue")
    finally:
        opened.close()


@contextmanager
def stand_in(version: str, data: Path) -> Iterator[str]:
    """The address of a stand-in back end with a front end of this version."""
    command = [sys.executable, str(SERVER), "--frontend", str(static_files(version)), "--data", str(data)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the stand-in back end did not start; its message is above"
        yield json.loads(line)["url"]
    finally:
        process.terminate()
        process.wait(timeout=30)


@dataclass
class FrontEnd:
    """One page with the front end in it.

    Attributes:
        vue: whether Nodes 2.0 draws the nodes.
        complaints: errors in the console and exceptions since the last `check`.
    """

    page: Page
    url: str
    vue: bool
    complaints: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(f"exception: {error.stack or error}"))
        # Addresses in the internet: news, accounts. None is needed.
        self.page.route(lambda url: not url.startswith(self.url), lambda route: route.fulfill(json={}))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(f"{message.text} ({message.location.get('url', '')})")

    def load(self, **settings: Any) -> None:
        """Open the front end afresh with these settings beside the usual ones."""
        self.settings = {**SETTINGS, "Comfy.VueNodes.Enabled": self.vue, **settings}
        self.post("/settings", self.settings)
        self.page.goto(self.url, wait_until="domcontentloaded")
        self.page.wait_for_function(READY)
        self.page.wait_for_function("!!LiteGraph.registered_node_types.SeamlessVAELoad")
        # The old front end trips over settings of its own while it starts.
        self.complaints[:] = [each for each in self.complaints if "seamless" in each.lower()]

    # Orders to the stand-in back end.
    def post(self, path: str, data: Any) -> Any:
        response = self.page.request.post(self.url + path, data=data)
        assert response.ok, response.status_text
        text = response.text()
        return json.loads(text) if text else None

    def send(self, kind: str, **data: Any) -> None:
        """A message of the back end to the page."""
        assert self.post("/standin/send", {"type": kind, "data": data}) > 0

    def reconnect(self) -> None:
        """The connection of the page to the back end breaks, and is made again."""
        self.js(
            """async () => {
                const { api } = await import('/scripts/api.js')
                await new Promise((resolve) => {
                    api.addEventListener('reconnected', resolve, { once: true })
                    api.socket.close()
                })
            }"""
        )

    def executed(self, node: int | str, **output: Any) -> None:
        """A node runs and gives this out, announced as the host does."""
        which = {"node": str(node), "display_node": str(node), "prompt_id": "p"}
        self.send("executing", **which)  # the front end draws at this one, and not at the next
        self.send("executed", **which, output=output)
        self.send("executing", node=None, prompt_id="p")

    def rule(self, path: str, status: int = 200, delay: float = 0) -> None:
        self.post("/standin/rule", {"path": path, "status": status, "delay": delay})

    def requests(self, part: str = "") -> list[list[str]]:
        return [each for each in self.page.request.get(f"{self.url}/standin/requests").json() if part in each[1]]

    def wait_for_requests(self, part: str, count: int) -> None:
        """Until there have been so many of them."""
        for _ in range(PATIENCE // 100):
            if len(self.requests(part)) >= count:
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{len(self.requests(part))} requests of {part}, of {count}")

    # The graph.
    def graph(self, nodes: list[tuple], links: list[tuple] = []) -> None:  # noqa: B006
        """A new graph: nodes (type, x, y, {widget: value}) with ids 1, 2, ..., links (from, output, to, input)."""
        self.page.evaluate(MAKE_GRAPH, [[list(node) for node in nodes], [list(link) for link in links]])

    def js(self, expression: str, argument: Any = None) -> Any:
        return self.page.evaluate(expression, argument)

    def set(self, node: int, widget: str, value: Any) -> None:
        """Set a widget as its own control does, callback included."""
        self.js(
            """([id, name, value]) => {
                const node = app.canvas.graph.getNodeById(id)
                const widget = node.widgets.find((each) => each.name === name)
                widget.value = value
                widget.callback?.(value, app.canvas, node)
            }""",
            [node, widget, value],
        )

    def settle(self) -> None:
        """Until the panels have their final places."""
        end = time.monotonic() + PATIENCE / 1000
        while not self.js(SETTLED):
            assert time.monotonic() < end, "the panels do not come to rest"

    def panel(self, label: str) -> Locator:
        return self.page.locator(f'.seamless-panel[aria-label="{label}"]')

    def says(self, text: str) -> int:
        """How many messages on the page say this; what is only read aloud does not count."""
        return self.js(SAYS, text)

    def wait_until_it_says(self, text: str, count: int) -> None:
        self.page.wait_for_function(f"([text, count]) => ({SAYS})(text) === count", arg=[text, count])

    def close_messages(self) -> None:
        self.js("document.querySelectorAll('.p-toast-close-button').forEach((each) => each.click())")

    def clear_messages(self, text: str) -> None:
        """Close messages until none says this; one that is on its way in does not heed its button."""
        for _ in range(PATIENCE // 250):
            if not self.says(text):
                return
            self.close_messages()
            self.page.wait_for_timeout(250)
        raise AssertionError(f"a message still says {text}")

    def forgive_failed_requests(self) -> None:
        """Pass over what the browser says of requests that were meant to fail."""
        self.complaints[:] = [each for each in self.complaints if "Failed to load resource" not in each]

    def check(self) -> None:
        """Fail if the page complained."""
        own = [each for each in self.complaints if each.startswith(OWN_COMPLAINTS) or f"filename={LOST_IMAGE}&" in each]
        complaints = [each for each in self.complaints if each not in own]
        self.complaints.clear()
        assert not complaints, "\n".join(complaints)

    def shot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(path))

    # What a user does.
    def choose(self, node: int, widget: str, value: str) -> None:
        """Pick an entry of a combo box with the mouse."""
        if self.vue:
            row = self.page.locator(f'[data-node-id="{node}"] [data-widget-name="{widget}"]')
            row.get_by_role("combobox").click()
            self.page.get_by_role("option", name=value, exact=True).click()
        else:
            self.page.mouse.click(*self.widget_place(node, widget))
            self.page.locator(".litecontextmenu .litemenu-entry").get_by_text(value, exact=True).click()

    def type_number(self, node: int, widget: str, value: float) -> None:
        """Type into a number widget."""
        if self.vue:
            box = self.page.locator(f'[data-node-id="{node}"] [data-widget-name="{widget}"] input')
            place = box.bounding_box()
            assert place is not None
            self.page.mouse.click(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
            self.page.keyboard.press("ControlOrMeta+a")
            self.page.keyboard.type(f"{value}\n")
        else:
            self.page.mouse.dblclick(*self.widget_place(node, widget))
            box = self.page.locator(".graphdialog input")
            box.fill(str(value))
            box.press("Enter")

    def widget_place(self, node: int, widget: str) -> tuple[float, float]:
        """The middle of a widget that the canvas draws, on the page."""
        x, y = self.js(
            """([id, name]) => {
                const node = app.canvas.graph.getNodeById(id)
                const widget = node.widgets.find((each) => each.name === name)
                const box = app.canvas.canvas.getBoundingClientRect()
                const {scale, offset} = app.canvas.ds
                return [box.left + (node.pos[0] + node.size[0] * 0.4 + offset[0]) * scale,
                        box.top + (node.pos[1] + widget.y + 10 + offset[1]) * scale]
            }""",
            [node, widget],
        )
        return x, y
