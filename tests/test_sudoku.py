"""4 × 4 Sudoku's known counts, boards of any square side, pictures of hollow shapes, grouping by direction."""

import itertools

import pytest
import torch

from neuropil.data.hollow_shapes import hollow_shapes, outlines
from neuropil.data.sudoku import grids, puzzles, solutions, solved
from neuropil.errors import Refused
from neuropil.numerics.clustering import foreground_ari, spherical_kmeans


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_288_grids_and_the_25728_puzzles_of_four_givens():
    """The numbers known for 4 × 4 Sudoku (all puzzles of 4 givens are minimal: 3 never suffice)."""
    boards = grids().flatten(1)
    assert len(boards) == len({tuple(board) for board in boards.tolist()}) == 288
    assert bool(solved(grids()).all())
    places = torch.tensor(list(itertools.combinations(range(16), 4)))
    code = (boards[:, places] - 1 << torch.arange(0, 8, 2)).sum(-1).T.sort(1).values  # what is left of each grid, by places
    alone = torch.ones_like(code, dtype=torch.bool)
    alone[:, 1:] &= code[:, 1:] != code[:, :-1]
    alone[:, :-1] &= code[:, 1:] != code[:, :-1]
    assert int(alone.sum()) == 25_728


def test_every_wrong_cell_and_every_ignored_given_is_found():
    board = grids()[7]
    for cell in range(16):
        wrong = board.clone().view(-1)
        wrong[cell] = wrong[cell] % 4 + 1
        assert not bool(solved(wrong.view(4, 4)))
    other = grids()[8]
    assert bool(solved(other, torch.where(board == other, other, 0)))
    assert not bool(solved(other, board))


def test_a_board_of_nine_and_one_with_right_rows_and_columns_but_wrong_boxes():
    i, j = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    assert bool(solved((3 * i + i // 3 + j) % 9 + 1))
    assert not bool(solved((i + j) % 9 + 1))
    assert not bool(solved(torch.zeros(9, 9, dtype=torch.long)))


def test_puzzles_have_one_solution_from_the_given_grids_and_all_numbers_of_givens():
    among = grids()[:5]
    puzzle, solution = puzzles(200, (4, 6), generator(), among)
    assert bool((solutions(puzzle) == 1).all())
    assert bool(solved(solution, puzzle).all())
    assert bool((solution[:, None] == among).flatten(2).all(-1).any(1).all())
    assert (puzzle > 0).sum((1, 2)).unique().tolist() == [4, 5, 6]
    again, _ = puzzles(200, (4, 6), generator(), among)
    assert torch.equal(again, puzzle)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: puzzles(3, (3, 6), generator()), "givens"),
        (lambda: puzzles(0, (4, 6), generator()), "count"),
        (lambda: solved(torch.ones(5, 5, dtype=torch.long)), "board: the side"),
        (lambda: solved(grids()[0], torch.zeros(9, 9, dtype=torch.long)), "puzzle"),
        (lambda: hollow_shapes(0, generator()), "count"),
        (lambda: hollow_shapes(2, generator(), shapes=(3, 2)), "shapes"),
        (lambda: hollow_shapes(2, generator(), side=14), "side"),
        (lambda: spherical_kmeans(torch.ones(1, 3, 2), 4, generator()), "k"),
        (lambda: spherical_kmeans(torch.ones(1, 3, 2), 2, generator(), starts=0), "starts"),
        (lambda: foreground_ari(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long)), "truth"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(Refused, match=message):
        call()


def test_pictures_are_their_masks():
    pictures = hollow_shapes(300, generator(), shapes=(1, 4))
    line = pictures.masks != 0
    assert bool((pictures.pixels[line] == 1).all())
    assert 0.1 <= float(pictures.pixels[~line].min()) <= float(pictures.pixels[~line].max()) <= 0.6
    assert pictures.masks.flatten(1).amax(1).unique().tolist() == [1, 2, 3, 4]
    single = pictures.masks[pictures.masks.flatten(1).amax(1) == 1]
    allowed = set(outlines().sum((1, 2)).tolist())
    assert set((single == 1).sum((1, 2)).tolist()) == allowed  # nothing is cut off at the border
    ink = (line.sum((1, 2)) + (pictures.masks < 0).sum((1, 2))).tolist()  # an overlap is drawn at least twice
    assert all(ink[i] >= 76 for i in range(300) if pictures.masks[i].max() > 1)


def test_kmeans_finds_directions_whatever_their_lengths():
    centres = torch.eye(5)[:3]
    truth = torch.randint(3, (4, 60), generator=generator())
    x = (centres[truth] + 0.1 * torch.randn(4, 60, 5, generator=generator(1))) * torch.rand(4, 60, 1, generator=generator(2)).add(
        0.1
    )
    found = spherical_kmeans(x, 3, generator())
    assert torch.equal(foreground_ari(truth + 1, found), torch.ones(4, dtype=torch.float64))


def test_kmeans_is_as_good_as_scikit_learns_on_the_sphere():
    cluster = pytest.importorskip("sklearn.cluster")
    x = torch.nn.functional.normalize(torch.randn(1, 80, 3, generator=generator()), dim=-1)
    theirs = cluster.KMeans(4, n_init=20, random_state=0).fit_predict(x[0].double().numpy())

    def fit(z):  # mean cosine to the direction of the group
        return sum(float(x[0, z == k].sum(0).norm()) for k in range(4)) / 80

    assert fit(spherical_kmeans(x, 4, generator(), starts=20)[0]) > fit(torch.as_tensor(theirs)) - 0.005


def test_ari_ignores_the_ground_and_overlaps():
    truth = torch.tensor([[[1, 1, 2], [2, 0, -1]]])
    found = torch.tensor([[[3, 3, 0], [0, 3, 0]]])
    assert foreground_ari(truth, found).tolist() == [1.0]
    assert foreground_ari(truth, found.flip(-1))[0] < 0.5
