"""A grid of small pictures, of which each entry of a race gets one."""

from typing import Any


def panels(count: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure with room for `count` pictures of so many inches, and its cells, which show no axes."""
    import matplotlib.pyplot as plt

    lines = -(-count // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(width * columns, height * lines), squeeze=False, layout="constrained")
    for cell in axes.flat:
        cell.axis("off")
    return figure, list(axes.flat)
