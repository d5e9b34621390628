"""How verdicts and effects look on a terminal: always a word, a colour only beside it."""

from collections.abc import Sequence
from typing import Any

from rich.text import Text

COLOURS = {"holds": "green", "fails": "red", "undecided": "yellow", "unmeasured": "dim"}
SIGNS = {"holds": "✓", "fails": "✗", "undecided": "?", "unmeasured": "·"}


def verdict_text(word: str, one_seed: bool = False) -> Text:
    """A verdict with its sign and colour; one-seed verdicts say so."""
    return Text(f"{SIGNS[word]} {word}{' (one seed)' if one_seed else ''}", style=COLOURS[word])


def number(value: float | None) -> str:
    """Four digits, in the shortest form."""
    return "" if value is None else f"{value:.4g}"


def interval(span: Sequence[float] | None) -> str:
    """`` [low, high]``, to stand behind a number; nothing for one seed."""
    return f" [{number(span[0])}, {number(span[1])}]" if span else ""


def effect_words(facts: dict[str, Any]) -> str:
    """``effect 0.12 [0.10, 0.14], expected at least 0.1 above the baseline``."""
    if facts.get("effect") is None:
        return f"no verdict at this budget, expected {facts['expect']['words']}"
    span = interval(facts["interval"]) or " (one seed)"
    return f"effect {number(facts['effect'])}{span}, expected {facts['expect']['words']}"
