"""HLOP's invariants: circuits find the principal subspace, updates leave it alone, and nothing of old rows or biases moves."""

import copy
import gc
import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from neuropil.errors import Refused
from neuropil.lab.claims import select
from neuropil.lab.run import measure
from neuropil.learning.hlop import HLOP, RateLIF, WeightedRate
from neuropil.learning.oja import OjaSubspace
from neuropil.learning.replaced_input import replaced, replaced_linear, rows
from neuropil.learning.rule import Backprop

# what the authors' module (pkuxmq/HLOP-SNN, modules/hlop_module.py) gives for the rows and inputs of the test below
AUTHORS = {
    None: (
        [
            [-0.180912995, 0.261836914, 0.597216722, 0.480204484],
            [0.392583271, 0.127695870, -0.259094396, -0.100553315],
            [-0.545622004, -0.511460152, 0.037855389, 0.219202147],
        ],
        [1.648588731, 1.043598157, -0.553724411, -0.519099860],
    ),
    8: (
        [
            [-0.180559363, 0.261444313, 0.596693186, 0.480378390],
            [0.388140985, 0.105018067, -0.271042251, -0.091612039],
            [-0.550132715, -0.520057570, 0.035157849, 0.211681228],
        ],
        [1.638881266, 1.057886258, -0.520391190, -0.491107830],
    ),
}


@pytest.mark.parametrize("levels", AUTHORS)
def test_lateral_update_is_the_authors(levels):
    H = torch.sin(torch.arange(12, dtype=torch.float64) * 0.7).view(3, 4) * 0.5
    X = torch.cos(torch.arange(60, dtype=torch.float64) * 1.3).view(3, 5, 4) * 2
    circuit = OjaSubspace(4, 1, lr=0.1, levels=levels, scale=2.0).double()
    circuit.new = H[:1]
    circuit.learn(X[0])
    circuit.grow(2)
    circuit.new = H[1:]
    circuit.learn(X[1])
    circuit.learn(X[2])
    expected, left = AUTHORS[levels]
    assert torch.allclose(circuit.H, torch.tensor(expected, dtype=torch.float64), atol=2e-8)
    assert torch.allclose(circuit(X[0])[0], torch.tensor(left, dtype=torch.float64), atol=2e-7)


def stationary(rank, d=20, batches=300, power=4.0):
    """Batches of 64 within `rank` random directions of powers from `power` down to 1, and these directions."""
    basis = torch.linalg.qr(torch.randn(d, rank))[0].T
    scales = torch.linspace(power, 1, rank).sqrt()
    return (torch.randn(batches, 64, rank) * scales) @ basis, basis


def cosine(a, b):
    """The smallest cosine of the principal angles between the spans of rows."""
    return float(torch.linalg.svdvals(torch.linalg.qr(a.T)[0].T @ torch.linalg.qr(b.T)[0]).min())


def test_rows_span_the_principal_subspace():
    x, basis = stationary(5)
    circuit = OjaSubspace(20, 5)
    assert cosine(circuit.new, basis) < 0.9
    for batch in x:
        circuit.learn(batch)
    assert cosine(circuit.new, basis) >= 0.999
    assert (circuit.new @ circuit.new.T - torch.eye(5)).abs().max() < 1e-3


def test_fewer_rows_take_the_directions_of_most_power():
    basis = torch.linalg.qr(torch.randn(20, 6))[0].T
    circuit = OjaSubspace(20, 2, lr=0.002)
    for _ in range(600):
        circuit.learn(torch.randn(64, 6) * torch.tensor([9.0, 8.0, 1.0, 1.0, 0.5, 0.5]).sqrt() @ basis)
    assert cosine(circuit.new, basis[:2]) > 0.995


def test_new_rows_find_what_old_ones_do_not_explain():
    x, basis = stationary(6)
    circuit = OjaSubspace(20, 3)
    for batch in x @ basis[:3].T @ basis[:3]:
        circuit.learn(batch)
    assert circuit.m.abs().max() > 0
    circuit.grow(3)
    old = circuit.old.clone()
    assert torch.equal(circuit.m, torch.zeros(3, 20))
    assert (circuit.new @ circuit.H.T - torch.eye(3, 6).roll(3, 1)).abs().max() < 1e-5  # orthonormal, and orthogonal to the old
    for batch in x:
        circuit.learn(batch)
    assert torch.equal(circuit.old, old)
    assert cosine(circuit.H, basis) >= 0.999
    assert (circuit.new @ old.T).abs().max() < 1e-3
    assert circuit(x[0]).norm() < x[0].norm()


def test_change_is_clipped():
    circuit = OjaSubspace(3, 1, lr=1.0, momentum=0.0, repeats=1, clip=0.5)
    before = circuit.new.clone()
    circuit.learn(1000 * torch.randn(4, 3))
    assert torch.allclose((circuit.new - before).abs(), torch.full((1, 3), 0.5), atol=1e-6)


def test_rate_zero_keeps_random_orthonormal_rows():
    circuit = OjaSubspace(6, 2, lr=0.0)
    before = circuit.new.clone()
    circuit.learn(torch.randn(8, 6))
    assert torch.equal(circuit.new, before) and torch.allclose(before @ before.T, torch.eye(2), atol=1e-6)


def test_circuit_and_its_copy_go_on_alike():
    circuit, x = OjaSubspace(6, 2), torch.randn(4, 8, 6)
    circuit.learn(x[0])
    circuit.grow(3)
    circuit.learn(x[1])
    other = OjaSubspace(6)
    other.load_state_dict(circuit.state_dict())
    for c in (circuit, other):
        c.learn(x[2])
    assert torch.equal(circuit.H, other.H) and torch.equal(circuit.m, other.m) and len(other.old) == 2
    with pytest.raises(RuntimeError, match="size mismatch"):
        OjaSubspace(5).load_state_dict(circuit.state_dict())


@pytest.mark.parametrize("back", [False, True])
def test_replaced_input_is_in_the_weights_gradient_only(back):
    x, seen, W = torch.randn(2, 5, 4, requires_grad=True), torch.randn(2, 5, 4), torch.randn(3, 4, requires_grad=True)
    b, B, delta = torch.randn(3, requires_grad=True), torch.randn(3, 4), torch.randn(2, 5, 3)
    z = replaced_linear(x, seen, W, b, B if back else None)
    assert torch.equal(z, nn.functional.linear(x, W, b))
    z.backward(delta)
    assert torch.allclose(x.grad, delta @ (B if back else W.detach()))
    assert torch.allclose(W.grad, torch.einsum("tbk,tbn->kn", delta, seen), atol=1e-6)
    assert torch.allclose(b.grad, delta.sum((0, 1)), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"padding": 1}, {"stride": 2, "padding": (2, 1)}, {"dilation": 2}])
def test_convolution_by_patches(options):
    """With nothing replaced it is the layer; with a projection the gradient loses its part within the span of H."""
    layer, x = nn.Conv2d(2, 3, (3, 2), **options).double(), torch.randn(2, 4, 2, 9, 8, dtype=torch.float64, requires_grad=True)
    flat = x.detach().flatten(0, 1).requires_grad_()
    layer(flat).square().sum().backward()
    expected, bias, sent = layer.weight.grad.clone(), layer.bias.grad.clone(), flat.grad.clone()
    circuit = OjaSubspace(12, 5).double()
    circuit.grow(0)
    for see, P in ((nn.Identity(), torch.eye(12).double()), (circuit, torch.eye(12) - circuit.old.T @ circuit.old)):
        layer.zero_grad()
        x.grad = None
        z = replaced(layer, x, see)
        assert torch.allclose(z.flatten(0, 1), layer(flat))
        z.square().sum().backward()
        assert torch.allclose(layer.weight.grad.flatten(1), expected.flatten(1) @ P)
        assert torch.allclose(layer.bias.grad, bias) and torch.allclose(x.grad.flatten(0, 1), sent)


def mlp(*sizes):
    layers = [layer for n, m in itertools.pairwise(sizes) for layer in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def batches(count, d=8, classes=3):
    return [(torch.randn(32, d), torch.randint(classes, (32,))) for _ in range(count)]


def learn(rule, net, data, lr=0.1):
    optimizer = torch.optim.SGD(net.parameters(), lr)
    return [rule.step(net, batch, optimizer) for batch in data]


def test_no_rows_no_difference():
    net = mlp(8, 16, 16, 3)
    twin, rule = copy.deepcopy(net), HLOP(rows=0)
    data = batches(10)
    losses = learn(rule, net, data[:5])
    rule.new_task(net)
    losses += learn(rule, net, data[5:])
    assert losses == pytest.approx(learn(Backprop(), twin, data), abs=1e-6)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_what_a_linear_layer_does_within_old_inputs_is_exactly_kept():
    net, rule = nn.Sequential(nn.Linear(8, 3)).double(), HLOP(rows=[3])
    data = [(x.double(), y) for x, y in batches(30)]
    learn(rule, net, data[:10])
    circuit = rule.memory(net).circuits[0]
    circuit.new = torch.linalg.qr(circuit.new.T)[0].T  # exactly orthonormal
    rule.new_task(net)
    inside = torch.randn(50, 3, dtype=torch.float64) @ circuit.old
    outside = torch.randn(50, 8, dtype=torch.float64)
    before = net(inside).detach(), net(outside).detach()
    learn(rule, net, data[10:], lr=1.0)
    assert torch.allclose(net(inside), before[0], atol=1e-12)
    assert (net(outside) - before[1]).abs().max() > 0.1
    learn(Backprop(), net, data[10:], lr=1.0)
    assert (net(inside) - before[0]).abs().max() > 0.1


def test_forward_and_error_are_the_true_ones():
    net, rule = mlp(8, 16, 3), HLOP(rows=[4, 8])
    learn(rule, net, batches(3))
    rule.new_task(net)
    x, y = batches(1)[0]
    true = cross_entropy(net(x), y)
    net.zero_grad()
    assert float(rule.gradients(net, x, y)) == pytest.approx(float(true.detach()), abs=1e-6)
    W, last = net[0].weight, net[2].weight
    true_first, true_last = torch.autograd.grad(true, (W, last))
    for circuit, found, expected in zip(rule.memory(net).circuits, (W.grad, last.grad), (true_first, true_last), strict=True):
        assert torch.allclose(found, expected - expected @ circuit.old.T @ circuit.old, atol=1e-6)


def test_biases_stop_after_the_first_task():
    net, rule = mlp(8, 16, 3), HLOP()
    start = net[0].bias.detach().clone()
    learn(rule, net, batches(3))
    then = [net[i].bias.detach().clone() for i in (0, 2)]
    assert not torch.equal(start, then[0])
    rule.new_task(net)
    weight = net[0].weight.detach().clone()
    learn(rule, net, batches(3))
    assert all(torch.equal(net[i].bias, b) for i, b in zip((0, 2), then, strict=True))
    assert not torch.equal(weight, net[0].weight)


@pytest.mark.parametrize("error", ["feedback alignment", "sign-symmetric"])
def test_the_error_travels_by_other_weights(error):
    net, rule = mlp(8, 16, 3), HLOP(rows=0, error=error)
    x, y = batches(1)[0]
    h = net[:2](x)
    z = net[2](h)
    delta = torch.autograd.grad(cross_entropy(z, y), z)[0]
    net.zero_grad()
    rule.gradients(net, x, y)
    B = rule.memory(net).back1 if error == "feedback alignment" else net[2].weight.detach().sign() / 4
    assert torch.allclose(net[2].weight.grad, delta.T @ h, atol=1e-6)
    assert torch.allclose(net[0].weight.grad, ((delta @ B) * (h > 0)).T @ x, atol=1e-6)
    assert not torch.allclose(B, net[2].weight)
    losses = learn(rule, net, [(x, y)] * 200, lr=0.5)
    assert losses[-1] < 0.7 * losses[0]


def spiking(*sizes):
    layers = [layer for n, m in itertools.pairwise(sizes) for layer in (nn.Linear(n, m), RateLIF())]
    return nn.Sequential(*layers[:-1], WeightedRate())


def test_rates_of_spikes_are_clipped_drives():
    drive = torch.linspace(-0.5, 1.5, 41).expand(200, 41).clone().requires_grad_()
    units = RateLIF(decay=0.98, threshold=1.0)
    spikes = units(drive)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert (units.rate(spikes) - drive[0].clamp(0, 1)).abs().max() < 0.03
    pull = torch.randn(41)
    (units.rate(spikes) * pull).sum().backward()
    w = 0.98 ** torch.arange(199.0, -1, -1)
    inside = (drive[0] > 0) & (drive[0] < 1)
    edge = (drive[0].detach() % 1).abs().minimum((1 - drive[0].detach() % 1).abs()) < 1e-3
    assert torch.allclose(drive.grad[:, ~edge], ((w / w.sum())[:, None] * inside * pull)[:, ~edge].detach(), atol=1e-6)


def test_a_spiking_layer_learns_by_error_times_presynaptic_rate():
    net, rule = spiking(8, 16, 3), HLOP(rows=[2, 4])
    x, y = torch.rand(10, 32, 8), torch.randint(3, (32,))
    learn(rule, net, [(x, y)])
    rule.new_task(net)
    h = net[:2](x).detach()
    readout, circuit = net[-1], rule.memory(net).circuits[1]
    z = readout(net[2](h))
    delta = torch.autograd.grad(cross_entropy(z, y), z)[0]
    net.zero_grad()
    rule.gradients(net, x, y)
    assert torch.allclose(net[2].weight.grad, delta.T @ circuit(readout(h)), atol=1e-6)
    assert net[0].weight.grad.abs().max() > 0
    twin = OjaSubspace(16, 4)
    twin.load_state_dict(circuit.state_dict())
    net.zero_grad()
    rule.gradients(net, x, y)
    twin.learn(readout(h))
    assert torch.allclose(twin.new, circuit.new, atol=1e-6)  # the circuit learns from rates, not from single spikes


def test_a_convolutional_net_learns():
    net = nn.Sequential(nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    rule, data = HLOP(), batches(1, d=36) * 40
    learn(rule, net, data[:1])
    rule.new_task(net)
    losses = learn(rule, net, data)
    assert losses[-1] < losses[0]
    assert [tuple(c.H.shape) for c in rule.memory(net).circuits] == [(2, 9), (14, 64)]


def test_memory_is_the_whole_state_and_goes_with_its_net():
    net, rule = mlp(8, 16, 3), HLOP(error="feedback alignment")
    data = batches(6)
    learn(rule, net, data[:2])
    rule.new_task(net)
    learn(rule, net, data[2:4])
    twin, other = copy.deepcopy(net), HLOP(error="feedback alignment")
    other.memory(twin).load_state_dict(rule.memory(net).state_dict())
    assert learn(rule, net, data[4:]) == learn(other, twin, data[4:])
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))
    del twin
    gc.collect()
    assert not len(other._memories)


def test_under_autocast():
    net, rule = mlp(8, 16, 3), HLOP()
    x, y = batches(1)[0]
    learn(rule, net, [(x, y)])
    rule.new_task(net)
    net.zero_grad()
    rule.gradients(net, x, y)
    exact = net[0].weight.grad.clone()
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        net.zero_grad()
    rule.gradients(net, x, y)
    assert net[0].weight.grad.dtype == torch.float32
    assert torch.allclose(net[0].weight.grad, exact, atol=0.02 * float(exact.abs().max()))


def test_compiles_whole():
    """In its own process: dynamo cannot see through the tests' type checker."""
    lines = [
        "import torch; from neuropil.learning.hlop import RateLIF; from neuropil.learning.oja import OjaSubspace",
        "from neuropil.learning.replaced_input import replaced_linear",
        "circuit, units, x = OjaSubspace(8, 3), RateLIF(), torch.rand(10, 4, 8); circuit.grow(2)",
        "W = torch.randn(5, 8, requires_grad=True)",
        "f = lambda: units(replaced_linear(x, circuit(x), W)).square().sum()",
        "g = torch.compile(f, backend='eager', fullgraph=True)",
        "torch.testing.assert_close(*(torch.autograd.grad(h(), W)[0] for h in (f, g)))",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), "HLOP cannot train layer '1', a BatchNorm1d"),
        (nn.Sequential(nn.Conv1d(2, 2, 1)), r"layer '0', Conv1d\(2"),
        (nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 4, 1, groups=2)), r"layer '2', Conv2d\(4"),
        (nn.Sequential(nn.Linear(4, 4), WeightedRate(), nn.Linear(4, 2)), "a WeightedRate behind layer '0'"),
        (nn.Sequential(nn.Linear(4, 4), RateLIF(), nn.Linear(4, 2)), "a WeightedRate at the end of a spiking net, layer '2'"),
        (nn.LSTM(2, 2), "got a LSTM"),
    ],
)
def test_a_net_that_it_cannot_train_names_the_layer(net, says):
    with pytest.raises(Refused, match=says):
        HLOP().gradients(net, torch.zeros(3, 4), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("rule", [HLOP, Backprop])
@pytest.mark.parametrize(
    "y", [torch.zeros(3), torch.zeros(2, dtype=torch.long), torch.zeros(3, 2, dtype=torch.bool)], ids=["float", "two", "bool"]
)
def test_targets_that_cross_entropy_cannot_take_are_refused(rule, y):
    with pytest.raises(Refused, match=r"^y: must be int64 classes of shape \(3,\) or shares of shape \(3, 2\), got"):
        rule().gradients(nn.Sequential(nn.Linear(4, 2)), torch.zeros(3, 4), y)


@pytest.mark.parametrize("call", [rows, lambda layer, x: replaced(layer, x, lambda rows: rows)])
def test_a_single_image_is_refused(call):
    with pytest.raises(Refused, match=r"^x: \(b, …, channels, height, width\) is needed"):
        call(nn.Conv2d(2, 5, 3), torch.zeros(2, 8, 8))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: HLOP(rows=1.5), "rows"),
        (lambda: HLOP(error="backporp"), "did you mean 'backprop'"),
        (lambda: HLOP(lr=-1.0), "lr"),
        (lambda: HLOP(rows=[1, 2]).memory(mlp(8, 3)), "rows: a fraction, or one number for each of the 1"),
        (lambda: HLOP(lr=[0.1, 0.1]).memory(mlp(8, 3)), "lr: one for all"),
        (lambda: HLOP(rows=[9]).memory(mlp(8, 3)), "rows: 0 rows of 8 features leave room for 0 to 8 more, got 9"),
        (lambda: OjaSubspace(4, 3).grow(2), "leave room for 0 to 1 more, got 2"),
        (lambda: OjaSubspace(4, momentum=1.0), "momentum"),
        (lambda: OjaSubspace(4, levels=0), "levels"),
        (lambda: WeightedRate(0.0), "decay"),
        (lambda: rows(nn.Conv2d(1, 1, 3, padding="same"), torch.zeros(1, 1, 3, 3)), "layer: a Linear or a plain Conv2d"),
    ],
)
def test_refusals(make, says):
    with pytest.raises(Refused, match=says):
        make()


def test_no_room_for_another_task_changes_nothing():
    net, rule = mlp(8, 16, 3), HLOP(rows=[2, 8])
    rule.new_task(net)
    with pytest.raises(Refused, match="layer '2' has room for 0 to 0 more, got 8"):
        rule.new_task(net)
    assert [len(c.old) for c in rule.memory(net).circuits] == [2, 8]
    rule.new_task(net, rows=[2, 0])
    assert [len(c.old) for c in rule.memory(net).circuits] == [4, 16]


@pytest.mark.parametrize("claim", select("hlop"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert 0 <= row["method"] <= 1 and 0 <= row["baseline"] <= 1
