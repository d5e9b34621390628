"""Continuous thought: synchrony as a sum over history, private nets, the two ticks of the loss, and the authors' own outputs."""

import itertools
import math
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy, glu

from neuropil.dynamics.continuous_thought import (
    ContinuousThoughtMachine,
    ThinkingLSTM,
    activity,
    certainty,
    stop,
    think,
    two_tick_loss,
)
from neuropil.errors import Refused
from neuropil.lab.claims import select
from neuropil.lab.run import measure
from neuropil.nn.per_unit import PerUnitLinear, PerUnitMLP
from neuropil.nn.sites import record
from neuropil.nn.synchrony import Synchrony, pairs


def history(steps: int, batch: int, units: int) -> torch.Tensor:
    return torch.randn(steps, batch, units, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_synchrony_is_the_weighted_sum_over_all_time():
    z = history(12, 3, 5)
    readout = Synchrony(*pairs("first", 5, 4)).double()
    readout.decay.data.uniform_(0, 2)
    state = readout.start(3)
    for t in range(1, 13):
        S, state = readout(z[t - 1], state)
        weight = torch.exp(-readout.decay * torch.arange(t - 1, -1, -1)[:, None])  # t p
        direct = (weight[:, None] * z[:t, :, readout.left] * z[:t, :, readout.right]).sum(0) / weight.sum(0).sqrt()
        assert torch.allclose(S, direct, atol=1e-5)


def test_without_decay_it_is_the_dot_product_over_the_root_of_time():
    z = history(9, 2, 6)
    readout = Synchrony(*pairs("pairs", 6, 10, selves=2)).double()
    state = readout.start(2)
    for x in z:
        S, state = readout(x, state)
    assert torch.allclose(S, (z[..., readout.left] * z[..., readout.right]).sum(0) / 3)
    assert torch.equal(readout.left[:2], readout.right[:2])


def test_the_gradient_reaches_the_decay_and_does_not_push_it_out():
    readout = Synchrony(*pairs("first", 2, 2)).double()
    z = torch.tensor([[[1.0, -1.0]], [[1.0, 1.0]]]).double()  # pairs 00, 01, 11: products 1 1 1, then 1 −1 1

    def slope(at: float) -> torch.Tensor:
        readout.decay.data.fill_(at)
        readout.decay.grad = None
        _, state = readout(z[0], readout.start(1))
        readout(z[1], state)[0].sum().backward()
        return readout.decay.grad

    inside, edge, outside = slope(0.5), slope(0.0), slope(-0.1)
    assert (inside != 0).all()
    assert (inside > 0).tolist() == [False, True, False]  # descent lets the agreeing pairs forget, the others remember
    assert edge.ne(0).tolist() == outside.ne(0).tolist() == [True, False, True]
    assert readout.rate().tolist() == [1.0] * 3
    assert slope(16.0).ne(0).tolist() == [False, True, False]
    assert torch.allclose(readout.rate().log(), torch.tensor(-15.0).double())


def test_pairs():
    left, right = pairs("grid", 100, 4, torch.Generator().manual_seed(0))
    assert len(left) == 10
    assert len(set(left.tolist())) == len(set(right.tolist())) == 4
    assert left[:4].unique().numel() == 1  # first row of the triangle
    for bad in (("none", 5, 2), ("first", 5, 6), ("pairs", 5, 0)):
        with pytest.raises(Refused):
            pairs(*bad)
    with pytest.raises(Refused, match="selves"):
        pairs("first", 5, 2, selves=1)
    with pytest.raises(Refused, match="left, right"):
        Synchrony(torch.arange(2), torch.arange(3))
    readout = Synchrony(torch.tensor([0, 3]), torch.tensor([1, 2]))
    with pytest.raises(Refused, match=r"^z: the pairs need at least 4 units, got shape \(2, 3\)"):
        readout(torch.zeros(2, 3), readout.start(2))


@pytest.mark.parametrize("hidden", [4, None])
def test_per_unit_nets_are_one_net_after_the_other(hidden):
    torch.manual_seed(0)
    nets, x = PerUnitMLP(5, 3, hidden).double(), torch.randn(5, 3, 7, dtype=torch.float64)
    for p in nets.parameters():
        p.data.normal_()
    for n in range(5):
        y = x[n].T
        for layer in nets.layers:
            y = glu((y @ layer.weight[n].T + layer.bias[n, :, 0]) / layer.temperature, -1)
        assert torch.allclose(nets(x)[n], y[:, 0])


def test_a_neuron_sees_its_own_trace_only():
    x = torch.randn(6, 3, 2)
    other = x.clone()
    other[4] += 1
    for shared in (False, True):
        nets = PerUnitMLP(6, 3, shared=shared)
        assert (nets(x) != nets(other)).any(1).tolist() == [False] * 4 + [True, False]
    alike = nets(x[:1].expand(6, -1, -1))
    assert torch.allclose(alike, alike[:1].expand(6, -1))  # shared: one net for all


def fill(k: int, *shape: int) -> torch.Tensor:
    return torch.sin(k + (1.7 + 0.1 * (k % 7)) * torch.arange(math.prod(shape), dtype=torch.float64)).reshape(shape)


def filled(number: itertools.count, *shape: int, one: bool = False) -> torch.Tensor:
    return fill(next(number), *shape) + (1.2 if one else 0.0)


def as_the_authors(machine: ContinuousThoughtMachine) -> ContinuousThoughtMachine:
    """Weights by formula, in the alphabetical order and the layout of the authors' parameters."""
    machine = machine.double()
    number, m = itertools.count(), machine
    n_action, n_out = len(m.action), len(m.out)
    bias, weight = filled(number, 12), filled(number, 12, 4)
    for j, part in enumerate((m.attention.query, m.attention.key, m.attention.value)):
        part.bias.data, part.weight.data = bias[4 * j : 4 * j + 4], weight[4 * j : 4 * j + 4]
    m.attention.out.bias.data, m.attention.out.weight.data = filled(number, 4), filled(number, 4, 4)
    m.action.decay.data, m.out.decay.data = filled(number, n_action), filled(number, n_out)
    for part in (*m.tokens, m.answer, m.ask):
        part.bias.data, part.weight.data = filled(number, *part.bias.shape), filled(number, *part.weight.shape)
    m.z0.data, m.trace0.data = filled(number, 6), filled(number, 6, 3)
    if len(m.synapses) == 4:
        layers = [m.synapses[1], m.synapses[3]]
    else:
        first, (top, bottom) = m.synapses[0], (m.synapses[1], m.synapses[1].below)
        down = [part for block in (top.down, bottom.down, first) for part in block[1:3]]
        up = [part for block in (top.up, bottom.up) for part in block[1:3]]
        layers = [*down, top.norm, bottom.norm, *up]
    for part in layers:
        part.bias.data, part.weight.data = filled(number, *part.bias.shape), filled(number, *part.weight.shape)
    for part in m.neurons.layers:
        n, o, i = part.weight.shape
        part.temperature.data = filled(number, 1, one=True)[0]
        part.bias.data = filled(number, 1, n, o)[0].unsqueeze(-1)
        part.weight.data = filled(number, i, o, n).permute(2, 1, 0)
    return machine


FROZEN = {  # what the authors' model gives on the CPU for these weights: ticks × examples × 4, and certainties
    "pairs": """
        -3.900166 -3.910915 -2.400978 -3.695774 -3.903198 -3.914102 -2.404319 -3.699267
        -5.140405 -5.146814 -3.632188 -4.921946 -5.135895 -5.14203 -3.627131 -4.916617
        -5.364228 -5.345935 -3.806549 -5.071498 -5.393122 -5.375176 -3.83613 -5.10141
        -6.083653 -6.058676 -4.512406 -5.770271 -6.144859 -6.121069 -4.575968 -5.834984
        0.124505 0.124529 0.123704 0.123661 0.119834 0.119885 0.118751 0.118926""",
    "dense": """
        -1.228098 -1.221984 0.304638 -0.973656 -1.226855 -1.220895 0.305571 -0.97288
        -1.102537 -1.098201 0.426502 -0.853848 -1.098279 -1.093964 0.430714 -0.849667
        -1.03045 -1.026098 0.49854 -0.781957 -1.027413 -1.023229 0.501237 -0.779434
        -0.977461 -0.972783 0.55212 -0.728171 -0.973797 -0.969246 0.555527 -0.7249
        0.121901 0.121925 0.122222 0.122227 0.122245 0.122273 0.122213 0.122234""",
}


@pytest.mark.parametrize(("choice", "depth", "hidden"), [("pairs", 1, 2), ("dense", 3, None)])
def test_outputs_are_the_authors(choice, depth, hidden):
    machine = ContinuousThoughtMachine(5, 4, 6, 3, 4, 2, n_out=3, n_action=2, choice=choice, hidden=hidden, depth=depth)
    if choice == "pairs":
        machine.action = Synchrony(torch.tensor([4, 5]), torch.tensor([0, 3]))
        machine.out = Synchrony(torch.tensor([3, 3, 1]), torch.tensor([3, 5, 2]))
    y = think(as_the_authors(machine), 3 * fill_input().transpose(1, 2), 4)
    found = torch.cat([y.detach().flatten(), certainty(y.detach().unflatten(-1, (2, 2))).flatten()])
    assert torch.allclose(found, torch.tensor([float(x) for x in FROZEN[choice].split()]).double(), atol=2e-6)


def fill_input() -> torch.Tensor:
    return torch.sin(0.3 + (1.7 + 0.1 * 0.3) * torch.arange(30, dtype=torch.float64)).reshape(2, 5, 3)


def test_the_loss_takes_the_two_ticks():
    torch.manual_seed(0)
    logits, target = 3 * torch.randn(6, 4, 3, 5), torch.randint(5, (4, 3))
    by_hand = 0.0
    for b in range(4):
        losses = [float(cross_entropy(logits[t, b], target[b])) for t in range(6)]
        p = logits[:, b].softmax(-1)
        sure = int((1 + (p * p.log()).sum(-1).mean(-1) / math.log(5)).argmax())
        by_hand += (min(losses) + losses[sure]) / 8
    assert abs(float(two_tick_loss(logits, target)) - by_hand) < 1e-5
    assert abs(float(two_tick_loss(logits, target, lookahead=3)) - by_hand) < 1e-5  # a window over all three questions


def test_the_curriculum_looks_a_little_beyond_the_first_mistake():
    target = torch.tensor([[0, 0, 0, 0, 0, 0]])
    right, wrong = torch.tensor([5.0, 0.0]), torch.tensor([0.0, 5.0])
    early = torch.stack([right, wrong, right, right, right, right])
    late = torch.stack([right, right, wrong, right, right, wrong])
    logits = torch.stack([early, late])[:, None].requires_grad_()
    two_tick_loss(logits, target, lookahead=2).backward()
    # the later tick has two right moves: the window ends 2 beyond the second one, so that questions 0 … 2 count
    assert (logits.grad.abs().sum((0, 1, 3)) > 0).tolist() == [True] * 3 + [False] * 3
    with pytest.raises(Refused, match="lookahead"):
        two_tick_loss(logits, target, lookahead=0)


def test_certainty_is_as_exact_as_its_logits():
    logits = torch.arange(7, dtype=torch.float64)[None]
    p = logits.softmax(-1)
    assert certainty(logits).item() == pytest.approx(1 + float((p * p.log()).sum()) / math.log(7), rel=1e-12)


def test_stopping():
    sure = torch.tensor([[0.0, 2.0, 9.0, 8.0], [0.0, 0.1, 0.3, 0.2]])
    logits = torch.stack([sure.T, torch.zeros(4, 2)], -1).unsqueeze(2)  # t b 1 c
    answer, tick = stop(logits, 0.8)
    assert tick.tolist() == [2, 2]  # reached at once; never reached: the most certain one
    assert torch.equal(answer, logits[2])
    assert stop(logits, 0.2)[1].tolist() == [1, 2]


@pytest.mark.parametrize("choice", ["pairs", "grid", "dense"])
@pytest.mark.parametrize("depth", [1, 3])
def test_every_parameter_learns(choice, depth):
    torch.manual_seed(0)
    machine = ContinuousThoughtMachine(3, 4, 20, 4, 8, 2, 5, 5, choice, depth=depth, dropout=0.1)
    machine.out.decay.data += 0.1
    machine.action.decay.data += 0.1
    think(machine, torch.randn(8, 6, 3), 5).square().sum().backward()
    for name, p in machine.named_parameters():
        if name != "attention.key.bias":  # moves all scores alike: softmax does not see it
            assert p.grad.abs().sum() > 0, name


def test_ablations_and_the_baseline_have_the_same_interface():
    data = torch.randn(2, 6, 3)
    for machine in (
        ContinuousThoughtMachine(3, 4, 20, shared=True),
        ContinuousThoughtMachine(3, 4, 20, readout="activity"),
        ThinkingLSTM(3, 4, 20),
    ):
        think(machine, data, 3).sum().backward()
        assert think(machine, data, 3).shape == (3, 2, 4)
    assert torch.equal(think(machine, data, 3)[:2], think(machine, data, 2))  # a tick does not know how many follow


def test_thinking_keeps_nothing_and_looks_where_it_can_be_recorded():
    machine, data = ContinuousThoughtMachine(3, 4, 20), torch.randn(2, 6, 3)
    twin = ContinuousThoughtMachine(3, 4, 20)
    twin.load_state_dict(machine.state_dict())
    assert torch.equal(think(machine, data, 3), think(twin, data, 3))
    assert activity(machine, data, 3).shape == (3, 2, 20)
    with record(machine, "attention.pattern") as seen:
        think(machine, data, 3)
    assert [x.shape for x in seen["attention.pattern"]] == [(2, 4, 1, 6)] * 3
    with torch.autocast("cpu", torch.bfloat16):
        assert think(machine, data, 3).isfinite().all()


def test_refusals():
    for arguments, word in (
        ({"choice": "all"}, "choice"),
        ({"readout": "all"}, "readout"),
        ({"depth": 0}, "depth"),
        ({"dropout": 1.0}, "dropout"),
        ({"heads": 3}, "heads"),
        ({"choice": "dense", "n_out": 200}, "n"),
    ):
        with pytest.raises(Refused, match=f"^{word}:"):
            ContinuousThoughtMachine(3, 4, **arguments)
    with pytest.raises(Refused, match="ticks"):
        think(ThinkingLSTM(3, 4), torch.zeros(1, 2, 3), 0)
    with pytest.raises(Refused, match=r"x: must begin with \(units, d_in\) = \(3, 5\)"):
        PerUnitMLP(3, 5)(torch.zeros(5, 3, 2))
    with pytest.raises(Refused, match="units"):
        PerUnitLinear(0, 1, 1)
    with pytest.raises(Refused, match="units"):
        PerUnitMLP(0, 1)


COMPILED = """
import torch
from neuropil.dynamics.continuous_thought import ContinuousThoughtMachine
torch.manual_seed(0)
machine, data = ContinuousThoughtMachine(3, 2, 8, 2, 4, 1, 3, 3, hidden=2), torch.randn(2, 3, 3)
results = []
for cell in (machine, torch.compile(machine, backend="eager", fullgraph=True)):
    y, state = cell(machine.look(data), machine.start(2))
    results.append([y, state.trace, *torch.autograd.grad(y.square().sum(), list(machine.out.parameters()))])
assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*results, strict=True))
"""


def test_a_compiled_tick_is_the_same():
    """In one graph, here without torch's C++ back end, which takes most of a minute to build ten ticks."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


@pytest.mark.parametrize("claim", select("continuous-thought-machine"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert all(-1 <= row[side] <= 100 for side in ("method", "baseline"))
