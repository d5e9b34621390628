"""ResFields: equal to the authors' layer for every composition, the card's invariants, the field, bad input."""

import math

import pytest
import torch
from torch import nn

from neuropil.errors import Refused
from neuropil.fields.field import parameters_of
from neuropil.fields.modulated import ResidualLinear
from neuropil.fields.resfields import COMPOSITIONS, ResField, ResFieldLinear, frame_times
from neuropil.fields.siren import Siren


def wave(*shape, phase=0.0):
    """Numbers that need no generator: sin(1 + 1.7 i + phase)."""
    return torch.sin(1 + phase + 1.7 * torch.arange(math.prod(shape), dtype=torch.float64)).reshape(shape)


def waved(layer):
    with torch.no_grad():
        for i, (_, p) in enumerate(sorted(layer.named_parameters())):
            p.copy_(wave(*p.shape, phase=float(i)))
    return layer


def normal(layer):
    """All parameters of order one and of full rank."""
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    return layer


# What resfields.Linear (markomih/ResFields, tensorly 0.10) gives for the weights of `waved` and x, t below, float64: the second
# point of each group. Their vm_noweight adds W once for each of R matrices, so it was given W/R; their loe has no W, so its experts
# were given as W + M; their resnet vector was added to the layer's output, as their network does after its sine.
FRAMES, TIMES = torch.tensor([4, 0, 2]), torch.tensor([-1.0, 0.3, 0.77], dtype=torch.float64)
AUTHORS = {
    ("vm", "lookup"): [
        -0.554904634,
        0.681222944,
        0.636667602,
        0.764655605,
        0.955477698,
        0.161083693,
        -1.26691685,
        -0.154230252,
        1.84943072,
        1.75933557,
        -0.9526626,
        -1.51491991,
    ],
    ("vm", "interpolation"): [
        0.44406254,
        0.253571747,
        -0.685584841,
        0.192742816,
        -0.285340679,
        -0.249517748,
        -0.336494885,
        0.959728777,
        2.79927187,
        0.794472535,
        -2.63189725,
        -1.81948352,
    ],
    ("multiply", "lookup"): [
        1.39279991,
        0.245771049,
        -1.0780296,
        0.345519507,
        0.632485673,
        -0.421165747,
        -0.697913676,
        -0.8634896,
        0.883214437,
        0.835521648,
        -1.18903575,
        0.136230233,
    ],
    ("multiply", "interpolation"): [
        1.22131159,
        1.09455421,
        -1.20104785,
        0.590478514,
        0.958408709,
        0.380540052,
        -1.01572474,
        -0.0578185444,
        0.878028186,
        0.380032095,
        -0.985714826,
        -0.151276929,
    ],
    ("attention", "lookup"): [
        -0.78707094,
        -0.137547212,
        0.249880117,
        1.29103164,
        1.22263972,
        -0.680466989,
        -2.17025373,
        0.00443796413,
        1.90251017,
        2.7313269,
        -0.270959868,
        -1.97157431,
    ],
    ("shared", "lookup"): [
        3.34710963,
        3.08253703,
        -1.4500601,
        -3.21413174,
        -1.31867702,
        1.19982241,
        1.7924781,
        1.11979742,
        1.42167139,
        -3.33123561,
        -4.37314848,
        0.989916214,
    ],
    ("full", "lookup"): [
        2.99561047,
        1.70074898,
        -2.1431312,
        -2.35627458,
        -0.175711213,
        1.64386375,
        0.985187778,
        0.0654805396,
        2.57041112,
        0.665628769,
        -2.50043665,
        -1.59126139,
    ],
    ("cp", "lookup"): [
        -0.423386487,
        -0.429852338,
        -0.970898826,
        1.29958138,
        1.64135118,
        -0.0686484544,
        -1.6804715,
        -1.33732812,
        0.757861566,
        1.9609501,
        0.377086692,
        -0.50001252,
    ],
    ("tucker", "lookup"): [
        -0.0734267944,
        -0.815637197,
        -0.57490631,
        0.919676547,
        1.07379471,
        0.584363898,
        -2.37557736,
        -0.646286298,
        0.545635968,
        2.02602335,
        0.463486877,
        -0.732148861,
    ],
    ("bank", "interpolation"): [
        3.02397116,
        1.80498846,
        -2.09269149,
        -2.42238389,
        -1.28243007,
        0.155812305,
        0.967005988,
        1.53978736,
        2.62420129,
        -1.64132413,
        -4.29818052,
        -0.64332283,
    ],
    ("bias", "lookup"): [
        0.970639889,
        1.1131371,
        -0.0622966688,
        -1.13443128,
        0.76983316,
        0.070017502,
        -0.613048823,
        1.21443951,
        1.42233097,
        -1.99787694,
        -2.35243243,
        1.03220672,
    ],
}


@pytest.mark.parametrize(("composition", "mode"), AUTHORS)
def test_equal_to_the_authors_layer_on_frozen_numbers(composition, mode):
    layer = waved(ResFieldLinear(3, 4, frames=5, rank=2, composition=composition).double())
    y = layer(wave(3, 2, 3, phase=9.0), FRAMES if mode == "lookup" else TIMES)
    assert y[:, 1].flatten().tolist() == pytest.approx(AUTHORS[composition, mode], abs=1e-6)


def test_zero_codes_are_the_plain_layer_exactly():
    layer, x = ResFieldLinear(3, 4, frames=5, rank=2), torch.randn(6, 7, 3)
    with torch.no_grad():
        layer.residual.V.zero_()
    plain = nn.Linear(3, 4)
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    for t in (torch.tensor([0, 1, 2, 3, 4, 4]), torch.linspace(-1, 1, 6)):
        assert torch.equal(layer.weight_at(t), plain.weight.expand(6, 4, 3))
        assert torch.equal(layer(x, t), x @ plain.weight.T + plain.bias)
    one = torch.tensor(2)
    assert torch.equal(layer(x[0], one), plain(x[0]))


@pytest.mark.parametrize("composition", ["vm", "attention", "cp", "tucker", "shared"])
def test_stacked_residuals_have_at_most_the_rank(composition):
    layer = normal(ResFieldLinear(6, 5, frames=12, rank=3, composition=composition).double())
    for t in (torch.arange(12), torch.linspace(-1, 1, 31).double()):
        stack = (layer.weight_at(t) - layer.weight).flatten(1)
        singular = torch.linalg.svdvals(stack)
        rank = int((singular > 1e-9 * singular[0]).sum())
        assert rank == (1 if composition == "shared" else 3)
    full = normal(ResFieldLinear(6, 5, frames=12, rank=3, composition="full").double())
    assert torch.linalg.matrix_rank((full.weight_at(torch.arange(12)) - full.weight).flatten(1)) == 12  # the check can fail


def test_one_frame_is_a_plain_layer():
    layer, plain = waved(ResFieldLinear(3, 4, frames=1, rank=2)), nn.Linear(3, 4)
    x = torch.randn(2, 7, 3)
    plain.load_state_dict({"weight": layer.weight_at(torch.tensor(0)), "bias": layer.bias})
    for t in (torch.zeros(2, dtype=torch.long), torch.tensor([-1.0, 0.4])):
        torch.testing.assert_close(layer(x, t), plain(x))


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_a_frame_and_its_time_are_the_same(composition):
    layer, frames = waved(ResFieldLinear(3, 4, frames=7, rank=3, composition=composition).double()), torch.arange(7)
    x, times = torch.randn(7, 2, 3).double(), torch.linspace(-1, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(frame_times(7), times.float())
    torch.testing.assert_close(layer(x, frames), layer(x, times), rtol=0, atol=1e-12)
    halfway = torch.tensor(-1 + 2 * 2.5 / 6).double()  # no half frame is lost: the middle of frames 2 and 3
    if composition != "bank":
        middle = (layer(x[:1], frames[2:3]) + layer(x[:1], frames[3:4]))[0] / 2
        torch.testing.assert_close(layer(x[0], halfway), middle)
        if composition != "shared":
            assert (layer(x[:1], frames[2:3])[0] - middle).abs().max() > 1e-3


@pytest.mark.parametrize(("o", "i", "T", "R"), [(4, 3, 5, 2), (64, 64, 24, 10)])
def test_count_of_parameters(o, i, T, R):
    counts = {c: parameters_of(ResFieldLinear(i, o, T, R, c)) - (o * i + o) for c in COMPOSITIONS}
    vm = T * R + R * o * i
    assert counts == {
        "vm": vm,
        "multiply": vm,
        "attention": vm + T * R,
        "shared": R * o * i,
        "full": T * o * i,
        "cp": R + (T + o + i) * R,
        "tucker": R**3 + (T + o + i) * R,
        "bank": R * o * i,
        "bias": T * o,
    }


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_starts_near_the_plain_layer_and_learns(composition):
    torch.manual_seed(0)
    layer, x, t = ResFieldLinear(16, 16, frames=5, rank=3, composition=composition), torch.randn(5, 9, 16), torch.arange(5)
    plain = nn.functional.linear(x, layer.weight, layer.bias).detach()
    torch.testing.assert_close(layer(x, t), plain, rtol=0, atol=5e-3)
    target = plain + torch.randn(5, 1, 16)
    optimizer = torch.optim.Adam(layer.residual.parameters(), 1e-2)  # W and b are held: only the residual can learn
    losses = []
    for _ in range(300):
        loss = (layer(x, t) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in layer.residual.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < (0.97 if composition == "shared" else 0.9) * losses[0]


def test_vm_is_a_residual_layer_with_a_code_in_time():
    layer, other, x = waved(ResFieldLinear(3, 4, 5, 2).double()), ResidualLinear(3, 4, 2).double(), torch.randn(2, 7, 3).double()
    other.load_state_dict({"weight": layer.weight, "bias": layer.bias, "M": layer.residual.M})
    t = torch.tensor([1, 3])
    torch.testing.assert_close(layer(x, t), other(x, layer.residual.V[t][:, None]))


def test_derivatives_to_second_order_in_point_and_time():
    field = waved(ResField([3, 4, 4, 1], frames=5, rank=2, omega=1.0, hidden_omega=1.0).double())
    x, t = torch.rand(2, 3, 2).double().requires_grad_(), torch.tensor([-0.8, 0.3]).double().requires_grad_()
    assert torch.autograd.gradcheck(field, (x, t))
    assert torch.autograd.gradgradcheck(field, (x, t))
    assert torch.autograd.gradgradcheck(lambda x: field(x, torch.tensor([4, 1])), (x,))


def test_field_without_residuals_is_the_plain_siren():
    torch.manual_seed(1)
    field = ResField([3, 16, 16, 16, 2], frames=5, layers=())
    torch.manual_seed(1)
    plain, x = Siren([3, 16, 16, 16, 2]), torch.rand(5, 9, 2)
    coordinates = torch.cat([x, frame_times(5)[:, None, None].expand(5, 9, 1)], -1)
    torch.testing.assert_close(field(x, torch.arange(5)), plain(coordinates))
    torch.manual_seed(1)
    residual = ResField([3, 16, 16, 16, 2], frames=5)
    assert residual.net.layers == (1, 2)
    for ours, theirs in zip(residual.net.linears, list(plain)[::2], strict=True):
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)


def test_field_reads_frames_and_times_alike_also_with_fewer_rows():
    for rows in (None, 3):
        field, x = ResField([3, 16, 16, 2], frames=5, rank=2, rows=rows), torch.rand(5, 9, 2)
        torch.testing.assert_close(field(x, torch.arange(5)), field(x, frame_times(5)), rtol=0, atol=1e-5)
        assert field.net.linears[1].residual.V.shape == (rows or 5, 2)
    alone = torch.stack([field(x[k], torch.tensor(k)) for k in range(5)])
    torch.testing.assert_close(field(x, torch.arange(5)), alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.func.vmap(field)(x, frame_times(5)), alone, rtol=0, atol=1e-5)


def test_one_matrix_a_group_whatever_its_size():
    """The largest tensor that a step makes beside the values is one matrix a frame."""
    layer, x = ResFieldLinear(8, 8, frames=4, rank=2), torch.randn(4, 500, 8)
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x, torch.arange(4))
    assert max(sizes) == x.numel()


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_state_and_autocast(composition):
    field, again = (ResField([3, 8, 8, 1], 5, 2, composition) for _ in range(2))
    x, t = torch.rand(5, 3, 2), torch.arange(5)
    again.load_state_dict(field.state_dict())
    assert torch.equal(again(x, t), field(x, t))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(field(x, t)).all()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ResFieldLinear(0, 4, 5), "n:"),
        (lambda: ResFieldLinear(3, 4, 0), "frames"),
        (lambda: ResFieldLinear(3, 4, 5, rank=0), "rank"),
        (lambda: ResFieldLinear(3, 4, 5, composition="tuck"), "tucker"),
        (lambda: ResField([3, 8, 1], frames=0), "frames"),
        (lambda: ResField([3, 8, 1], frames=5, layers=[5]), "layers"),
        (lambda: ResField([3, 8, 8, 1], frames=5, rows=-1), "frames"),
    ],
)
def test_bad_input_names_the_argument(make, name):
    with pytest.raises(Refused, match=name):
        make()
