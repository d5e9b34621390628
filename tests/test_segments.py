"""Segments against loops, dense matrices and finite differences; links are each other's derivatives."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from neuropil.errors import Refused
from neuropil.nn.segments import HOW, Links, pointers, segment_reduce, segment_sizes

G = torch.Generator().manual_seed(0)
INDEX = torch.tensor([3, 0, 3, 3, 1, 0])  # segment 2 is empty
X = torch.randn(6, 2, generator=G, dtype=torch.float64)
LOOP = {
    "sum": lambda rows: rows.sum(0),
    "mean": lambda rows: rows.mean(0),
    "max": lambda rows: rows.max(0).values,
    "min": lambda rows: rows.min(0).values,
}


@pytest.mark.parametrize("how", LOOP)
def test_reduction_equals_a_loop_and_empty_segments_are_zero(how):
    y = segment_reduce(X, INDEX, 5, how)
    for s in range(5):
        rows = X[s == INDEX]
        assert torch.allclose(y[s], LOOP[how](rows) if len(rows) else torch.zeros(2, dtype=torch.float64))


def test_softmax_of_each_segment_even_of_huge_scores():
    y = segment_reduce(1000 * X, INDEX, 5, "softmax")
    for s in (0, 1, 3):
        assert torch.allclose(y[s == INDEX], (1000 * X[s == INDEX]).softmax(0))
    assert segment_reduce(X[:0], INDEX[:0], 5, "softmax").shape == (0, 2)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("shape", [(6,), (6, 2), (6, 2, 3)])
def test_gradients(how, shape):
    x = torch.randn(shape, generator=G, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda x: segment_reduce(x, INDEX, 5, how), x)
    y = segment_reduce(x, INDEX, 5, how)
    assert y.shape == ((6 if how == "softmax" else 5), *shape[1:])


def test_bad_segments_are_refused():
    with pytest.raises(Refused, match="how: unknown 'maximum'"):
        segment_reduce(X, INDEX, 5, "maximum")
    with pytest.raises(Refused, match=r"index: must lie in 0 … 2, got 3 at place 0"):
        segment_reduce(X, INDEX, 3)
    with pytest.raises(Refused, match="index: must be int64"):
        segment_reduce(X, INDEX.int(), 5)


def some_links():
    source, target = torch.randint(5, (14,), generator=G), torch.randint(4, (14,), generator=G)
    return Links.of(source, target, sources=6, targets=5)  # source 5 and target 4 have no pair


def test_links_are_a_sparse_matrix():
    links = some_links()
    w, x, y = (torch.randn(n, generator=G, dtype=torch.float64) for n in ((14,), (6, 3), (5, 3)))
    matrix = torch.zeros(5, 6, dtype=torch.float64).index_put((links.target, links.source), w, accumulate=True)
    assert torch.allclose(links.sum(x, w), matrix @ x)
    assert torch.allclose(links.back(y, w), matrix.T @ y)
    assert torch.allclose(links.reverse().sum(y, w[links.by_source]), matrix.T @ y)
    assert torch.allclose(links.dot(y, x), (y @ x.T)[links.target, links.source])
    assert torch.equal(links.sum(x)[4], torch.zeros(3, dtype=torch.float64))
    assert (links.target[1:] >= links.target[:-1]).all()
    assert torch.equal(links.reverse().reverse().source, links.source)


def test_links_have_exact_derivatives_of_every_order():
    links = some_links()
    w, x, y = (torch.randn(n, generator=G, dtype=torch.float64).requires_grad_() for n in ((14,), (6, 2), (5, 2)))
    for function, arguments in ((links.sum, (x, w)), (links.back, (y, w)), (links.dot, (y, x)), (links.sum, (x,))):
        assert gradcheck(function, arguments)
        assert gradgradcheck(function, arguments)


def test_links_without_pairs_give_zeros():
    none = torch.zeros(0, dtype=torch.int64)
    links = Links.of(none, none, 3, 2)
    assert torch.equal(links.sum(torch.ones(3, 4), torch.ones(0)), torch.zeros(2, 4))
    assert links.reverse().sources == 2
    with pytest.raises(Refused, match="source: must lie in"):
        Links.of(torch.tensor([3]), torch.tensor([0]), 3, 2)


@pytest.mark.parametrize("function", [segment_sizes, pointers])
def test_a_negative_number_of_segments_is_refused(function):
    with pytest.raises(Refused, match=r"^n: must be at least 0, got -1"):
        function(torch.zeros(0, dtype=torch.int64), -1)


@pytest.mark.parametrize(
    ("method", "rows", "name"),
    [("sum", ((7, 2),), "x"), ("sum", ((6, 2), (13,)), "weights"), ("back", ((6, 2),), "y"), ("dot", ((5, 2), (1, 2)), "b")],
)
def test_links_refuse_another_number_of_rows(method, rows, name):
    with pytest.raises(Refused, match=f"^{name}: must have .* rows for these links, got shape"):
        getattr(some_links(), method)(*(torch.ones(shape) for shape in rows))


@pytest.mark.parametrize(("method", "rows"), [("sum", 6), ("back", 5)])
def test_reordered_weights_alone_are_refused(method, rows):
    links = some_links()
    with pytest.raises(Refused, match=r"^by_source: reorders weights, which must be given, too"):
        getattr(links, method)(torch.ones(rows, 2), by_source=torch.ones(len(links)))


def test_links_made_by_hand_refuse_what_is_out_of_range():
    links = some_links()
    with pytest.raises(Refused, match=r"^target: must lie in 0 … 4, got -1"):
        Links(links.source, links.target - 1, links.ptr, links.by_source, links.target_by_source, links.source_ptr)
