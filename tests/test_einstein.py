"""Einstein fields: derivatives by hand against nested autodiff, the loss, training, what is stored; SOAP; the claims' tools."""

import io
from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

from neuropil.claims.fields import einstein_fields as claims
from neuropil.data import spacetimes as st
from neuropil.errors import Refused
from neuropil.fields.einstein import EinsteinField, fit_metric, pairs, sobolev_loss, targets, unpack
from neuropil.numerics.curvature import geometry, jet
from neuropil.training.soap import SOAP

X = st.shell(6, 3.0, 10.0, torch.Generator().manual_seed(0)) + torch.tensor([0.7, 0.0, 0.0, 0.0])
POLAR = torch.tensor([[0.1, 4.0, 1.0, 0.3], [0.2, 7.0, 2.0, 5.0], [0.5, 5.0, 0.4, 1.0]], dtype=torch.float64).repeat(2, 1)


def field_of(**options):
    torch.manual_seed(0)
    field = EinsteinField(width=12, layers=2, **options)
    field.standardise(POLAR if options.get("flat") is st.minkowski_spherical else X, torch.randn(6, 10).double())
    return field.requires_grad_(False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "sine"},
        {"reads": (1, 2, 3)},
        {"reads": (1, 2), "flat": st.minkowski_spherical},
        {"flat": None},
    ],
)
def test_derivatives_by_hand_equal_nested_autodiff(options):
    field = field_of(**options)
    x = POLAR if options.get("flat") is st.minkowski_spherical else X
    ours, theirs = field.geometry(x), geometry(field, x)
    for name in ("g", "dg", "ddg", "riemann", "kretschmann"):
        assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-12, rtol=1e-9)
    assert ours.ddg.abs().max() > 1e-4
    assert_close(ours.g, field(x))
    first = field.geometry(x.view(1, -1, 4), order=1)
    assert_close(first.christoffel[0], ours.christoffel)
    unread = [k for k in range(4) if k not in field.reads]
    if unread and options.get("flat") is None:
        assert ours.dg[:, unread].abs().max() == 0


def test_the_field_is_the_flat_metric_plus_its_triangle():
    field = field_of()
    D = field.distortion(X)
    g = field(X) - st.minkowski(X)
    row, column = torch.triu_indices(4, 4)
    assert_close(g[:, row, column], D)
    assert_close(g, g.transpose(1, 2))
    assert_close(field_of(flat=None)(X)[:, row, column], D)


def test_targets_are_what_the_jet_of_a_perfect_field_would_be():
    field = EinsteinField(width=4, layers=1, reads=(1, 2, 3))
    channels = targets(st.schwarzschild_kerr_schild, field, X)
    g, dg, ddg = jet(st.schwarzschild_kerr_schild, X)
    for part, truth in zip(unpack(channels, field.reads, 2), (g - st.minkowski(X), dg, ddg), strict=True):
        assert_close(part, truth)
    assert len(targets(st.schwarzschild_kerr_schild, field, X, 0)) == 1
    assert pairs(3)[1][3] == 1
    assert_close(channels[4 + 3][:, 0], ddg[:, 2, 2, 0, 0])  # ∂_y ∂_y of the first component


def test_the_loss_weighs_orders_alike():
    target = torch.randn(10, 5, 10).double()
    scale = torch.rand(10, 10).double() + 0.1
    off = target.clone()
    off[1:4] += scale[1:4, None]
    assert_close(sobolev_loss(off, target, scale, 3), torch.tensor(1.0).double())
    off[4:] -= 2 * scale[4:, None]
    assert_close(sobolev_loss(off, target, scale, 3), torch.tensor(5.0).double())
    assert_close(sobolev_loss(off[:1], target[:1], scale[:1], 3), torch.tensor(0.0).double())


def quiet(what, fraction):
    pass


@pytest.mark.parametrize("order", [0, 1, 2])
def test_training_lowers_the_errors(order):
    x = st.shell(512, 3.0, 10.0, torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    field = EinsteinField(width=16, layers=2, reads=(1, 2, 3))
    history = fit_metric(field, st.schwarzschild_kerr_schild, x, order=order, steps=60, lr=0.1, batch=64, report=quiet)
    assert history.steps == 60
    assert history.losses[-1] < 0.6 * history.losses[0]
    with torch.no_grad():
        error = (field(X) - st.schwarzschild_kerr_schild(X)).norm() / (st.schwarzschild_kerr_schild(X) - st.minkowski(X)).norm()
    assert error < 0.5


def test_state_goes_through_a_file():
    field = field_of()
    file = io.BytesIO()
    torch.save(field.state_dict(), file)
    again = EinsteinField(width=12, layers=2)
    again.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert_close(again(X), field(X))
    single = field_of(dtype=torch.float32)
    assert single.geometry(X.float()).kretschmann.dtype == torch.float32
    assert_close(single(X.float()).double(), field(X), atol=1e-4, rtol=1e-4)


def test_soap_does_not_care_how_the_weights_are_turned():
    """Turning rows and columns of a problem turns the path; Adam's depends on the axes."""
    g = torch.Generator().manual_seed(0)
    inputs, true, start = (torch.randn(n, 5, generator=g, dtype=torch.float64) for n in (40, 5, 5))
    U, V = (torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=torch.float64))[0] for _ in range(2))

    def path(make, inputs, true, start):
        w = torch.nn.Parameter(start.clone())
        optimizer = make([w])
        for _ in range(25):
            optimizer.zero_grad()
            (inputs @ (w - true).T).square().mean().backward()
            optimizer.step()
        return w.detach()

    def both(make):
        plain = path(make, inputs, true, start)
        return U @ plain @ V.T, path(make, inputs @ V.T, U @ true @ V.T, U @ start @ V.T)

    turned, path_of_the_turned = both(lambda p: SOAP(p, lr=0.05, every=3))
    assert_close(turned, path_of_the_turned)
    assert (turned - U @ start @ V.T).norm() > 0.5
    turned, path_of_the_turned = both(lambda p: torch.optim.Adam(p, lr=0.05))
    assert (turned - path_of_the_turned).norm() > 0.1


def test_soap_keeps_its_state_and_leaves_vectors_to_adam():
    w, v = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4))
    adam = torch.nn.Parameter(torch.ones(4))
    one, two = SOAP([w, v], lr=0.1, betas=(0.9, 0.9), every=1), torch.optim.Adam([adam], lr=0.1, betas=(0.9, 0.9))
    for _ in range(4):
        for p, optimizer in ((w, one), (adam, two)):
            optimizer.zero_grad()
            p.square().sum().backward()
            if p is w:
                v.square().sum().backward()
            optimizer.step()
    assert_close(v, adam, atol=1e-6, rtol=0)
    again = SOAP(
        [torch.nn.Parameter(w.detach().clone()), torch.nn.Parameter(v.detach().clone())], lr=0.1, betas=(0.9, 0.9), every=1
    )
    again.load_state_dict(deepcopy(one.state_dict()))
    for optimizer in (one, again):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.full_like(p, 0.5)
        optimizer.step()
    for ours, theirs in zip(one.param_groups[0]["params"], again.param_groups[0]["params"], strict=True):
        assert_close(ours, theirs)


def test_the_claims_tools():
    """Differences tend to the derivative; the cubic grid is exact where it must be and of fourth order; nodes are counted right."""
    field = field_of(reads=(1, 2, 3))
    exact, near = field.geometry(X), claims.differences(field, X, 1e-3)
    assert_close(near.dg, exact.dg, atol=1e-6, rtol=0)
    assert_close(near.ddg, exact.ddg, atol=1e-5, rtol=0)
    assert_close(claims.in_double(field, X).riemann, exact.riemann)
    x = st.shell(400, 3.0, 10.0, torch.Generator().manual_seed(2))
    true = st.schwarzschild_kerr_schild(x)
    coarse, fine = (claims.grid_error(x, true, h) for h in (0.2, 0.1))
    assert 12 < coarse / fine < 20
    h = 0.7
    axis = h * torch.arange(-17, 18, dtype=torch.float64)
    p = torch.cartesian_prod(axis, axis, axis)
    needed = ((p.abs() - 2 * h).clamp(min=0).norm(dim=1) <= 10.0) & ((p.abs() + 2 * h).norm(dim=1) >= 3.0)
    assert claims.nodes(h) == int(needed.sum())


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: EinsteinField(width=0), "width"),
        (lambda: EinsteinField(activation="relu"), "activation"),
        (lambda: EinsteinField(reads=(3, 1)), "reads"),
        (lambda: fit_metric(EinsteinField(width=4, layers=1), st.minkowski, X, order=3), "order"),
        (lambda: targets(st.plane_wave, EinsteinField(width=4, layers=1, reads=(1, 2, 3)), X), "reads"),
        (lambda: SOAP([torch.nn.Parameter(torch.ones(2))], lr=-1.0), "lr"),
    ],
)
def test_bad_input_names_the_argument(make, name):
    with pytest.raises(Refused, match=name):
        make()
