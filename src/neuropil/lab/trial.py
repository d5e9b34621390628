"""One run of one claim: what it is given (`Trial`) and what it gives back (`Outcome`)."""

import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from neuropil.errors import Refused, choose, optional

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
BUDGETS = ("smoke", "quick", "full")


@dataclass(frozen=True)
class Outcome:
    """The metric of method and baseline on one seed, and further numbers (`notes`) that a reader will want beside them."""

    method: float
    baseline: float
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("method", "baseline"):
            value = float(getattr(self, name))
            if not math.isfinite(value):
                raise ValueError(f"Outcome: {name} must be a finite number, got {value}")
            object.__setattr__(self, name, value)


@dataclass
class Trial:
    """One seed at one budget on one device.

    The lab seeds torch, numpy and random with `seed` before it calls the claim. Figures are drawn only where `draw` is set
    (the first seed), so that timing the others stays honest.
    """

    seed: int
    budget: str = "smoke"
    device: str = "cpu"
    draw: bool = False
    report: Callable[[str, float], None] | None = None
    figures: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choose("budget", self.budget, BUDGETS)

    def pick(self, *, smoke: T, quick: T, full: T) -> T:
        """The value for this budget.

        >>> Trial(seed=0, budget="quick").pick(smoke=10, quick=1_000, full=100_000)
        1000
        """
        return {"smoke": smoke, "quick": quick, "full": full}[self.budget]

    def generator(self, stream: int = 0) -> "torch.Generator":
        """A CPU generator of this seed; different `stream` numbers are independent of one another and of the global one."""
        import numpy
        import torch

        state = numpy.random.SeedSequence([self.seed, stream]).generate_state(1, numpy.uint64)
        return torch.Generator().manual_seed(int(state[0] >> 1))

    def track(self, items: Iterable[T], what: str = "", total: int | None = None) -> Iterator[T]:
        """Yield `items` and report the fraction done."""
        total = total if total is not None else (len(items) if hasattr(items, "__len__") else 0)  # type: ignore[arg-type]
        for done, item in enumerate(items):
            if self.report and total:
                self.report(what, done / total)
            yield item
        if self.report:
            self.report(what, 1.0)

    def figure(self, name: str, figure: Any) -> None:
        """Keep a matplotlib figure (or the function that draws one, called only when a picture is wanted) as PNG."""
        if not self.draw:
            return
        matplotlib = optional("matplotlib", "report")
        matplotlib.use("Agg")
        drawn = figure() if callable(figure) else figure
        if not hasattr(drawn, "savefig"):
            raise Refused(f"figure: {name} must be a matplotlib figure or a function that returns one, got {type(drawn).__name__}")
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None})
        optional("matplotlib.pyplot", "report").close(drawn)
        self.figures[name] = buffer.getvalue()
