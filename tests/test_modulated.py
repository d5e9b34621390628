"""Modulated layers: their formulas, that a zero code is the plain layer, derivatives to second order, vmap and torch.compile."""

import subprocess
import sys

import pytest
import torch
from torch.func import vmap
from torch.nn.functional import linear

from neuropil.errors import Refused
from neuropil.fields.grids import DenseGrid
from neuropil.fields.modulated import ModulatedLinear, ModulatedSiren, ResidualLinear, TimeCodes, at_time
from neuropil.fields.siren import Siren

LAYERS = {
    "film": lambda n=3, m=4: ModulatedLinear(n, m, code=2),
    "scale": lambda n=3, m=4: ModulatedLinear(n, m, code=2, shift=False),
    "shift": lambda n=3, m=4: ModulatedLinear(n, m, code=2, scale=False),
    "full": lambda n=3, m=4: ResidualLinear(n, m, rank=2),
    "lora": lambda n=3, m=4: ResidualLinear(n, m, rank=2, form="lora"),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def big(layer):
    """All parameters of order one, so that no term can hide."""
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    return layer.double()


def test_scaled_and_shifted():
    layer, x, c = big(LAYERS["film"]()), torch.randn(5, 3).double(), torch.randn(2).double()
    s, shift = 1 + layer.scale.weight @ c, layer.shift.weight @ c
    torch.testing.assert_close(layer(x, c), s * (x @ layer.weight.T) + layer.bias + shift)


def test_residuals_add_matrices():
    x, c = torch.randn(5, 3).double(), torch.randn(2).double()
    full, lora = big(LAYERS["full"]()), big(LAYERS["lora"]())
    M = full.M.view(2, 4, 3)
    torch.testing.assert_close(full(x, c), linear(x, full.weight + c[0] * M[0] + c[1] * M[1], full.bias))
    outer = sum(c[r] * torch.outer(lora.U[:, r], lora.V[r]) for r in range(2))
    torch.testing.assert_close(lora(x, c), linear(x, lora.weight + outer, lora.bias))
    with torch.no_grad():  # the same matrices written out
        full.load_state_dict(lora.state_dict() | {"M": torch.einsum("mr,rn->rmn", lora.U, lora.V).flatten(1)}, strict=False)
    torch.testing.assert_close(full(x, c), lora(x, c))


@each_layer
def test_a_zero_code_is_the_plain_layer_exactly(make):
    layer, x = make(), torch.randn(5, 3)
    with torch.no_grad():
        layer.bias.zero_()  # b + 0 in another order would not be exact otherwise
    assert torch.equal(layer(x, torch.zeros(2)), linear(x, layer.weight, layer.bias))
    assert not torch.equal(layer(x, torch.ones(2)), layer(x, torch.zeros(2)))


@each_layer
def test_codes_broadcast_like_one_after_the_other(make):
    layer, x, codes = big(make()), torch.randn(6, 5, 3).double(), torch.randn(6, 1, 2).double()
    apart = torch.stack([layer(x[i], codes[i, 0]) for i in range(6)])
    torch.testing.assert_close(layer(x, codes), apart)
    torch.testing.assert_close(vmap(layer)(x, codes[:, 0]), apart)
    torch.testing.assert_close(layer(x[0], codes), torch.stack([layer(x[0], c) for c in codes[:, 0]]))  # one x, many codes


@pytest.mark.parametrize("name", ["film", "scale", "shift", "lora"])
def test_every_point_may_have_its_own_code(name):
    layer, grid, x = big(LAYERS[name]()), DenseGrid(2, 2, 4).double(), torch.rand(7, 2).double()
    codes, h = grid(x), torch.randn(7, 3).double()
    torch.testing.assert_close(layer(h, codes), torch.stack([layer(h[i], codes[i]) for i in range(7)]))


@each_layer
def test_derivatives_to_second_order(make):
    layer = big(make())
    x, c = torch.randn(2, 3, 3).double().requires_grad_(), torch.randn(2, 1, 2).double().requires_grad_()
    parameters = tuple(p.detach().requires_grad_() for p in layer.parameters())
    names = [name for name, _ in layer.named_parameters()]

    def run(x, c, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, c))

    assert torch.autograd.gradcheck(run, (x, c, *parameters))
    assert torch.autograd.gradgradcheck(run, (x, c, *parameters))


def test_derivatives_in_time():
    table, t = torch.randn(5, 2).double().requires_grad_(), torch.tensor([-0.9, 0.1, 0.6]).double().requires_grad_()
    assert torch.autograd.gradcheck(at_time, (table, t))
    assert torch.autograd.gradgradcheck(at_time, (table, t))


def test_codes_in_time_lie_on_their_frames():
    codes = TimeCodes(7, 3)
    frames = torch.arange(7)
    torch.testing.assert_close(codes(2 * frames / 6 - 1), codes(frames), rtol=0, atol=1e-7)
    torch.testing.assert_close(codes(torch.tensor(2 * 2.25 / 6 - 1)), 0.75 * codes.table[2] + 0.25 * codes.table[3])
    assert torch.equal(codes(torch.tensor([-3.0, 3.0])), codes.table[[0, 6]])  # the ends hold
    assert torch.equal(TimeCodes(1, 3)(torch.tensor([-1.0, 0.2, 1.0])).std(0), torch.zeros(3))
    with pytest.raises(Refused, match="t: must lie in 0 … 6, got 7"):
        codes(torch.tensor(7))


@each_layer
def test_siren_starts_as_the_plain_one_and_its_code_is_learned(make):
    torch.manual_seed(3)
    field = ModulatedSiren([2, 16, 16, 16, 1], make)
    torch.manual_seed(3)
    plain, x = Siren([2, 16, 16, 16, 1]), torch.rand(9, 2)
    torch.testing.assert_close(field(x, torch.zeros(2)), plain(x), rtol=0, atol=1e-6)
    assert field.layers == (1, 2)
    code = torch.full((3, 1, 2), 0.5, requires_grad=True)
    y = field(x, code)
    assert y.shape == (3, 9, 1)
    y.square().sum().backward()
    assert code.grad.abs().min() > 0
    assert all(p.grad is not None for p in field.parameters())


def test_siren_has_second_derivatives_in_point_and_code():
    field = big(ModulatedSiren([2, 4, 4, 1], LAYERS["film"], omega=2.0, hidden_omega=1.0))
    x, c = torch.rand(3, 2).double().requires_grad_(), torch.randn(2).double().requires_grad_()
    assert torch.autograd.gradgradcheck(field, (x, c))


@each_layer
def test_state_and_autocast(make):
    layer, again, x, c = make(), make(), torch.randn(5, 3), torch.randn(2)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x, c), layer(x, c))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x, c).float(), again(x, c).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x, c).float()
    torch.testing.assert_close(low, layer(x, c), rtol=0.1, atol=0.05)


def test_compiles_whole():
    """In an own process, as dynamo cannot see through the tests' type checker; frames or real times, every kind of layer."""
    lines = [
        "import torch; from neuropil.fields.modulated import *; from neuropil.fields.resfields import ResField, COMPOSITIONS",
        "x = torch.rand(3, 5, 2)",
        "layers = [lambda n, m: ModulatedLinear(n, m, 2), lambda n, m: ResidualLinear(n, m, 2),"
        " lambda n, m: ResidualLinear(n, m, 2, form='lora')]",
        "codes = TimeCodes(4, 2)",
        "fields = [(ModulatedSiren([2, 8, 8, 1], make), lambda t: codes(t)[:, None]) for make in layers]",
        "fields += [(ResField([3, 8, 8, 1], 4, 2, c), lambda t: t) for c in COMPOSITIONS]",
        "times = [torch.tensor([0, 2, 3]), torch.tensor([-1.0, 0.2, 0.9])]",
        "for number, (field, code) in enumerate(fields):",
        "    f = lambda x, t: field(x, code(t))",
        "    t = times[number % 2]",
        "    torch.testing.assert_close(torch.compile(f, backend='eager', fullgraph=True)(x, t), f(x, t))",
        "    torch._dynamo.reset()",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ModulatedLinear(0, 4, code=2), "n:"),
        (lambda: ModulatedLinear(3, 4, code=0), "code"),
        (lambda: ModulatedLinear(3, 4, code=2, scale=False, shift=False), "scale, shift"),
        (lambda: ResidualLinear(3, 4, rank=0), "rank"),
        (lambda: ResidualLinear(3, 4, rank=2, form="lara"), "lora"),
        (lambda: ResidualLinear(3, 4, rank=2)(torch.ones(5, 3), torch.ones(5, 2)), "code: one a group"),
        (lambda: TimeCodes(0, 2), "rows"),
        (lambda: TimeCodes(3, 2)(torch.tensor([0, -1])), r"t: must lie in 0 … 2, got -1"),
        (lambda: ModulatedSiren([2, 8, 1], LAYERS["film"], layers=[2]), "layers"),
    ],
)
def test_bad_input_names_the_argument(make, name):
    with pytest.raises(Refused, match=name):
        make()
