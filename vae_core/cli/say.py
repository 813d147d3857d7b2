"""What the command line prints: names and metadata come from others' files, and a terminal obeys what it is sent."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable

from ..printable import printable


def say(*lines: object) -> None:
    """Print lines to the standard output. A line end within one is printed as it is written in Python."""
    print(_text(lines))


def complain(*lines: object) -> None:
    """Print lines to the standard error output, in the same way."""
    if sys.stderr is not None:  # it was closed; `print` would take the other output then
        print(_text(lines), file=sys.stderr)


class PrintableFormatter(logging.Formatter):
    """Log messages as `complain` prints them."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (its name in logging)
        return printable(super().formatMessage(record))


def _text(lines: Iterable[object]) -> str:
    return "\n".join(printable(str(line)) for line in lines)
