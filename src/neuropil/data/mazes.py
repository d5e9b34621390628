"""Small perfect mazes on a grid of cells (a simulator): made, solved, drawn and walked a whole batch at once.

A maze is a random spanning tree of the h × w grid: minimum spanning tree under random weights (Kruskal's maze), so that one path
joins any two cells. All mazes of a batch are one block-diagonal graph for scipy's tree and breadth-first routines.

Moves are 0 up, 1 down, 2 left, 3 right and 4 wait, in the order of Darlow et al. 2025 (arXiv:2505.05522), whose task, the route
from start to goal as a list of moves, `route` gives.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neuropil.errors import Refused

STEPS = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1], [0, 0]])  # (row, column) of each move
WAIT = 4


@dataclass(frozen=True)
class Mazes:
    """n mazes of h × w cells, numbered row by row.

    `exits` says which of the moves up, down, left and right are open in each cell; `homeward` is each cell's next move on the
    way to `goal` (4, wait, at the goal itself).
    """

    exits: Bool[Tensor, "n h w 4"]
    homeward: Int[Tensor, "n h w"]
    start: Int[Tensor, " n"]
    goal: Int[Tensor, " n"]

    def __len__(self) -> int:
        """How many."""
        return len(self.start)


def mazes(n: int, size: int | tuple[int, int], generator: torch.Generator) -> Mazes:
    """`n` random mazes of `size` cells (h, w), each with two different random cells as start and goal.

    O(n h w log(n h w)) time. Raises `Refused` for n < 1 or fewer than two cells.

    >>> made = mazes(3, 5, torch.Generator().manual_seed(0))
    >>> made.exits.shape, (made.exits.sum((1, 2, 3)) // 2).tolist()  # h w − 1 doors, seen from both sides
    (torch.Size([3, 5, 5, 4]), [24, 24, 24])
    """
    h, w = (size, size) if isinstance(size, int) else size
    if n < 1 or min(h, w) < 1 or h * w < 2:
        raise Refused(f"n, size: at least one maze of at least two cells is needed, got {n} of {h} × {w}")
    cell = torch.arange(n * h * w).view(n, h, w)
    one = torch.cat([cell[:, :-1].flatten(), cell[:, :, :-1].flatten()])  # neighbours below, then to the right
    other = torch.cat([cell[:, 1:].flatten(), cell[:, :, 1:].flatten()])
    doors = _tree(one, other, n * h * w, generator)
    exits = torch.zeros(n, h, w, 4, dtype=torch.bool)
    down, right = doors[: n * (h - 1) * w].view(n, h - 1, w), doors[n * (h - 1) * w :].view(n, h, w - 1)
    exits[:, 1:, :, 0] = exits[:, :-1, :, 1] = down
    exits[:, :, 1:, 2] = exits[:, :, :-1, 3] = right
    start = torch.randint(h * w, (n,), generator=generator)
    goal = (start + torch.randint(1, h * w, (n,), generator=generator)) % (h * w)
    homeward = _homeward(one[doors], other[doors], cell.flatten(1).gather(1, goal[:, None])[:, 0], n * h * w, w)
    return Mazes(exits, homeward.view(n, h, w), start, goal)


def _tree(one: Tensor, other: Tensor, cells: int, generator: torch.Generator) -> Tensor:
    """Which of the edges are in the minimum spanning forest under random weights."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    order = torch.randperm(len(one), generator=generator) + 1  # ranks as weights: no ties, none is 0
    forest = minimum_spanning_tree(coo_array((order.double(), (one, other)), shape=(cells, cells)).tocsr()).data
    chosen = torch.zeros(len(one) + 1, dtype=torch.bool)
    chosen[torch.from_numpy(forest).long()] = True
    return chosen[order]


def _homeward(one: Tensor, other: Tensor, goal: Tensor, cells: int, w: int) -> Tensor:
    """Each cell's move toward the goal of its maze: breadth-first search from all goals at once."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra

    graph = coo_array((torch.ones(len(one)), (one, other)), shape=(cells, cells)).tocsr()
    _, before, _ = dijkstra(graph, directed=False, unweighted=True, indices=goal.numpy(), min_only=True, return_predecessors=True)
    here = torch.arange(cells)
    step = torch.from_numpy(before).long() - here
    step[goal] = 0
    move = torch.full((cells,), WAIT)
    for number, to in ((2, -1), (3, 1), (0, -w), (1, w)):  # in this order, ±1 is up and down where w = 1
        move[step == to] = number
    return move


def route(made: Mazes, length: int) -> Int[Tensor, "n {length}"]:
    """The first `length` moves of the only way from start to goal; waits after arrival. `Refused` for a length below 1.

    >>> made = mazes(1, (1, 4), torch.Generator().manual_seed(1))
    >>> made.start.item(), made.goal.item(), route(made, 4).tolist()
    (0, 3, [[3, 3, 3, 4]])
    """
    if length < 1:
        raise Refused(f"length: must be at least 1, got {length}")
    homeward = made.homeward.flatten(1)
    at, moves = made.start, []
    for _ in range(length):
        moves.append(homeward.gather(1, at[:, None])[:, 0])
        at = at + _offset(moves[-1], made)
    return torch.stack(moves, 1)


def walk(made: Mazes, moves: Int[Tensor, "n k"]) -> Int[Tensor, "n k+1"]:
    """The cells that `moves` lead through from the start; a move into a wall goes nowhere.

    >>> made = mazes(2, 5, torch.Generator().manual_seed(0))
    >>> bool((walk(made, route(made, 24))[:, -1] == made.goal).all())
    True
    """
    exits = torch.cat([made.exits, torch.ones_like(made.exits[..., :1])], -1).flatten(1)  # waiting is always allowed
    cells = [made.start]
    for move in moves.unbind(1):
        free = exits.gather(1, (5 * cells[-1] + move)[:, None])[:, 0]
        cells.append(cells[-1] + _offset(move, made) * free)
    return torch.stack(cells, 1)


def _offset(moves: Tensor, made: Mazes) -> Tensor:
    """How far a move goes in cell numbers."""
    row, column = STEPS.to(moves.device)[moves].unbind(-1)
    return row * made.exits.shape[2] + column


def picture(made: Mazes) -> Float[Tensor, "n 3 y x"]:
    """RGB of (2h + 1) × (2w + 1) pixels, for eyes and for nets: walls black, ways white, start red, goal green.

    Cell (i, j) is pixel (2i + 1, 2j + 1): the 3 × 3 pixels around it hold all that is known of it.

    >>> picture(mazes(2, (3, 4), torch.Generator().manual_seed(0))).shape
    torch.Size([2, 3, 7, 9])
    """
    n, h, w, _ = made.exits.shape
    free = torch.zeros(n, 2 * h + 1, 2 * w + 1)
    free[:, 1::2, 1::2] = 1
    free[:, 2:-1:2, 1::2] = made.exits[:, :-1, :, 1].float()
    free[:, 1::2, 2:-1:2] = made.exits[:, :, :-1, 3].float()
    image = free[:, None].repeat(1, 3, 1, 1)
    which = torch.arange(n)
    for cells, colour in ((made.start, (1.0, 0.0, 0.0)), (made.goal, (0.0, 1.0, 0.0))):
        image[which, :, 2 * (cells // w) + 1, 2 * (cells % w) + 1] = torch.tensor(colour)
    return image
