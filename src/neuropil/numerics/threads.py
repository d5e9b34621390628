"""Compiled kernels that let go of the interpreter's lock, on plain threads: as many as `torch.get_num_threads()`."""

import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


@functools.cache
def numba_is_there() -> bool:
    """Whether kernels can be compiled here: numba comes with the extra `fields`."""
    return importlib.util.find_spec("numba") is not None


def share(kernel: Callable[..., None], tasks: Sequence[tuple[int, ...]], *arguments: Any) -> None:
    """``kernel(*task, *arguments)`` for every task; tasks must not write to the same places.

    No thread library is started, so that processes may be forked after it. Handing out costs about 20 µs a thread.

    >>> done = []
    >>> share(lambda first, last, to: to.extend(range(first, last)), [(0, 2), (2, 4)], done)
    >>> sorted(done)
    [0, 1, 2, 3]
    """
    left = iter(tasks)

    def work() -> None:
        for task in left:
            kernel(*task, *arguments)

    helpers = min(torch.get_num_threads(), len(tasks)) - 1
    running = [_pool(os.getpid(), helpers).submit(work) for _ in range(helpers)]
    work()
    for future in running:
        future.result()


def ranges(n: int, most: int) -> list[tuple[int, int]]:
    """0 … n − 1 as ranges of equal size: at least one for each thread, `most` long at most.

    >>> ranges(3, 1)
    [(0, 1), (1, 2), (2, 3)]
    """
    size = max(1, min(most, -(-n // torch.get_num_threads())))
    return [(start, min(start + size, n)) for start in range(0, n, size)]


@functools.lru_cache(maxsize=2)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads do not outlive a fork, so that every process has its own."""
    return ThreadPoolExecutor(threads)
