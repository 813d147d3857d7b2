"""Texts from others' files, without what a terminal would obey."""

from __future__ import annotations


def printable(text: str) -> str:
    """A text in one line: line ends, escapes and what has no sign are as they are written in Python."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
