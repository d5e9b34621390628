"""Layers on functions: quadrature attention, kernels between their taps, stencils that become derivatives, U-Net in two forms."""

import itertools
import math

import pytest
import torch

from neuropil.errors import Refused
from neuropil.lab.claims import select
from neuropil.lab.run import measure
from neuropil.nn.attention import attend
from neuropil.physics.fourier import resample
from neuropil.physics.function_layers import (
    AttentionOperator,
    DifferenceConv,
    IntegralLayer,
    KernelConv,
    LocalIntegral,
    OnBaseGrid,
    PatchIntegral,
    QuadAttention,
    instance_norm,
    quad_attention,
    resize,
)
from neuropil.physics.unet import UNet

DOUBLE = torch.float64


def circle(n):
    return 2 * math.pi * torch.arange(n, dtype=DOUBLE) / n


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_does_not_see_a_point_split_in_two(dtype):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 5, 4, dtype=dtype), torch.randn(2, 6, 4, dtype=dtype), torch.randn(2, 6, 3, dtype=dtype)
    w = torch.rand(6, dtype=dtype) + 0.1
    rows, shares = [0, 1, 2, 3, 3, 4, 5], w[[0, 1, 2, 3, 3, 4, 5]].clone()
    shares[3:5] /= 2
    close = 1e-5 if dtype == torch.float32 else 1e-12
    assert torch.allclose(quad_attention(q, k, v, w), quad_attention(q, k[:, rows], v[:, rows], shares), atol=close)
    assert not torch.allclose(attend(q, k, v), attend(q, k[:, rows], v[:, rows]), atol=1e-3)  # without weights it does
    assert torch.allclose(quad_attention(q, k, v, torch.full((6,), 0.3, dtype=dtype)), attend(q, k, v), atol=close)


def test_weights_of_attention_are_those_of_the_formula_and_zero_removes_a_point():
    torch.manual_seed(0)
    q, k, v, w = torch.randn(5, 4), torch.randn(6, 4), torch.randn(6, 3), torch.tensor([0.1, 0.2, 0.0, 0.3, 0.3, 0.1])
    e = w * (q @ k.T / 2).exp()
    assert torch.allclose(quad_attention(q, k, v, w), e @ v / e.sum(-1, keepdim=True), atol=1e-6)
    with pytest.raises(Refused, match="weights: one for each of 6 keys"):
        quad_attention(q, k, v, w[:5])


def test_heads_watched_and_fused_agree():
    torch.manual_seed(0)
    layer, x, w = QuadAttention(8, 2), torch.randn(3, 5, 8), torch.rand(5)
    fused, seen = layer(x, weights=w), []
    layer.pattern.register_forward_hook(lambda module, given, out: seen.append(out))
    scores = layer.project(x, x)
    by_hand = quad_attention(*scores, w).transpose(1, 2).flatten(2)
    assert torch.allclose(layer.out(by_hand), fused, atol=1e-6)


def test_attention_operator_does_not_see_a_split_point():
    torch.manual_seed(0)
    net = AttentionOperator(1, 2, d=1, width=16, heads=2, layers=2).double()
    v, x, w = torch.randn(1, 6, 1, dtype=DOUBLE), torch.rand(6, 1, dtype=DOUBLE), torch.rand(6, dtype=DOUBLE)
    rows = [0, 1, 2, 3, 4, 5, 5]
    shares = w[rows].clone()
    shares[-2:] /= 2
    assert torch.allclose(net(v[:, rows], x[rows], shares)[:, :6], net(v, x, w), atol=1e-12)


@pytest.mark.parametrize(("kernel", "order"), [([-0.5, 0.0, 0.5], 2), ([0.0, -1.0, 1.0], 1)])
def test_stencil_on_a_sine_becomes_the_cosine(kernel, order):
    layer = DifferenceConv(1, 1, k=3, d=1).double()
    errors = []
    for n in (32, 64):
        x = circle(n)
        layer.weight.data[:] = torch.tensor(kernel, dtype=DOUBLE) + 5  # the mean does not matter
        errors.append((layer(torch.sin(x)[None, None], 2 * math.pi / n)[0, 0] - torch.cos(x)).abs().max())
    assert errors[0] / errors[1] > 0.95 * 2**order


def test_random_stencils_in_two_dimensions_are_directional_derivatives():
    torch.manual_seed(0)
    layer, n = DifferenceConv(1, 1, k=3, d=2).double(), 256
    x, y = torch.meshgrid(circle(n), circle(n), indexing="ij")
    w, j = layer.weight.detach()[0, 0], torch.arange(-1, 2, dtype=DOUBLE)
    a, b = (w.sum(1) * j).sum(), (w.sum(0) * j).sum()
    expected = a * torch.cos(x) * torch.cos(y) - b * torch.sin(x) * torch.sin(y)
    assert (layer((torch.sin(x) * torch.cos(y))[None, None], 2 * math.pi / n) - expected).abs().max() < 0.05


def test_kernel_at_scale_one_is_torchs_circular_convolution():
    torch.manual_seed(0)
    conv = KernelConv(2, 3, k=5, d=2)
    plain = torch.nn.Conv2d(2, 3, 5, padding=2, padding_mode="circular")
    plain.load_state_dict(conv.state_dict())
    v = torch.randn(1, 2, 8, 8)
    assert torch.allclose(conv(v), plain(v), atol=1e-5)


def test_taps_of_both_rules():
    conv = KernelConv(1, 1, k=3, d=1)
    conv.weight.data[:] = torch.tensor([1.0, 2.0, 4.0])
    assert torch.allclose(conv.taps(2.0)[0, 0], torch.tensor([1.0, 1.5, 2.0, 3.0, 4.0]) * 3 / 5)
    conv.rule = "hat"
    for scale in (2.0, 3.0, 4.0):
        assert conv.taps(scale).shape[-1] == 4 * scale - 1
        assert conv.taps(scale).sum().item() == pytest.approx(7.0)


def test_point_taps_are_the_trained_sum_on_any_finer_grid():
    torch.manual_seed(0)
    conv = KernelConv(1, 2, k=5, d=2, rule="points").double()
    v = torch.randn(1, 1, 24, 24, dtype=DOUBLE)
    assert torch.allclose(conv(v, 3.0)[..., ::3, ::3], conv(v[..., ::3, ::3]), atol=1e-12)
    net = UNet(1, 1, 4, base=8, d=1, multiples=(1, 2), rule="points", form="interpolated").double()
    u = resample(torch.randn(1, 1, 8, dtype=DOUBLE), 16)
    assert torch.allclose(net(u)[..., ::2], net(u[..., ::2]), atol=0.05)  # but for the modes that φ makes beyond the base
    with pytest.raises(Refused, match="scale"):
        conv(v, 1.5)


@pytest.mark.parametrize("rule", ["linear", "hat"])
def test_interpolated_convolution_tends_to_an_integral(rule):
    torch.manual_seed(0)
    conv = KernelConv(1, 1, k=5, d=1, rule=rule).double()
    outs = [conv(torch.sin(circle(16 * s) + 0.3)[None, None], float(s))[..., ::s] for s in (4, 8, 16)]
    steps = [(b - a).abs().max() for a, b in itertools.pairwise(outs)]
    assert steps[0] > 1.5 * steps[1] > 0


@pytest.mark.parametrize("d", [1, 2])
def test_local_integral_converges_and_is_local(d):
    torch.manual_seed(0)
    layer = LocalIntegral(1, 2, r=0.25, d=d).double()

    def at(n):
        x = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=DOUBLE) / n] * d, indexing="ij")).sum(0)
        return layer(torch.sin(2 * math.pi * x)[None, None], 1 / n)

    outs = [at(16 * s)[(..., *[slice(None, None, s)] * d)] for s in (1, 2, 4)]
    steps = [(b - a).abs().max() for a, b in itertools.pairwise(outs)]
    assert steps[0] > 2 * steps[1]
    spike = torch.zeros(1, 1, *[32] * d, dtype=DOUBLE)
    spike[(..., *[16] * d)] = 1
    reach = layer(spike, 1 / 32).abs().sum(1)[0].nonzero() - 16
    assert 4 < reach.double().norm(dim=-1).max() < 8  # r = 8 cells, and 0 there
    with pytest.raises(Refused, match="h: a disc of radius"):
        layer(torch.zeros(1, 1, *[3] * d, dtype=DOUBLE), 0.3)


def test_integral_layer_is_a_quadrature():
    torch.manual_seed(0)
    layer = IntegralLayer(1, 2, d=1).double()
    x = torch.tensor([[0.2], [0.7]], dtype=DOUBLE)
    outs = []
    for n in (50, 100, 200):
        y = (torch.arange(n, dtype=DOUBLE)[:, None] + 0.5) / n
        outs.append(layer(y.cos()[None], y, torch.full((n,), 1 / n, dtype=DOUBLE), x))
    assert 3.5 < (outs[1] - outs[0]).abs().max() / (outs[2] - outs[1]).abs().max() < 4.5


def test_patch_tokens_converge():
    torch.manual_seed(0)
    embed = PatchIntegral(1, 3, patches=4, k=4, d=1).double()
    outs = [embed(torch.sin(circle(n))[None, None]) for n in (16, 64, 128, 256)]
    assert torch.allclose(
        outs[0], torch.nn.functional.conv1d(torch.sin(circle(16))[None, None], embed.weight, embed.bias, stride=4)
    )
    assert (outs[3] - outs[2]).abs().max() < 0.6 * (outs[2] - outs[1]).abs().max()
    with pytest.raises(Refused, match="4 patches"):
        embed(torch.zeros(1, 1, 18, dtype=DOUBLE))


def test_instance_norm_with_weights_and_without():
    torch.manual_seed(0)
    v = torch.randn(2, 3, 4, 4)
    assert torch.allclose(instance_norm(v), torch.nn.functional.instance_norm(v), atol=1e-5)
    w = torch.rand(4)
    rows, shares = [0, 1, 2, 3, 3], w[[0, 1, 2, 3, 3]].clone()
    shares[3:] /= 2
    assert torch.allclose(instance_norm(v[:, :, 0][..., rows], shares)[..., :4], instance_norm(v[:, :, 0], w), atol=1e-5)


def test_on_base_grid_is_the_layer_there_and_keeps_proportions():
    torch.manual_seed(0)
    net = torch.nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular").double()
    wrapped, v = OnBaseGrid(net, [8]), torch.randn(1, 1, 8, dtype=DOUBLE)
    assert torch.allclose(wrapped(v), net(v))
    assert torch.allclose(wrapped(resample(v, 24)), resample(net(v), 24), atol=1e-12)
    assert resize(torch.tensor([[[0.0, 2.0, 4.0]]]), [5], periodic=False).tolist() == [[[0, 1, 2, 3, 4]]]


@pytest.mark.parametrize("d", [1, 2])
def test_unets_of_both_forms_are_one_on_the_base_grid_and_differ_elsewhere(d):
    torch.manual_seed(0)
    net = UNet(1, 1, 4, base=16, d=d, multiples=(1, 2, 2))
    u = torch.randn(1, 1, *[16] * d)
    with torch.no_grad():
        fixed = net(u)
        net.form = "interpolated"
        assert torch.allclose(net(u), fixed, atol=1e-6)
        fine = net(resample(u, 32))
        net.form = "fixed"
        assert not torch.allclose(net(resample(u, 32)), fine, atol=1e-4)
    twin = UNet(1, 1, 4, base=16, d=d, multiples=(1, 2, 2))
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(u), net(u))


def test_bad_input_is_refused():
    net = UNet(1, 1, 4, base=16, d=1)
    with pytest.raises(Refused, match="multiple of 4 points"):
        net(torch.zeros(1, 1, 18))
    with pytest.raises(Refused, match="base: must be a multiple of 4"):
        UNet(1, 1, 4, base=18, d=1)
    with pytest.raises(Refused, match="odd"):
        KernelConv(1, 1, k=4, d=1)
    with pytest.raises(Refused, match="form"):
        UNet(1, 1, 4, base=16, form="both")
    with pytest.raises(Refused, match="h: must be positive"):
        DifferenceConv(1, 1, k=3, d=1)(torch.zeros(1, 1, 8), h=0.0)
    with pytest.raises(Refused, match="v: 1 axes"):
        OnBaseGrid(torch.nn.Identity(), [8])(torch.zeros(1, 1, 8, 8))
    with pytest.raises(Refused, match=r"^v: must be \(b, 1, \*grid\) with 1 axes, got \(1, 2, 8\)"):
        OnBaseGrid(torch.nn.Conv1d(1, 1, 1), [8])(torch.zeros(1, 2, 8))


@pytest.mark.parametrize("claim", select("nn-to-no"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert all(row[side] > 0 for side in ("method", "baseline"))
