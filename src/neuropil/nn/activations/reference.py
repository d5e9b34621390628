"""The formulas of the table, evaluated from their text: by `math` on floats, by mpmath at any precision, by NumPy on whole vectors.

An independent path to every value: it shares no code with torch's functions, only the names of `WORDS`.
"""

import functools
import math
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

import numpy

from neuropil.nn.activations.table import Entry, find


def _iterate(step: Callable[[Any], Any], start: Any, k: int) -> list[Any]:
    found = []
    for _ in range(k):
        start = step(start)
        found.append(start)
    return found


@functools.cache
def words(lib: Any) -> Mapping[str, Any]:
    """What formulas may say, built on the functions of a library: `math`, ``mpmath.mp``."""
    w: dict[str, Any] = {
        name: getattr(lib, name)
        for name in ("exp", "log", "sqrt", "sin", "cos", "tanh", "sinh", "cosh", "atan", "asinh", "erf", "gamma", "pi")
    }

    def s(x: Any) -> Any:
        return 1 / (1 + lib.exp(-x))

    def phi(x: Any) -> Any:
        return lib.exp(-x * x / 2) / lib.sqrt(2 * lib.pi)

    def elu(x: Any) -> Any:
        return x if x >= 0 else lib.exp(x) - 1

    def pool_at(x: list[Any]) -> list[Any]:
        return [lib.tanh(x[0]), elu(x[1]), max(x[2], 0), x[3] * s(x[3]), x[4]]

    def spocu_h(x: Any, d: Any) -> Any:
        t = min(x, d)
        return x if x < 0 else t**3 * (t**5 - 2 * t**4 + 2)

    return w | {
        "s": s,
        "sp": lambda x: lib.log(1 + lib.exp(x)),
        "relu": lambda x: max(x, 0),
        "Phi": lambda x: lib.erfc(-x / lib.sqrt(2)) / 2,
        "phi": phi,
        "H": lambda x: 1 if x >= 0 else 0,
        "hs": lambda x: max(0, min((x + 1) / 2, 1)),
        "clip": lambda x, lo, hi: max(lo, min(x, hi)),
        "sgn": lambda x: (x > 0) - (x < 0),
        "sinc": lambda x: lib.sin(x) / x if x != 0 else 1,
        "elu": elu,
        "mexican": lambda t: 2 / (lib.sqrt(3) * lib.sqrt(lib.sqrt(lib.pi))) * (1 - t**2) * lib.exp(-(t**2) / 2),
        "spocu_h": spocu_h,
        "falu_a": lambda g, s, a: g + a * s * (1 - g),
        "falu_b": lambda h, s, a: h + (a - 1) * s * (1 - 2 * h),
        "soft": lambda x, e: lib.sqrt(x * x + e),
        "pool_at": pool_at,
        "pool": lambda x: pool_at([x] * 5),
        "iterate": _iterate,
    }


def _vector_words() -> dict[str, Any]:
    names = ("exp", "sqrt", "sum", "mean", "std", "where", "maximum", "minimum", "amax", "amin")
    return {name: getattr(numpy, name) for name in names} | {
        "relu": lambda x: numpy.maximum(x, 0),
        "enumerate": enumerate,
        "pairs": lambda z: [(z[i - i % 2], z[i - i % 2 + 1]) for i in range(len(z))],
        "kth_largest": lambda z, k: numpy.sort(z)[-k],
        "mean_negative": lambda z: z[z < 0].mean(),
    }


@functools.cache
def _code(formula: str) -> CodeType:
    return compile(formula, formula, "eval")


def evaluate(entry: Entry, z: Any, lib: Any = math, gate: Any = None, **params: Any) -> Any:
    """The formula's value at one number z (a list of K for [1->K] entries), in the arithmetic of `lib`.

    With ``lib=mpmath.mp``, z and params are taken to be mpmath numbers, and the result is as exact as ``mp.dps`` says.

    >>> round(evaluate(find("swish"), 2.0, a=1.5), 12)
    1.905148253645
    """
    bases = {letter: functools.partial(_at, find(name), lib) for letter, name in zip("gh", entry.base, strict=False)}
    return eval(_code(entry.formula), {**words(lib), **entry.params, **bases, **params, "z": z, "gate": gate})


def _at(entry: Entry, lib: Any, z: Any) -> Any:
    return evaluate(entry, z, lib)


def evaluate_vector(entry: Entry, z: numpy.ndarray, **params: Any) -> numpy.ndarray:
    """The value of a [vec] or [data] formula at a vector z.

    >>> evaluate_vector(find("kwta"), numpy.array([1.0, 3.0, 2.0]), k=2).tolist()
    [0.0, 3.0, 2.0]
    """
    bases = {letter: functools.partial(_at, find(name), math) for letter, name in zip("gh", entry.base, strict=False)}
    return numpy.asarray(eval(_code(entry.formula), {**_vector_words(), **entry.params, **bases, **params, "z": z}))
