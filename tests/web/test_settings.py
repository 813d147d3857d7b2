"""Settings, languages and themes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from host.browser import FrontEnd
from playwright.sync_api import expect

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parents[2]
TILED = ("SeamlessVAEDecodeTiled", 200, 120)


@pytest.fixture
def fresh(ui: FrontEnd) -> Iterator[FrontEnd]:
    """A page whose settings the test changes; the usual ones come back."""
    yield ui
    ui.js(
        """async (ids) => { for (const [id, value] of ids) await app.extensionManager.setting.set(id, value) }""",
        [["SeamlessVAE.DefaultMode", "exact"], ["SeamlessVAE.DefaultMemoryBudget", 0], ["SeamlessVAE.Panels", True]],
    )


def change(ui: FrontEnd, name: str, value: object) -> None:
    ui.js("([id, value]) => app.extensionManager.setting.set(id, value)", [f"SeamlessVAE.{name}", value])


def test_new_nodes_start_with_the_defaults_and_saved_ones_do_not(fresh: FrontEnd) -> None:
    ui = fresh
    values = """app.canvas.graph.nodes[0].widgets.filter((each) => ['mode', 'memory_budget'].includes(each.name))
        .map((each) => each.value)"""
    ui.graph([TILED])
    assert ui.js(values) == ["exact", 0]
    saved = ui.js("app.canvas.graph.serialize()")
    change(ui, "DefaultMode", "blended")
    change(ui, "DefaultMemoryBudget", 1.5)
    ui.graph([TILED])
    assert ui.js(values) == ["blended", 1.5]
    ui.js("async (saved) => app.loadGraphData(saved, true, false)", saved)
    assert ui.js(values) == ["exact", 0]


def test_previews_can_be_switched_off(fresh: FrontEnd) -> None:
    ui = fresh
    ui.graph([("SeamlessVAELoad", 80, 120), ("SeamlessVAERoundTrip", 400, 120)])
    panels = ui.page.locator(".seamless-panel:visible")
    stage = ui.page.locator(".seamless-stage img:visible")
    height = "app.canvas.graph.getNodeById(2).size[1]"
    image = {"filename": "photo.png", "subfolder": "", "type": "input"}
    expect(panels).to_have_count(2)
    usual = ui.js(height)

    def the_host_shows(count: int) -> None:
        if ui.vue:
            expect(ui.page.locator('[data-node-id="2"] img:visible:not(.seamless-panel img)')).to_have_count(count)
        else:
            preview = "node.widgets.some((each) => each.name === '$$canvas-image-preview')"
            ui.page.wait_for_function(
                f"""(count) => {{ const node = app.canvas.graph.getNodeById(2)
                    return {preview} === count > 0 && (node.imgs?.length ?? 0) === count }}""",
                arg=count,
            )

    change(ui, "Panels", False)
    expect(panels).to_have_count(0)
    ui.executed(2, images=[image] * 3)
    the_host_shows(3)
    for _ in range(2):  # without another run
        change(ui, "Panels", True)
        expect(panels).to_have_count(2)
        expect(stage).to_have_count(2)
        the_host_shows(0)
        assert ui.js(height) == usual
        change(ui, "Panels", False)
        expect(panels).to_have_count(0)
        the_host_shows(3)


def test_the_settings_are_in_the_dialog(fresh: FrontEnd) -> None:
    ui = fresh
    ui.js("app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
    dialog = ui.page.get_by_role("dialog").first
    dialog.get_by_text("Seamless VAE", exact=True).first.click()
    for name in ("Mode of new tiled nodes", "Memory budget of new tiled nodes (GiB)", "Show panels in nodes"):
        expect(dialog.get_by_text(name, exact=True)).to_be_visible()
    ui.page.keyboard.press("Escape")


def test_chinese(ui: FrontEnd) -> None:
    ui.load(**{"Comfy.Locale": "zh"})
    try:
        ui.graph([("SeamlessVAELoad", 80, 150), TILED])
        panel = ui.panel("此 VAE 文件的信息")
        expect(panel).to_contain_text("16 通道")
        expect(ui.panel("运行计划")).to_contain_text("不分块")
        label = ui.js(
            """(() => { const found = app.extensionManager.command.commands
                .find((each) => each.id === 'SeamlessVAE.ToSeamless').label;
                return typeof found === 'function' ? found() : found })()"""
        )
        assert label == "将 VAE 节点替换为 Seamless VAE"
        category = ui.js("LiteGraph.registered_node_types.SeamlessVAELoad.category")
        assert category.split("/")[1] == "无缝 VAE" and category.split("/")[0] != "latent"
        ui.graph([("SeamlessVAEInspect", 80, 150)])
        ui.executed(1, text=["kohya's cache files"], facts=[{"key": "report.kind.kohya", "values": {}}, "as it is"])
        expect(ui.panel("报告").locator("pre")).to_have_text("kohya 的缓存文件\nas it is")
        ui.graph([("OtherPosterior", 80, 150)])
        assert ui.js("app.canvas.graph.getNodeById(1).outputs[0].localized_name") == "后验分布"
    finally:
        ui.load(**{"Comfy.Locale": "en"})


def test_a_language_that_is_none_is_passed_over(ui: FrontEnd) -> None:
    ui.load(**{"Comfy.Locale": "xx_"})
    try:
        ui.graph([("SeamlessVAELoad", 80, 150)])
        expect(ui.panel("About this VAE file")).to_contain_text("MiB")
    finally:
        ui.complaints[:] = [each for each in ui.complaints if "seamless" in each.lower()]
        ui.check()
        ui.load(**{"Comfy.Locale": "en"})


def flat(language: str, name: str) -> dict[str, str]:
    def walk(value: object, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, f"{path}/{key}")
        else:
            yield path, str(value)

    return dict(walk(json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8")), ""))


@pytest.mark.parametrize("name", ["main", "settings", "commands"])
def test_both_languages_have_the_same_texts(name: str) -> None:
    english, chinese = flat("en", name), flat("zh", name)
    assert english.keys() == chinese.keys()
    for key in english:
        assert sorted(re.findall(r"\{\w+\}", english[key])) == sorted(re.findall(r"\{\w+\}", chinese[key])), key


def is_reported(key: str) -> bool:
    """Whether a node reports it: by the whole key, or by what comes before its last word."""
    stem, _, last = key.rpartition(".")
    nodes = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "nodes").glob("*.py"))
    counted = last in ("one", "many") and f'"{stem}"' in nodes
    return f'"{key}"' in nodes or f'f"{stem}.{{' in nodes or counted


def test_the_english_texts_are_those_of_the_modules(ui: FrontEnd) -> None:
    texts = ui.js("async () => (await import('/extensions/seamless-vae/js/ui/english.js')).ENGLISH")
    assert texts == json.loads((ROOT / "locales" / "en" / "main.json").read_text(encoding="utf-8"))["seamlessVae"]
    used = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "web" / "js").rglob("*.js"))
    in_groups = ("way.", "because.", "unit.")  # whose keys are put together where they are used
    assert "`way.${" in used and "translated('because'," in used and "`unit.${" in used
    reports = [key for key in texts if key.startswith("report.")]
    assert [key for key in reports if not is_reported(key)] == []
    for key in texts.keys() - reports:
        uses = re.findall(rf"\b{re.escape(key)}\b", used)
        assert key.startswith(in_groups) or len(uses) > 1, f"{key} is not used"
