"""Sudoku: the check of any board, all 288 grids of the 4 × 4 game, and 4 × 4 puzzles with exactly one solution (a simulator).

A board is n × n digits 1 … n with n = m²; rows, columns and m × m boxes hold each digit once. 0 is a blank.
"""

import functools
import itertools
import math

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from neuropil.errors import Refused


def solved(board: Int[Tensor, "*b n n"], puzzle: Int[Tensor, "*c m m"] | None = None) -> Bool[Tensor, "*b"]:
    """Whether each row, column and box holds each of the n digits once and (if given) the puzzle's digits are where they were.

    n is any square: 4 or 9 in play. O(n³) a board. Raises `Refused` if n is not a square or the shapes differ.

    >>> solved(grids()).all(), solved(torch.ones(4, 4, dtype=torch.long))
    (tensor(True), tensor(False))
    """
    n = board.shape[-1]
    m = math.isqrt(n)
    if m * m != n:
        raise Refused(f"board: the side must be a square (4, 9 …), got {n}")
    if puzzle is not None and puzzle.shape != board.shape:
        raise Refused(f"puzzle: must have the board's shape {tuple(board.shape)}, got {tuple(puzzle.shape)}")
    boxes = board.unflatten(-1, (m, m)).unflatten(-3, (m, m)).transpose(-3, -2).flatten(-4, -3).flatten(-2)
    groups = torch.stack([board, board.mT, boxes], -3)
    digits = torch.arange(1, n + 1, device=board.device)
    good = (groups.sort(-1).values == digits).flatten(-3).all(-1)
    return good if puzzle is None else good & ((puzzle == 0) | (puzzle == board)).flatten(-2).all(-1)


@functools.cache
def grids() -> Int[Tensor, "288 4 4"]:
    """All solved 4 × 4 boards, in the order of their digits read row by row.

    >>> grids()[0].tolist()
    [[1, 2, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]]
    """
    rows = torch.tensor(list(itertools.permutations(range(1, 5))))
    boards = rows[torch.cartesian_prod(*[torch.arange(24)] * 4)]
    return boards[solved(boards)]


def solutions(puzzle: Int[Tensor, "*b 4 4"]) -> Int[Tensor, "*b"]:
    """How many of the 288 grids agree with each puzzle. O(288 · 16) a puzzle, in memory too.

    >>> solutions(torch.zeros(4, 4, dtype=torch.long))
    tensor(288)
    """
    there = puzzle.flatten(-2)[..., None, :]
    return ((there == 0) | (there == grids().to(puzzle.device).flatten(1))).all(-1).sum(-1)


def puzzles(
    count: int, givens: tuple[int, int], generator: torch.Generator, among: Int[Tensor, "g 4 4"] | None = None
) -> tuple[Int[Tensor, "count 4 4"], Int[Tensor, "count 4 4"]]:
    """Puzzles of one solution, with `givens` = (least, most) digits left, and their solutions.

    Grids come evenly from `among` (default: all 288), numbers of givens evenly from the range, and then places evenly from those
    that leave one solution (with 4 givens one draw in 20 does): drawn again until they do.
    Raises `Refused` for a range outside 4 … 16 (3 digits never suffice) or fewer than 1 puzzle.

    >>> puzzle, solution = puzzles(5, (4, 6), torch.Generator().manual_seed(0))
    >>> solutions(puzzle).tolist(), bool(solved(solution, puzzle).all()), set((puzzle > 0).sum((1, 2)).tolist()) <= {4, 5, 6}
    ([1, 1, 1, 1, 1], True, True)
    """
    least, most = givens
    if not 4 <= least <= most <= 16:
        raise Refused(f"givens: a range within 4 … 16 is needed, got {givens}")
    if count < 1:
        raise Refused(f"count: at least 1, got {count}")
    among = grids() if among is None else among
    solution = among[torch.randint(len(among), (count,), generator=generator)]
    left = torch.randint(least, most + 1, (count,), generator=generator)
    puzzle = torch.zeros_like(solution)
    missing = torch.arange(count)
    while len(missing):
        order = torch.rand(len(missing), 16, generator=generator).argsort(-1).argsort(-1).view(-1, 4, 4)
        drawn = torch.where(order < left[missing, None, None], solution[missing], 0)
        unique = solutions(drawn) == 1
        puzzle[missing[unique]] = drawn[unique]
        missing = missing[~unique]
    return puzzle, solution
