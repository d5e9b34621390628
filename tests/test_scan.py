"""`scan` is the loop over time, compiled or not; `linear_scan` equals it for linear cells; tasks have the answers that they say."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from neuropil.data import tasks
from neuropil.errors import Refused
from neuropil.nn.scan import scan
from neuropil.numerics.linear_scan import linear_scan


class Gated(nn.Module):
    """A cell whose state is a dict of two tensors: any nest will do."""

    def __init__(self):
        super().__init__()
        self.gru, self.out = nn.GRUCell(3, 5), nn.Linear(5, 2)

    def forward(self, x, state):
        h = self.gru(x, state["h"])
        return self.out(h), {"h": h, "steps": state["steps"] + 1}


def start(batch=4):
    return {"h": torch.zeros(batch, 5), "steps": torch.zeros(())}


def test_scan_is_torchs_own_gru():
    torch.manual_seed(0)
    cell, x = Gated(), torch.randn(7, 4, 3)
    whole = nn.GRU(3, 5)
    whole.load_state_dict({f"{k}_l0": v for k, v in cell.gru.state_dict().items()})
    y, state = scan(cell, x, start())
    assert torch.allclose(y, cell.out(whole(x)[0]), atol=1e-6)
    assert state["steps"] == 7


COMPILED = """
import torch
from torch import nn
from neuropil.nn.scan import scan
torch.manual_seed(0)
cell, x = nn.GRUCell(3, 5), torch.randn(11, 4, 3, requires_grad=True)
step = lambda x, h: ((h := cell(x, h)), h)
grads = []
for compiled in (None, 2):
    y, h = scan(step, x, torch.zeros(4, 5), truncate=5, compiled=compiled)
    grads.append((y, h, *torch.autograd.grad(y.square().sum(), (x, *cell.parameters()))))
for a, b in zip(*grads, strict=True):
    torch.testing.assert_close(a, b)
"""


def test_compiled_equals_plain_in_values_and_gradients():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_kind_of_cell_is_compiled(monkeypatch):
    """More kinds than the 8 that torch compiles one code for; `dynamo` rather than the compiler counts."""
    graphs = []
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: compiler(f, backend=lambda g, _: graphs.append(g) or g.forward, **options)
    )
    cells = [type(f"Cell{i}", (nn.Module,), {"forward": lambda self, x, h: (x + h, h)})() for i in range(12)]
    with torch.no_grad():
        for n, cell in enumerate(cells, start=1):
            assert scan(cell, torch.ones(2, 3), torch.zeros(3), compiled=2)[0].sum() == 6
            assert len(graphs) == n
        scan(cells[0], torch.zeros(2, 3), torch.zeros(3), compiled=2)
    assert len(graphs) == 12


def test_truncation_cuts_the_gradient_at_its_border():
    x = torch.ones(6, 1, requires_grad=True)
    y, _ = scan(lambda x, h: (h + x, h + x), x, torch.zeros(1), truncate=3)
    y[-1].sum().backward()
    assert x.grad[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert y[-1].item() == 6


@pytest.mark.parametrize(("steps", "options"), [(0, {}), (3, {"truncate": 0}), (3, {"compiled": -1})])
def test_scan_refuses(steps, options):
    with pytest.raises(Refused, match=r"at least 1|at least one"):
        scan(lambda x, h: (x, h), torch.zeros(steps, 1), None, **options)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 37])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_linear_scan_equals_the_loop_with_gradients(steps, dtype):
    torch.manual_seed(steps)
    a, b, h0 = (torch.randn(n, 3, dtype=dtype, requires_grad=True) for n in (steps, steps, 1))
    h, states = h0[0], []
    for t in range(steps):
        h = a[t] * h + b[t]
        states.append(h)
    y, z = torch.stack(states), linear_scan(a, b, h0[0])
    assert torch.allclose(y, z)
    for one, two in zip(*(torch.autograd.grad(v.abs().square().sum(), (a, b, h0)) for v in (y, z)), strict=True):
        assert torch.allclose(one, two)


def test_linear_scan_of_matrices():
    torch.manual_seed(0)
    a, b = torch.randn(9, 2, 3, 3, dtype=torch.float64), torch.randn(9, 2, 3, dtype=torch.float64)
    h, expected = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(9):
        h = (a[t] @ h[..., None])[..., 0] + b[t]
        expected.append(h)
    assert torch.allclose(linear_scan(a, b, matrix=True), torch.stack(expected))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_linear_scan_has_one_dtype_whatever_the_number_of_steps(steps):
    a, b = torch.full((steps, 2), 1j), torch.ones(steps, 2)
    assert linear_scan(a, b).dtype == linear_scan(b, a).dtype == torch.complex64
    assert linear_scan(b, b, torch.zeros(2, dtype=torch.float64)).dtype == torch.float64
    assert linear_scan(torch.tensor(0.5), b).dtype == torch.float32


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_linear_scan_under_vmap(steps):
    a, b = torch.rand(3, steps, 2), torch.randn(3, steps, 2)
    expected = torch.stack([linear_scan(*pair) for pair in zip(a, b, strict=True)])
    torch.testing.assert_close(torch.vmap(linear_scan)(a, b), expected)
    torch.testing.assert_close(torch.vmap(linear_scan, (None, 0))(a[0], b)[0], expected[0])


def test_linear_scan_refuses():
    with pytest.raises(Refused, match="at least one time step"):
        linear_scan(torch.ones(0, 2), torch.ones(0, 2))
    with pytest.raises(Refused, match="broadcast"):
        linear_scan(torch.ones(3, 5), torch.ones(3, 2))


def test_copy_task_asks_for_what_was_said():
    x, y = tasks.copy_task(5, 7, torch.Generator().manual_seed(0), symbols=4, length=3)
    said = x.argmax(-1)
    assert x.shape == (13, 5, 6)
    assert (said[:3] >= 1).all() and (said[:3] <= 4).all()
    assert (y[-3:] == said[:3]).all() and (y[:-3] == 0).all()
    assert (said[9] == 5).all() and (said[3:9] == 0).all() and (said[10:] == 0).all()


def test_adding_task_marks_one_number_in_each_half():
    x, y = tasks.adding_task(200, 9, torch.Generator().manual_seed(0))
    assert (x[:4, :, 1].sum(0) == 1).all() and (x[4:, :, 1].sum(0) == 1).all()
    assert torch.allclose((x[..., 0] * x[..., 1]).sum(0), y)
    assert abs(float((y - 1).square().mean()) - 1 / 6) < 0.05


def test_parity_counts_minus_ones():
    x, y = tasks.parity_task(3, 6, torch.Generator().manual_seed(1))
    assert (((-1.0) ** y) == x[..., 0].cumprod(0)).all()


def test_permuted_digits_are_the_digits():
    plain, labels = tasks.digit_sequences("sklearn")
    mixed, same = tasks.digit_sequences("sklearn", permuted=3)
    assert (labels == same).all() and not torch.equal(plain, mixed)
    assert torch.equal(plain.sort(0).values, mixed.sort(0).values)


@pytest.mark.parametrize("make", [lambda g: tasks.copy_task(0, 5, g), lambda g: tasks.adding_task(3, 1, g)])
def test_tasks_refuse(make):
    with pytest.raises(Refused, match="at least"):
        make(torch.Generator())
