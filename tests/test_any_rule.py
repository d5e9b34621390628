"""Any rule trains any feed-forward net: every rule of the wing through the same nets on real digits; what it refuses, by layer."""

import copy
import functools
import math

import pytest
import torch
from torch import nn

from neuropil import data
from neuropil.errors import Refused
from neuropil.learning.dual_propagation import DualPropagation, feedback_twin
from neuropil.learning.finite_difference import swap
from neuropil.learning.forward_forward import ForwardForward, GoodnessBackprop
from neuropil.learning.hlop import HLOP
from neuropil.learning.rule import Backprop
from neuropil.nn.mlp import MLP
from neuropil.training.fit import minibatches


def easily(net):
    return 0.6


def slowly(net):
    """Local goals need more steps, and ReLUs; a label in the corner of an image tells a small convolution little: chance is 0.1."""
    return {"mlp": 0.6, "deep mlp": 0.2, "convnet": 0.0}[net]


# name -> (the rule for a net, Adam's rate, steps, the accuracy to reach on a net): a new rule of the wing belongs in here
RULES = {
    "backprop": (lambda net: Backprop(), 3e-3, 80, easily),
    "dual propagation": (lambda net: DualPropagation(), 3e-3, 80, easily),
    "dual propagation, squared loss": (lambda net: DualPropagation("squared", gamma=0.5), 3e-3, 80, easily),
    "dual propagation, shuffled": (lambda net: DualPropagation(order="shuffled"), 3e-3, 80, easily),
    "dual propagation, parallel": (lambda net: DualPropagation(order="parallel"), 3e-3, 80, easily),
    "dual propagation, own feedback": (lambda net: DualPropagation(feedback=feedback_twin(net)), 3e-3, 80, easily),
    "forward-forward": (lambda net: ForwardForward(theta=1.0), 1e-2, 200, slowly),
    "forward-forward's goal by backprop": (lambda net: GoodnessBackprop(), 3e-2, 200, slowly),
    "HLOP": (lambda net: HLOP(), 3e-3, 80, easily),
    "HLOP, feedback alignment": (lambda net: HLOP(error="feedback alignment"), 3e-3, 80, easily),
    "HLOP, sign-symmetric": (lambda net: HLOP(error="sign-symmetric"), 3e-3, 80, easily),
}

NETS = {
    "mlp": lambda: MLP([64, 64, 10], activation="relu"),
    "deep mlp": lambda: nn.Sequential(
        *(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.LeakyReLU(), nn.Linear(64, 64), nn.SiLU()),
        *(nn.Linear(64, 64), nn.Softplus(), nn.Linear(64, 10)),
    ),
    "convnet": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 10)),
    ),
}


@functools.cache
def digits(split):
    images = data.digits("sklearn", split)
    return images.pixels.flatten(1), images.labels


def accuracy(rule, net):
    x, y = digits("test")
    with torch.no_grad():
        scores = rule.predict(net, x)
    assert scores.isfinite().all() and scores.shape == (len(x), 10)
    return float((scores.argmax(1) == y).float().mean())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_trains_every_net(rule, name):
    make, lr, steps, least = RULES[rule]
    net = NETS[name]()
    rule, optimizer = make(net), torch.optim.Adam(net.parameters(), lr)
    before = accuracy(rule, net)
    batches = minibatches(digits("train"), 100, seed=0)
    losses = [rule.step(net, batches(step), optimizer) for step in range(steps)]
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert before < 0.3
    assert accuracy(rule, net) > least(name)


@pytest.mark.parametrize("rule", [name for name in RULES if name != "backprop"])
@pytest.mark.parametrize(
    ("layer", "name"),
    [(lambda: nn.BatchNorm1d(64), "1"), (lambda: nn.Sequential(nn.Bilinear(64, 64, 64)), r"1\.0")],
    ids=["norm", "nested"],
)
def test_a_net_that_cannot_be_trained_is_refused_by_layer_and_stays_as_it_was(rule, layer, name):
    net = nn.Sequential(nn.Linear(64, 64), layer(), nn.ReLU(), nn.Linear(64, 10))
    before, optimizer = copy.deepcopy(net.state_dict()), torch.optim.Adam(net.parameters())
    with pytest.raises(Refused, match=f"layer '{name}', a B"):
        RULES[rule][0](net).step(net, minibatches(digits("train"), 100, seed=0)(0), optimizer)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_autograd_nets_of_any_form_train_by_finite_differences():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.act, self.norm = nn.Linear(64, 64), nn.GELU(), nn.LayerNorm(64)

        def forward(self, x):
            return self.norm(x + self.act(self.inside(x)))

    net = nn.Sequential(Residual(), Residual(), nn.Linear(64, 10))
    dual, optimizer = swap(net, beta=50.0), torch.optim.Adam(net.parameters(), 3e-3)
    batches = minibatches(digits("train"), 100, seed=0)
    for step in range(80):
        Backprop().step(dual, batches(step), optimizer)
    assert accuracy(Backprop(), net) > 0.85
