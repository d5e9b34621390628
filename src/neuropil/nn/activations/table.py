"""The torch-free table of activations: names, sections, formulas, parameters and flags, in ``*.toml`` beside this file.

A formula is a Python expression of the input `z` and the entry's parameters, in the words of `WORDS`; ``y if c else x`` is a
branch. It is what people read and what the tests evaluate; torch's code is written apart, in the ``.py`` of the same name.
"""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from neuropil.errors import Refused, nearest

SURVEY = "Kunc & Kléma 2024, arXiv:2402.09092"
FILES = ("sigmoids", "squashed", "rectified", "exponentials", "others", "adaptive_rectified", "adaptive", "blends", "mollified")
KINDS = {
    "elementwise": "y = f(z) for every number",
    "gate": "[2->1] f(z, gate): the two halves of a dimension",
    "expand": "[1->K] K results side by side in a dimension",
    "vector": "[vec] works on a dimension as a whole",
    "data": "[data] uses statistics of all of z",
    "layer": "learned weights between the features",
}
WORDS = {
    "s": "1/(1+e^-x)",
    "sp": "ln(1+e^x)",
    "relu": "max(x, 0)",
    "Phi, phi": "distribution and density of the standard normal",
    "H": "1 if x >= 0 else 0",
    "hs": "clip((x+1)/2, 0, 1)",
    "clip": "max(lo, min(x, hi))",
    "sgn": "-1, 0 or 1",
    "sinc": "sin(x)/x",
    "elu": "x if x >= 0 else e^x - 1",
    "g, h": "the base functions of the entry",
}


@dataclass(frozen=True)
class Entry:
    """One activation: what the survey says of it, and what holds of it with its initial values.

    - `params`: initial values, of which `train` names those that the paper trains and `positive` those that must stay above 0;
      `per`: what shares one set of them there, a neuron, a layer or the net; `draw`: those drawn anew for each number in training.
    - `flags`: monotone, bounded, odd, even, zero (f(0) = 0), slope1 (f'(0) = 1) and the smoothness: jump, C0, C1, C2 or Coo.
    - `uncertain`: what neither plan nor primary text confirms; `note`: a choice that was made here; `own`: the initial values
      are not the source's.
    """

    name: str
    file: str
    section: str
    formula: str
    params: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "elementwise"
    aliases: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()
    per: str = ""
    draw: Mapping[str, str] = field(default_factory=dict)
    base: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    domain: tuple[float, float] = (float("-inf"), float("inf"))
    test: Mapping[str, Any] = field(default_factory=dict)
    own: bool = False
    uncertain: str = ""
    note: str = ""

    @property
    def adaptive(self) -> bool:
        """Whether the paper trains any of its parameters."""
        return bool(self.train) or self.kind == "layer"

    @property
    def source(self) -> str:
        """Where the survey treats it."""
        return f"{SURVEY}, section {self.section}"


@dataclass(frozen=True)
class Gap:
    """What the survey has and the registry has not, and why."""

    name: str
    section: str
    why: str


def key(name: str) -> str:
    """A name as it is looked up: letters and digits only, so that ``Hard-Sigmoid`` is ``hard_sigmoid``."""
    return "".join(c for c in name.lower() if c.isalnum())


@functools.cache
def entries() -> dict[str, Entry]:
    """All entries by name, in the survey's order."""
    found: dict[str, Entry] = {}
    for file in FILES:
        for name, row in tomllib.loads(_read(file)).items():
            row |= {k: tuple(row[k].split()) for k in ("train", "positive", "flags", "base") if k in row}
            row |= {k: tuple(row[k]) for k in ("aliases", "domain") if k in row}
            found[name] = Entry(name=name, file=file, **row)
    return found


@functools.cache
def gaps() -> tuple[Gap, ...]:
    """What is left out."""
    return tuple(Gap(name=name, **row) for name, row in tomllib.loads(_read("gaps")).items())


def _read(file: str) -> str:
    return resources.files(__package__).joinpath(f"{file}.toml").read_text(encoding="utf-8")


@functools.cache
def _keys() -> dict[str, Entry]:
    found = {key(alias): entry for entry in entries().values() for alias in entry.aliases}
    return found | {key(name): entry for name, entry in entries().items()}


def find(name: str) -> Entry:
    """The entry of a name or alias, whatever its case, dashes and underscores; an unknown one is `Refused` with the nearest.

    >>> find("Leaky-ReLU").formula
    'z if z >= 0 else z/a'
    """
    entry = _keys().get(key(name))
    if entry is None:
        raise Refused(f"activation: unknown {name!r}{nearest(key(name), _keys())} (see `neuropil list --activations`)")
    return entry
