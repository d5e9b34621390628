"""What rules, spiking nets and continual learners share: blocks, surrogates, LIF units, streams of tasks."""

import pytest
import torch
from torch import nn

from neuropil import data
from neuropil.data import streams
from neuropil.errors import Refused
from neuropil.learning.rule import Backprop, blocks
from neuropil.nn.scan import scan
from neuropil.nn.spiking import LIF, SURROGATES, spike


def convnet():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU())
    return nn.Sequential(nn.Unflatten(1, (1, 8)), body, nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 3))


def test_blocks_together_are_the_net():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    z = x
    parts = blocks(net, "test")
    for block in parts:
        z = block(z)
    assert torch.equal(z, net(x))
    assert [b.name for b in parts] == ["0", "4", "6"]


def test_nested_nets_have_dotted_names():
    assert [b.name for b in blocks(convnet(), "test")] == ["1.0", "1.3", "3", "4"]


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "layer '1', a BatchNorm1d"),
        (nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), "'0', a ReLU: an activation must follow"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Tanh()), "'2', a Tanh behind another"),
        (nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.LSTM(2, 2))), "'1.0', a LSTM"),
        (nn.Sequential(nn.Flatten()), "at least one linear"),
        (nn.GRU(2, 2), "got a GRU"),
    ],
)
def test_a_net_that_cannot_be_trained_names_the_layer(net, says):
    with pytest.raises(Refused, match=says):
        blocks(net, "this rule")


def test_backprop_step_is_sgd():
    torch.manual_seed(0)
    net, twin = (nn.Linear(3, 2) for _ in range(2))
    twin.load_state_dict(net.state_dict())
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 1, 0])
    loss = Backprop().step(net, (x, y), torch.optim.SGD(net.parameters(), 0.5))
    expected = nn.functional.cross_entropy(twin(x), y)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()))
    assert torch.allclose(net.weight, twin.weight - 0.5 * twin.weight.grad)


@pytest.mark.parametrize("kind", SURROGATES)
def test_surrogates_are_bumps_of_their_steepness(kind):
    v = torch.linspace(-40, 40, 160_001, dtype=torch.float64, requires_grad=True)
    s = spike(v, kind, 2.0)
    s.sum().backward()
    assert set(s.detach().unique().tolist()) == {0.0, 1.0}
    assert int(v.grad.argmax()) in range(79_400, 80_601)
    area = float(torch.trapezoid(v.grad, v.detach()))
    assert area == pytest.approx({"fast_sigmoid": 2 / 2 * (1 - 1 / 81), "arctan": 0.992}.get(kind, 1.0), abs=0.01)


@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_lif_follows_its_equation(reset):
    drive = 2 * torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    spikes, last = scan(LIF(0.8, 1.0, reset), drive, torch.zeros(3))
    u = torch.zeros(3)
    for t in range(20):
        u = 0.8 * u + drive[t]
        fired = u >= 1
        assert torch.equal(spikes[t] > 0, fired)
        u = torch.where(fired, u - 1 if reset == "soft" else torch.zeros(3), u)
    assert torch.allclose(last, u)


def test_lif_learns_through_time():
    drive = torch.full((10, 1), 0.3, requires_grad=True)
    spikes, _ = scan(LIF(0.9, 1.0), drive, torch.zeros(1))
    spikes[-1].sum().backward()
    assert (drive.grad > 0).all()
    assert drive.grad[-1] > drive.grad[0]


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"threshold": 0.0}, {"reset": "medium"}, {"surrogate": "bump"}])
def test_lif_refuses(options):
    with pytest.raises(Refused, match=next(iter(options))):
        LIF(**options)


def digits():
    return data.digits("sklearn", "train"), data.digits("sklearn", "test")


def test_streams():
    train, test = digits()
    mixed = streams.permuted(train, test, 3, seed=0)
    assert torch.equal(mixed[0].x, train.pixels.flatten(1))
    assert not torch.equal(mixed[1].x, mixed[2].x)
    assert torch.equal(mixed[1].x.sort(1).values, mixed[0].x.sort(1).values)
    split = streams.class_split(train, test, 5)
    assert [t.y.unique().tolist() for t in split] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert sum(len(t.y_test) for t in split) == len(test)
    swapped = streams.label_swap(train, test, 2, seed=0)
    assert torch.equal(swapped[0].y, train.labels) and not torch.equal(swapped[1].y, train.labels)
    with pytest.raises(Refused, match="evenly into 3"):
        streams.class_split(train, test, 3)


def test_accuracy_matrix_of_a_learner_that_only_knows_the_newest_task():
    stream = streams.class_split(*digits(), 5)
    newest = {}

    def predict(x):
        known = stream[newest["task"]]
        nearest = torch.cdist(x, known.x).argmin(1)
        return nn.functional.one_hot(known.y[nearest], 10)

    matrix = streams.accuracy_matrix(stream, lambda i, task: newest.update(task=i), predict)
    assert (matrix.diagonal() > 0.95).all()
    assert (matrix - matrix.diagonal().diag()).abs().max() == 0
    average, back = streams.transfer(matrix)
    assert streams.transfer(torch.full((2, 2), 1e-8))[0] == pytest.approx(1e-8)
    assert average == pytest.approx(float(matrix[-1, -1]) / 5, abs=1e-5) and back < -0.95
