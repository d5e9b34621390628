"""Paired statistics over seeds: the t-interval that gives a claim its verdict."""

import math
from collections.abc import Sequence

from scipy.special import stdtrit

from neuropil.errors import Refused


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean and two-sided Student interval ``mean ± t_{n-1} s / sqrt(n)``  of independent values.

    One value has no spread: its interval is the value itself. Raises `Refused` for no values or a level outside (0, 1).

    >>> [round(x, 3) for x in t_interval([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484]
    """
    if not 0 < level < 1:
        raise Refused(f"level: must lie between 0 and 1, got {level}")
    n = len(values)
    if n == 0:
        raise Refused("values: at least one is needed, got none")
    mean = math.fsum(values) / n
    if n == 1:
        return mean, mean, mean
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * spread / math.sqrt(n)
    return mean, mean - half, mean + half
