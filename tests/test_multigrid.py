import itertools

import pytest
import torch

from neuropil.data.elliptic import darcy, helmholtz, speeds, two_phases
from neuropil.errors import Refused
from neuropil.lab.claims import select
from neuropil.lab.run import measure
from neuropil.physics.multigrid import GRIDS, MgNO, MultigridLinear, NormedCycle
from neuropil.physics.norms import trapezoid

WIDE = torch.float64
SIDES = {"cells": 16, "ends": 17, "inner": 15}


def randn(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=WIDE)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("grid", "padding"), [("cells", "zeros"), ("cells", "circular"), ("ends", "reflect"), ("inner", "zeros")])
def test_a_cycle_is_linear(grid, padding, residual):
    options = {"smoothing": [(2, 1), (1, 0), (2, 1)], "padding": padding, "grid": grid, "widths": (1, 2, 3), "residual": residual}
    W = MultigridLinear(2, 3, 3, **options).double()
    f, g = randn(2, 1, 2, SIDES[grid], SIDES[grid])
    assert torch.allclose(W(1.7 * f - 0.3 * g), 1.7 * W(f) - 0.3 * W(g), atol=1e-12)
    assert W(f).shape == (1, 3, SIDES[grid], SIDES[grid])
    normed = NormedCycle(2, 3, 3, **options).double()
    assert not torch.allclose(normed(2 * f), 2 * normed(f), atol=1e-3)


def test_the_authors_net_gives_the_same_numbers():
    """xlliu2017/MgNO, models.MgNO_DC, the same weights, exact to the last bit when it was run."""
    net = MgNO(1, 1, width=3, layers=2, levels=3, smoothing=[(1, 0), (1, 1), (2, 0)]).double()
    with torch.no_grad():
        for k, w in enumerate(net.parameters()):
            w.copy_(torch.cos(torch.arange(w.numel(), dtype=WIDE) * 0.7 + k).view(w.shape) / w[0].numel() ** 0.5)
    y = net(torch.sin(torch.arange(64, dtype=WIDE) * 1.3).view(1, 1, 8, 8))
    expected = [-1.265204835139907, -0.006247925174121385, -0.03486236725828406]
    assert torch.allclose(y[0, 0, [0, 3, 7], [1, 4, 7]], torch.tensor(expected, dtype=WIDE), atol=1e-12)
    assert float(y.detach().sum()) == pytest.approx(-8.554204423799618, abs=1e-10)


def classical(levels, n):
    """A cycle whose weights are the textbook's for −Δu = f with zeros beyond the border: Jacobi, full weighting, bilinear."""
    W = MultigridLinear(1, 1, levels, smoothing=[(2, 2)] * (levels - 1) + [(20, 0)], grid="inner", residual=True).double()
    cross = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]], dtype=WIDE)
    tent = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=WIDE)
    centre = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=WIDE)
    with torch.no_grad():
        for level in range(levels):
            h = 2**level / (n + 1)
            A, S = cross / h**2, 0.8 * h**2 / 4 * centre
            for smoother in [*W.before[level], *W.after[level]]:
                smoother.A.weight.copy_(A[None, None])
                smoother.S.weight.copy_(S[None, None])
            if level == 0:
                W.first.weight.copy_(S[None, None])
            if level + 1 < levels:
                W.A[level].weight.copy_(A[None, None])
                W.R[level].weight.copy_(tent[None, None] / 16)
                W.T[level].weight.copy_(tent[None, None] / 4)
                W.Pi[level].weight.zero_()
    return W


def test_with_the_textbooks_weights_a_cycle_solves_poisson():
    n = 31
    W, f = classical(4, n), randn(1, 1, n, n)
    A = W.before[0][0].A
    u, residuals = torch.zeros_like(f), [float(f.norm())]
    for _ in range(4):
        u = u + W(f - A(u))
        residuals.append(float((f - A(u)).detach().norm()))
    assert all(after < before / 5 for before, after in itertools.pairwise(residuals)), residuals
    with torch.no_grad():  # a broken transfer must not pass
        W.T[0].weight.neg_()
    assert float((f - A(W(f))).detach().norm()) > residuals[0] / 5


def test_circular_padding_is_equivariant_to_shifts_of_the_coarsest_cell():
    W = MultigridLinear(1, 2, 3, padding="circular", smoothing=[(1, 1), (1, 1), (2, 0)]).double()
    f = randn(1, 1, 16, 16)
    moved = W(f.roll((4, 8), (2, 3)))
    assert torch.allclose(moved, W(f).roll((4, 8), (2, 3)), atol=1e-12)
    assert not torch.allclose(W(f.roll(1, 3)), W(f).roll(1, 3), atol=1e-4)


def test_reflection_is_the_even_continuation():
    """Neumann: the reflecting cycle is the periodic one on the function continued evenly to twice the size."""
    W = MultigridLinear(1, 1, 3, padding="reflect", grid="ends", smoothing=[(1, 1), (1, 0), (2, 0)]).double()
    with torch.no_grad():
        for w in W.parameters():  # kernels that are even themselves
            w.copy_((w + w.flip(-1) + w.flip(-2) + w.flip((-1, -2))) / 4)
    f = randn(1, 1, 17, 17)
    even = torch.cat([f, f[..., 1:-1].flip(-1)], -1)
    even = torch.cat([even, even[..., 1:-1, :].flip(-2)], -2)  # 32 × 32, periodic
    around = even.repeat(1, 1, 3, 3)[..., 16:-15, 16:-15]  # with 16 more points on each side: 65 × 65, an "ends" grid
    assert torch.allclose(W(f), W(around)[..., 16:33, 16:33], atol=1e-10)


def test_zeros_on_inner_points_are_a_border_of_zeros():
    """Dirichlet: the grid of inner points with zeros beyond gives what the odd continuation gives for kernels that are even."""
    W = MultigridLinear(1, 1, 2, grid="inner", smoothing=[(1, 1), (2, 0)]).double()
    with torch.no_grad():
        for w in W.parameters():
            w.copy_((w + w.flip(-1) + w.flip(-2) + w.flip((-1, -2))) / 4)
    f = randn(1, 1, 7, 7)

    def odd(x, dim):
        zero = torch.zeros_like(x.narrow(dim, 0, 1))
        return torch.cat([-x.flip(dim), zero, x, zero, -x.flip(dim)], dim)

    around = odd(odd(f, 2), 3)  # 23 × 23 inner points
    assert torch.allclose(W(f), W(around)[..., 8:15, 8:15], atol=1e-10)


def test_state_dict_and_the_net_for_navier_stokes():
    torch.manual_seed(0)
    first, second = (MgNO(1, 1, width=3, layers=2, levels=2, norm=True, padding="circular") for _ in range(2))
    u = torch.randn(2, 1, 8, 8)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(u), second(u))
    for p in first.last.parameters():
        torch.nn.init.zeros_(p)
    assert torch.equal(first(u), u)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MultigridLinear(1, 1, 3)(torch.zeros(1, 1, 18, 16)), r"need 4 m points an axis, got \(18, 16\)"),
        (lambda: MultigridLinear(1, 1, 3, grid="ends")(torch.zeros(1, 1, 16, 16)), r"4 m \+1"),
        (lambda: MultigridLinear(1, 1, 3, grid="inner")(torch.zeros(1, 1, 16, 16)), "4 m -1"),
        (lambda: MultigridLinear(1, 1, 3, grid="ends", padding="circular"), "circular"),
        (lambda: MultigridLinear(1, 1, 2, smoothing=[(0, 1), (1, 0)]), "smoothing"),
        (lambda: MultigridLinear(1, 1, 2, widths=[1]), "widths"),
        (lambda: MultigridLinear(1, 1, 2, padding="mirror"), "padding"),
        (lambda: MultigridLinear(1, 1, 3).prolong(2, torch.zeros(1, 1, 4, 4)), "^level: must be one of 2 from 0 on, got 2"),
        (lambda: MgNO(1, 1, 3, 1, 2, norm=True).W[0].joined(1, torch.zeros(1, 3, 4, 4)), "^level: must be one of 1"),
        (lambda: MultigridLinear(1, 2, 1).before[0][0](torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)), r"^u: must be \(b, 2,"),
        (lambda: MgNO(2, 1, 3, 1, 2, norm=True), "norm"),
        (lambda: darcy(torch.zeros(1, 1, 5, 5)), "a: must be positive"),
        (lambda: helmholtz(torch.ones(1, 1, 5, 5), 0.0), "omega"),
        (lambda: two_phases(1, 9, torch.Generator(), low=0.0), "low"),
        (lambda: speeds(1, 9, torch.Generator(), mean=1.0), "mean"),
    ],
)
def test_bad_input_is_refused(make, words):
    with pytest.raises(Refused, match=words):
        make()


@pytest.mark.parametrize("grid", list(GRIDS))
def test_the_least_grids(grid):
    n = {"cells": 4, "ends": 5, "inner": 3}[grid]
    assert MultigridLinear(1, 1, 3 if grid != "inner" else 2, grid=grid)(torch.zeros(1, 1, n, n)).shape[-1] == n


def test_darcy_converges_at_second_order():
    """A smooth medium and a known solution: a = 1 + x y, u = sin πx sin πy."""
    errors = []
    for n in (17, 33, 65):
        y, x = torch.meshgrid(torch.linspace(0, 1, n, dtype=WIDE), torch.linspace(0, 1, n, dtype=WIDE), indexing="ij")
        pi = torch.pi
        u, a = torch.sin(pi * x) * torch.sin(pi * y), 1 + x * y
        slopes = pi * y * torch.cos(pi * x) * torch.sin(pi * y) + pi * x * torch.sin(pi * x) * torch.cos(pi * y)
        f = 2 * pi**2 * a * u - slopes
        errors.append(float((darcy(a[None, None], f[None, None])[0, 0] - u).abs().max()))
    assert errors[0] / errors[1] > 3.8
    assert errors[1] / errors[2] > 3.8


def test_darcy_through_layers_is_exact():
    """Flow through layers in a row: harmonic means give the exact flux, whatever the jump."""
    n = 33
    a = torch.where(torch.arange(n) < 16, 1.0, 10.0).double().expand(1, 1, n, n).contiguous()
    u = darcy(a, 1.0)
    assert bool((u[..., [0, -1], :] == 0).all())
    assert bool((u[..., :, [0, -1]] == 0).all())
    assert float(u[..., :16].mean()) > 1.5 * float(u[..., 17:].mean())


def test_helmholtz_of_one_speed_is_a_cosine():
    n, omega = 129, 9.0
    u = helmholtz(torch.ones(1, 1, n, n, dtype=WIDE), omega)[0, 0]
    y = torch.linspace(0, 1, n, dtype=WIDE)
    # u'' + ω² u = 0, −u'(0) = 1, u'(1) = 0
    exact = -torch.cos(omega * (1 - y)) / (omega * torch.sin(torch.tensor(omega, dtype=WIDE)))
    assert float((u - exact[:, None]).abs().max() / exact.abs().max()) < 0.02


def test_speeds_are_those_of_the_published_waves():
    """De Hoop et al. 2022: c − 20 of their released media has no mean and a standard deviation of .05 to .15, together about .1."""
    c = speeds(400, 17, torch.Generator().manual_seed(0)).double()[:, 0] - 20
    assert float(c.std()) == pytest.approx(0.1, abs=0.01)
    g, weights = torch.atanh(c), trapezoid((17, 17)).double()
    assert float((g * weights).sum((1, 2)).abs().max()) < 1e-5
    wave = 2**0.5 * torch.cos(torch.pi * torch.linspace(0, 1, 17, dtype=WIDE))
    across, down = ((g * weights * basis).sum((1, 2)) for basis in (wave, wave[:, None]))
    for found in (across, down):
        assert float(found.std()) == pytest.approx(1 / (torch.pi**2 + 9), rel=0.1)
    assert abs(float((across * down).mean())) < 0.2 * float(across.var())


def test_waves_of_the_claim_are_well_posed():
    """No medium of many is near a resonance: a small change of all speeds changes the waves a bounded number of times as much."""
    c = speeds(48, 33, torch.Generator().manual_seed(1)).double()
    u, moved = helmholtz(c, 320.0), helmholtz(c * (1 + 1e-5), 320.0)
    size = u.flatten(1).norm(dim=1)
    assert float(size.max() / size.min()) < 3
    assert float(((moved - u).flatten(1).norm(dim=1) / size).max()) < 300 * 1e-5


def test_media():
    a = two_phases(4, 33, torch.Generator().manual_seed(0))
    assert set(a.unique().tolist()) == {3.0, 12.0}
    assert 0.2 < float((a > 5).float().mean()) < 0.8
    assert float((a[..., 1:] != a[..., :-1]).float().mean()) < 0.15  # phases are larger than points


@pytest.mark.parametrize("claim", select("mgno"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert row["method"] > 0
