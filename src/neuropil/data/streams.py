"""Streams of tasks for continual learning, made from labelled images, and the accuracy matrix that they are judged by.

R[i, j] = accuracy on task j after learning tasks 0 … i          average = mean_j R[T−1, j]
backward transfer = mean_{j < T−1} R[T−1, j] − R[j, j]                                 (Lopez-Paz & Ranzato 2017, arXiv:1706.08840)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.data.containers import Images
from neuropil.errors import Refused


@dataclass(frozen=True)
class Task:
    """One task of a stream: flat inputs and classes, to learn and to test on."""

    x: Float[Tensor, "n d"]
    y: Int[Tensor, " n"]
    x_test: Float[Tensor, "m d"]
    y_test: Int[Tensor, " m"]


def permuted(train: Images, test: Images, tasks: int, seed: int) -> list[Task]:
    """Each task has its own fixed order of pixels; the first one keeps theirs. All share the classes.

    >>> from neuropil import data
    >>> stream = permuted(data.digits("sklearn", "train"), data.digits("sklearn", "test"), tasks=3, seed=0)
    >>> len(stream), stream[0].x.shape
    (3, torch.Size([1442, 64]))
    """
    _check(tasks)
    x, x_test = train.pixels.flatten(1), test.pixels.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.arange(x.shape[1]), *(torch.randperm(x.shape[1], generator=generator) for _ in range(tasks - 1))]
    return [Task(x[:, order], train.labels, x_test[:, order], test.labels) for order in orders]


def class_split(train: Images, test: Images, tasks: int, seed: int | None = None) -> list[Task]:
    """Each task has its own `classes / tasks` classes, in order or (with a seed) shuffled; labels stay those of the whole."""
    _check(tasks)
    classes = train.labels.unique()
    if len(classes) % tasks:
        raise Refused(f"tasks: {len(classes)} classes cannot be split evenly into {tasks}")
    if seed is not None:
        classes = classes[torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))]
    parts = []
    for own in classes.view(tasks, -1):
        there, tested = torch.isin(train.labels, own), torch.isin(test.labels, own)
        x, x_test = train.pixels[there].flatten(1), test.pixels[tested].flatten(1)
        parts.append(Task(x, train.labels[there], x_test, test.labels[tested]))
    return parts


def label_swap(train: Images, test: Images, tasks: int, seed: int) -> list[Task]:
    """The same images; each task after the first has its own random naming of the classes."""
    _check(tasks)
    classes = int(train.labels.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    names = [torch.arange(classes), *(torch.randperm(classes, generator=generator) for _ in range(tasks - 1))]
    x, x_test = train.pixels.flatten(1), test.pixels.flatten(1)
    return [Task(x, name[train.labels], x_test, name[test.labels]) for name in names]


def accuracy_matrix(
    stream: Sequence[Task], learn: Callable[[int, Task], None], predict: Callable[[Tensor], Tensor]
) -> Float[Tensor, "t t"]:
    """R of a learner: ``learn(i, task)`` for each task in turn, then ``predict(inputs)`` (scores of classes) on all tests."""
    rows = []
    for i, task in enumerate(stream):
        learn(i, task)
        with torch.no_grad():
            rows.append(torch.stack([(predict(t.x_test).argmax(-1) == t.y_test).float().mean() for t in stream]))
    return torch.stack(rows)


def transfer(matrix: Float[Tensor, "t t"]) -> tuple[float, float]:
    """Average accuracy after the last task, and backward transfer (0 for a single task).

    >>> transfer(torch.tensor([[0.9, 0.1], [0.7, 0.8]]))
    (0.75, -0.1999...)
    """
    average = float(matrix[-1].mean())
    back = float((matrix[-1] - matrix.diagonal())[:-1].mean()) if len(matrix) > 1 else 0.0
    return average, back


def _check(tasks: int) -> None:
    if tasks < 1:
        raise Refused(f"tasks: at least 1, got {tasks}")
