"""Fixed points of batched maps, against their closed forms; sparse codes against scikit-learn; autoencoders."""

import pytest
import torch

from neuropil.errors import Refused
from neuropil.nn.autoencoder import conv_autoencoder, mlp_autoencoder
from neuropil.numerics.fixed_points import attracting, merge, radius, settle
from neuropil.numerics.pursuit import matching_pursuit


def contraction(d: int = 5, norm: float = 0.7):
    A, b = torch.randn(d, d, dtype=torch.float64), torch.randn(d, dtype=torch.float64)
    A *= norm / torch.linalg.matrix_norm(A, 2)
    return A, b, torch.linalg.solve(torch.eye(d, dtype=torch.float64) - A, b)


def test_a_contraction_settles_at_its_closed_form():
    A, b, fixed = contraction()
    found = settle(lambda z: z @ A.T + b, 10 * torch.randn(50, 5, dtype=torch.float64), tolerance=1e-10)
    assert found.converged.all() and not found.diverged.any()
    assert (found.z - fixed).norm(dim=1).max() < 1e-9 * (1 + fixed.norm()) / (1 - 0.7)
    assert (merge(found.z) == 0).all()


def test_rows_do_not_know_of_one_another():
    """Rows that start where others have long converged, in batches that shrink, end as each alone: bit-equal elementwise maps."""
    z = torch.tensor([[0.0], [1.0], [1e3], [1e6], [2.0]])
    f = lambda z: z.sqrt() + 2  # noqa: E731  fixed point 4
    whole, alone = settle(f, z, 1e-6), [settle(f, row[None], 1e-6) for row in z]
    assert torch.equal(whole.z, torch.cat([one.z for one in alone]))
    assert whole.steps.tolist() == [int(one.steps) for one in alone] and len(set(whole.steps.tolist())) > 2


def test_residuals_steps_and_path():
    f = lambda z: z / 2  # noqa: E731
    found = settle(f, torch.tensor([[4.0, 0.0], [0.0, 0.0]]), tolerance=0.25, keep=True)
    # |f(z) − z| = |z| / 2 ≤ (1 + |z|) / 4 at |z| = 1
    assert found.steps.tolist() == [2, 0] and found.first.tolist() == [2, 0] and found.residual.tolist() == [0.5, 0]
    assert found.path is not None and found.path[:, 0, 0].tolist() == [4, 2, 1] and found.path[:, 1].abs().max() == 0
    assert torch.equal(found.path[-1], found.z)
    assert settle(f, torch.ones(1, 2)).path is None


def test_divergence_is_named_and_leaves_finite_numbers():
    found = settle(lambda z: z**3, torch.tensor([[0.5], [2.0]]), steps=50)
    assert found.converged.tolist() == [True, False] and found.diverged.tolist() == [False, True]
    assert found.z.isfinite().all()
    assert settle(lambda z: z + float("nan"), torch.ones(1, 1)).diverged.all()


def test_slow_drift_is_no_attractor():
    drift, pull = (lambda z: z + 1e-7), (lambda z: z / 2)
    for f, expected in ((drift, False), (pull, True)):
        found = settle(f, torch.full((3, 2), 0.1, dtype=torch.float64))
        assert found.converged.all()
        assert attracting(f, found).tolist() == [expected] * 3
    out = settle(lambda z: z + 1e-3, torch.zeros(1, 1), steps=20)  # drift above the tolerance: no convergence, not even a residual
    assert not out.converged.any() and out.steps.tolist() == [20]
    saddle = settle(lambda z: z * torch.tensor([0.5, 2.0]), torch.zeros(1, 2))  # the fixed point of a map that also expands
    assert saddle.converged.all() and not attracting(lambda z: z * torch.tensor([0.5, 2.0]), saddle).any()


def test_radius_exact_and_by_krylov():
    A, b, _ = contraction(12)
    f, z = (lambda z: z @ A.T + b), torch.randn(5, 12, dtype=torch.float64)
    expected = torch.linalg.eigvals(A).abs().amax().expand(5)
    assert torch.allclose(radius(f, z, rows=2), expected)
    assert torch.allclose(radius(f, z, exact=4), expected)
    assert radius(f, z[:0]).shape == (0,)


def test_merging():
    z = torch.tensor([[0.0, 1.0], [3.0, 0.0], [3.02, 0.0], [6.0, 0.0], [3.01, 0.0]])
    assert merge(z, 1e-2).tolist() == [1, 0, 0, 2, 0] or merge(z, 1e-2).tolist() == [2, 0, 0, 1, 0]
    assert merge(z, 1e-2, "cosine").bincount().tolist() == [4, 1]
    assert merge(z, 0.0).bincount().tolist() == [1] * 5
    chain = torch.arange(0, 1, 0.005)[:, None]
    assert (merge(chain, 1e-2) == 0).all()  # linked by those between
    assert merge(z[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: settle(lambda z: z, torch.ones(2, 2), steps=0), "steps"),
        (lambda: settle(lambda z: z, torch.ones(2, 2), tolerance=-1.0), "tolerance"),
        (lambda: settle(lambda z: z, torch.ones(0, 2)), "z: at least one row"),
        (lambda: settle(lambda z: z, torch.tensor([[1.0, float("nan")]])), "1 not finite"),
        (lambda: settle(lambda z: z[:, :1], torch.ones(2, 2)), "f: must give the shape"),
        (lambda: settle(lambda z: (z, z), torch.ones(2, 2)), "got tuple"),
        (lambda: merge(torch.ones(2, 2), measure="l1"), "measure"),
        (lambda: merge(torch.ones(2, 2), -1.0), "tolerance"),
        (lambda: merge(torch.full((2, 2), float("inf"))), "4 are not"),
        (lambda: matching_pursuit(torch.ones(1, 2), torch.eye(2), 3), "s: must lie in 1 … 2"),
        (lambda: matching_pursuit(torch.ones(1, 2), torch.zeros(2, 2), 1), "length 0"),
        (lambda: matching_pursuit(torch.full((1, 2), float("nan")), torch.eye(2), 1), "finite"),
        (lambda: mlp_autoencoder((8, 8), 0), "shape, k"),
        (lambda: mlp_autoencoder((), 2), "shape, k"),
        (lambda: mlp_autoencoder((8, 8), 2, output="relu"), "output"),
        (lambda: conv_autoencoder((1, 10, 8), 2), "that 4 divides"),
        (lambda: conv_autoencoder((1, 8, 8), 2, activation="gelo"), "gelu"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(Refused, match=match):
        call()


@pytest.mark.parametrize("s", [1, 3, 7])
def test_pursuit_is_scikit_learns(s):
    """Correlated atoms of unit length, more of them than dimensions."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    atoms = torch.randn(30, 12, dtype=torch.float64) + 0.5
    atoms /= atoms.norm(dim=1, keepdim=True)
    x = torch.randn(20, 12, dtype=torch.float64)
    theirs = torch.from_numpy(linear_model.orthogonal_mp(atoms.T.numpy(), x.T.numpy(), n_nonzero_coefs=s)).T
    found = matching_pursuit(x, atoms, s)
    assert torch.allclose(found.dense(30), theirs)
    assert torch.allclose(found.dense(30) @ atoms, found.approximations[-1])


def test_pursuit_invariants():
    atoms, x = 3 * torch.randn(9, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    found = matching_pursuit(x, atoms, 6)
    for s, fit in enumerate(found.approximations, 1):  # residuals are orthogonal to what was chosen, and codes nest
        left = torch.einsum("nd,nsd->ns", x - fit, atoms[found.chosen[:, :s]])
        assert left.abs().max() < 1e-10
        assert torch.allclose(matching_pursuit(x, atoms, s).approximations[-1], fit)
    assert torch.allclose(found.approximations[-1], x)  # six atoms span six dimensions
    assert all(len(set(row)) == 6 for row in found.chosen.tolist())


def test_pursuit_stops_when_nothing_is_left():
    atoms = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    found = matching_pursuit(torch.tensor([[0.0, 3.0, 0.0], [1.0, 2.0, 5.0], [0.0, 0.0, 0.0]]), atoms, 3)
    assert found.chosen.tolist()[0] == [2, -1, -1] and found.chosen.tolist()[2] == [-1] * 3
    assert found.chosen[1, 0] == 2 and found.chosen[1, 2] == -1  # the second copy of an atom is never used
    assert torch.allclose(found.dense(3) @ atoms, torch.tensor([[0.0, 3.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("made", [lambda: mlp_autoencoder((8, 12), 3, (16, 8)), lambda: conv_autoencoder((2, 8, 12), 3, 4)])
def test_autoencoders(made):
    F, again = made(), made()
    x = torch.rand(5, 8, 12) if F.encoder[0].__class__.__name__ == "Flatten" else torch.rand(5, 2, 8, 12)
    assert F.encoder(x).shape == (5, 3) and F(x).shape == x.shape
    assert F(x).min() > 0 and F(x).max() < 1
    again.load_state_dict(F.state_dict())
    assert torch.equal(again(x), F(x)) and torch.equal(F.decoder(F.encoder(x)), F(x))
    F(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in F.parameters())
