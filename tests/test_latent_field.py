"""The latent field: its exact invariants on maps with closed forms and on a trained autoencoder, modes, bad input, the claims."""

import functools

import pytest
import torch
from torch import nn

from neuropil import data
from neuropil.errors import Refused
from neuropil.interpret.detectors import NearestNeighbour
from neuropil.interpret.latent_field import LatentField, TrajectoryScore, memorisation, noise
from neuropil.lab.claims import select
from neuropil.lab.run import measure
from neuropil.nn.autoencoder import mlp_autoencoder
from neuropil.numerics.jacobians import spectral_radius


@functools.cache
def trained():
    """A small autoencoder of 8 × 8 digits, two seconds."""
    torch.manual_seed(0)
    x = data.digits("sklearn", "train").pixels
    F = mlp_autoencoder((8, 8), 3, (64,))
    optimizer = torch.optim.AdamW(F.parameters(), lr=5e-3)
    for _ in range(400):
        b = x[torch.randint(len(x), (64,))]
        loss = (F(b + 0.1 * torch.randn_like(b)) - b).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return F.eval(), x


def test_attractors_of_a_trained_net_are_fixed_and_attract():
    F, x = trained()
    field = LatentField(F.encoder, F.decoder)
    found = field.attractors(field.encode(x[:200]).detach(), tolerance=1e-6)
    assert len(found) > 1
    assert (field.v(found.z).norm(dim=1) <= 1e-6 * (1 + found.z.norm(dim=1))).all()
    assert (found.radius < 1).all() and torch.allclose(spectral_radius(field.f, found.z), found.radius)
    back = field.settle(found.z + 1e-2 * torch.randn_like(found.z), tolerance=1e-6)  # pushed, they come back
    assert torch.allclose(back.z, found.z, atol=2e-3 * float(found.z.norm(dim=1).max()))
    assert found.basin.sum() == (found.of >= 0).sum() and found.basin.tolist() == [(found.of == i).sum() for i in range(len(found))]
    reached = found.of >= 0
    assert torch.allclose(found.settled.z[reached], found.z[found.of[reached]], rtol=0.05, atol=0.2)


def test_basins_fall_in_size():
    """Two wells, at −1 and 1, and a ridge at 0: three starts left of it, five right, one on it."""
    field = LatentField(lambda z: torch.tanh(2 * z))
    found = field.attractors(torch.tensor([[-3.0], [-1.0], [-0.1], [0.2], [0.5], [1.0], [2.0], [0.9], [0.0]]))
    assert len(found) == 2 and found.z[0] > 0 > found.z[1] and found.basin.tolist() == [5, 3]
    assert found.of.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, -1]  # on the ridge the residual is 0, but ρ = 2


def test_tied_orthonormal_autoencoder_has_no_field():
    W = torch.linalg.qr(torch.randn(10, 4, dtype=torch.float64)).Q
    field = LatentField(lambda x: x @ W, lambda z: z @ W.T)
    z = torch.randn(30, 4, dtype=torch.float64)
    assert field.v(z).abs().max() < 1e-14
    assert len(field.attractors(z)) == 0  # every point stays, none attracts


def test_contraction_has_the_one_attractor():
    A = torch.randn(6, 6, dtype=torch.float64)
    A, b = 0.9 * A / torch.linalg.matrix_norm(A, 2), torch.randn(6, dtype=torch.float64)
    found = LatentField(lambda z: z @ A.T + b).attractors(5 * torch.randn(40, 6, dtype=torch.float64), tolerance=1e-9)
    assert len(found) == 1 and (found.of == 0).all()
    assert torch.allclose(found.z[0], torch.linalg.solve(torch.eye(6, dtype=torch.float64) - A, b), atol=1e-6)


def test_slow_drift_is_counted_as_no_attractor():
    found = LatentField(lambda z: z + 1e-7).attractors(torch.zeros(4, 2))
    assert found.settled.converged.all() and len(found) == 0 and found.of.tolist() == [-1] * 4


def test_images_as_latents():
    """Any endomap: latents may have any shape."""
    field = LatentField(lambda x: 0.5 * x + 0.25)
    found = field.attractors(torch.rand(7, 2, 3, 3))
    assert found.z.shape == (1, 2, 3, 3) and torch.allclose(found.z, torch.tensor(0.5), atol=1e-4)
    x = torch.rand(2, 4)
    assert torch.equal(field.encode(x), x) and torch.equal(field.decode(x), x)


class Modal(nn.Module):
    """Batch norm and dropout: in train mode neither deterministic nor row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))

    def encode(self, x):
        return 0.5 * self.body(x)


def test_eval_mode_is_used_and_every_mode_restored():
    net = Modal().train()
    net.body[2].eval()
    modes, before = [m.training for m in net.modules()], {k: v.clone() for k, v in net.state_dict().items()}
    z = torch.randn(16, 3)
    for part in (net.encode, net.body):  # a bound method counts as its module
        field = LatentField(part, nn.Tanh())
        assert torch.equal(field.v(z), field.v(z)) and torch.allclose(field.v(z)[:1], field.v(z[:1]), atol=1e-6)
        field.attractors(z, steps=5)
        assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())  # running statistics included
    failing = LatentField(nn.Sequential(net, nn.Linear(9, 9)), nn.Identity())
    with pytest.raises(Exception):  # noqa: B017  whatever the net raises
        failing.v(z)
    assert [m.training for m in net.modules()] == modes


@pytest.mark.parametrize("many", [1, 40])
def test_distances_do_not_depend_on_the_batch(many):
    """Beyond 25 rows torch takes |x|² + |y|² − 2 ⟨x, y⟩, whose root is 3e-4 where x = y."""
    known = torch.randn(60, 5)
    knn = NearestNeighbour(nn.Identity().eval(), k=1, batch=many).fit(known)
    assert knn.score_samples(known).abs().max() < 1e-12
    ends = torch.nn.functional.normalize(torch.tensor([[1.0, 2.0], [-3.0, 1.0]]), dim=1)
    score = TrajectoryScore(LatentField(lambda z: 0 * z + ends[(z @ ends.T).argmax(1)]), steps=2).fit(ends.repeat(many, 1))
    assert score.distances(ends.repeat(many, 1)).max() < 1e-6


def test_bound_holds_where_the_factor_two_is_needed():
    """E(x) = x / 2 − 1, D(z) = z: the end is −2, errors of prototype and coverage point the same way."""
    field = LatentField(lambda x: x / 2 - 1, lambda z: 1.0 * z)
    x = torch.linspace(-8, 8, 33, dtype=torch.float64)[:, None]
    found = field.bound(x, tolerance=1e-9)
    assert torch.allclose(found.slope, torch.ones(33, dtype=torch.float64))
    assert torch.allclose(found.prototype, (x[:, 0] + 2) ** 2, atol=1e-6)
    assert torch.allclose(found.coverage, (x[:, 0] / 2 + 1) ** 2, atol=1e-6)
    assert (found.error <= found.most + 1e-9).all()
    opposite = LatentField(lambda x: -x / 2 + 3, lambda z: 1.0 * z).bound(x, tolerance=1e-9)  # the end is 2
    assert (opposite.error <= opposite.most + 1e-9).all()
    assert (opposite.error > opposite.prototype + opposite.coverage + 1e-3).any()  # so the sum alone is no bound


def test_bound_of_a_trained_net():
    F, x = trained()
    found = LatentField(F.encoder, F.decoder).bound(x[:100])
    assert (found.error <= found.most * 1.05).all() and (found.error > 0).all()


def test_memorisation():
    train = torch.randn(50, 4, 4)
    assert torch.allclose(memorisation(3 * train[[4, 40]], train, batch=20), torch.ones(2))
    picture = torch.randn(1, 4, 4)
    expected = max(torch.cosine_similarity(picture.flatten(), t.flatten(), dim=0) for t in train)
    assert torch.allclose(memorisation(picture, train), expected[None])
    with pytest.raises(Refused, match="train"):
        memorisation(picture, train[:0])


def test_trajectory_score_without_steps_is_the_nearest_neighbour_among_attractors():
    F, x = trained()
    field = LatentField(F.encoder, F.decoder)
    score = TrajectoryScore(field, steps=0).fit(x[:100])
    near = NearestNeighbour(nn.Identity().eval(), k=1).fit(score.known.z)
    assert torch.allclose(
        score.score_samples(x[100:150]), -(-near.score_samples(field.encode(x[100:150]).detach())).sqrt(), atol=1e-4
    )
    longer = TrajectoryScore(field, steps=4)
    longer.known = score.known
    rows = longer.distances(x[100:150])
    z = field.f(field.f(field.encode(x[100:150]))).detach()
    assert rows.shape == (5, 50) and torch.allclose(rows[2], (-near.score_samples(z)).clamp_min(0).sqrt(), atol=1e-3)
    assert torch.allclose(longer.score_samples(x[100:150]), -rows.mean(0))


def test_a_path_that_leaves_is_stranger():
    score = TrajectoryScore(LatentField(lambda z: torch.tanh(2 * z)), steps=5).fit(torch.rand(9, 2) + 0.1)
    known, new = score.score_samples(torch.tensor([[0.3, 0.5], [-0.3, 0.5]]))
    assert known > new + 0.5


def test_noise():
    assert noise(4, (2, 3), torch.Generator().manual_seed(0), 2.0).shape == (4, 2, 3)
    assert noise(10_000, (1,), scale=3.0).std() == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: LatentField(lambda z: z[:, :1]).v(torch.ones(2, 2)), "f: must give the shape"),
        (lambda: LatentField(lambda z: z[:, :1]).attractors(torch.ones(2, 2)), "f: must give the shape"),
        (lambda: LatentField(torch.tanh).settle(torch.ones(2, 2), steps=0), "steps"),
        (lambda: LatentField(torch.tanh).attractors(torch.full((2, 2), float("nan"))), "4 not finite"),
        (lambda: LatentField(torch.tanh).bound(torch.ones(2, 2)), "decoder"),
        (lambda: LatentField(torch.tanh).attractors(torch.ones(2, 2).half()), "^z: float64 or float32"),
        (lambda: LatentField(torch.nn.Linear(2, 2)).f(torch.ones(2, 3)), "^z: the last axis must have 2 numbers"),
        (lambda: TrajectoryScore(LatentField(torch.tanh)).fit(torch.ones(2)), "^x: inputs .* are needed, got shape"),
        (lambda: TrajectoryScore(LatentField(torch.tanh)).fit(torch.ones(2, 0)), "^x: must not be empty"),
        (lambda: TrajectoryScore(LatentField(torch.tanh)).fit(torch.ones(2, 2).half()), "^codes of x: float64 or float32"),
        (lambda: noise(-1, (2,)), "^n: must be at least 0"),
        (lambda: TrajectoryScore(LatentField(torch.tanh), steps=-1), "steps"),
        (lambda: TrajectoryScore(LatentField(torch.tanh)).score_samples(torch.ones(2, 2)), "call fit first"),
        (lambda: TrajectoryScore(LatentField(lambda z: 2 * z), settle_steps=9).fit(torch.ones(2, 2)), "none of the 2"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(Refused, match=match):
        call()


@pytest.mark.parametrize("claim", select("latent-vector-field"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, drawn = measure(claim, 0, "smoke", draw=True)
    assert drawn and row["method"] >= 0 and row["baseline"] >= 0


def test_under_autocast():
    F, x = trained()
    field = LatentField(F.encoder, F.decoder)
    with torch.autocast("cpu", torch.bfloat16):
        found = field.settle(field.encode(x[:20]).detach().float(), steps=3)
    assert found.z.dtype == torch.float32 and found.z.isfinite().all()
