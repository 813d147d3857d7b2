"""Saving: names with patterns in them, and several nodes with one name."""

from __future__ import annotations

import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from given.nodes import Makers
from host.stand_in import Host, Pack

NOW = datetime(2025, 3, 9, 7, 5, 2)
PROMPT: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 2**64 - 1, "cfg": 7.5, "steps": 20.0, "model": ["4", 0], "on": True, "none": None},
        "_meta": {"title": "Refiner"},
    },
    "4": {"class_type": "Loader", "inputs": {"ckpt_name": 'sub/dir\\a:b*c?"d|e<f>.st'}, "_meta": {"title": "Model"}},
    "5": {"class_type": "KSampler", "inputs": {"seed": 5}, "_meta": {"title": "KSampler"}},
}
WORKFLOW = {
    "nodes": [
        {"id": 5, "properties": {"Node name for S&R": "KSampler"}},
        {"id": 3, "properties": {"Node name for S&R": "First"}, "title": "Refiner"},
        {"id": 4, "properties": {}},
        {"id": 9, "properties": {"Node name for S&R": "Muted"}},
    ]
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vae/%date:yyyy-MM-dd%", "vae/2025-03-09"),
        ("%date:yy-M-d_hh.%", "%date:yy-M-d_hh.%"),  # two parts: the front end looks for a node
        ("%date:hhmmss%", "070502"),
        ("%date:h m s yyy%", "7 5 2 yyy"),
        ("%date:%", ""),
        ("%KSampler.seed%", str(2**64 - 1)),
        ("%KSampler.cfg%-%KSampler.steps%", "7.5-20"),
        ("%KSampler.on%%KSampler.none%", "true"),
        ("%Refiner.seed%", str(2**64 - 1)),
        ("%Loader.ckpt_name%", "sub_dir_a_b_c__d_e_f_.st"),
        ("%KSampler.model%", "%KSampler.model%"),  # a link has no value here
        (
            "%KSampler.nothing% %Nobody.seed% %width% %year% 100%",
            "%KSampler.nothing% %Nobody.seed% %width% %year% 100%",
        ),
        ("%a.b.c%", "%a.b.c%"),
    ],
)
def test_patterns(pack: Pack, text: str, expected: str) -> None:
    assert pack.module("nodes.prefix").fill(text, PROMPT, None, NOW) == expected


def test_names_and_order_of_the_graph(pack: Pack) -> None:
    fill = pack.module("nodes.prefix").fill
    assert fill("%KSampler.seed% %First.seed% %Muted.x%", PROMPT, WORKFLOW, NOW) == f"5 {2**64 - 1} %Muted.x%"
    for prompt, workflow in (
        (None, None),
        ({}, {}),
        ([], "x"),
        ({"3": None}, {"nodes": [None, 3]}),
        ("x", {"nodes": 1}),
    ):
        assert fill("%KSampler.seed%", prompt, workflow, NOW) == "%KSampler.seed%"


def test_the_save_node_fills_them_in(pack: Pack, make: Makers, host: Host) -> None:
    vae, prompt = make.vae(), {"1": {"class_type": "Loader", "inputs": {"name": "../a"}}}
    (path,) = pack.run("SeamlessVAESave", vae=vae, filename_prefix="x/%Loader.name%_%date:yyyy%", prompt=prompt)
    assert Path(path).parent == host.folder / "output" / "x"
    assert Path(path).name == f".._a_{datetime.now().year}_00001"
    extra = {"workflow": {"nodes": [{"id": 1, "properties": {"Node name for S&R": "Mine"}}]}}
    (path,) = pack.run("SeamlessVAESave", vae=vae, filename_prefix="%Mine.name%", prompt=prompt, extra_pnginfo=extra)
    assert Path(path).name == ".._a_00001"


@pytest.mark.parametrize("format", ["diffusers", "single_file"])
def test_nodes_that_save_at_once_have_names_of_their_own(
    format: str, pack: Pack, make: Makers, new_host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All see the same free number, write, and all but one find it taken."""
    show, count = pack.module("nodes.show"), 4
    numbered, barrier, found = show.numbered_path, threading.Barrier(count, timeout=60), []
    seen = threading.local()

    def together(prefix: str, ending: str) -> Path:
        path = numbered(prefix, ending)
        seen.calls = getattr(seen, "calls", 0) + 1
        if seen.calls == 2:  # the first only asks whether the name can be one
            barrier.wait()
        return path

    monkeypatch.setattr(show, "numbered_path", together)
    vaes = [make.vae(seed=i) for i in range(count)]

    def save(vae: Any) -> None:
        found.extend(pack.run("SeamlessVAESave", vae=vae, filename_prefix="same", format=format))

    threads = [threading.Thread(target=save, args=(vae,)) for vae in vaes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == count
    load = pack.module("vae_core").load_vae
    weights = [load(path).decoder.conv_in.weight.double().sum().item() for path in found]
    assert len(set(weights)) == count, "each has its own weights"
    ending = ".safetensors" if format == "single_file" else ""
    names = sorted(path.name for path in (new_host.folder / "output").iterdir())
    assert names == [f"same_{i:05d}{ending}" for i in range(1, count + 1)]
