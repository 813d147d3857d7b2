"""Patterns in a name, filled in as the host's front end fills them for its own nodes: dates and other nodes' widgets.

The front end knows only its own nodes' names, so that ours reach the server with the patterns in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

PATTERN = re.compile(r"%([^%]+)%")
DATE_PARTS = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyy?y?")
NOT_IN_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1F\x7F]')
SEARCH_NAME = "Node name for S&R"


def fill(prefix: str, prompt: Any = None, workflow: Any = None, now: datetime | None = None) -> str:
    """A prefix with its patterns filled in; one that cannot be is left as it is.

    `%date:yyyy-MM-dd%` is the time in the parts d, M, h, m, s and y. `%Node.widget%` is the value of a widget of the
    node with that name (its "Node name for S&R", else its title); characters that no file name has become `_`.

    Args:
        prompt: the host's: node id -> its class, its inputs and its title.
        workflow: the graph as it is saved; without it, names and order come from the prompt.
    """
    time = now or datetime.now()

    def value(match: re.Match[str]) -> str:
        parts = match[1].split(".")
        if len(parts) != 2:
            return format_date(parts[0][5:], time) if parts[0].startswith("date:") else match[0]
        found = _widget(parts[0], parts[1], prompt, workflow)
        return match[0] if found is None else NOT_IN_NAMES.sub("_", found)

    return PATTERN.sub(value, prefix)


def format_date(form: str, time: datetime) -> str:
    """A time in a form such as `yyyy-MM-dd_hh-mm-ss`."""
    numbers = {"d": time.day, "M": time.month, "h": time.hour, "m": time.minute, "s": time.second}

    def value(match: re.Match[str]) -> str:
        part = match[0]
        if part[0] in numbers:
            return str(numbers[part[0]]).zfill(len(part))
        return {"yy": f"{time.year % 100:02d}", "yyyy": str(time.year)}.get(part, part)

    return DATE_PARTS.sub(value, form)


def _widget(name: str, widget: str, prompt: Any, workflow: Any) -> str | None:
    """The value of a widget as text; None if such a node or widget does not exist, or it is a link."""
    if not isinstance(prompt, Mapping):
        return None
    nodes = list(_nodes(prompt, workflow))
    named = [node for node, names in nodes if names[0] == name] or [node for node, names in nodes if names[1] == name]
    inputs = named[0].get("inputs") if named else None
    if not isinstance(inputs, Mapping) or widget not in inputs:
        return None
    value = inputs[widget]
    if isinstance(value, (Mapping, Sequence)) and not isinstance(value, str):
        return None
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _nodes(prompt: Mapping[str, Any], workflow: Any) -> Iterator[tuple[Mapping[str, Any], tuple[Any, Any]]]:
    """The prompt's nodes in the graph's order, each with its search name and its title."""
    order: dict[str, Any] = {}
    if isinstance(workflow, Mapping) and isinstance(workflow.get("nodes"), Sequence):
        order = {str(node.get("id")): node for node in workflow["nodes"] if isinstance(node, Mapping)}
    for key in (*(key for key in order if key in prompt), *(key for key in prompt if key not in order)):
        node = prompt[key]
        drawn = order.get(key, {})
        if not isinstance(node, Mapping):
            continue
        properties = drawn.get("properties")
        about = node.get("_meta")
        search = properties.get(SEARCH_NAME) if isinstance(properties, Mapping) else None
        title = drawn.get("title") or (about.get("title") if isinstance(about, Mapping) else None)
        yield node, (search or node.get("class_type"), title)
