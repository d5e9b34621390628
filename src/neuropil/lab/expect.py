"""What a claim expects, and the verdict over its seeds.

With the paired effect ``e_s`` of every seed (a difference, a log-ratio, or the method's own value where the claim compares it with
a constant, `than`) and its 95 % t-interval ``[low, high]``, a claim that asks for ``e >= margin`` *holds* when ``low >= margin``,
*fails* when ``high < margin`` and is *undecided* in between. One seed has no interval: its verdict is that of the point, and is
marked as one seed.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from neuropil.errors import Refused, choose

VERDICTS = ("holds", "fails", "undecided", "unmeasured")


@dataclass(frozen=True)
class Metric:
    """What is measured: its name, which direction is better, its unit, and the `floor` below which a ratio means nothing."""

    name: str
    better: Literal["higher", "lower"]
    unit: str = ""
    floor: float = 1e-12

    def __post_init__(self) -> None:
        choose("better", self.better, ("higher", "lower"))

    def as_json(self) -> dict[str, Any]:
        """What is kept of it; ``Metric(**facts)`` takes it back.

        >>> Metric(**Metric("time", "lower", "ms", floor=1e-3).as_json())
        Metric(name='time', better='lower', unit='ms', floor=0.001)
        """
        return asdict(self)

    @property
    def words(self) -> str:
        """Its name, unit and direction."""
        return f"{self.name}{f' in {self.unit}' if self.unit else ''}, {self.better} is better"


@dataclass(frozen=True)
class Verdict:
    """What a claim came to: the effect, its 95 % interval (none for one seed) and the word for it."""

    word: str
    effect: float
    interval: tuple[float, float] | None

    @property
    def one_seed(self) -> bool:
        """Whether the verdict rests on a single seed."""
        return self.interval is None


@dataclass(frozen=True)
class Expectation:
    """The common ground: effects per seed, an interval, and the band ``[least, most]`` in which the claim wants the effect."""

    @property
    def band(self) -> tuple[float, float]:
        """The least and the most effect that the claim allows."""
        raise NotImplementedError

    def effects(self, method: Sequence[float], baseline: Sequence[float], metric: Metric) -> list[float]:
        """The paired effect of every seed."""
        return [m - b for m, b in zip(method, baseline, strict=True)]

    def back(self, effect: float) -> float:
        """From the scale on which effects are averaged to the scale on which they are read."""
        return effect

    def judge(self, method: Sequence[float], baseline: Sequence[float], metric: Metric) -> Verdict:
        """The verdict over all seeds."""
        from neuropil.numerics.statistics import t_interval  # late: `neuropil list` needs no scipy

        if not method:
            raise Refused("seeds: a verdict needs at least one")
        mean, low, high = t_interval(self.effects(method, baseline, metric))
        least, most = self.band
        if len(method) == 1:
            return Verdict("holds" if least <= mean <= most else "fails", self.back(mean), None)
        if least <= low and high <= most:
            word = "holds"
        elif high < least or low > most:
            word = "fails"
        else:
            word = "undecided"
        return Verdict(word, self.back(mean), (self.back(low), self.back(high)))

    def as_json(self) -> dict[str, Any]:
        """The expectation as plain data, for evidence and report."""
        return {"kind": type(self).__name__, **{k: v for k, v in asdict(self).items() if v is not None}}


@dataclass(frozen=True)
class _Difference(Expectation):
    by: float = 0.0
    than: float | None = None

    def effects(self, method: Sequence[float], baseline: Sequence[float], metric: Metric) -> list[float]:
        if self.than is not None:
            return list(method)
        return super().effects(method, baseline, metric)

    @property
    def margin(self) -> float:
        """Where no difference lies: 0 for a difference, `than` for a value."""
        return self.than or 0.0


@dataclass(frozen=True)
class More(_Difference):
    """Method is at least `by` above the baseline (or the constant `than`).

    >>> More(by=0.1).judge([0.9, 0.92, 0.91], [0.5, 0.5, 0.52], Metric("accuracy", "higher")).word
    'holds'
    """

    @property
    def band(self) -> tuple[float, float]:
        return self.margin + self.by, math.inf

    def __str__(self) -> str:
        if self.than is not None:
            return f"at least {self.than + self.by:g}"
        if self.by < 0:
            return f"no more than {-self.by:g} below the baseline"
        return f"at least {self.by:g} above the baseline" if self.by else "at least the baseline"


@dataclass(frozen=True)
class Less(_Difference):
    """Method is at least `by` below the baseline (or the constant `than`)."""

    @property
    def band(self) -> tuple[float, float]:
        return -math.inf, self.margin - self.by

    def __str__(self) -> str:
        if self.than is not None:
            return f"at most {self.than - self.by:g}"
        if self.by < 0:
            return f"no more than {-self.by:g} above the baseline"
        return f"at least {self.by:g} below the baseline" if self.by else "at most the baseline"


@dataclass(frozen=True)
class Ratio(Expectation):
    """Method over baseline is at least `at_least` and at most `at_most`, averaged as log-ratios of values above the metric's floor.

    >>> Ratio(at_most=0.1).judge([1e-3], [0.5], Metric("error", "lower")).word
    'holds'
    """

    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise Refused("Ratio: give at_least, at_most or both")

    @property
    def band(self) -> tuple[float, float]:
        return (
            -math.inf if self.at_least is None else math.log(self.at_least),
            math.inf if self.at_most is None else math.log(self.at_most),
        )

    def effects(self, method: Sequence[float], baseline: Sequence[float], metric: Metric) -> list[float]:
        values = [*method, *baseline]
        if min(values) < 0:
            raise Refused(f"Ratio: {metric.name} must not be negative, got {min(values):g}")
        pairs = zip(method, baseline, strict=True)
        return [math.log(max(m, metric.floor) / max(b, metric.floor)) for m, b in pairs]

    def back(self, effect: float) -> float:
        return math.exp(effect)

    def __str__(self) -> str:
        bounds = [f"at least {self.at_least:g}" if self.at_least is not None else ""]
        bounds += [f"at most {self.at_most:g}" if self.at_most is not None else ""]
        return " and ".join(filter(None, bounds)) + " times the baseline"


@dataclass(frozen=True)
class Close(_Difference):
    """Method and baseline (or the constant `than`) differ by no more than `within`."""

    within: float = 0.0

    @property
    def band(self) -> tuple[float, float]:
        return self.margin - self.within, self.margin + self.within

    def __str__(self) -> str:
        return f"within {self.within:g} of {'the baseline' if self.than is None else f'{self.than:g}'}"
