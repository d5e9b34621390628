"""The effect bar: an effect, its 95 % interval, its seeds and the claim's margin, as coordinates for a small SVG."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from neuropil.cli import style
from neuropil.cli.style import number


@dataclass(frozen=True)
class Mark:
    """A position on the bar, the text beside it and how that text is anchored there."""

    x: float
    text: str = ""
    anchor: str = "middle"


@dataclass(frozen=True)
class Bar:
    """Everything that the template draws; `x` runs over ``[0, width]``."""

    width: float
    point: float
    interval: tuple[float, float] | None
    open_ends: tuple[bool, bool]
    claimed: tuple[float, float]
    reference: float | None
    margins: tuple[Mark, ...]
    ticks: tuple[Mark, ...]
    seeds: tuple[float, ...]
    log: bool


def interval(span: Sequence[float] | None) -> str:
    """``[low, high]``, or nothing for one seed."""
    return style.interval(span).strip()


def bar(
    effect: float,
    interval: tuple[float, float] | None,
    band: tuple[float, float],
    seeds: Sequence[float] = (),
    log: bool = False,
    no_effect: float | None = 0.0,
    width: float = 240.0,
) -> Bar | None:
    """Lay out a bar, on a logarithmic scale for ratios; none if a number is not finite or a ratio not positive.

    The scale always shows the effect, the seeds, the margins and `no_effect` (none for plain values); an interval much wider than
    these is cut off, and says so by open ends.
    """
    edges = [edge for edge in band if math.isfinite(edge)]
    shown = [effect, *([] if no_effect is None else [no_effect]), *edges, *seeds]
    if not all(map(math.isfinite, [*shown, *(interval or ())])) or (log and min(*shown, *(interval or (1.0,))) <= 0):
        return None
    scale: Callable[[float], float] = math.log10 if log else float
    low, high = min(map(scale, shown)), max(map(scale, shown))
    reach = (high - low) or abs(high) or 1.0
    if interval:
        low = max(min(low, scale(interval[0])), low - reach)
        high = min(max(high, scale(interval[1])), high + reach)
    low, high = low - 0.08 * (high - low or reach), high + 0.08 * (high - low or reach)

    def place(value: float) -> float:
        return round(width * (min(max(scale(value), low), high) - low) / (high - low), 1)

    def mark(value: float, text: str) -> Mark:
        x = place(value)
        return Mark(x, text, "start" if x < 0.2 * width else "end" if x > 0.8 * width else "middle")

    least, most = band
    margins = tuple(
        mark(edge, f"claim: {sign} {number(edge)}") for edge, sign in ((least, "≥"), (most, "≤")) if math.isfinite(edge)
    )
    return Bar(
        width=width,
        point=place(effect),
        interval=(place(interval[0]), place(interval[1])) if interval else None,
        open_ends=(scale(interval[0]) < low, scale(interval[1]) > high) if interval else (False, False),
        claimed=(place(least) if math.isfinite(least) else 0.0, place(most) if math.isfinite(most) else width),
        reference=None if no_effect is None else place(no_effect),
        margins=margins,
        ticks=tuple(Mark(place(v), number(v)) for v in _ticks(low, high, log)),
        seeds=tuple(place(value) for value in seeds),
        log=log,
    )


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Round values between `low` and `high` (decades of them if `log`), about four."""
    if log and high - low < 1:
        return _steps(10**low, 10**high)
    if log:
        stride = max(1, math.ceil((high - low) / 5))
        return [10.0**k for k in range(math.ceil(low), math.floor(high) + 1) if k % stride == 0]
    return _steps(low, high)


def _steps(low: float, high: float) -> list[float]:
    raw = (high - low) / 4
    decade = 10.0 ** math.floor(math.log10(raw))
    step = decade * next(s for s in (1, 2, 5, 10) if s * decade >= raw * 0.999)
    return [round(k * step, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
