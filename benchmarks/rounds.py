"""What the benchmarks share: how the numbers of several rounds are told."""

import statistics


def spread(values: list[float], digits: int = 4) -> dict[str, float]:
    """Least, middle and most of them."""
    return {name: round(of(values), digits) for name, of in (("min", min), ("median", statistics.median), ("max", max))}
