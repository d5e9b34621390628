"""Claims: one sentence of a paper made executable, found through the catalogue."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

from neuropil.catalog import System, find
from neuropil.errors import Refused, nearest
from neuropil.lab.expect import Expectation, Metric
from neuropil.lab.trial import Outcome, Trial


@dataclass(frozen=True)
class Claim:
    """A claim function with what it measures and what it expects. Calling it runs one trial."""

    system: str
    run: Callable[[Trial], Outcome]
    metric: Metric
    expect: Expectation
    method: str
    baseline: str
    paper: str = ""
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.run.__name__.replace("_", "-"))
        object.__setattr__(self, "__doc__", self.run.__doc__)
        if not inspect.getdoc(self.run):
            raise Refused(f"claim {self.system}/{self.name}: the docstring must say the claim in words")

    @property
    def sentence(self) -> str:
        """The claim in words: the first paragraph of its docstring."""
        return " ".join((inspect.getdoc(self.run) or "").split("\n\n")[0].split())

    @property
    def details(self) -> str:
        """The rest of the docstring: how it is measured."""
        return "\n\n".join(" ".join(p.split()) for p in (inspect.getdoc(self.run) or "").split("\n\n")[1:])

    def __call__(self, trial: Trial) -> Outcome:
        outcome = self.run(trial)
        if not isinstance(outcome, Outcome):
            raise TypeError(f"claim {self.system}/{self.name} must return an Outcome, got {type(outcome).__name__}")
        return outcome


def claim(
    system: str, *, metric: Metric, expect: Expectation, method: str, baseline: str, paper: str = ""
) -> Callable[[Callable[[Trial], Outcome]], Claim]:
    """Make a claim of a function ``Trial -> Outcome``; its docstring's first paragraph is the claim in words.

    `method` and `baseline` name what is compared; `paper` is the paper's own number, if it gives one. The claim's name is
    the function's, with dashes.
    """

    def decorate(function: Callable[[Trial], Outcome]) -> Claim:
        return Claim(find(system).slug, function, metric, expect, method, baseline, paper)

    return decorate


def load(system: System) -> dict[str, Claim]:
    """The claims of a system, by name, in the order of its file."""
    if not system.claims:
        raise Refused(f"SLUG: {system.slug} has no claims yet; it is planned (see `neuropil list`)")
    module = importlib.import_module(system.module)
    return {c.name: c for c in vars(module).values() if isinstance(c, Claim) and c.system == system.slug}


def select(target: str) -> list[Claim]:
    """The claims of ``SLUG`` or the one of ``SLUG/CLAIM``; unknown names are `Refused` with the nearest."""
    slug, _, name = target.partition("/")
    claims = load(find(slug))
    if not name:
        return list(claims.values())
    name = name.replace("_", "-")
    if name not in claims:
        raise Refused(f"CLAIM: {find(slug).slug} has no claim {name!r}{nearest(name, claims)} (it has: {', '.join(claims)})")
    return [claims[name]]
