"""The exact invariants of the retrieval core and of modern Hopfield retrieval."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from neuropil.errors import Refused
from neuropil.memory.hopfield import energy, retrieve
from neuropil.memory.lookup import Ball, Linear, Softmax, TopK, WinnerTakeAll, lookup

G = torch.Generator().manual_seed(0)
X = torch.randn(50, 8, generator=G, dtype=torch.float64)
XI = torch.randn(6, 8, generator=G, dtype=torch.float64)


def test_the_formula_on_raw_patterns():
    assert torch.allclose(retrieve(XI, X, 0.7), torch.softmax(0.7 * XI @ X.T, -1) @ X, atol=1e-12)


def test_equals_attention_with_beta_one_over_root_d():
    expected = scaled_dot_product_attention(XI[None], X[None], X[None])[0]
    assert torch.allclose(retrieve(XI, X, 8**-0.5), expected, atol=1e-12)


def test_small_beta_is_the_mean_and_large_beta_the_nearest():
    assert torch.allclose(retrieve(XI, X, 1e-9), X.mean(0).expand_as(XI), atol=1e-6)
    assert torch.allclose(retrieve(XI, X, 1e4), X[(XI @ X.T).argmax(-1)], atol=1e-6)


def test_energy_never_rises_and_its_gradient_is_the_update():
    state = XI.clone().requires_grad_()
    energy(state, X).sum().backward()
    assert torch.allclose(state.grad, XI - retrieve(XI, X), atol=1e-10)
    trace = [energy(retrieve(XI, X, 1.0, steps), X) for steps in (1, 2, 3, 10)]
    for before, after in zip([energy(XI, X), *trace], trace, strict=False):
        assert (after <= before + 1e-10).all()


def test_order_of_patterns_does_not_matter():
    assert torch.allclose(retrieve(XI, X), retrieve(XI, X[torch.randperm(50, generator=G)]), atol=1e-12)


def test_100_000_patterns_in_one_step():
    for dtype, bound in ((torch.float32, 1e-6), (torch.float64, 1e-10)):
        stored = torch.randn(100_000, 64, generator=G, dtype=dtype)
        stored = stored / stored.norm(dim=1, keepdim=True) * 8
        read = retrieve(stored[:32] + 0.5 * torch.randn(32, 64, generator=G, dtype=dtype), stored)
        assert float(((read - stored[:32]).norm(dim=1) / 8).median()) <= bound


@pytest.mark.parametrize("similarity", ["dot", "cosine", "hamming"])
@pytest.mark.parametrize("separation", [Softmax(0.5), Linear(), Ball(-3.0), Ball(-3.0, mean=True), TopK(3), WinnerTakeAll()])
def test_slices_equal_the_dense_formula(similarity, separation):
    keys, query = (X.sign(), XI.sign()) if similarity == "hamming" else (X, XI)
    values = torch.randn(50, 3, generator=G, dtype=torch.float64)
    if similarity == "cosine":
        alike = (query / query.norm(dim=1, keepdim=True)) @ (keys / keys.norm(dim=1, keepdim=True)).T
    else:
        alike = query @ keys.T if similarity == "dot" else -(query[:, None] != keys).sum(-1).double()
    read = lookup(query, keys, values, similarity=similarity, separation=separation, block=70)
    assert torch.allclose(read, separation(alike) @ values, atol=1e-10)


def test_ties_stay_ties():
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    read = lookup(torch.tensor([1.0, 0.0]), keys, torch.tensor([[2.0], [4.0], [9.0]]), separation=WinnerTakeAll())
    assert read.tolist() == [3.0]


@pytest.mark.parametrize(
    ("query", "says"),
    [(XI * torch.nan, "NaN"), (XI.long().double()[:, :3], "shape|needs|annotat"), (XI[:1] * torch.inf, "finite")],
)
def test_bad_input_is_refused(query, says):
    with pytest.raises(Exception, match=says):
        retrieve(query, X)


def test_unknown_similarity_names_the_nearest():
    with pytest.raises(Refused, match="did you mean 'cosine'"):
        lookup(XI, X, similarity="cosin")
