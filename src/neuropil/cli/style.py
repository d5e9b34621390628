"""How verdicts, numbers and progress look: a verdict is always a word, a colour only stands beside it."""

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

COLOURS = {"holds": "green", "fails": "red", "undecided": "yellow", "unmeasured": "dim"}
SIGNS = {"holds": "✓", "fails": "✗", "undecided": "?", "unmeasured": "·"}


def verdict_text(word: str, one_seed: bool = False) -> Text:
    """A verdict with its sign and colour; one-seed verdicts say so."""
    return Text(f"{SIGNS[word]} {word}{' (one seed)' if one_seed else ''}", style=COLOURS[word])


def number(value: float | int | None) -> str:
    """Four digits, in the shortest form, with a true minus sign.

    >>> number(-0.012344), number(3), number(None)
    ('−0.01234', '3', '')
    """
    return "" if value is None else f"{value + 0.0:.4g}".replace("-", "−")  # + 0.0: no "−0"


def interval(span: Sequence[float] | None) -> str:
    """`` [low, high]``, to stand behind a number; nothing for one seed."""
    return f" [{number(span[0])}, {number(span[1])}]" if span else ""


def effect_words(facts: dict[str, Any]) -> str:
    """``effect 0.12 [0.10, 0.14], expected at least 0.1 above the baseline``."""
    if facts.get("effect") is None:
        return f"no verdict at this budget, expected {facts['expect']['words']}"
    span = interval(facts["interval"]) or " (one seed)"
    return f"effect {number(facts['effect'])}{span}, expected {facts['expect']['words']}"


def progress_bar() -> Progress:
    """The one look of progress: on stderr, so that stdout stays clean for results, and on a terminal only.

    Tasks need a `note`, which stands at the end of the line.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
