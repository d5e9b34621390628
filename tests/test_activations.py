"""Every activation against its formula's text (value, gradient), its flags and limits; the modules; the identities of card 085."""

import ast
import functools
import json
import re
import subprocess
import sys

import numpy
import pytest
import torch
from mpmath import mp
from torch import nn
from torch.nn import functional as F

from neuropil.errors import Refused
from neuropil.nn import activations
from neuropil.nn.activations import activation, entries, find, functional, gain, gaps
from neuropil.nn.activations.reference import evaluate, evaluate_vector
from neuropil.nn.activations.table import FILES, KINDS, key
from neuropil.nn.mlp import MLP

ALL = entries()
ELEMENTWISE = [e for e in ALL.values() if e.kind == "elementwise"]
STRAIGHT_THROUGH = {"rsign"}
Z = torch.linspace(-8, 8, 2001, dtype=torch.float64)


def named(group):
    return pytest.mark.parametrize("entry", group, ids=lambda e: e.name)


def other(entry):
    """A second set of parameters, so that a letter that is forgotten or swapped shows."""
    shifted = {}
    for i, (p, v) in enumerate(entry.params.items()):
        new = [1.07 * x + 0.03 * (i + 1) + 0.02 * k for k, x in enumerate(v if isinstance(v, list) else [v])]
        shifted[p] = new if isinstance(v, list) else v if isinstance(v, int) else new[0]
    return shifted | dict(entry.test)


def sets(entry):
    return [dict(entry.params), other(entry)] if entry.params else [{}]


def points(entry, params):
    """Between −8 and 8, and close by on both sides of every place that a parameter or a number of the formula may mark."""
    lo, hi = max(-8.0, entry.domain[0]), min(8.0, entry.domain[1])
    if hi - lo < 2:
        return [lo + (hi - lo) * k / 12 for k in range(1, 12)]
    plain = [-7.83, -6.1, -4.37, -3.29, -2.51, -1.73, -1.27, -0.91, -0.63, -0.37, -0.17, -0.043]
    marks = [x for v in params.values() for x in (v if isinstance(v, list) else [v])]
    marks += [float(x) for x in re.findall(r"\d+\.?\d*", entry.formula)]
    around = [sign * x + step for x in [0, *marks] for sign in (1, -1) for step in (-0.0023, 0.0019, 0.31)]
    return sorted({x for x in [*plain, *(0.011 - x for x in plain), *around] if lo < x < hi and abs(x) > 1e-3})


def exact(value):
    return [mp.mpf(x) for x in value] if isinstance(value, list) else value if isinstance(value, int) else mp.mpf(value)


def slopes(f, z):
    return torch.autograd.grad(f(z).sum(), z)[0]


@named(ELEMENTWISE)
def test_value_and_gradient_are_those_of_the_formula(entry):
    with mp.workdps(25):
        for params in sets(entry):
            zs = points(entry, params)
            numbers = {p: exact(v) for p, v in params.items()}
            reference = functools.partial(evaluate, entry, lib=mp, **numbers)
            z = torch.tensor(zs, dtype=torch.float64, requires_grad=True)
            y = functional(entry.name)(z, **params)
            assert y.dtype == torch.float64
            expected = [float(mp.re(reference(mp.mpf(x)))) for x in zs]
            torch.testing.assert_close(y.tolist(), expected, rtol=1e-10, atol=1e-10)
            if entry.name not in STRAIGHT_THROUGH:
                slope = [float(mp.re(mp.diff(reference, x))) for x in zs]
                torch.testing.assert_close(torch.autograd.grad(y.sum(), z)[0].tolist(), slope, rtol=1e-8, atol=1e-9)


@named(ELEMENTWISE)
def test_values_on_2001_points(entry):
    inside = Z[(entry.domain[0] <= Z) & (entry.domain[1] >= Z)]
    expected = []
    for x in inside.tolist():
        try:
            expected.append(evaluate(entry, x))
        except ZeroDivisionError:  # a hole of the formula that the code fills
            expected.append(float("nan"))
    y, expected = functional(entry.name)(inside), torch.tensor(expected, dtype=torch.float64)
    holes = expected.isnan()
    assert holes.sum() <= 2
    torch.testing.assert_close(y[~holes], expected[~holes], rtol=1e-10, atol=1e-10)


@named([e for e in ELEMENTWISE if e.params])
def test_gradients_of_the_parameters(entry):
    """Against central differences of the formula in mpmath, for all parameters, trained or not."""
    params = other(entry)
    smooth = {p: v for p, v in params.items() if not isinstance(v, int)}
    zs = points(entry, params)[1::5]
    tensors = {p: torch.tensor(v, dtype=torch.float64, requires_grad=True) for p, v in smooth.items()}
    z = torch.tensor(zs, dtype=torch.float64)
    y = functional(entry.name)(z, **(params | tensors)).expand(len(zs)).sum()
    if entry.name in STRAIGHT_THROUGH:
        return
    found = torch.autograd.grad(y, list(tensors.values()), allow_unused=True) if y.requires_grad else [None] * len(tensors)
    with mp.workdps(25):
        for p, slope in zip(smooth, found, strict=True):
            values = smooth[p] if isinstance(smooth[p], list) else [smooth[p]]

            def total(x, k, p=p, values=values):
                moved = [exact(v) if i != k else x for i, v in enumerate(values)]
                changed = {p: moved if isinstance(smooth[p], list) else moved[0]}
                return sum(
                    mp.re(evaluate(entry, mp.mpf(u), mp, **({q: exact(v) for q, v in params.items()} | changed))) for u in zs
                )

            expected = [float(mp.diff(functools.partial(total, k=k), values[k])) for k in range(len(values))]
            slope = torch.zeros(len(values)) if slope is None else slope
            torch.testing.assert_close(slope.reshape(-1).tolist(), expected, rtol=1e-7, atol=1e-7)


@named(ELEMENTWISE)
def test_float32_stays_finite_wherever_the_formula_does(entry):
    """Values and gradients up to |z| = 10^4; where the formula itself exceeds float32, nothing is asked."""
    zs = [s * x for x in (0.0, 1e-30, 1e-3, 20.0, 50.0, 89.0, 120.0, 1e3, 1e4) for s in (1, -1)]
    zs = [x for x in zs if entry.domain[0] < x < entry.domain[1]]
    z = torch.tensor(zs, requires_grad=True)
    y = functional(entry.name)(z)
    assert y.dtype == torch.float32
    slope = torch.autograd.grad(y.sum(), z)[0]
    with mp.workdps(15):
        for x, value, gradient in zip(zs, y.tolist(), slope.tolist(), strict=True):
            true = [abs(evaluate(entry, mp.mpf(u), mp)) for u in (x, x * (1 + 1e-6) + 1e-6)]
            if max(true) < 3e38 and abs(true[0] - true[1]) / mp.mpf(1e-6 * (1 + abs(x))) < 3e37:
                assert numpy.isfinite(value) and numpy.isfinite(gradient), (x, value, gradient)


@named([e for e in ELEMENTWISE if e.domain[0] < 0 < e.domain[1] and "infinite" not in e.note])
def test_the_gradient_at_0_lies_between_its_neighbours(entry):
    z = torch.tensor([-1e-9, 0.0, 1e-9], dtype=torch.float64, requires_grad=True)
    left, at, right = slopes(functional(entry.name), z).tolist()
    assert min(left, right) - 1e-4 <= at <= max(left, right) + 1e-4


# What a formula's text and torch's numbers say of its shape

BENT = {"abs", "max", "min", "relu", "sgn", "clip", "H", "hs", "elu", "pool", "pool_at", "spocu_h"}


def bends(entry):
    """Whether the text has a branch or a bent word: without one, the function is infinitely smooth."""
    for node in ast.walk(ast.parse(entry.formula)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in BENT:
            return True
        if isinstance(node, ast.IfExp):
            orders = [c for c in ast.walk(node.test) if isinstance(c, ast.Compare) and not isinstance(c.ops[0], ast.NotEq)]
            if any(getattr(n, "id", "") == "z" for c in orders for n in ast.walk(c)):
                return True
    return any(bends(find(name)) for name in entry.base)


def derivative(f):
    def slope(z):
        z = z if z.requires_grad else z.detach().requires_grad_()
        y = f(z).sum()
        if not y.requires_grad:
            return torch.zeros_like(z)
        return torch.autograd.grad(y, z, create_graph=True, allow_unused=True, materialize_grads=True)[0]

    return slope


def jumps(f, lo, hi):
    """Whether the difference over some cell of a grid does not shrink with the cell."""
    a = torch.linspace(lo, hi, 2049, dtype=torch.float64) + 1e-5
    y = f(a).detach()
    cells = torch.cat([c + y.diff().diff().abs().topk(48).indices for c in (0, 1)])  # where the slope changes most, and beside it
    a, b, fa, fb = a[cells], a[cells + 1], y[cells], y[cells + 1]
    for _ in range(26):
        m, fm = (a + b) / 2, f((a + b) / 2).detach()
        left = (fm - fa).abs() > (fb - fm).abs()
        a, fa, b, fb = (torch.where(left, u, v) for u, v in ((a, m), (fa, fm), (m, b), (fm, fb)))
    return bool(((fb - fa).abs() > 1e-4).any())


def measured(entry):
    f = functional(entry.name)
    lo, hi = max(-9.7, entry.domain[0] + 1e-3), min(9.3, entry.domain[1] - 1e-3)
    flags = []
    if bends(entry):
        orders = [f, derivative(f), derivative(derivative(f))]
        flags += [next((word for word, g in zip(("jump", "C0", "C1"), orders, strict=True) if jumps(g, lo, hi)), "C2")]
    else:
        flags += ["Coo"]
    z = torch.linspace(
        max(-30.0, lo if entry.domain[0] > -1e9 else -30), min(30.0, hi if entry.domain[1] < 1e9 else 30), 12001
    ).double()
    steps = f(z).diff() / (1 + f(z)[1:].abs())
    flags += ["monotone"] if bool((steps >= -1e-13).all() or (steps <= 1e-13).all()) else []
    near, far = torch.linspace(-1e3, 1e3, 8001).double(), torch.linspace(1e5, 1e6, 2001).double()
    far = torch.cat([-far, far])
    near, far = (x[(x > entry.domain[0]) & (x < entry.domain[1])] for x in (near, far))
    sizes = [float(f(x).abs().nan_to_num(torch.inf).max()) if len(x) else 0.0 for x in (near, far)]
    flags += ["bounded"] if sizes[0] < 1e30 and sizes[1] <= 1.5 * sizes[0] + 1e-9 else []
    if entry.domain[0] == -entry.domain[1]:
        x = torch.linspace(0.013, 9, 500).double()
        flags += ["odd"] if torch.allclose(f(x), -f(-x), rtol=1e-10, atol=1e-10) else []
        flags += ["even"] if torch.allclose(f(x), f(-x), rtol=1e-10, atol=1e-10) else []
    if entry.domain[0] < 0 < entry.domain[1]:
        at = f(torch.tensor([-1e-7, 0.0, 1e-7], dtype=torch.float64))
        flags += ["zero"] if abs(float(at[1])) < 1e-12 else []
        flags += ["slope1"] if bool(((at.diff() / 1e-7 - 1).abs() < 1e-5).all()) else []
    return tuple(flags)


@named(ELEMENTWISE)
def test_the_declared_flags_hold_and_no_others(entry):
    assert entry.flags == measured(entry)


# Entries that are no function of one number

G = torch.Generator().manual_seed(0)


@named([e for e in ALL.values() if e.kind in ("gate", "expand")])
def test_gates_and_expansions_are_their_formula(entry):
    params, n = other(entry), 16
    z = (4 * torch.randn(2, n, generator=G, dtype=torch.float64)).requires_grad_()
    inputs = z.unbind(0) if entry.kind == "gate" else z[:1]
    y = functional(entry.name)(*inputs, **params)
    y = y if isinstance(y, tuple) else (y,)
    slope = torch.autograd.grad(sum(v.sum() for v in y), z)[0]
    with mp.workdps(25):
        numbers = {p: exact(v) for p, v in params.items()}

        def outputs(a, b):
            found = evaluate(entry, a, mp, gate=b, **numbers)
            return list(found) if isinstance(found, tuple | list) else [found]

        for i, (a, b) in enumerate(z.T.tolist()):
            values = [float(v) for v in outputs(mp.mpf(a), mp.mpf(b))]
            torch.testing.assert_close([v.detach().reshape(-1)[i].item() for v in y], values, rtol=1e-10, atol=1e-10)
            expected = [float(mp.diff(lambda x, y: mp.fsum(outputs(x, y)), (a, b), order)) for order in ((1, 0), (0, 1))]
            torch.testing.assert_close(slope[:, i].tolist(), expected, rtol=1e-7, atol=1e-8)


@named([e for e in ALL.values() if e.kind in ("vector", "data")])
def test_vectors_and_statistics_are_their_formula(entry):
    params = other(entry)
    z = torch.tensor([0.31, -1.7, 2.9, -0.4, 1.13, 0.02], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5, -1.0], dtype=torch.float64)
    y = functional(entry.name)(z, **params)
    expected = evaluate_vector(entry, z.detach().numpy(), **params)
    torch.testing.assert_close(y.detach(), torch.from_numpy(expected), rtol=1e-10, atol=1e-10)
    w = weights if y.dim() else weights[0]
    slope = torch.autograd.grad((w * y).sum(), z)[0]

    def total(x):
        return float((w.numpy() * evaluate_vector(entry, x, **params)).sum())

    for i in range(6):
        step = 1e-6 * numpy.eye(6)[i]
        difference = (total(z.detach().numpy() + step) - total(z.detach().numpy() - step)) / 2e-6
        assert abs(float(slope[i]) - difference) < 1e-6
    if entry.kind == "vector" and y.dim():  # every other place of the dimension says the same
        stack = torch.stack([z, 2 * z, -z], 1).detach()
        torch.testing.assert_close(functional(entry.name)(stack, dim=0, **params)[:, 0], y.detach())


def test_layers_are_their_formula():
    wig, z = activation("wig", size=3), torch.randn(5, 3, generator=G)
    torch.testing.assert_close(wig(z), z * (z @ wig.gate.weight.T + wig.gate.bias).sigmoid())
    scaa, x = activation("funrelu", size=2), torch.randn(1, 2, 4, 4, generator=G)
    padded = F.pad(x, (1, 1, 1, 1))
    around = sum(
        scaa.around.weight[:, 0, i, j, None, None] * padded[0, :, i : i + 4, j : j + 4] for i in range(3) for j in range(3)
    )
    torch.testing.assert_close(scaa(x)[0], torch.maximum(x[0], around + scaa.around.bias[:, None, None]))


# Identities of card 085, and torch's own


def same(left, right, z=Z, tolerance=1e-10):
    f, g = (functional(name)(z, **params) for name, params in (left, right))
    torch.testing.assert_close(f, g, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("left", "a", "right", "b", "tolerance"),
    [
        ("swish", {"a": 1.0}, "silu", {}, 1e-12),
        ("acon_b", {"a": 1.0, "b": 0.0}, "silu", {}, 1e-12),
        ("acon_c", {"a": 1.0, "b": 0.0, "c": 1.0}, "silu", {}, 1e-12),
        ("eis_3", {"d": 1.0, "e": 1.3}, "swish", {"a": 1.3}, 1e-12),
        ("smu", {"a": 0.25, "b": 1e9}, "prelu", {}, 1e-8),
        ("sau", {"a": 0.25, "b": 1e9}, "prelu", {}, 1e-8),
        ("smu_1", {"a": 0.1, "m": 0.1**0.5}, "lreluplus", {"a": 0.1, "e": 0.1}, 1e-12),
        ("celu", {"a": 1.0}, "elu", {"a": 1.0}, 1e-12),
        ("mpelu", {"a": 1.0, "b": 1.0}, "elu", {}, 1e-12),
        ("pelu", {"a": 1.0, "b": 1.0}, "elu", {}, 1e-12),
        ("felu", {"a": 1.0}, "elu", {}, 1e-12),
        ("pdelu", {"a": 1.0, "b": 1 - 1e-9}, "elu", {}, 1e-6),
        ("lisht", {}, "soft_modulus_t", {"a": 1.0}, 1e-12),
        ("soft_exponential", {"a": 0.0}, "identity", {}, 1e-12),
        ("psgu", {"a": 1.0}, "tsrelu", {}, 1e-12),
        ("tbsrelul", {"a": 1.0}, "tbsrelu", {}, 1e-12),
        ("dprelu", {"a": 1.0, "b": 0.25}, "prelu", {"a": 0.25}, 1e-12),
        ("srelu", {"tr": 1.0, "tl": 0.0, "ar": 0.3, "al": 0.02}, "alisa", {"ar": 0.3, "al": 0.02}, 1e-12),
        ("disrelu", {"a": 1.0}, "shifted_relu", {}, 1e-12),
        ("polu", {"a": 1.0}, "polylu", {}, 1e-12),
        ("suish", {}, "reu", {}, 1e-12),
        ("sielu", {}, "gelu_tanh", {}, 1e-12),
        ("saaaf", {}, "srs", {}, 1e-12),
        ("tanhsoft", {"a": 0.87, "b": 0.0, "c": 1.0, "d": 1.0}, "tanhsoft_1", {"a": 0.87}, 1e-12),
        ("falu", {"a": 0.0, "b": 1.0}, "silu", {}, 1e-12),
        ("uaf", {}, "identity", {}, 1e-12),
        ("splash", {}, "relu", {}, 1e-12),
        ("maxout", {}, "relu", {}, 1e-12),
        ("fsa", {}, "sine", {}, 1e-12),
        ("lreluplus", {"a": 0.01, "e": 1e-20}, "leaky_relu", {}, 1e-9),
        ("vreluplus", {"e": 1e-20}, "vrelu", {}, 1e-9),
        ("panplus", {"a": 1.0, "e": 1e-20}, "pan", {"a": 1.0}, 1e-9),
        ("softshrinkplus", {"a": 0.5, "e": 1e-20}, "softshrink", {"a": 0.5}, 1e-9),
        ("hardtanhplus", {"e": 1e-20}, "hard_tanh", {}, 1e-9),
        ("breluplus", {"e": 1e-20}, "brelu", {"a": 1.0}, 1e-9),
        ("eluplus", {"e": 1e-20}, "elu", {}, 1e-9),
        ("softsignplus", {"e": 1e-20}, "softsign", {}, 1e-9),
        ("signreluplus", {"e": 1e-20}, "signrelu", {}, 1e-9),
        ("meluplus", {"b": 1.0, "c": 1.0, "e": 1e-20}, "hat", {"a": 2.0}, 1e-9),
    ],
)
def test_identities(left, a, right, b, tolerance):
    same((left, a), (right, b), tolerance=tolerance)


def test_identities_at_single_points():
    one = torch.tensor([0.3, 0.9, 2.0], dtype=torch.float64)
    torch.testing.assert_close(functional("soft_exponential")(one, a=1.0), one.exp())
    torch.testing.assert_close(functional("soft_exponential")(one, a=-1.0), one.log())
    zero = torch.zeros(1, dtype=torch.float64)
    assert functional("arelu")(one - 3, a=1.5).tolist() == (0.99 * (one - 3)).tolist()
    assert functional("eelu")(one, n=9.0).tolist() == (2 * one).tolist()
    torch.testing.assert_close(functional("squareplus")(zero, e=4 * numpy.log(2) ** 2), F.softplus(zero))


def test_torchs_own_agree():
    theirs = {
        "sigmoid": F.sigmoid, "tanh": F.tanh, "softsign": F.softsign, "silu": F.silu, "gelu": F.gelu, "log_sigmoid": F.logsigmoid,
        "mish": F.mish, "relu": F.relu, "relu6": F.relu6, "hard_swish": F.hardswish, "hard_tanh": F.hardtanh, "elu": F.elu,
        "selu": F.selu, "softplus": F.softplus, "hardshrink": F.hardshrink, "softshrink": F.softshrink, "leaky_relu": F.leaky_relu,
        "celu": F.celu, "softmax": lambda z: F.softmax(z, -1),
    }  # fmt: skip
    for name, f in theirs.items():
        torch.testing.assert_close(functional(name)(Z), f(Z), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(activation("glu")(Z[:-1]), F.glu(Z[:-1]))
    torch.testing.assert_close(activation("prelu")(Z.float()), F.prelu(Z.float(), torch.tensor([0.25])))


# The table, the modules, the command line


def test_the_table_is_sound():
    assert len(ALL) >= 400 and len([e for e in ALL.values() if not e.uncertain]) >= 390
    names = [key(n) for e in ALL.values() for n in (e.name, *e.aliases)]
    assert len(names) == len(set(names))
    for e in ALL.values():
        assert e.section[0] in "34" and e.kind in KINDS and e.file in FILES
        assert set(e.train) | set(e.positive) | set(e.draw) | set(e.test) <= set(e.params), e.name
        used = {n.id for n in ast.walk(ast.parse(e.formula)) if isinstance(n, ast.Name)}
        assert set(e.params) <= used or e.kind == "layer", e.name
        assert {"g", "h"} & used == set("gh"[: len(e.base)]) or e.name == "rsign", e.name
    assert len(gaps()) > 20 and not {key(g.name) for g in gaps()} & set(names)
    assert find("Leaky-ReLU") is find("lrelu") is ALL["leaky_relu"]


def test_unknown_names_and_parameters_are_refused():
    for call, words in (
        (lambda: activation("rellu"), "did you mean 'r?e?lu"),
        (lambda: activation("swish", b=1.0), "swish: unknown parameter 'b'.*allowed: a"),
        (lambda: functional("relu")(Z, a=1.0), "it has none"),
        (lambda: activation("pelu", a=-1.0), "pelu: a must be positive, got -1.0"),
        (lambda: activation("msaf", b=1.0), "b must look like"),
        (lambda: activation("prelu", size=0), "size: must be positive"),
        (lambda: activation("wig"), "size: wig needs the number of features"),
        (lambda: functional("wig"), "weights of its own"),
        (lambda: activation("taaf", base="glu"), "base: must be elementwise"),
        (lambda: activation("relu", base="tanh"), "base: relu takes 0"),
        (lambda: gain("softmax"), "gain: softmax is not a function of one number"),
    ):
        with pytest.raises(Refused, match=words):
            call()


@named([e for e in ALL.values() if e.kind != "layer"])
def test_modules_equal_functions_and_keep_their_state(entry):
    z = torch.randn(3, 8, generator=G)
    one, each = activation(entry.name).eval(), activation(entry.name, size=4 if entry.kind == "gate" else 8).eval()
    inputs = z.chunk(2, -1) if entry.kind == "gate" else (z,)
    y = functional(entry.name)(*inputs)
    y = torch.cat(y, -1) if isinstance(y, tuple) else y
    torch.testing.assert_close(one(z), y, equal_nan=entry.domain[0] > -1e9)
    torch.testing.assert_close(each(z), y, equal_nan=entry.domain[0] > -1e9)
    letters = {n.removeprefix("log_") for n, _ in one.named_parameters()}
    assert letters == set(entry.train) and all(p.shape[:1] == (each.size,) for p in each.parameters())
    state = {n: p + 0.1 for n, p in each.state_dict().items()}
    assert set(state) == {n for n, _ in each.named_parameters()}
    again = activation(entry.name, size=each.size).eval()
    again.load_state_dict(state)
    assert not state or entry.name == "probact" or entry.domain[0] > -1e9 or not torch.equal(again(z), each(z))


@named([e for e in ALL.values() if e.train])
def test_trained_parameters_get_a_gradient(entry):
    module = activation(entry.name, size=4)
    z = torch.rand(64, 8 if entry.kind == "gate" else 4, generator=G) * 6 - (0 if entry.domain[0] >= 0 else 3)
    module(z).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert any(p.grad.abs().max() > 0 for p in module.parameters())


def test_sharing_by_feature_in_any_dimension():
    module = activation("prelu", size=3, dim=1)
    module.a.data = torch.tensor([0.0, 0.5, 1.0])
    x = -torch.ones(2, 3, 4, 4)
    assert module(x)[1, :, 2, 3].tolist() == [0.0, -0.5, -1.0]
    assert activation("splash", size=3, dim=1)(x).shape == x.shape
    assert activation("crelu", dim=1)(x).shape == (2, 6, 4, 4) and activation("glu", dim=-1)(x).shape == (2, 3, 4, 2)
    assert [p for p, _ in activation("srs", train=True).named_parameters()] == ["a", "b"]
    assert not list(activation("swish", train=False).parameters())
    torch.testing.assert_close(activation("taaf", base="relu", a=2.0)(x + 3), 2 * (x + 3))


def test_random_ones_draw_in_training_and_rest_in_evaluation():
    torch.manual_seed(0)
    module, z = activation("rrelu"), -torch.ones(20_000)
    drawn = -1 / module(z)
    assert 3 <= drawn.min() < 3.01 and 7.99 < drawn.max() <= 8 and abs(drawn.mean() - 5.5) < 0.05
    module.eval()
    torch.testing.assert_close(module(z), z / 5.5)
    shift = activation("rt_relu")(z + 6) - 5
    assert abs(shift.mean()) < 0.02 and abs(shift.std() - 0.75) < 0.02


def test_gain_keeps_the_second_moment():
    assert abs(gain("tanh") - 1.5925) < 1e-3 and abs(gain("identity") - 1) < 1e-9
    assert abs(gain("relu") - 2**0.5) < 1e-6
    draws = torch.randn(400_000, generator=G).double()
    for name in ("silu", "mish", "elu", "softplus"):
        assert abs(gain(name) ** -2 - float(functional(name)(draws).square().mean())) < 0.01


def test_compiles_autocasts_and_moves():
    with torch.autocast("cpu", torch.bfloat16):
        for name in ("gelu", "selu", "pelu", "abu", "hclsh", "safe_pau"):
            assert activation(name)(torch.randn(4, 4, generator=G).bfloat16()).isfinite().all()
    assert activation("splash").double()(Z).dtype == torch.float64
    lines = [
        "import torch; from neuropil.nn.activations import activation; x = torch.linspace(-4, 4, 8)",
        "for n in ('pelu', 'safe_pau', 'crelu', 'kwta', 'taaf'):",
        "    torch._dynamo.reset(); f = activation(n).eval(); g = torch.compile(f, backend='eager', fullgraph=True)",
        "    torch.testing.assert_close(g(x), f(x))",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_command_lists_them_without_torch():
    code = "import sys; from neuropil.cli import neuropil; neuropil(['list', '--activations', '--json'], standalone_mode=False)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    assert {row["name"] for row in listed["activations"]} == set(ALL) and len(listed["gaps"]) == len(gaps())


def test_gallery_and_mlp_use_the_registry():
    pytest.importorskip("matplotlib").use("Agg")
    figure = activations.gallery(limit=45)
    assert len(figure.axes[0].texts) == 45
    mlp = MLP([3, 5, 5, 2], activation="pelu")
    assert len([p for n, p in mlp.named_parameters() if "log_a" in n]) == 2 and isinstance(MLP([3, 5, 2], "relu")[1], nn.ReLU)
    with pytest.raises(Refused, match=r"crelu.*elementwise"):
        MLP([3, 5, 2], activation="crelu")
