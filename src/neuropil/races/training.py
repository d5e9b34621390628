"""What makes a race fair: the largest size within the budget, the same steps or seconds, and rates that are chosen by one rule on
validation data.
"""

import copy
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.errors import Refused
from neuropil.fields.field import parameters_of
from neuropil.lab.race import Course
from neuropil.lab.run import seed_everything

MORE = 3  # rates beyond those of a role, at most
N = TypeVar("N")
S = TypeVar("S")
Update = Callable[[Any, Optimizer, int], float]


def to_budget(make: Callable[[int], N], parameters: int, count: Callable[[N], int] = parameters_of, least: int = 1) -> N:  # type: ignore[assignment]
    """The largest within the budget among ``make(least), make(least + 1), …``, whose number of parameters must grow.

    O(log size) constructions. `Refused` for a budget that the smallest exceeds.

    >>> parameters_of(to_budget(lambda width: nn.Linear(10, width), 1_000))
    990
    """
    low, best = least, make(least)
    if count(best) > parameters:
        raise Refused(f"parameters: the smallest of its kind has {count(best):,}, got {parameters:,}")
    high = least + 1
    while count(larger := make(high)) <= parameters:
        low, high, best = high, 2 * high, larger
    while high - low > 1:
        middle = (low + high) // 2
        if count(larger := make(middle)) <= parameters:
            low, best = middle, larger
        else:
            high = middle
    return best


def closest(
    make: Callable[[S], N],
    shapes: Sequence[S],
    parameters: int,
    count: Callable[[N], int] = parameters_of,  # type: ignore[assignment]
) -> N:
    """The first of ``make(shape)`` with at least 96 % of the budget, else the largest: for parts with a second size that may vary.

    A shape that is `Refused` as too large for the budget is left out; if all are, the budget is `Refused`.
    """
    best: N | None = None
    for shape in shapes:
        try:
            made = make(shape)
        except Refused:
            if best is None and shape == shapes[-1]:
                raise
            continue
        if best is None or count(made) > count(best):
            best = made
        if count(best) >= 0.96 * parameters:
            break
    assert best is not None
    return best


@dataclass
class Tuned(Generic[N]):
    """The net of the best rate, what is to be told of it, and the validation score of each rate tried; NaN where it exploded."""

    net: N
    rate: float
    told: dict[str, Any]
    validation: dict[float, float]

    @property
    def at_end(self) -> bool:
        """Whether the best rate is the least or the largest of several."""
        return len(self.validation) > 1 and self.rate in (min(self.validation), max(self.validation))

    @property
    def notes(self) -> dict[str, Any]:
        """For the table."""
        scores = {f"{rate:g}": score for rate, score in sorted(self.validation.items())}
        choice = {"choice": "best at the end of the rates tried"} if self.at_end else {}
        return {"rate": self.rate} | self.told | {"validation at each rate": scores} | choice


def explored(
    fit: Callable[[float], tuple[N, float, dict[str, Any]]],
    rates: Sequence[float],
    better: str,
    more: int = MORE,
    report: Callable[[str, float], None] | None = None,
) -> Tuned[N]:
    """The best of ``fit(rate)`` → (net, validation score, what is to be told) over the rates, and beyond them.

    While the best of several rates is the least or the largest of those tried, up to `more` others are tried beyond it, each
    farther by the grid's median factor. A score that is no finite number puts a rate out; if all are, ArithmeticError. `report` is
    told each rate before it is tried, and the share of the most that there can be which is done.

    >>> explored(lambda rate: (None, -abs(rate - 10), {}), (1.0, 2.0, 4.0), "higher").validation
    {1.0: -9.0, 2.0: -8.0, 4.0: -6.0, 8.0: -2.0, 16.0: -6.0}
    """
    fits: dict[float, tuple[N, float, dict[str, Any]]] = {}

    def look(rate: float) -> None:
        if report:
            report(f"rate {rate:g}", len(fits) / (len(rates) + more))
        fits[rate] = fit(rate)

    def best() -> Tuned[N]:
        scores = {rate: score for rate, (_, score, _) in fits.items()}
        finite = [rate for rate, score in scores.items() if math.isfinite(score)]
        if not finite:
            raise ArithmeticError(f"no finite numbers at any of the rates {', '.join(f'{rate:g}' for rate in rates)}")
        rate = (max if better == "higher" else min)(finite, key=scores.__getitem__)  # of equals the first tried
        return Tuned(fits[rate][0], rate, fits[rate][2], scores)

    for rate in rates:
        look(rate)
    grid = sorted(rates)
    for _ in range(more):
        found = best()
        if not found.at_end:
            break
        factor = statistics.median_low(high / low for low, high in itertools.pairwise(grid))
        rate = found.rate * factor if found.rate == max(fits) else found.rate / factor
        look(rate)
    return best()


def descend(loss: Callable[[Any, int], Tensor], clip: float | None = 1.0) -> Update:
    """One step down the gradient of ``loss(net, step)``, whose norm is clipped."""

    def update(net: nn.Module, optimizer: Optimizer, step: int) -> float:
        value = loss(net, step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        return float(value.detach())

    return update


def tuned(
    make: Callable[[], N],
    update: Update,
    validate: Callable[[N], float],
    course: Course,
    rates: Sequence[float],
    steps: int,
    better: str,
    trained: Callable[[N], nn.Module] = lambda net: net,  # type: ignore[assignment, return-value]
) -> Tuned[N]:
    """Train anew at each rate by Adam, down a cosine to a hundredth of it, and keep the net that validates best; see `explored`.

    Each rate has `steps` steps, or an equal share of the course's seconds, which leave no time for rates beyond the given ones; all
    start from the same weights and the course's seed.
    """
    first = make()
    if course.seconds:  # the first step loads and compiles what later ones find ready, which is no entry's time
        spare = copy.deepcopy(first)
        update(spare, torch.optim.Adam(trained(spare).parameters(), rates[0]), 0)

    def fit(rate: float) -> tuple[N, float, dict[str, Any]]:
        seed_everything(course.trial.seed)
        net = copy.deepcopy(first)
        taken = _descend(net, trained(net), update, rate, steps, course.seconds and course.seconds / len(rates))
        score = math.nan
        if taken:
            trained(net).eval()
            with torch.no_grad():
                score = validate(net)
        return net, score, {"steps": taken}

    return explored(fit, rates, better, 0 if course.seconds else MORE, course.trial.report)


def _descend(net: Any, trained: nn.Module, update: Update, rate: float, steps: int, seconds: float | None) -> int:
    """The steps taken; 0 if the loss exploded."""
    optimizer = torch.optim.Adam(trained.parameters(), rate)
    trained.train()
    start, step, done = time.perf_counter(), 0, 0.0
    while done < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.505 + 0.495 * math.cos(math.pi * done))
        if not math.isfinite(update(net, optimizer, step)):
            return 0
        step += 1
        done = (time.perf_counter() - start) / seconds if seconds else step / steps
    return step
