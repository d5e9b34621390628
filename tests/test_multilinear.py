"""Interpolation in stacks of grids: an independent loop, kernels against tensors, derivatives, borders, transforms, compilation."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck

from neuropil.errors import Refused
from neuropil.numerics import multilinear as module
from neuropil.numerics.multilinear import eager, multilinear, rows


def setting(d, features=2, n=40, dtype=torch.float64, levels=(3, 7, 30), most=256):
    """Points well inside cells of all levels, and a stack of grids whose last level is hashed for d ≥ 2."""
    g = torch.Generator().manual_seed(d)
    sizes = [rows(k, d, most) for k in levels]
    x = 2 * torch.rand(40 * n, d, generator=g, dtype=dtype) - 1
    f = torch.stack([(x + 1) / 2 * k % 1 for k in levels])
    x = x[((f - 0.5).abs() < 0.45).all(0).all(-1)][:n]
    return x, torch.randn(sum(sizes), features, generator=g, dtype=dtype), list(levels), sizes


def by_hand(x, table, resolutions, sizes):
    """The definition as loops over points, levels and corners, in Python's own numbers."""
    primes = [1, 2654435761, 805459861, 3674653429]
    out = []
    for point in x.tolist():
        row, start = [], 0
        for n, size in zip(resolutions, sizes, strict=True):
            u = [(min(max(p, -1.0), 1.0) + 1) / 2 * n for p in point]
            cell = [min(int(v), n - 1) for v in u]
            value = [0.0] * table.shape[1]
            for corner in itertools.product((0, 1), repeat=len(point)):
                vertex = [c + bit for c, bit in zip(cell, corner, strict=True)]
                weight = 1.0
                for v, c, bit in zip(u, cell, corner, strict=True):
                    weight *= v - c if bit else 1 - (v - c)
                if (n + 1) ** len(point) <= size:
                    index = sum(v * (n + 1) ** k for k, v in enumerate(vertex))
                else:
                    index = 0
                    for v, prime in zip(vertex, primes, strict=False):
                        index ^= v * prime
                    index %= size
                value = [a + weight * b for a, b in zip(value, table[start + index].tolist(), strict=True)]
            row += value
            start += size
        out.append(row)
    return torch.tensor(out, dtype=x.dtype)


def both(x, table, resolutions, sizes):
    """(y, ∂/∂x, ∂/∂table) of the kernels and of the tensor operations."""
    g = torch.randn(len(x), len(sizes) * table.shape[1], generator=torch.Generator().manual_seed(9), dtype=x.dtype)
    results = []
    for read in (module._compiled, eager):
        a, b = x.clone().requires_grad_(), table.clone().requires_grad_()
        y = read(a, b, resolutions, sizes)
        results.append((y.detach(), *grad(y, (a, b), g)))
    return results


@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize("read", ["kernels", "eager"])
def test_is_the_definition(d, read):
    given = setting(d)
    found = (multilinear if read == "kernels" else eager)(*given)
    torch.testing.assert_close(found, by_hand(*given), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("d", "features", "dtype"), [(2, 2, torch.float64), (3, 2, torch.float32), (3, 5, torch.float64), (1, 2, torch.float64)]
)
def test_kernels_equal_tensor_operations(d, features, dtype):
    given = setting(d, features, 3000, dtype)
    for mine, theirs in zip(*both(*given), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 if dtype == torch.float32 else 1e-11)


def test_more_threads_give_equal_bits():
    x, table, resolutions, sizes = setting(3, 2, 5000, torch.float32)
    x = x.repeat(3, 1)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(both(x, table, resolutions, sizes)[0])
    finally:
        torch.set_num_threads(threads)
    for one, other in itertools.product(found[:1], found[1:]):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_first_and_second_derivatives(d):
    x, table, resolutions, sizes = setting(d, 1, 3, levels=(3, 5), most=16)
    inputs = (x.requires_grad_(), table.requires_grad_())
    f = lambda x, table: multilinear(x, table, resolutions, sizes)  # noqa: E731
    assert gradcheck(f, inputs) and gradgradcheck(f, inputs)


def test_third_derivative_of_the_kernels_is_whole():
    """∂³/∂x∂y∂z of a trilinear cell: the signed sum of its corners, which a graph cut after two would lose."""
    x, table, resolutions, sizes = setting(3, 1, 4)

    def third(read):
        a = x.clone().requires_grad_()
        y = read(a, table, resolutions, sizes).sum()
        for axis in range(3):
            y = grad(y, a, create_graph=True)[0][:, axis].sum()
        return y.detach()

    assert abs(float(third(eager))) > 1e-3
    torch.testing.assert_close(third(multilinear), third(eager))


def test_without_numba_tensor_operations_do_it(monkeypatch):
    given = setting(2)
    expected = multilinear(*given)
    monkeypatch.setattr(module, "numba_is_there", lambda: False)
    monkeypatch.setattr(module, "_compiled", None)
    torch.testing.assert_close(multilinear(*given), expected)


def test_only_what_is_asked_for_is_computed():
    x, table, resolutions, sizes = setting(2)
    table.requires_grad_()
    multilinear(x, table, resolutions, sizes).sum().backward()
    assert x.grad is None and table.grad is not None
    # each point's weights add up to one at each level and feature
    assert float(table.grad.sum()) == pytest.approx(len(x) * 3 * 2)


def test_outside_reads_the_border_and_pulls_nothing():
    x, table, resolutions, sizes = setting(2)
    x = torch.cat([3 * x, torch.tensor([[1.0, 1.0], [-1.0, 1.0], [9.0, 0.3]], dtype=x.dtype)]).requires_grad_()
    y = multilinear(x, table, resolutions, sizes)
    torch.testing.assert_close(y, multilinear(x.clamp(-1, 1), table, resolutions, sizes))
    y.sum().backward()
    assert torch.equal(x.grad == 0, x.detach().abs() > 1)


def test_not_a_number_stays_one_and_harms_no_neighbour():
    x, table, resolutions, sizes = setting(3)
    whole = multilinear(x, table, resolutions, sizes)
    x[7, 1] = torch.nan
    for read in (multilinear, eager):
        y = read(x, table, resolutions, sizes)
        assert y[7].isnan().all()
        keep = torch.arange(len(x)) != 7
        torch.testing.assert_close(y[keep], whole[keep])


def test_no_points():
    x, table, resolutions, sizes = setting(2)
    y = multilinear(x[:0].requires_grad_(), table.requires_grad_(), resolutions, sizes)
    y.sum().backward()
    assert y.shape == (0, 6) and not table.grad.any()


def test_transforms_and_forward_mode():
    x, table, resolutions, sizes = setting(2, n=6)
    read = lambda x, table: multilinear(x, table, resolutions, sizes)  # noqa: E731
    tables = torch.stack([table, 2 * table, -table])
    torch.testing.assert_close(torch.func.vmap(read, (None, 0))(x, tables), torch.stack([read(x, t) for t in tables]))
    rows_of = torch.func.vmap(torch.func.jacrev(lambda p: read(p, table)))(x)
    columns_of = torch.func.vmap(torch.func.jacfwd(lambda p: read(p, table)))(x)
    torch.testing.assert_close(rows_of, columns_of)
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(read(forward_ad.make_dual(x, v), table)).tangent
    torch.testing.assert_close(tangent, torch.einsum("nod,nd->no", rows_of, v))


def test_operators_keep_torchs_rules():
    x, table, resolutions, sizes = setting(2, n=5, most=16)
    torch.library.opcheck(module._compiled, (x.requires_grad_(), table.requires_grad_(), resolutions, sizes))


def test_half_precision_tables_go_by_tensor_operations():
    x, table, resolutions, sizes = setting(2, dtype=torch.float32)
    y = multilinear(x, table.bfloat16(), resolutions, sizes)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), multilinear(x, table, resolutions, sizes), rtol=0.05, atol=0.05)


COMPILED = """
import torch
from neuropil.fields.grids import HashGrid
torch.manual_seed(0)
field = torch.nn.Sequential(HashGrid(2, levels=3, table=64, coarsest=4, finest=40), torch.nn.Linear(6, 1))
x = torch.rand(50, 2) * 2 - 1
step = torch.compile(lambda x: field(x), backend="aot_eager", fullgraph=True)
torch.testing.assert_close(step(x), field(x))
step(x).square().sum().backward()
found = field[0].table.grad.clone()
field.zero_grad()
field(x).square().sum().backward()
torch.testing.assert_close(found, field[0].table.grad)
"""


def test_compiles_whole():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("x", "table", "resolutions", "sizes", "name"),
    [
        (torch.zeros(1, 5), torch.zeros(4, 1), [1], [4], "x"),
        (torch.zeros(1, 2), torch.zeros(4, 1), [1], [5], "sizes"),
        (torch.zeros(1, 2), torch.zeros(6, 1), [5], [6], "sizes"),
        (torch.zeros(1, 2), torch.zeros(4, 1), [0], [4], "sizes"),
        (torch.zeros(1, 2), torch.zeros(0, 1), [], [], "sizes"),
    ],
)
def test_refuses(x, table, resolutions, sizes, name):
    with pytest.raises(Refused, match=f"^{name}:"):
        multilinear(x, table, resolutions, sizes)
