"""Fields by name and budget, and many fits at once."""

import pytest
import torch
from torch.autograd import grad

from neuropil.errors import Refused
from neuropil.fields.field import NAMES, build, fit_many, parameters_of


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("d", [2, 3])
def test_budget_is_kept_and_used(name, d):
    field = build(name, d, 3, 20_000)
    assert 0.6 * 20_000 < parameters_of(field) <= 20_000
    assert field(torch.zeros(4, 5, d)).shape == (4, 5, 3)


@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_derivatives_agree_with_differences(name):
    torch.manual_seed(0)
    field = build(name, 2, 1, 3000).double()
    x = torch.tensor([[0.123, -0.456], [-0.71, 0.333]], dtype=torch.float64, requires_grad=True)
    slope = grad(field(x).sum(), x, create_graph=True)[0]
    bend = grad(slope[:, 0].sum(), x)[0] if slope.requires_grad else torch.zeros_like(x)
    h = 1e-6 * torch.eye(2, dtype=torch.float64)
    for axis in range(2):
        ahead, behind = ((x + s * h[axis]).detach().requires_grad_() for s in (1, -1))
        difference = (field(ahead) - field(behind)).detach()[:, 0] / 2e-6
        torch.testing.assert_close(slope[:, axis].detach(), difference, rtol=1e-4, atol=1e-6)
        slopes = [grad(field(y).sum(), y)[0][:, 0] for y in (ahead, behind)]
        torch.testing.assert_close(bend[:, axis], (slopes[0] - slopes[1]) / 2e-6, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_state_goes_round(name):
    one, other = build(name, 2, 3, 3000), build(name, 2, 3, 3000)
    x = 2 * torch.rand(10, 2) - 1
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


@pytest.mark.parametrize("name", NAMES)
def test_fits_under_autocast(name):
    torch.manual_seed(0)
    field, x = build(name, 2, 1, 2000), 2 * torch.rand(256, 2) - 1
    target = (3 * x).sin().prod(-1, keepdim=True)
    optimizer = torch.optim.Adam(field.parameters(), 1e-2)
    errors = []
    for _ in range(30):
        with torch.autocast("cpu", torch.bfloat16):
            error = (field(x) - target).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.6 * errors[0]


@pytest.mark.parametrize("name", ["siren", "hash", "planes"])
def test_many_fits_are_single_fits(name):
    torch.manual_seed(0)
    x = 2 * torch.rand(3, 64, 2) - 1
    y = torch.stack([(a * p).sin().sum(-1, keepdim=True) for a, p in zip((1.0, 2.0, 3.0), x, strict=True)])
    fields, twins = ([build(name, 2, 1, 1500).double() for _ in range(3)] for _ in range(2))
    x, y = x.double(), y.double()
    for field, twin in zip(fields, twins, strict=True):
        twin.load_state_dict(field.state_dict())
    errors = fit_many(fields, x, y, steps=5, lr=1e-2)
    for m, twin in enumerate(twins):
        optimizer = torch.optim.Adam(twin.parameters(), 1e-2)
        for step in range(5):
            error = (twin(x[m]) - y[m]).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            torch.testing.assert_close(errors[step, m], error.detach(), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(fields[m](x[m]), twin(x[m]), rtol=1e-5, atol=1e-6)


def test_random_features_fill_in_between_samples_in_space():
    torch.manual_seed(0)
    x = 2 * torch.rand(2_500, 3) - 1
    y = (x.norm(dim=1, keepdim=True) - 0.5).tanh()
    field = build("gaussian", 3, 1, 5_000)
    fit_many([field], x[None, :2_000], y[None, :2_000], steps=150, lr=5e-3)
    unseen = (field(x[2_000:]) - y[2_000:]).square().mean() / y.var()
    assert unseen < 0.2  # about 0.05; features as fine as those for pictures make it worse than the mean


def test_many_fits_by_batches_come_down():
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 100)[None, :, None].expand(2, -1, -1)
    errors = fit_many([build("siren", 1, 1, 500) for _ in range(2)], x, (4 * x).sin(), steps=60, batch=32)
    assert errors.shape == (60, 2) and (errors[-1] < 0.2 * errors[0]).all()


def test_refuses():
    with pytest.raises(Refused, match="name: unknown 'sirene'; did you mean 'siren'"):
        build("sirene", 2, 3, 1000)
    with pytest.raises(Refused, match="parameters:"):
        build("hash", 2, 3, 10)
    field, x = build("dense", 1, 1, 10), torch.zeros(2, 5, 1)
    with pytest.raises(Refused, match="fields, x, y:"):
        fit_many([field], x, x, steps=1)
    with pytest.raises(Refused, match="fields:"):
        fit_many([field, build("dense", 1, 1, 20)], x, x, steps=1)
