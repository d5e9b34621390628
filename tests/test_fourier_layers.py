"""Fourier layers: one operator on every grid, the lone mode of even grids, and the outputs of the neuraloperator package."""

import math
import subprocess
import sys

import pytest
import torch

from neuropil.errors import Refused
from neuropil.physics.fourier import FNO, FourierLayer, SpectralConvolution, resample, with_coordinates
from neuropil.physics.norms import relative_h1, relative_l2


def band_limited(d, K, dtype=torch.float64, seed=0):
    """n -> samples of one random function with modes |k| <= K, two channels."""
    torch.manual_seed(seed)
    few = torch.randn(1, 2, *[2 * K + 1] * d, dtype=torch.float64)  # an odd grid carries its modes without a lone one
    return lambda n: resample(few, n).to(dtype)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_a_band_limited_input_gives_one_function_on_every_grid(d, dtype, close):
    v = band_limited(d, 3, dtype)
    layer = FourierLayer(2, 3, [3] * d).to(dtype)
    with torch.no_grad():
        coarse, fine, odd = (layer(v(n)) for n in (8, 16, 9))
    assert coarse.dtype == dtype
    assert torch.allclose(fine[(..., *[slice(None, None, 2)] * d)], coarse, atol=close)
    assert torch.allclose(resample(odd, 8), coarse, atol=close)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_weights_are_those_of_the_plain_formula(d):
    """Σ_k e^{2πik·x} R_k v̂(k), by sums over −K…K, its real part; the twins of the last axis are conjugates."""
    K, n = 2, 6
    v = band_limited(d, K)(n)
    layer = SpectralConvolution(2, 2, [K] * d).double()
    R = torch.view_as_complex(layer.weight.detach())
    half = torch.fft.fftn(v, dim=tuple(range(2, d + 2)), norm="forward")
    x = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float64) / n] * d, indexing="ij"))
    expected = torch.zeros_like(v)
    for k in torch.cartesian_prod(*[torch.arange(-K, K + 1)] * d).view(-1, d).tolist():
        if k[-1] < 0:
            continue
        mixed = torch.einsum("bi,io->bo", half[(..., *k)], R[(*[a + K for a in k[:-1]], k[-1])])
        wave = torch.exp(2j * math.pi * torch.tensordot(torch.tensor(k, dtype=torch.float64), x, 1))
        expected += (1 if k[-1] == 0 else 2) * (mixed.view(1, 2, *[1] * d) * wave).real
    assert torch.allclose(layer(v), expected, atol=1e-12)


@pytest.mark.parametrize("d", [1, 2])
def test_the_lone_mode_of_a_grid_of_twice_the_modes(d):
    """On n = 2K points the highest mode is a cosine; the layer's result there is its result on a finer grid, sampled."""
    K = 4
    layer = SpectralConvolution(2, 2, [K] * d).double()
    torch.manual_seed(1)
    v = torch.randn(1, 2, *[2 * K] * d, dtype=torch.float64)
    fine = layer(resample(v, 4 * K))
    assert torch.allclose(layer(v), fine[(..., *[slice(None, None, 2)] * d)], atol=1e-12)


def test_resample_is_scipys_and_undoes_itself():
    scipy = pytest.importorskip("scipy.signal")
    torch.manual_seed(0)
    for n, m in ((8, 16), (8, 11), (9, 12), (12, 8), (12, 7), (9, 8), (6, 6)):
        u = torch.randn(2, 3, n, dtype=torch.float64)
        assert torch.allclose(resample(u, m), torch.from_numpy(scipy.resample(u.numpy(), m, axis=-1)), atol=1e-12)
    u = torch.randn(1, 1, 8, 6, dtype=torch.float64)
    assert torch.allclose(resample(resample(u, [16, 15]), [8, 6]), u, atol=1e-12)


def test_gain_does_not_grow_with_the_grid():
    layer = SpectralConvolution(1, 1, 3)
    with torch.no_grad():
        layer.weight.zero_()[..., 0] = 1  # R = 1: a low-pass filter
    for n in (8, 64, 1024):
        wave = torch.cos(2 * math.pi * torch.arange(n) / n)[None, None]
        assert torch.allclose(layer(wave), wave, atol=1e-5)


PEER = {  # first outputs of neuraloperator 2.0.0 with the weights and inputs below
    1: [1.3986220359802246, 1.279946208000183, 1.3174095153808594],
    2: [1.4415302276611328, 1.2921255826950073, 1.233124852180481],
    3: [1.3946999311447144, 1.3182997703552246, 1.2758371829986572],
}


def plain_weights(net):
    """The same formula for the numbers of both packages: no two alike."""
    for i, p in enumerate(net):
        j = torch.arange(p.numel(), dtype=torch.float64)
        p.data.copy_(0.8 * torch.sin(0.37 * j.square() + 0.9 * i + 1).view(p.shape))


def pairs(peer, ours):
    """(parameter of the peer, as ours; our parameter) for two FNOs of the same sizes."""
    p, o = dict(peer.named_parameters()), dict(ours.named_parameters())
    for theirs, mine in (("lifting", "lift"), ("projection", "project")):
        for i, j in ((0, 0), (1, 2)):
            yield p[f"{theirs}.fcs.{i}.weight"][..., 0], o[f"{mine}.{j}.weight"]
            yield p[f"{theirs}.fcs.{i}.bias"], o[f"{mine}.{j}.bias"]
    for n in range(len(ours.blocks)):
        theirs, mine = "fno_blocks", f"blocks.{n}"
        yield (
            torch.view_as_real(p[f"{theirs}.convs.{n}.weight.tensor"].movedim((0, 1), (-2, -1))),
            o[f"{mine}.fourier.spectral.weight"],
        )
        yield p[f"{theirs}.convs.{n}.bias"].flatten(), o[f"{mine}.fourier.W.0.bias"]
        yield p[f"{theirs}.fno_skips.{n}.conv.weight"][..., 0], o[f"{mine}.fourier.W.0.weight"]
        yield p[f"{theirs}.channel_mlp_skips.{n}.weight"].flatten(), o[f"{mine}.gate"]
        for i, j in ((0, 0), (1, 2)):
            yield p[f"{theirs}.channel_mlp.{n}.fcs.{i}.weight"][..., 0], o[f"{mine}.mlp.{j}.weight"]
            yield p[f"{theirs}.channel_mlp.{n}.fcs.{i}.bias"], o[f"{mine}.mlp.{j}.bias"]


def wave_input(d, n=12):
    x = with_coordinates(torch.zeros(1, 0, *[n] * d))
    return torch.sin(2 * math.pi * x.sum(1, keepdim=True)) + 0.5 * torch.cos(4 * math.pi * x[:, :1])


def fixed_fno(d):
    net = FNO(1, 1, width=4, modes=[3] * d, layers=2)
    plain_weights(net.parameters())
    return net


@pytest.mark.parametrize("d", [1, 2, 3])
def test_outputs_are_those_of_the_package(d):
    models = pytest.importorskip("neuralop.models")
    ours = fixed_fno(d)
    peer = models.FNO((7,) * d, 1, 1, 4, n_layers=2)
    with torch.no_grad():
        for theirs, mine in pairs(peer, ours):
            theirs.copy_(mine)
        assert torch.allclose(peer(wave_input(d)), ours(wave_input(d)), atol=1e-5)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_outputs_are_those_that_the_package_gave(d):
    with torch.no_grad():
        assert torch.allclose(fixed_fno(d)(wave_input(d)).flatten()[:3], torch.tensor(PEER[d]), atol=1e-5)


def test_state_dict_goes_round_and_bfloat16_autocast_runs():
    net, twin = FNO(1, 1, 4, [3, 3], layers=1), FNO(1, 1, 4, [3, 3], layers=1)
    twin.load_state_dict(net.state_dict())
    u = torch.randn(2, 1, 8, 8)
    assert torch.equal(net(u), twin(u))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(net(u).float(), twin(u).float(), atol=0.1)


COMPILED = """
import torch
from neuropil.physics.fourier import FNO
net, u = FNO(1, 1, 4, [3, 3], layers=1), torch.randn(2, 1, 8, 8)
compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
assert torch.allclose(compiled(u), net(u), atol=1e-6)
compiled(u).sum().backward()
"""


def test_it_compiles_whole():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_gradients_are_right():
    layer = FourierLayer(1, 2, [2, 2]).double()
    assert torch.autograd.gradcheck(layer, torch.randn(1, 1, 4, 5, dtype=torch.float64, requires_grad=True))


def test_bad_input_is_refused():
    with pytest.raises(Refused, match=r"grid: modes up to \(4,\) need at least twice as many points, got \(7,\)"):
        SpectralConvolution(1, 1, 4)(torch.zeros(1, 1, 7))
    with pytest.raises(Refused, match="v: must be"):
        SpectralConvolution(1, 1, 4)(torch.zeros(1, 2, 16))
    with pytest.raises(Refused, match="modes"):
        FourierLayer(1, 1, [3, 0])
    with pytest.raises(Refused, match="layers"):
        FNO(1, 1, 4, 3, layers=0)
    with pytest.raises(Refused, match="size"):
        resample(torch.zeros(1, 1, 4, 4), [8])
    with pytest.raises(Refused, match="same shape"):
        relative_l2(torch.zeros(1, 1, 4), torch.zeros(1, 1, 5))
    with pytest.raises(Refused, match="spacing"):
        relative_h1(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), spacing=0.0)


def test_norms_do_not_know_the_grid():
    """error 0.1 sin 3x of sin x on [0, 2π): 0.1 in L², 0.1 √5 in H¹, on any grid."""
    for n in (8, 16, 33):
        x = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
        u, p = torch.sin(x)[None, None], (torch.sin(x) + 0.1 * torch.sin(3 * x))[None, None]
        assert relative_l2(p, u).item() == pytest.approx(0.1)
        assert relative_h1(p, u, 2 * math.pi / n).item() == pytest.approx(0.1 * math.sqrt(5))


@pytest.mark.parametrize("d", [1, 2])
def test_h1_of_bounded_grids_converges_at_second_order(d):
    """u = Π x_i², error x_1 on [0, 1]^d: |x_1|² = 1/3 + 1, |u|² = 1/5^d + d (4/3) / 5^(d−1)."""
    exact, errors = math.sqrt((1 / 3 + 1) / (0.2**d + d * 4 / 3 * 0.2 ** (d - 1))), []
    for n in (17, 33):
        x = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, n, dtype=torch.float64)] * d, indexing="ij"))
        u = x.square().prod(0)[None, None]
        errors.append(abs(relative_h1(u + x[0], u, 1 / (n - 1), periodic=False).item() - exact))
    assert 3.5 < errors[0] / errors[1] < 4.5
