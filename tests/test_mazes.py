"""Mazes: a spanning tree, the shortest route as scipy-free breadth-first search finds it, pictures that say all."""

import pytest
import torch

from neuropil.data.mazes import STEPS, WAIT, mazes, picture, route, walk
from neuropil.errors import Refused


def made(n: int, size: int | tuple[int, int], seed: int = 0):
    return mazes(n, size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [5, (3, 7), (6, 1), (1, 2)])
def test_every_maze_is_a_tree_with_doors_seen_from_both_sides(size):
    m = made(20, size)
    _, h, w, _ = m.exits.shape
    assert (m.exits.sum((1, 2, 3)) == 2 * (h * w - 1)).all()
    assert torch.equal(m.exits[:, 1:, :, 0], m.exits[:, :-1, :, 1])
    assert torch.equal(m.exits[:, :, 1:, 2], m.exits[:, :, :-1, 3])
    assert not (m.exits[:, 0, :, 0].any() or m.exits[:, -1, :, 1].any() or m.exits[:, :, 0, 2].any() or m.exits[:, :, -1, 3].any())
    assert (m.start != m.goal).all()


@pytest.mark.parametrize("size", [5, (3, 7), (6, 1)])
def test_the_route_is_shortest_and_passes_no_wall(size):
    m = made(20, size, 1)
    n, h, w, _ = m.exits.shape
    for b in range(n):
        distance = {int(m.goal[b]): 0}
        queue = [int(m.goal[b])]
        for cell in queue:  # grows while it is read
            for move in m.exits[b, cell // w, cell % w].nonzero().flatten().tolist():
                to = cell + int(STEPS[move, 0]) * w + int(STEPS[move, 1])
                if to not in distance:
                    distance[to] = distance[cell] + 1
                    queue.append(to)
        assert len(distance) == h * w  # all cells are joined
        moves = route(m, h * w)[b]
        assert int((moves != WAIT).sum()) == distance[int(m.start[b])]
        assert (moves[distance[int(m.start[b])] :] == WAIT).all()
        assert all(m.homeward[b, cell // w, cell % w] == WAIT or far for cell, far in distance.items())
    assert (walk(m, route(m, h * w))[:, -1] == m.goal).all()


def test_a_move_into_a_wall_goes_nowhere():
    m = made(50, 4)
    closed = (~m.exits.flatten(1, 2)[torch.arange(50), m.start]).float()
    into = closed.argmax(-1)[:, None]
    some = closed.any(-1)
    assert some.any()
    assert (walk(m, into)[:, 1] == m.start)[some].all()
    assert (walk(m, into)[:, 1] != m.start)[~some].all()


def test_the_picture_shows_doors_start_and_goal():
    m = made(4, (3, 5))
    image = picture(m)
    assert (image.amax(1)[:, 2:-1:2, 1::2] == m.exits[:, :-1, :, 1]).all()
    assert (image.amax(1)[:, 1::2, 2:-1:2] == m.exits[:, :, :-1, 3]).all()
    assert (image[:, :, 0] == 0).all()
    red = (image == torch.tensor([1.0, 0.0, 0.0])[:, None, None]).all(1)
    assert red.sum() == 4
    assert (red[:, 1::2, 1::2].flatten(1).float().argmax(1) == m.start).all()


def test_mazes_differ_and_come_again():
    assert torch.equal(made(30, 5).exits, made(30, 5).exits)
    assert len(made(30, 5).exits.flatten(1).unique(dim=0)) == 30


def test_refusals():
    with pytest.raises(Refused, match="n, size"):
        made(0, 5)
    with pytest.raises(Refused, match="n, size"):
        made(1, 1)
    with pytest.raises(Refused, match="length"):
        route(made(1, 3), 0)
