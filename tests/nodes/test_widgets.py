"""What is linked to widgets, which the host does not look at: each widget of each node with what it cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from host.stand_in import Pack

pytestmark = pytest.mark.usefixtures("host")


def nested() -> list[Any]:
    found: list[Any] = []
    for _ in range(100_000):
        found = [found]
    return found


NOTHING = [None, [], {}, b"1", object(), torch.zeros(3), np.zeros(3), nested()]
HUGE = [10**5000, 10**30, -(10**30), float("nan"), float("inf"), -float("inf")]
WRONG: dict[str, list[Any]] = {
    "INT": [*NOTHING, *HUGE, "2", 1.5, 2**64, 1j],
    "FLOAT": [*NOTHING, *HUGE, bytearray(b"1"), "0.5", 1e308, 1j],
    "BOOLEAN": [*NOTHING, *HUGE, "yes", 2, 0.5],
    "STRING": [*NOTHING, *HUGE, 3, True, "\ud800"],
    "COMBO": [*NOTHING, *HUGE, 3, True, "\ud800"],
}
RIGHT: dict[str, list[tuple[Any, Any]]] = {
    "INT": [(2, 2), (2.0, 2), (True, 1), (np.int64(2), 2), (np.uint8(2), 2), (torch.tensor(2), 2)],
    "FLOAT": [(1, 1.0), (0.5, 0.5), (np.float32(0.5), 0.5), (torch.tensor(0.5), 0.5), (np.int64(1), 1.0)],
    "BOOLEAN": [(True, True), (False, False), (1, True), (0, False), (np.bool_(True), True)],
    "STRING": [("", ""), ("a b/\u00e9", "a b/\u00e9"), ("a\udcffb", "a\udcffb")],
    "COMBO": [("auto", "auto")],
}


def widgets_of(node: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    groups = node.INPUT_TYPES()
    inputs = {**groups.get("required", {}), **groups.get("optional", {})}
    kinds = {name: ("COMBO" if isinstance(each[0], list) else each[0], each[1]) for name, each in inputs.items()}
    return {name: each for name, each in kinds.items() if each[0] in WRONG and not each[1].get("forceInput")}


def test_every_widget_of_every_node(pack: Pack) -> None:
    count = 0
    for node in pack.root.NODE_CLASS_MAPPINGS.values():
        widgets = widgets_of(node)
        others = dict.fromkeys(node.INPUT_TYPES()["required"])
        others |= {name: options.get("default", "a") for name, (_, options) in widgets.items()}
        for name, (kind, _) in widgets.items():
            for wrong in WRONG[kind]:
                given = {**others, name: wrong}
                if getattr(node, "INPUT_IS_LIST", False):
                    given = {each: [value] for each, value in given.items()}
                with pytest.raises(pack.module("vae_core").ConfigError) as caught:
                    getattr(node(), node.FUNCTION)(**given)
                message = str(caught.value)
                assert message.startswith(f"{name} is ") and message.endswith(".") and len(message) < 250
                count += 1
    assert count > 700


@pytest.mark.parametrize("kind", RIGHT)
def test_what_is_as_good_becomes_what_a_node_expects(pack: Pack, kind: str) -> None:
    class Node:
        FUNCTION = "run"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
            declared = ["auto"] if kind == "COMBO" else kind
            return {"required": {"value": (declared, {"min": 0, "max": 100}), "other": ("IMAGE", {})}}

        def run(self, value: Any, other: Any) -> tuple[Any, Any]:
            return value, other

    pack.module("nodes.widgets").check_values(Node)
    for given, expected in RIGHT[kind]:
        value, other = Node().run(value=given, other="anything")
        assert (value, type(value), other) == (expected, type(expected), "anything")
