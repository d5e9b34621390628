"""Forward-forward: each layer learns alone, the authors' numbers, labels in the input, competition, sparsity and ensembles."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from neuropil.errors import Refused
from neuropil.lab.claims import select
from neuropil.lab.run import measure
from neuropil.learning.competition import KWinners, k_winners
from neuropil.learning.forward_forward import ForwardForward, GoodnessBackprop, goodness
from neuropil.learning.labels import neutral_label, overlay_label, wrong_labels
from neuropil.numerics.sparsity import class_means, ensembles, hoyer, jaccard


def fixed():
    """The net, images, labels and wrong labels of the frozen run."""
    net = nn.Sequential(nn.Linear(14, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
    with torch.no_grad():
        for k, layer in enumerate(net[::2]):
            layer.weight.copy_(3 * torch.sin(torch.arange(layer.weight.numel()).float().view(6, -1) * (1.7 + k)))
            layer.bias.copy_(0.5 * torch.cos(torch.arange(6.0) * (k + 1)))
    x = torch.cos(torch.arange(56.0).view(4, 14) * 0.9).abs()
    return net, x, torch.tensor([3, 0, 7, 9]), torch.tensor([4, 1, 2, 0])


# Printed by ForwardLayer and NetFF of NiccoloTosato/EmergentRepresentations at cb1aa80 on these weights and images, CPU.
RIGHT = [
    [3.019040822982788, 1.821641445159912, 2.728442907333374, 2.3618898391723633],
    [1.1491305828094482, 3.070178270339966, 1.5367628335952759, 1.468458890914917],
]
WRONG = [
    [1.1561429500579834, 0.9234731793403625, 2.924546003341675, 1.8550819158554077],
    [2.6109728813171387, 2.682734489440918, 1.1163246631622314, 2.7151038646698],
]
LOSSES = [0.6535194516181946, 0.9776257872581482]
NORMS = [0.1735507845878601, 0.2099500447511673]
BIAS_0 = [
    0.009104290045797825,
    -0.020686190575361252,
    -0.10603205859661102,
    -0.1459549367427826,
    0.00377368344925344,
    0.005360356066375971,
]
SUM_LOSS, SUM_NORMS = 0.7892546653747559, [0.46168220043182373, 0.16926896572113037]
SCORES_0 = [
    0.3101315498352051,
    0.2245810627937317,
    0.19345787167549133,
    0.2540213465690613,
    0.1848769187927246,
    0.13463154435157776,
    0.24793429672718048,
    0.21423766016960144,
    0.09760391712188721,
    0.1385239064693451,
]


def run_fixed(monkeypatch, rule):
    net, x, y, wrong = fixed()
    monkeypatch.setattr("neuropil.learning.forward_forward.wrong_labels", lambda y, classes: wrong)
    return net, rule.gradients(net, x, y)


def test_the_authors_goodness_and_answers():
    net, x, y, wrong = fixed()
    rule = ForwardForward(scale=float(x.max()))  # theirs is the brightest pixel of all images
    for labels, expected in ((y, RIGHT), (wrong, WRONG)):
        found = [goodness(h).tolist() for h in rule.states(net, rule.labelled(x, labels))]
        assert np.allclose(found, expected, atol=2e-6)
    scores = rule.predict(net, x)
    assert np.allclose(scores[0], SCORES_0, atol=2e-6)
    assert scores.argmax(1).tolist() == [0, 0, 4, 4]
    assert torch.allclose(scores.sum(1), torch.tensor(2.0))


def test_the_authors_losses_and_gradients(monkeypatch):
    brightest = float(fixed()[1].max())
    net, loss = run_fixed(monkeypatch, ForwardForward(scale=brightest))
    assert float(loss) == pytest.approx(sum(LOSSES), abs=2e-6)
    assert [float(layer.weight.grad.norm()) for layer in net[::2]] == pytest.approx(NORMS, abs=2e-6)
    assert np.allclose(net[0].bias.grad, BIAS_0, atol=2e-6)


def test_the_authors_bp_ff(monkeypatch):
    net, loss = run_fixed(monkeypatch, GoodnessBackprop(scale=float(fixed()[1].max())))
    assert float(loss) == pytest.approx(SUM_LOSS, abs=2e-6)
    assert [float(layer.weight.grad.norm()) for layer in net[::2]] == pytest.approx(SUM_NORMS, abs=2e-6)


def mlp(sizes=(16, 12, 12, 12)):
    torch.manual_seed(1)
    return nn.Sequential(*(m for i, o in itertools.pairwise(sizes) for m in (nn.Linear(i, o), nn.ReLU())))


def batch(n=20, d=16, classes=4):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n, d, generator=generator), torch.randint(classes, (n,), generator=generator)


def test_a_layers_loss_moves_no_other_layer():
    """Joint learning gives each layer the gradient of its own loss alone; in BP/FF the last loss reaches the first layer."""
    together, (x, y) = mlp(), batch()
    torch.manual_seed(5)
    total = ForwardForward(4).gradients(together, x, y)
    alone = 0.0
    for i in range(3):
        net = mlp()
        torch.manual_seed(5)
        alone += ForwardForward(4, layer=i).gradients(net, x, y)
        for j, (layer, twin) in enumerate(zip(net[::2], together[::2], strict=True)):
            if j == i:
                assert torch.allclose(layer.weight.grad, twin.weight.grad, rtol=1e-5, atol=1e-8)
                assert twin.weight.grad.abs().sum() > 0
            else:
                assert layer.weight.grad is None
    assert float(total) == pytest.approx(float(alone), rel=1e-6)
    through = mlp()
    torch.manual_seed(5)
    GoodnessBackprop(4).gradients(through, x, y)
    assert not torch.allclose(through[0].weight.grad, together[0].weight.grad, rtol=0.01)


@pytest.mark.parametrize("net", [mlp(), mlp((16, 12))], ids=["three layers", "one layer"])
def test_brightness_changes_nothing(net):
    """Also the label's, which is as bright as its image."""
    rule, (x, y) = ForwardForward(4), batch()
    for dim, bright in zip(rule.states(net, rule.labelled(x, y)), rule.states(net, rule.labelled(7 * x, y)), strict=True):
        assert torch.allclose(dim, bright, atol=1e-6)
    assert torch.allclose(rule.predict(net, x), rule.predict(net, 7 * x), atol=1e-6)


def test_one_layer_is_the_same_by_either_way():
    x, y = batch()
    local, through = mlp((16, 12)), mlp((16, 12))
    for rule, net in ((ForwardForward(4), local), (GoodnessBackprop(4), through)):
        torch.manual_seed(0)
        rule.gradients(net, x, y)
    assert torch.equal(local[0].weight.grad, through[0].weight.grad)


@pytest.mark.parametrize("rule", [ForwardForward(4), GoodnessBackprop(4)])
def test_bfloat16_autocast_keeps_the_gradient(rule):
    x, y = batch()
    whole, half = mlp(), mlp()
    for net, on in ((whole, False), (half, True)):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            rule.gradients(net, x, y)
    assert nn.functional.cosine_similarity(whole[0].weight.grad.flatten(), half[0].weight.grad.flatten(), dim=0) > 0.99


def test_answers_of_an_image_do_not_hang_on_the_batch():
    rule, (x, _) = ForwardForward(4), batch()
    assert torch.allclose(rule.predict(mlp(), x)[:3], rule.predict(mlp(), x[:3]), atol=1e-6)


def convnet():
    return nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 40), KWinners(10))


@pytest.mark.parametrize("rule", [ForwardForward(3), GoodnessBackprop(3), ForwardForward(3, at=20, p=math.inf, theta=1.0)])
def test_a_convolutional_net_with_competition_learns(rule):
    """Bars in three places, 6 × 6. Weights of the net go into another one and bring the answers."""
    torch.manual_seed(0)
    net = convnet()
    y = torch.arange(60) % 3
    x = 0.2 * torch.rand(60, 6, 6)
    x[torch.arange(60), 3 + y] = 1.0
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    losses = [rule.step(net, (x, y), optimizer) for _ in range(120)]
    assert losses[-1] < 0.9 * losses[0]
    assert (rule.predict(net, x).argmax(1) == y).float().mean() > 0.9
    copy = convnet()
    copy.load_state_dict(net.state_dict())
    assert torch.equal(rule.predict(copy, x), rule.predict(net, x))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ForwardForward(1), "classes"),
        (lambda: ForwardForward(p=0.5), "p: a norm"),
        (lambda: ForwardForward(layer=-1), "layer"),
        (lambda: ForwardForward(4, layer=3).gradients(mlp(), *batch()), r"blocks 0 … 2, got 3"),
        (lambda: ForwardForward(4).gradients(nn.Sequential(nn.Linear(16, 2), nn.BatchNorm1d(2)), *batch()), "'1', a BatchNorm1d"),
        (lambda: ForwardForward(17).predict(mlp(), batch()[0]), "17 pixels from 0 on does not fit an input of 16"),
        (lambda: overlay_label(torch.zeros(1, 9), torch.tensor([3]), classes=3), r"0 … 2, got 3"),
        (lambda: overlay_label(torch.zeros(1, 9), torch.tensor([0]), classes=3, at=7), "3 pixels from 7"),
        (lambda: wrong_labels(torch.tensor([0]), classes=1), "at least 2"),
        (lambda: k_winners(torch.zeros(3), 0), "k ≥ 1"),
        (lambda: k_winners(torch.zeros(2, 3), 1, dim=2), r"^dim: must be an axis of x, of shape \(2, 3\), got 2"),
        (lambda: goodness(torch.zeros(2, 0), math.inf), "^h: axis -1 must not be empty"),
        (lambda: ForwardForward(4).states(mlp(), torch.zeros(16)), r"^x: \(b, …\) is needed"),
        (lambda: KWinners(1, strength=2.0), "strength"),
        (lambda: hoyer(torch.zeros(3, 1)), "at least 2"),
        (lambda: ensembles(-torch.ones(2, 3), torch.tensor([0, 1]), 2), "activity ≥ 0"),
    ],
)
def test_refusals(call, says):
    with pytest.raises(Refused, match=says):
        call()


def test_wrong_labels_are_all_the_wrong_ones_alike():
    y = torch.arange(10).repeat_interleave(2000)
    wrong = wrong_labels(y, generator=torch.Generator().manual_seed(0))
    table = torch.zeros(10, 10).index_put((y, wrong), torch.ones(1), accumulate=True)
    assert (table.diagonal() == 0).all()
    off = table[~torch.eye(10, dtype=torch.bool)]
    assert ((off - 2000 / 9).abs() < 6 * (2000 / 9) ** 0.5).all()


def test_labels_replace_their_strip_and_nothing_else():
    x, y = torch.rand(5, 2, 4, 4), torch.tensor([0, 1, 2, 3, 4])
    x[4] *= 3
    told = overlay_label(x, y, classes=5, at=9)
    strip = told.flatten(1)[:, 9:14]
    assert torch.equal(strip.argmax(1), y) and torch.equal(strip.max(1).values, x.flatten(1).amax(1))
    assert ((strip != 0).sum(1) == 1).all()
    kept = torch.ones(32, dtype=torch.bool)
    kept[9:14] = False
    assert torch.equal(told.flatten(1)[:, kept], x.flatten(1)[:, kept])
    bare = neutral_label(x, classes=5, at=9, scale=2.0)
    assert torch.equal(bare.flatten(1)[:, 9:14], torch.full((5, 5), 0.4))
    assert torch.equal(neutral_label(told, 5, 9, 2.0), bare)


def test_exactly_k_win_the_first_among_equals():
    x = torch.tensor([[2.0, 2.0, 1.0, 2.0], [-3.0, -1.0, -2.0, -1.0]])
    assert k_winners(x, 2).tolist() == [[2, 2, 0, 0], [0, -1, 0, -1]]
    z = torch.randn(50, 30).double().requires_grad_()
    y = k_winners(z, 7, strength=0.75)
    top = z.topk(7).indices
    mask = torch.zeros_like(z).scatter(1, top, 1.0) > 0
    assert torch.equal(y, torch.where(mask, z, 0.25 * z))
    y.sum().backward()
    assert torch.equal(z.grad, torch.where(mask, 1.0, 0.25))
    channels = KWinners(2, dim=1)(torch.rand(3, 6, 4, 4))
    assert ((channels > 0).sum(1) == 2).all()
    assert torch.equal(k_winners(z, 99), z)


def test_hoyer_of_known_rows():
    assert hoyer(torch.eye(9)).tolist() == [1.0] * 9
    assert hoyer(torch.full((4,), 0.25)) == 0.0
    half = torch.tensor([1.0] * 8 + [0.0] * 8)
    assert float(hoyer(half)) == pytest.approx((4 - 8**0.5) / 3, abs=1e-6)
    assert hoyer(torch.zeros(3)).isnan()
    h = torch.rand(5, 7)
    assert torch.allclose(hoyer(h), hoyer(40 * h), atol=1e-6)


def test_ensembles_by_their_definition():
    h, y = torch.rand(60, 12).pow(6), torch.randint(4, (60,))
    h[torch.arange(60), 3 * y] += 1
    found = ensembles(h, y, 5)
    for c in range(4):
        mean = h[y == c].mean(0)
        for i in range(12):
            others = torch.cat([mean[:i], mean[i + 1 :]]).mean()
            assert bool(found[c, i]) == bool((mean[i] - others) / others > 2)
    assert found[:4].any() and not found[4].any()
    assert class_means(h, y, 5)[4].isnan().all()


def test_jaccard():
    a = torch.tensor([[True, True, False], [False, False, False]])
    assert jaccard(a, a).nan_to_num(-1).tolist() == [1.0, -1.0]
    assert jaccard(a[:, None], a).shape == (2, 2)
    assert float(jaccard(a[0], a[1])) == 0


@pytest.mark.parametrize("claim", select("forward-forward"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert all(0 <= row[side] <= 1 for side in ("method", "baseline"))
