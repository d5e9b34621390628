"""NeRF and Nerfacto: parts in and out, gradients, state, learning; the claims' smoke runs."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from neuropil.data.cameras import Cameras, Rays, orbit
from neuropil.data.scenes import Scene
from neuropil.errors import Refused
from neuropil.fields.nerf import NeRF
from neuropil.fields.nerfacto import HashDensity, Nerfacto
from neuropil.fields.radiance import Rendered, render_picture

TINY = {"levels": 3, "table": 2**10, "finest": 32, "proposal_table": 2**9, "proposal_samples": (12,), "samples": 6}


def rays(*shape: int, far: float = 6.0) -> Rays:
    d = normalize(torch.randn(*shape, 3), dim=-1)
    o = -3 * normalize(d + 0.1 * torch.randn(*shape, 3), dim=-1)
    return Rays(o, d, torch.full(shape, 0.5), torch.full(shape, far), torch.zeros(shape, dtype=torch.long))


def stand_in(size: int = 24) -> Scene:
    """A red and green ball before white, drawn by formula."""
    cameras = Cameras(orbit(12, 3.0), torch.full((12, 2), 1.2 * size), torch.full((12, 2), size / 2), size, size)
    pictures = []
    for i in range(12):
        bundle = cameras.picture_rays(i)
        b = (bundle.origins * bundle.directions).sum(-1)
        root = b**2 - (bundle.origins.square().sum(-1) - 0.64)
        x = bundle.origins + (-b - root.clamp_min(0).sqrt())[..., None] * bundle.directions
        colour = torch.stack([(x[..., 0] > 0).float(), (x[..., 0] <= 0).float(), 0.5 + 0.5 * x[..., 2]], -1)
        pictures.append(torch.cat([colour.clamp(0, 1), (root > 0).float()[..., None]], -1))
    return Scene((torch.stack(pictures) * 255).to(torch.uint8), cameras, 1.5, 4.5)


VARIANTS = [
    {},
    {"proposal": False},
    {"contraction": False, "spacing": "uniform"},
    {"code": 0},
    {"poses": False},
    {"normals": True},
    {"sky": True},
    {"normals": True, "poses": False, "code": 0, "contraction": False, "proposal": False},
]


@pytest.mark.parametrize("parts", VARIANTS)
def test_any_pieces_learn_and_keep_their_state(parts):
    torch.manual_seed(0)
    model = Nerfacto.small(4, radius=2.0, **TINY | parts)
    model.update(50)
    target = torch.rand(2, 9, 3)
    bundle = rays(2, 9, far=30.0)
    loss = model.loss(bundle, target, torch.ones(3))
    loss.backward()
    assert loss.isfinite()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        if name == "field.encoding.table" or (name.startswith("poses") and not parts.get("normals")):
            assert p.grad.abs().sum() > 0, name
    again = Nerfacto.small(4, radius=2.0, **TINY | parts)
    again.load_state_dict(model.state_dict())
    model.eval(), again.eval()
    one, other = model(bundle, torch.ones(3)), again(bundle, torch.ones(3))
    assert isinstance(one, Rendered) and one.colour.shape == (2, 9, 3) and one.depth.shape == (2, 9)
    torch.testing.assert_close(one.colour, other.colour)
    torch.testing.assert_close(one.accumulation, model(bundle).accumulation)  # eval mode has no jitter
    assert model.loss(bundle, target).isfinite()  # nor does it need training mode


def test_batch_axes_do_not_matter():
    model = Nerfacto.small(1, **TINY).eval()
    bundle = rays(2, 3, 4)
    flat = model(bundle.map(lambda x: x.flatten(0, 2)), torch.ones(3)).colour
    torch.testing.assert_close(model(bundle, torch.ones(3)).colour.flatten(0, 2), flat)
    nerf = NeRF(width=16, coarse=5, fine=5).eval()
    torch.testing.assert_close(nerf(bundle).colour.flatten(0, 2), nerf(bundle.map(lambda x: x.flatten(0, 2))).colour)


def test_the_defaults_are_the_papers():
    with torch.device("meta"):
        model = Nerfacto(100)
    assert model.field.encoding.resolutions[0] == 16 and abs(model.field.encoding.resolutions[-1] - 2048) <= 1
    assert [p.encoding.resolutions[-1] for p in model.proposals] in ([128, 256], [127, 256], [128, 255], [127, 255])
    assert [tuple(x.weight.shape) for x in model.colour if hasattr(x, "weight")] == [(64, 63), (64, 64), (3, 64)]
    assert (model.counts, model.samples) == ((256, 96), 48)


def test_scale_of_the_world_does_not_matter():
    """The same scene in metres and in kilometres: colours agree, depth and density change their unit."""
    one, other = Nerfacto.small(1, **TINY).eval(), Nerfacto.small(1, (7.0, 0.0, 0.0), 1000.0, **TINY).eval()
    with torch.no_grad():
        one.field.encoding.table.normal_(0, 0.3)
    other.load_state_dict(one.state_dict() | {"centre": other.centre})
    bundle = rays(50)
    far = Rays(bundle.origins * 1000 + other.centre, bundle.directions, bundle.near * 1000, bundle.far * 1000, bundle.camera)
    torch.testing.assert_close(one(bundle).colour, other(far).colour, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(one(bundle).depth * 1000, other(far).depth, atol=1e-2, rtol=1e-2)
    x = torch.randn(20, 3)
    torch.testing.assert_close(one.density(x), 1000 * other.density(1000 * x + other.centre), atol=1e-5, rtol=1e-3)


def test_codes_and_poses_belong_to_training_alone():
    torch.manual_seed(0)
    model = Nerfacto.small(3, **TINY)
    with torch.no_grad():
        model.poses.shift.normal_(0, 0.2)
        model.colour[0].weight.normal_(0, 0.3)
    bundle = rays(40)
    first, second = bundle, Rays(bundle.origins, bundle.directions, bundle.near, bundle.far, bundle.camera + 2)
    model.eval()
    torch.testing.assert_close(model(first).colour, model(second).colour)  # the mean code, the rays as given
    plain = model(first).colour
    with torch.no_grad():
        model.poses.shift.zero_()
        model.code.weight[:] = model.code.weight.mean(0)
    torch.testing.assert_close(model(first).colour, plain)
    model.train()
    with torch.no_grad():
        model.code.weight[2] += 3
    torch.manual_seed(1)
    a = model(first).colour
    torch.manual_seed(1)
    assert (a - model(second).colour).abs().max() > 1e-5


def test_nothing_is_outside_the_box_without_contraction():
    model = Nerfacto.small(1, **TINY, contraction=False)
    assert (model.density(torch.tensor([[1.5, 0.0, 0.0], [0.5, 0.0, 0.0]])) > 0).tolist() == [False, True]
    assert (Nerfacto.small(1, **TINY).density(torch.tensor([[1.5, 0.0, 0.0], [1e4, 0.0, 0.0]])) > 0).all()
    away = Rays(*torch.tensor([[[5.0, 5, 5]], [[1.0, 0, 0]]]), torch.tensor([0.0]), torch.tensor([9.0]), torch.tensor([0]))
    seen = model.eval()(away, torch.ones(3))
    assert seen.accumulation == 0 and (seen.colour == 1).all()


def test_a_sky_stops_all_light():
    model = Nerfacto.small(1, **TINY, sky=True).eval()
    bundle = rays(9)
    torch.testing.assert_close(model(bundle, torch.ones(3)).colour, model(bundle).colour)
    seen = model.trace(bundle)
    full = torch.cat([seen.weights[..., :-1], 1 - seen.weights[..., :-1].sum(-1, keepdim=True)], -1)
    torch.testing.assert_close(model(bundle).colour, (full[..., None] * seen.colours).sum(-2))


def test_density_is_finite_however_large_h_is():
    net = HashDensity(levels=2, table=2**10, finest=32)
    with torch.no_grad():
        net.mlp[-1].bias.fill_(1e4)
    assert net(torch.zeros(3, 3))[0].isfinite().all()


def test_annealing_and_the_rhythm_of_the_proposals_follow_the_step():
    model = Nerfacto.small(1, **TINY, anneal_steps=100, proposal_every=5, proposal_warmup=100)
    assert model._proposals_learn()
    model.update(103)
    assert not model._proposals_learn()
    loss = model.loss(rays(8), torch.rand(8, 3))
    loss.backward()
    assert all(p.grad is None for p in model.proposals.parameters())
    model.update(105)
    assert model._proposals_learn() and int(model.state_dict()["step"]) == 105


@pytest.mark.parametrize(
    "make",
    [
        lambda: Nerfacto.small(12, **TINY | {"samples": 12}, anneal_steps=50, poses=False),
        lambda: NeRF(width=32, depth=4, octaves=5, coarse=16, fine=16, lr=5e-3),
    ],
    ids=["nerfacto", "nerf"],
)
def test_a_made_scene_is_learned(make):
    torch.manual_seed(0)
    scene, g, white = stand_in(), torch.Generator().manual_seed(0), torch.ones(3)
    model = make()
    model.train()
    optimizer = torch.optim.Adam(model.parameter_groups())
    for step in range(100):
        model.update(step)
        loss = model.loss(*scene.batch(128, g, white), white)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    picture = render_picture(model.eval(), scene.cameras, 0, scene.near, scene.far, white)
    error = (picture.colour - scene.colours(0, white)).square().mean()
    assert -10 * math.log10(float(error)) > 17  # the mean colour gives 8


def test_runs_under_autocast_and_compiles_into_the_same_numbers():
    model = Nerfacto.small(1, **TINY).eval()
    bundle = rays(6)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(bundle).colour
    torch.testing.assert_close(half.float(), model(bundle).colour, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Nerfacto(0), "pictures"),
        (lambda: Nerfacto(1, radius=0.0), "radius"),
        (lambda: Nerfacto(1, proposal_samples=(3,)), "proposal_finest"),
        (lambda: Nerfacto.small(1, spacing="linear")(rays(2)), "spacing"),
        (lambda: NeRF(radius=-1.0), "radius"),
        (lambda: NeRF(width=1), "width"),
    ],
)
def test_bad_input_names_the_argument(make, name):
    with pytest.raises(Refused, match=name):
        make()
