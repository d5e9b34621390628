"""Assemblies: coupling cannot change the M-norm, every condition's metric proves its rate, steps beyond the proof are refused."""

import itertools
import subprocess
import sys

import pytest
import torch

from neuropil.dynamics.assemblies import (
    AbsStable,
    Assembly,
    AssemblyNet,
    FreeCoupling,
    SkewCoupling,
    Step,
    SVDStable,
    SymStable,
    contraction_rate,
    distance,
    magnitude,
    perron,
    triangle,
)
from neuropil.errors import Refused
from neuropil.lab.claims import select
from neuropil.lab.run import measure
from neuropil.nn.scan import scan
from neuropil.numerics.orthogonal import cayley, exp_skew, skew

BLOCKS = {
    "abs": lambda: AbsStable.random(6, fan=3, radius=0.7),
    "abs, signs on the diagonal": lambda: AbsStable(0.15 * torch.randn(6, 6) - 0.5 * torch.eye(6)),
    "sym": lambda: SymStable(6, margin=0.1),
    "sym, far": lambda: moved(SymStable(6, margin=0.1)),
    "svd": lambda: SVDStable(6),
    "svd, far": lambda: moved(SVDStable(6)),
}


def moved(module, by=0.7):
    """Parameters anywhere: the proof does not depend on where training takes them."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(by * torch.randn(p.shape))
    return module


def trio(scale=0.3, dt=1e-4, coupling=SkewCoupling, **options):
    return Assembly([AbsStable.random(5), SymStable(4), SVDStable(6)], coupling([5, 4, 6], scale=scale), dt, **options).double()


def worst_rate(W, P, L=0.0):
    """The least c of P(−I + WD + L) + (…)ᵀ ≤ −2cP over all corners D of the cube (the worst D is a corner: it enters linearly)."""
    K = torch.linalg.cholesky(P).mT
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(W))), dtype=torch.float64)
    J = -torch.eye(len(W), dtype=torch.float64) + W * corners[:, None] + L
    turned = K @ J @ torch.linalg.inv(K)
    return -float(torch.linalg.eigvalsh((turned + turned.mT) / 2).max())


@pytest.mark.parametrize("kind", BLOCKS)
def test_each_condition_proves_its_rate_for_every_slope(kind):
    block = BLOCKS[kind]().double()
    W, P = (X.detach() for X in block())
    assert block.rate() > 0
    assert worst_rate(W, P) >= block.rate() - 1e-6
    D = torch.rand(100, 6, dtype=torch.float64)
    K = torch.linalg.cholesky(P).mT
    assert torch.linalg.matrix_norm(K @ (W * D[:, None]) @ torch.linalg.inv(K), 2).max() <= block.gain() + 1e-9


def test_a_negative_weight_of_a_unit_on_itself_proves_nothing():
    """|W| with w_ii itself on the diagonal is Hurwitz − I here, yet no diagonal metric shows a rate at every slope."""
    W = torch.tensor([[-8.0, 2.9], [2.9, 0.0]], dtype=torch.float64)
    assert torch.linalg.eigvals(torch.tensor([[-9.0, 2.9], [2.9, -1.0]])).real.max() < 0
    ratios = torch.logspace(-3, 3, 601, dtype=torch.float64)
    assert max(worst_rate(W, torch.tensor([1.0, p], dtype=torch.float64).diag()) for p in ratios) < 0
    with pytest.raises(Refused, match=r"spectral radius of \|W\| must be below 1/g = 1, got 2.9"):
        AbsStable(W)


def test_random_blocks_have_the_radius_asked_for_and_a_good_metric():
    for n, fan, radius in ((16, 1, 0.5), (16, 4, 0.9), (30, 2, 0.3)):
        W, P = AbsStable.random(n, fan, radius, generator=torch.Generator().manual_seed(n))()
        assert perron(magnitude(W)) == pytest.approx(radius, abs=1e-5)
        assert (W.count_nonzero(1) == fan).all() and (W.diagonal() == 0).all()
        assert (P.diagonal() > 0).all()


def test_a_net_without_loops_has_a_metric():
    """Where |W| is reducible, Perron's vectors have zeros; the linear solves have none."""
    W = torch.tensor([[0.0, 3.0], [0.0, 0.0]])
    assert contraction_rate(AbsStable(W)) > 0.1


def test_singular_values_stay_below_the_slope():
    for g in (0.5, 1.0, 4.0):
        block = SVDStable(5, g)
        torch.nn.init.zeros_(block.z)  # the largest Σ there is
        assert float(block.singular().detach().max()) < 1 / g
        assert block.rate() == pytest.approx(0.01, abs=1e-6)


def test_the_metric_cannot_see_the_coupling_before_or_after_training():
    torch.manual_seed(1)
    net = AssemblyNet(2, trio(dt=0.01, scale=0.1), 3).double()
    stepper = torch.optim.Adam(net.parameters(), lr=0.05)
    before = net.assembly.coupling.B().detach()
    for _ in range(5):
        _, P, L = net.assembly.matrices()
        assert (P @ L + L.mT @ P).abs().max() < 1e-12
        assert all(L[a, a].abs().max() == 0 for a in (slice(0, 5), slice(5, 9), slice(9, 15)))
        stepper.zero_grad()
        net(torch.randn(6, 4, 2, dtype=torch.float64)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
        stepper.step()
    assert (net.assembly.coupling.B() - before).abs().max() > 0.05
    assert net.assembly.rate() == pytest.approx(min(b.rate() for b in net.assembly.blocks), abs=1e-9)
    _, P, L = (X.float() for X in net.assembly.matrices())
    assert (P @ L + L.mT @ P).abs().max() < 1e-5


def test_the_same_rule_in_the_authors_form():
    """Their M̂ is the inverse metric: L = B − M̂ Bᵀ M̂⁻¹."""
    assembly = trio()
    _, P, L = assembly.matrices()
    inverse, B = torch.linalg.inv(P), assembly.coupling.B()
    assert torch.allclose(L, B - inverse @ B.mT @ torch.linalg.inv(inverse))


def test_half_of_the_blocks_reach_every_coupling():
    sizes, M = [2, 3, 2], torch.diag(1 + torch.rand(7)).double()
    whole = SkewCoupling(sizes).double()
    half = SkewCoupling(sizes, triangle(3)).double()
    assert len(whole.values) == 2 * len(half.values) == 32
    L = whole(M)
    with torch.no_grad():
        half.values.copy_(L[half.mask])
    assert torch.allclose(half(M), L)


def test_one_euler_step_is_the_equation():
    assembly = trio(dt=0.01, phi="tanh", scale=0.1)
    W, _, L = assembly.matrices()
    u, x = torch.randn(2, 3, 15, dtype=torch.float64)
    y, state = assembly(u, x)
    assert torch.equal(y, state)
    assert torch.allclose(y, x + 0.01 * (-x + x.tanh() @ W.T + x @ L.T + u))


def test_run_is_the_cell_scanned():
    assembly, u = trio(), torch.randn(4, 3, 15, dtype=torch.float64)
    y, x = assembly.run(u)
    again, last = scan(assembly, u, assembly.start(3))
    assert torch.allclose(y, again) and torch.equal(x, y[-1]) and torch.allclose(x, last)


@pytest.mark.parametrize("method", ["euler", "cayley"])
def test_every_step_below_the_largest_shrinks_every_distance(method):
    torch.manual_seed(2)
    scale = {"euler": 0.3, "cayley": 30.0}[method]
    dt = 0.99 * trio(scale, method=method, dt=1e-9).largest_step()
    torch.manual_seed(2)
    assembly = trio(scale, method=method, dt=1e-9)
    assembly.dt = dt
    M = assembly.matrices().P
    x, y, u = torch.randn(3, 1000, 15, dtype=torch.float64)
    for _ in range(20):
        before, (x, _), (y, _) = distance(x, y, M), assembly(u, x), assembly(u, y)
        assert (distance(x, y, M) < before).all()


def test_two_starts_meet_and_the_same_wires_alone_do_not():
    torch.manual_seed(3)
    blocks, sizes = [AbsStable.random(16, fan=4) for _ in range(5)], [16] * 5
    skewed = Assembly(blocks, SkewCoupling(sizes, scale=0.3), 0.005).double()
    free = Assembly(blocks, FreeCoupling(sizes, scale=0.3), 0.005).double()
    free.coupling.load_state_dict(skewed.coupling.state_dict())
    assert contraction_rate(skewed) > 0.2 and contraction_rate(free) < 0
    M, start, u = skewed.matrices().P, torch.randn(2, 80, dtype=torch.float64), torch.randn(1600, 1, 80, dtype=torch.float64)
    far = {}
    for name, assembly in (("skew", skewed), ("free", free)):
        with torch.no_grad():
            states = torch.cat([start[None], assembly.run(u.expand(-1, 2, -1), start)[0]])
        far[name] = distance(states[:, 0], states[:, 1], M)
    assert (far["skew"][1:] < far["skew"][:-1]).all() and far["skew"][-1] < 0.01 * far["skew"][0]
    assert far["free"][-1] > 100 * far["free"][0]


def test_an_assembly_of_assemblies_keeps_the_metrics_and_the_least_rate():
    inner, other = trio(), trio()
    coupling = SkewCoupling([15, 15, 3], scale=0.3).double()
    outer = Assembly([inner, other, SymStable(3).double()], coupling, 1e-4)
    W, P, L = outer.matrices()
    assert torch.equal(P[:15, :15], inner.matrices().P) and torch.equal(L[:15, :15], inner.matrices().L)
    assert torch.equal(W[15:30, 15:30], other.matrices().W) and (W[:15, 15:] == 0).all()
    assert (P @ L + L.mT @ P).abs().max() < 1e-12
    assert [b.n for b in outer.leaves()] == [5, 4, 6, 5, 4, 6, 3]
    assert contraction_rate(outer) == pytest.approx(min(b.rate() for b in outer.leaves()), abs=1e-9)


def test_skew_maps():
    values = torch.randn(4, 10, dtype=torch.float64)
    A, eye = skew(values, 5), torch.eye(5, dtype=torch.float64)
    for Q in (exp_skew(values, 5), cayley(A)):
        assert torch.allclose(Q @ Q.mT, eye.expand(4, 5, 5)) and torch.allclose(torch.linalg.det(Q), torch.ones(4).double())
    small = 1e-3 * A
    assert (cayley(small) - torch.linalg.matrix_exp(small)).abs().max() < 1e-7
    with pytest.raises(Refused, match=r"^A: I − A/2 must not be singular"):
        cayley(skew(torch.full((3,), 1e30), 3))
    with pytest.raises(Refused, match="values: an n of 5 needs 10 numbers, got 6"):
        skew(torch.zeros(6), 5)


def test_state_dict_is_whole():
    torch.manual_seed(4)
    one = AssemblyNet(1, trio(), 2).double()
    torch.manual_seed(5)
    two = AssemblyNet(1, trio(), 2).double()
    x = torch.randn(3, 2, 1, dtype=torch.float64)
    assert not torch.equal(one(x), two(x))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(x), two(x))


def test_under_autocast():
    torch.manual_seed(6)
    net = AssemblyNet(1, Assembly([SymStable(4), SVDStable(3)], SkewCoupling([4, 3]), method="cayley"), 2)
    x = torch.randn(3, 2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(net(x).float(), net(x.float()).float())
        half = net(x)
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), net(x), atol=0.05)


COMPILED = """
import torch
from neuropil.dynamics.assemblies import *
torch.manual_seed(0)
for method in ("euler", "cayley"):
    a = Assembly([AbsStable.random(4), SymStable(3), SVDStable(3)], SkewCoupling([4, 3, 3]), 0.01, method=method)
    u, x = torch.randn(2, 5, 10)
    torch.testing.assert_close(torch.compile(a, backend="eager", fullgraph=True)(u, x), a(u, x))
"""


def test_compiles_whole():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: trio(dt=0.0), "dt: must lie between 0 and"),
        (lambda: trio(dt=-0.1), "dt: must lie between 0 and"),
        (lambda: trio(dt=0.5), "where euler steps of this assembly must contract, got 0.5"),
        (lambda: trio(dt=3.0, method="cayley"), "where cayley steps"),
        (lambda: trio(dt=-1.0, coupling=FreeCoupling), "dt: must lie between 0 and inf"),
        (lambda: trio(phi="sine"), "phi"),
        (lambda: trio(method="implicit"), "method"),
        (lambda: SkewCoupling([3, 0]), "sizes: at least one"),
        (lambda: Assembly([], SkewCoupling([3])), "blocks: at least one"),
        (lambda: Assembly([SVDStable(3)], SkewCoupling([3, 4])), "coupling: must be for the blocks' 3 units, got 7"),
        (lambda: Assembly([SVDStable(3, g=0.5)], SkewCoupling([3])), "slopes up to g = 0.5"),
        (lambda: SkewCoupling([2, 3], torch.ones(3, 3, dtype=torch.bool)), r"mask: must be \(2, 2\)"),
        (lambda: AbsStable.random(4, fan=4), "fan, radius"),
        (lambda: AbsStable.random(4, radius=1.0), "fan, radius"),
        (lambda: SVDStable(3, g=0.0), "g: the largest slope must be positive"),
        (lambda: SVDStable(-1), "^n: must be at least 1"),
        (lambda: AbsStable(torch.full((3, 3), torch.nan)), "^W: must be finite, got 9 of 9"),  # it took forever
        (lambda: AbsStable(torch.zeros(0, 0)), "^W: must not be empty"),
        (lambda: perron(torch.full((2, 2), torch.inf)), "^N: must be finite"),
        (lambda: SkewCoupling([2, 3])(torch.eye(4)), r"^M: must be \(5, 5\), got \(4, 4\)"),
        (lambda: SkewCoupling([2, 3])(torch.eye(5).double()), "^M: must be torch.float32"),
        (lambda: AssemblyNet(0, trio(), 2), "^d: must be at least 1"),
        (lambda: AssemblyNet(1, trio(), 2)(torch.zeros(4, 3, 2)), "^x: the last axis must have 1"),
        (lambda: trio().run(torch.zeros(0, 2, trio().n)), "^u: axis 0 must not be empty"),
        (lambda: trio().step()(torch.zeros(2, 1), torch.zeros(2, 1)), "^u: the last axis must have"),
        (lambda: Step(torch.eye(2), torch.eye(2), torch.nan, "relu", "euler"), "^dt: must be finite"),
        (lambda: distance(torch.zeros(2), torch.zeros(2), torch.eye(2).double()), "^M: must be torch.float32"),
        (lambda: SymStable(3, margin=1.0), "margin"),
        (lambda: contraction_rate(torch.nn.Linear(2, 2)), "must hold a Block, got Linear"),
    ],
)
def test_refusals(make, says):
    with pytest.raises(Refused, match=says):
        make()


@pytest.mark.parametrize("claim", select("rnns-of-rnns"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    if claim.name == "wired-blocks-forget-where-they-began":
        assert row["method"] == 1.0 > row["baseline"]
