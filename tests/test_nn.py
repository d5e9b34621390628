"""Attention, MLP, recording: what they compute, what they refuse."""

import math

import pytest
import torch
from torch import nn

from neuropil.errors import Refused
from neuropil.nn.attention import AttentionPool, MultiHead, attend, mean_pool
from neuropil.nn.autoencoder import Autoencoder, conv_autoencoder
from neuropil.nn.checks import suits
from neuropil.nn.mlp import MLP
from neuropil.nn.modes import evaluating, modes_kept
from neuropil.nn.recording import recording


@pytest.mark.parametrize("beta", [None, 0.3, torch.tensor(2.5)])
def test_attend_is_its_formula(beta):
    q, k, v = torch.randn(2, 4, 5), torch.randn(2, 6, 5), torch.randn(2, 6, 3)
    scale = 1 / math.sqrt(5) if beta is None else beta
    torch.testing.assert_close(attend(q, k, v, beta), (scale * q @ k.mT).softmax(-1) @ v, rtol=1e-4, atol=1e-5)


def test_attend_mask_hides_and_an_empty_row_gives_zeros():
    q, k, v = torch.randn(3, 5), torch.randn(4, 5), torch.randn(4, 2)
    mask = torch.tensor([[True, True, False, False], [True] * 4, [False] * 4])
    out = attend(q, k, v, mask=mask)
    torch.testing.assert_close(out[0], attend(q[:1], k[:2], v[:2])[0])
    assert torch.equal(out[2], torch.zeros(2))


def test_attend_beta_learns():
    beta = torch.tensor(1.0, requires_grad=True)
    attend(torch.randn(3, 5), torch.randn(4, 5), torch.randn(4, 2), beta).square().sum().backward()
    assert beta.grad is not None and beta.grad != 0


def test_multihead_agrees_with_torch():
    torch.manual_seed(0)
    ours, theirs = MultiHead(8, heads=2), nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, memory = torch.randn(3, 5, 8), torch.randn(3, 7, 8)
    look = torch.rand(5, 7) < 0.6
    look[:, 0] = True
    torch.testing.assert_close(
        ours(x, memory, look[None]), theirs(x, memory, memory, attn_mask=~look, need_weights=False)[0], rtol=1e-4, atol=1e-5
    )


def test_multihead_refuses_heads_that_do_not_divide():
    with pytest.raises(Refused, match="heads: must be a positive divisor of d_model=8, got 3"):
        MultiHead(8, heads=3)


def test_multihead_names_its_own_arguments():
    x, heads = torch.full((1, 5, 8), torch.nan), MultiHead(8, heads=2)
    with pytest.raises(Refused, match="query of x: must have no NaN"):
        heads(x, torch.randn(1, 4, 8))
    assert heads(x).isnan().all()  # it comes out with the values


def test_attention_pool_masks_permutes_and_sums_to_one():
    pool = AttentionPool(4, hidden=8, heads=3)
    x, mask = torch.randn(2, 6, 4), torch.tensor([[True] * 6, [True, True, False, False, False, False]])
    a = pool.weights(x, mask)
    torch.testing.assert_close(a.sum(-1), torch.ones(2, 3))
    assert (a[1, :, 2:] == 0).all()
    expected = (pool.w.weight @ torch.tanh(pool.V.weight @ x[0].T)).softmax(-1) @ x[0]
    torch.testing.assert_close(pool(x, mask)[0], expected.flatten(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pool(x[1:], mask[1:]), pool(x[1:, :2]))
    order = torch.randperm(6)
    torch.testing.assert_close(pool(x[:, order], mask[:, order]), pool(x, mask))


def test_mean_pool():
    x, mask = torch.randn(2, 3, 4), torch.tensor([[True, False, True], [False, True, False]])
    torch.testing.assert_close(mean_pool(x, mask), torch.stack([x[0, [0, 2]].mean(0), x[1, 1]]))
    torch.testing.assert_close(mean_pool(x), x.mean(1))
    poisoned = x.clone()
    poisoned[~mask] = float("nan")
    assert torch.equal(mean_pool(poisoned, mask), mean_pool(x, mask))


@pytest.mark.parametrize("pool", [AttentionPool(4, 8), mean_pool])
def test_an_empty_bag_is_refused(pool):
    with pytest.raises(Refused, match="bag 1 has none"):
        pool(torch.randn(2, 3, 4), torch.tensor([[True] * 3, [False] * 3]))


def test_what_a_net_can_take_is_known_if_it_does_just_what_its_layers_do():
    class Turned(nn.Sequential):
        def forward(self, x):
            return super().forward(x.mT)

    x, turned = torch.randn(1, 2, 16), Turned(nn.Linear(2, 3))
    suits("x", x, turned)
    suits("x", x, nn.Sequential(turned, nn.ReLU()))
    assert turned(x).shape == (1, 16, 3)
    for net in (nn.Sequential(nn.Sequential(nn.Linear(2, 3))), MLP([2, 4, 3]), nn.Sequential(MLP([2, 4, 3]))):
        with pytest.raises(Refused, match=r"^field: the last axis must have 2 numbers, got shape \(1, 2, 16\)"):
            suits("field", x, net)


def test_mlp_layers_and_refusals():
    kinds = [type(x) for x in MLP([3, 5, 2], activation="relu", dropout=0.5, norm=True)]
    assert kinds == [nn.Linear, nn.LayerNorm, nn.ReLU, nn.Dropout, nn.Linear]
    assert MLP([3, 5, 5, 2])(torch.randn(7, 4, 3)).shape == (7, 4, 2)
    with pytest.raises(Refused, match="activation: unknown 'rellu'; did you mean 'relu'"):
        MLP([3, 2], activation="rellu")
    with pytest.raises(Refused, match="sizes"):
        MLP([3])
    with pytest.raises(Refused, match="dropout"):
        MLP([3, 2], dropout=1.0)


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (
            Autoencoder(nn.Linear(5, 2), nn.Linear(2, 5)),
            torch.zeros(3, 6),
            r"x: the last axis must have 5 numbers, got shape \(3, 6\)",
        ),
        (Autoencoder(nn.Linear(5, 2), nn.Linear(2, 5)), torch.zeros(3, 5).half(), "x: must be torch.float32"),
        (conv_autoencoder((1, 8, 8), 2), torch.zeros(3, 1, 8, 8).double(), "x: must be torch.float32"),
    ],
    ids=["width", "half", "double"],
)
def test_autoencoder_refuses_what_does_not_fit(model, x, message):
    with pytest.raises(Refused, match=f"^{message}"):
        model(x)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) for m in model.modules())


def test_recording_collects_each_call_detached():
    model = nn.Sequential(MLP([2, 3, 1]), nn.Tanh())
    with recording(model, "0.1", "") as record:
        outputs = [model(torch.randn(4, 2)) for _ in range(3)]
    assert list(record) == ["0.1", ""]
    assert [x.shape for x in record["0.1"]] == [(4, 3)] * 3
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(record[""], outputs, strict=True))
    model(torch.randn(4, 2))
    assert len(record[""]) == 3


def test_recording_keeps_the_form_of_tuples():
    gru = nn.GRU(2, 3, batch_first=True)
    with recording(nn.Sequential(gru), "0") as record:
        gru(torch.randn(1, 4, 2))
    states, last = record["0"][0]
    assert states.shape == (1, 4, 3) and last.shape == (1, 1, 3) and not states.requires_grad


def test_recording_removes_its_hooks_after_an_exception():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    with pytest.raises(RuntimeError), recording(model, "0", "1"):
        assert hooks(model) == 2
        model(torch.randn(4, 5))
    assert hooks(model) == 0


def test_recording_refuses_an_unknown_name_and_leaves_no_hook():
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2)})
    with pytest.raises(Refused, match="no submodule 'encoderr'; did you mean 'encoder'"), recording(model, "encoder", "encoderr"):
        pass
    assert hooks(model) == 0


def test_every_submodule_gets_its_own_mode_back():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).eval(), nn.Dropout())
    net[1][1].train()
    before = [m.training for m in net.modules()]
    for part in (net, net.forward):  # a bound method counts as its module
        with evaluating(part, net[1], None, torch.relu):
            assert not any(m.training for m in net.modules())
        assert [m.training for m in net.modules()] == before
    with pytest.raises(ZeroDivisionError), evaluating(net):
        _ = 1 / 0
    assert [m.training for m in net.modules()] == before
    with modes_kept(net):
        assert [m.training for m in net.modules()] == before
        net.eval()
    assert [m.training for m in net.modules()] == before
