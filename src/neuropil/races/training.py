"""What makes a race fair: a size that meets the budget, the same steps or seconds, and the same few rates, chosen on validation
data.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.lab.race import Course
from neuropil.lab.run import seed_everything

N = TypeVar("N")
Update = Callable[[Any, Optimizer, int], float]


def numbers(net: nn.Module) -> int:
    """How many numbers training may change.

    >>> numbers(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def to_budget(make: Callable[[int], N], parameters: int, count: Callable[[N], int] = numbers, least: int = 1) -> N:  # type: ignore[assignment]
    """The thing whose number of parameters is nearest to the budget, among ``make(least), make(least + 1), …``, which must grow.

    O(log size) constructions. If even the smallest is too large it is what you get: its true count stands in the table.

    >>> numbers(to_budget(lambda width: nn.Linear(10, width), 1_000))
    1001
    """
    low, high = least, least + 1
    below, above = make(low), make(high)
    while count(above) < parameters:
        low, high, below = high, 2 * high, above
        above = make(high)
    while high - low > 1:
        middle = make((low + high) // 2)
        if count(middle) < parameters:
            low, below = (low + high) // 2, middle
        else:
            high, above = (low + high) // 2, middle
    return below if abs(count(below) - parameters) <= abs(count(above) - parameters) else above


def closest(candidates: Iterable[N], parameters: int, count: Callable[[N], int] = numbers) -> N:  # type: ignore[assignment]
    """The first candidate within 4 % of the budget, else the nearest: for parts with a second size that may vary a little."""
    best: N | None = None
    for candidate in candidates:
        if best is None or abs(count(candidate) - parameters) < abs(count(best) - parameters):
            best = candidate
        if abs(count(best) - parameters) <= 0.04 * parameters:
            break
    assert best is not None
    return best


@dataclass
class Tuned(Generic[N]):
    """What training at the best rate gave: the net, that rate, the steps it took, and the validation score of each rate."""

    net: N
    rate: float
    steps: int
    validation: dict[float, float] = field(default_factory=dict)

    @property
    def notes(self) -> dict[str, Any]:
        """For the table."""
        return {
            "rate": self.rate,
            "steps": self.steps,
            "validation at each rate": {f"{r:g}": v for r, v in self.validation.items()},
        }


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
    """Train anew at each rate by Adam, down a cosine to a hundredth of it, and keep the net that validates best.

    Each rate has `steps` steps, or an equal share of the course's seconds; all start from the same weights and the course's seed. A
    rate at which the loss is no finite number is out; if all are, ArithmeticError.
    """
    first = make()
    if course.seconds:  # the first step loads and compiles what later ones find ready, which is no entry's time
        spare = copy.deepcopy(first)
        update(spare, torch.optim.Adam(trained(spare).parameters(), rates[0]), 0)
    best: Tuned[N] | None = None
    scores: dict[float, float] = {}
    sign = 1 if better == "higher" else -1
    for rate in rates:
        seed_everything(course.trial.seed)
        net = copy.deepcopy(first)
        taken = _descend(net, trained(net), update, rate, steps, course.seconds and course.seconds / len(rates))
        score = math.nan
        if taken:
            trained(net).eval()
            with torch.no_grad():
                score = validate(net)
        if math.isfinite(score):
            scores[rate] = score
            if best is None or sign * score > sign * scores[best.rate]:
                best = Tuned(net, rate, taken, scores)
    if best is None:
        raise ArithmeticError(f"no finite numbers at any of the rates {', '.join(f'{rate:g}' for rate in rates)}")
    return best


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
