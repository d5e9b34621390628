"""Dual propagation's exact invariants: backprop's gradient on linear nets and for γ → 0, the paper's states, its fixed points."""

import copy
import math
import subprocess
import sys

import numpy
import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, one_hot

from neuropil.errors import Refused
from neuropil.lab.claims import select
from neuropil.lab.run import measure
from neuropil.learning.dual_propagation import DualPropagation, Dyads, feedback_twin
from neuropil.learning.finite_difference import FiniteDifference, finite_difference, swap
from neuropil.learning.relaxation import relax
from neuropil.learning.rule import Backprop
from neuropil.nn.mlp import MLP


def half_squared(a, y):
    return (a - y).square().sum() / (2 * len(a))


def gradients(rule, net, x, y):
    net.zero_grad()
    rule.gradients(net, x, y)
    return [p.grad.clone() for p in net.parameters()]


def problem(activation="relu", sizes=(20, 30, 25, 15, 5), rows=64):
    g = torch.Generator().manual_seed(3)
    net = MLP(sizes, activation=activation).double()
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64) / (p.shape[-1] ** 0.5 if p.dim() > 1 else 10)
    x = torch.randn(rows, sizes[0], generator=g, dtype=torch.float64)
    return net, x, torch.randn(rows, sizes[-1], generator=g, dtype=torch.float64), torch.arange(rows) % sizes[-1]


@pytest.mark.parametrize("gamma", [0.1, 1.0, 1.9])
@pytest.mark.parametrize(
    "options", [{}, {"sweeps": 3}, {"order": "shuffled", "sweeps": 12}, {"order": "parallel", "sweeps": 12}], ids=str
)
def test_linear_nets_get_the_gradient_times_a_constant(gamma, options):
    net, x, y, classes = problem("identity")
    for loss, target, reference, factor in (
        ("squared", y, half_squared, 4 * gamma / (4 - gamma**2)),
        ("cross_entropy", classes, nn.functional.cross_entropy, gamma),
    ):
        found = gradients(DualPropagation(loss, gamma, **options), net, x, target)
        for ours, true in zip(found, gradients(Backprop(reference), net, x, target), strict=True):
            torch.testing.assert_close(ours, factor * true, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("gamma", "least"), [(1e-3, 0.999), (0.1, 0.98), (1.0, 0.85)])
def test_relu_nets_follow_the_gradient_the_closer_the_smaller_gamma(gamma, least):
    net, x, y, _ = problem()
    ours, true = (gradients(rule, net, x, y) for rule in (DualPropagation("squared", gamma), Backprop(half_squared)))
    cosines = [float(cosine_similarity(a.flatten(), b.flatten(), 0)) for a, b in zip(ours, true, strict=True)]
    assert min(cosines) > least
    assert gamma < 0.1 or min(cosines) < 0.9999  # it is not backpropagation


@pytest.mark.parametrize("activation", ["relu", "tanh", "softplus", "gelu"])
def test_gamma_to_zero_is_backprop(activation):
    net, x, _, classes = problem(activation)
    for ours, true in zip(
        gradients(DualPropagation(gamma=1e-3), net, x, classes), gradients(Backprop(), net, x, classes), strict=True
    ):
        assert float((ours / 1e-3 - true).norm() / true.norm()) < 2e-2


def transcribed(weights, biases, x, y, gamma, sweeps):
    """The paper's equations for a ReLU net and squared loss, in numpy, sample by sample, in the order of the released MLP code
    (forward; output; top down; for each further sweep up, output, down): independent of the library's code."""
    relu, states, updates = (lambda v: numpy.maximum(v, 0)), [], None
    for x_i, y_i in zip(x, y, strict=True):
        plus = [x_i]
        for w, b in zip(weights, biases, strict=True):
            u = w @ plus[-1] + b
            plus.append(relu(u) if len(plus) < len(weights) else u)
        minus = [z.copy() for z in plus]

        def hidden(k, plus=plus, minus=minus):
            u = weights[k - 1] @ (plus[k - 1] + minus[k - 1]) / 2 + biases[k - 1]
            nudge = gamma / 2 * weights[k].T @ (plus[k + 1] - minus[k + 1])
            plus[k], minus[k] = relu(u + nudge), relu(u - nudge)

        for sweep in range(sweeps):
            for k in range(1, len(weights)) if sweep else ():
                hidden(k)
            a = weights[-1] @ (plus[-2] + minus[-2]) / 2 + biases[-1]
            plus[-1], minus[-1] = (2 * a + gamma * y_i) / (2 + gamma), (2 * a - gamma * y_i) / (2 - gamma)
            for k in range(len(weights) - 1, 0, -1):
                hidden(k)
        states.append((plus, minus))
        outer = [numpy.outer(p1 - m1, (p0 + m0) / 2) for p0, m0, p1, m1 in zip(plus, minus, plus[1:], minus[1:], strict=False)]
        updates = outer if updates is None else [u + o for u, o in zip(updates, outer, strict=True)]
    return states, [u / len(x) for u in updates]


@pytest.mark.parametrize(("gamma", "sweeps"), [(1.0, 1), (1.0, 3), (0.5, 2)])
def test_states_and_updates_are_those_of_an_independent_transcription_of_the_paper(gamma, sweeps):
    net, x, y, _ = problem(rows=7)
    weights = [p.detach().numpy() for p in net.parameters()]
    states, updates = transcribed(weights[::2], weights[1::2], x.numpy(), y.numpy(), gamma, sweeps)
    rule = DualPropagation("squared", gamma, sweeps=sweeps)
    z = rule.infer(net, x, y)
    for k in range(5):
        assert torch.allclose(z.plus[k], torch.tensor(numpy.stack([s[0][k] for s in states])), atol=1e-12)
        assert torch.allclose(z.minus[k], torch.tensor(numpy.stack([s[1][k] for s in states])), atol=1e-12)
    for k, (ours, theirs) in enumerate(zip(gradients(rule, net, x, y)[::2], updates, strict=True)):
        assert torch.allclose(-ours * gamma ** (3 - k), torch.tensor(theirs), atol=1e-12)  # 3 − k layers above: our 1/γ^{L−k}


def test_frozen_numbers_of_the_transcription():
    """Two units by hand: f(1 ± ½·2·d) with d = 4/3 (½ − 2), γ = 1."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(1.0), net[2].weight.fill_(2.0)
    z = DualPropagation("squared").infer(net, torch.ones(1, 1), torch.full((1, 1), 0.5))
    assert (z.plus[2].item(), z.minus[2].item()) == pytest.approx((1.5, 3.5))
    assert (z.plus[1].item(), z.minus[1].item()) == pytest.approx((0.0, 3.0))  # 1 ± (−2), cut at 0: not what a slope would give


def test_targets_equal_to_the_prediction_leave_no_error():
    net, x, _, _ = problem()
    z = DualPropagation("squared", sweeps=4).infer(net, x, net(x).detach())
    assert max(float(z.error(k).abs().max()) for k in range(1, 5)) < 1e-12


@pytest.mark.parametrize("order", ["shuffled", "parallel"])
def test_all_orders_settle_in_the_same_states(order):
    net, x, y, _ = problem()
    for p in net.parameters():
        p.data *= 0.5
    down, other = (DualPropagation("squared", 0.5, order=o, sweeps=60).infer(net, x, y) for o in ("down", order))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(down.plus + down.minus, other.plus + other.minus, strict=True))


def test_closed_forms_are_what_the_energies_relax_to():
    """z⁺ is the minimum of ½|z − a|² + γ/2 ½|z − y|², z⁻ that with −γ; a ReLU unit's that of ½|z − u|² − nudge z over z ≥ 0."""
    net, x, y, _ = problem()
    z = DualPropagation("squared", 0.8).infer(net, x, y)
    a = net(x).detach()
    for sign, state in ((1, z.plus[-1]), (-1, z.minus[-1])):

        def energy(s, sign=sign):
            return 0.5 * (s[0] - a).square().sum(1) + sign * 0.2 * (s[0] - y).square().sum(1)

        settled = relax(energy, [torch.zeros_like(a)], steps=80, rate=0.8)
        assert torch.allclose(settled.states[0], state)
        assert (settled.energies.diff(dim=0) <= 1e-12).all()


def convnet(pool):
    body = [nn.Conv2d(1, 4, 3, stride=1, padding=1), nn.ReLU(inplace=True), pool, nn.Conv2d(4, 6, 3, padding="same", bias=False)]
    return nn.Sequential(*body, nn.Tanh(), nn.Flatten(), nn.Linear(6 * 16, 12), nn.Softplus(), nn.Linear(12, 3)).double()


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2)], ids=["average", "max"])
def test_convnets_follow_the_gradient(pool):
    net, x = convnet(pool), torch.randn(10, 1, 8, 8, dtype=torch.float64)
    y = torch.arange(10) % 3
    for ours, true in zip(gradients(DualPropagation(gamma=0.03), net, x, y), gradients(Backprop(), net, x, y), strict=True):
        assert float((ours / 0.03 - true).norm() / true.norm()) < 0.02


@pytest.mark.parametrize("make", [lambda: problem()[0], lambda: convnet(nn.MaxPool2d(2))], ids=["mlp", "convnet"])
def test_autograd_with_finite_differences_gives_the_errors_of_one_sweep(make):
    """With mean cross-entropy and γ = 1: β = batch/2. The biases' updates are the errors, so they must be the same."""
    net = make()
    x = torch.randn(16, *((20,) if isinstance(net, MLP) else (1, 8, 8)), dtype=torch.float64)
    y = torch.arange(16) % 3
    gradients(DualPropagation(), net, x, y)
    ours = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    Backprop().gradients(swap(net, beta=8.0), x, y)
    assert all(torch.allclose(ours[name], p.grad, atol=1e-10) for name, p in net.named_parameters() if "bias" in name)
    assert not torch.allclose(ours["0.weight"], gradients(Backprop(), net, x, y)[0], rtol=1e-3)


def test_separate_feedback_weights_align():
    net, x, _, classes = problem()
    twin = feedback_twin(net)
    rule = DualPropagation(feedback=twin)
    optimizer = torch.optim.SGD([*net.parameters(), *twin.parameters()], 0.3, weight_decay=0.03)

    def alignment():
        return float(cosine_similarity(net[2].weight.detach().flatten(), twin[2].weight.detach().flatten(), 0))

    start, losses = alignment(), [rule.step(net, (x, classes), optimizer) for _ in range(250)]
    assert start < 0.3 and alignment() > 0.8
    assert losses[-1] < 0.7 * losses[0]
    same = copy.deepcopy(net)
    for ours, true in zip(
        gradients(DualPropagation(feedback=same), net, x, classes), gradients(DualPropagation(), net, x, classes), strict=True
    ):
        assert torch.allclose(ours, true)


def test_frozen_layers_and_accumulation():
    net, x, _, classes = problem()
    net[2].weight.requires_grad_(False)
    net.zero_grad()
    rule = DualPropagation()
    rule.gradients(net, x, classes)
    once = net[0].weight.grad.clone()
    rule.gradients(net, x, classes)
    assert net[2].weight.grad is None
    assert torch.allclose(net[0].weight.grad, 2 * once)


def test_under_autocast_the_difference_survives():
    net, x, _, classes = problem()
    net, x = net.float(), x.float()
    true = gradients(DualPropagation(), net, x, classes)
    with torch.autocast("cpu", torch.bfloat16):
        half = gradients(DualPropagation(), net, x, classes)
    assert all(float(cosine_similarity(a.flatten(), b.flatten(), 0)) > 0.99 for a, b in zip(half, true, strict=True))
    assert all(p.dtype == torch.float32 for p in half)


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)), "layer '1', a BatchNorm1d"),
        (nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Softmax(1)), nn.Linear(3, 2)), r"layer '1\.0', a Softmax"),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.Tanh()), "layer '3', a Tanh of the outputs"),
        (nn.Sequential(nn.Linear(4, 2), nn.Flatten()), "layer '1', a Flatten behind"),
        (nn.GRU(4, 2), "GRU"),
    ],
)
def test_nets_that_cannot_be_trained_are_refused_by_layer_and_left_as_they_were(net, says):
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(Refused, match=says):
        DualPropagation().step(net, (torch.randn(5, 4), torch.arange(5) % 2), torch.optim.SGD(net.parameters(), 0.1))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gamma": 0.0}, r"gamma: must lie in \(0, 2\), got 0"),
        ({"gamma": 2.0}, "gamma"),
        ({"gamma": math.nan}, "gamma"),
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": 0.0, "gamma": 1.0}, "alpha"),
        ({"sweeps": 0}, "sweeps: at least 1"),
        ({"loss": "squard"}, "did you mean 'squared'"),
        ({"order": "random"}, "order"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(Refused, match=says):
        DualPropagation(**options)


def test_bad_targets_and_feedback_are_refused():
    net, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(5, 4)
    for y in (torch.full((5,), 3), torch.full((5,), -1), torch.zeros(4, dtype=torch.long), torch.zeros(5, 3)):
        with pytest.raises(Refused, match=r"y: must be classes 0 … 2 of shape \(5,\)"):
            DualPropagation().infer(net, x, y)
    with pytest.raises(Refused, match=r"or values of shape \(5, 3\)"):
        DualPropagation("squared").infer(net, x, torch.zeros(5, 2))
    with pytest.raises(Refused, match="feedback: layer '0'"):
        DualPropagation(feedback=nn.Sequential(nn.Linear(3, 3))).infer(net, x, torch.zeros(5, dtype=torch.long))
    with pytest.raises(Refused, match="feedback: must have the 1"):
        DualPropagation(feedback=MLP([4, 3, 3])).infer(net, x, torch.zeros(5, dtype=torch.long))


def test_squared_loss_takes_classes_as_one_hot():
    net, x, _, classes = problem()
    rule = DualPropagation("squared")
    both = [gradients(rule, net, x, y) for y in (classes, one_hot(classes, 5).double())]
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_finite_difference_tends_to_the_slope_and_is_exact_for_its_formula():
    a, e = torch.randn(2, 50, dtype=torch.float64)
    a.requires_grad_()
    for beta in (1e-5, 3.0):
        (found,) = torch.autograd.grad(finite_difference(torch.tanh, a, beta), a, e)
        exact = e / a.detach().cosh() ** 2 if beta < 1 else (torch.tanh(a + 3 * e) - torch.tanh(a - 3 * e)).detach() / 6
        assert torch.allclose(found, exact, atol=1e-9)


def test_swap_shares_weights_and_restores_nothing_because_nothing_changed():
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm1d(4)), nn.Linear(4, 2))
    dual, x = swap(net, beta=2.0), torch.randn(6, 3)
    assert isinstance(dual[1][0], FiniteDifference) and isinstance(net[1][0], nn.ReLU) and net[1][0].inplace
    assert torch.equal(dual(x), net(x))
    dual(x).sum().backward()
    assert all(p.grad is not None and p is q for p, q in zip(net.parameters(), dual.parameters(), strict=True))
    fresh = swap(copy.deepcopy(net))
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh.eval()(x), net.eval()(x))


def test_finite_difference_refuses():
    with pytest.raises(Refused, match="beta: must be positive, got 0"):
        finite_difference(torch.relu, torch.ones(2), 0.0)
    with pytest.raises(Refused, match="beta"):
        FiniteDifference(nn.ReLU(), -1.0)
    with pytest.raises(Refused, match="a PReLU with parameters"):
        FiniteDifference(nn.PReLU())
    with pytest.raises(Refused, match="Linear without an activation module"):
        swap(nn.Linear(2, 2))


def test_finite_difference_compiles_whole():
    lines = [
        "import torch; from neuropil.learning.finite_difference import *; torch.manual_seed(0)",
        "net = swap(nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2)), 2.0); x = torch.randn(4, 8)",
        "run = torch.compile(net, backend='aot_eager', fullgraph=True)",
        "g = [torch.autograd.grad(f(x).square().sum(), net[0].weight)[0] for f in (net, run)]",
        "torch.testing.assert_close(*g)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_relaxation_is_gradient_descent_and_holds_what_is_clamped():
    x, s = torch.randn(4, 3), torch.randn(4, 3)

    def energy(states):
        return 0.5 * (states[1] - states[0]).square().sum(1)

    settled = relax(energy, [x, s], steps=5, rate=0.1, clamp=[0])
    assert torch.equal(settled.states[0], x)
    assert torch.allclose(settled.states[1], x + 0.9**5 * (s - x), atol=1e-6)
    assert torch.allclose(settled.energies, energy([x, s]) * 0.81 ** torch.arange(6.0)[:, None], atol=1e-6)
    assert torch.equal(relax(lambda z: energy(z).sum(), [x, s], 5, 0.1, {0}).states[1], settled.states[1])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "steps: at least 1, got 0"),
        ({"rate": 0.0}, "rate: must be positive"),
        ({"clamp": [0]}, "clamp: some of the states 0 … 0, not all"),
        ({"clamp": [3]}, "clamp"),
        ({"energy": lambda s: s[0]}, r"energy: must give one number, or one a sample \(4,\), got \(4, 2\)"),
        ({"rate": 1e30, "steps": 9}, "rate: with 1e[+]30 the energy left the finite numbers at step"),
    ],
)
def test_relaxation_refuses(options, says):
    given = {"energy": lambda s: s[0].square().sum(1), "states": [torch.ones(4, 2)], "steps": 3, "rate": 0.1} | options
    with pytest.raises(Refused, match=says):
        relax(**given)


@pytest.mark.parametrize("claim", select("dual-propagation"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert all(0 <= row[side] < math.inf for side in ("method", "baseline"))


@pytest.mark.parametrize(
    ("method", "k", "allowed"), [("drive", 0, "1 … 2"), ("drive", 3, "1 … 2"), ("feedback", 2, "1 … 1"), ("error", 3, "0 … 2")]
)
def test_dyads_know_their_layers(method, k, allowed):
    dyads = DualPropagation().infer(MLP([3, 4, 2]), torch.eye(3), torch.tensor([0, 1, 0]))
    with pytest.raises(Refused, match=f"^k: must lie in {allowed}, got {k}"):
        getattr(dyads, method)(k)
    with pytest.raises(Refused, match=r"^alpha: must lie in"):
        Dyads(dyads.parts, math.nan, dyads.plus, dyads.minus, dyads.mean)
