import pytest
import torch

from neuropil.errors import Refused
from neuropil.fields.aether import Aether, ChargedField, DynamicField, StaticField, TrackSummary, explained_force, rollout
from neuropil.fields.aether_sequence import SequenceAether
from neuropil.lab.claims import select
from neuropil.lab.run import measure
from neuropil.nn.local_frames import angles, euler, frames, localize

WIDE = torch.float64
# Positions after one step of the authors' one-step net (mkofinas/aether, state2state) with the weights of `filled`.
AUTHORS = {
    2: [
        [-0.1290902457927562, 0.18333941578080237],
        [0.11052301268758258, -0.047534128731350656],
        [-0.5366691586354624, 0.6759047106939239],
        [1.2025123955605335, -0.5182663346379839],
    ],
    3: [
        [-0.10729218565925874, 0.22821732053487376, 1.075767717827957],
        [-0.6196867331457319, -0.2937421360674074, 0.42654369038616524],
        [1.0716683155006068, -0.6237070372909985, -0.6530698052734677],
        [-1.01482128688898, 0.6354207250695822, 1.3197300608818583],
    ],
}


def bodies(n, d, b=3):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(b, n, d, generator=generator, dtype=WIDE) for _ in range(2))


def turn(angle, d):
    R = torch.eye(d, dtype=WIDE)
    R[:2, :2] = torch.tensor([[torch.cos(torch.tensor(angle)), -torch.sin(torch.tensor(angle))]] * 2)
    R[1, :2] = torch.tensor([torch.sin(torch.tensor(angle)), torch.cos(torch.tensor(angle))])
    return R


@pytest.mark.parametrize("d", [2, 3])
def test_the_authors_net_gives_the_same_numbers(d):
    model = Aether(d, ChargedField(d), hidden=8, pair=2).double()
    with torch.no_grad():
        for k, w in enumerate(model.parameters()):
            w.copy_(torch.cos(torch.arange(w.numel(), dtype=WIDE) * 0.7 + k).view(w.shape) / w.shape[-1] ** 0.5)
    n = 4
    p = torch.sin(torch.arange(n * d, dtype=WIDE) * 1.3).view(n, d)
    u = torch.cos(torch.arange(n * d, dtype=WIDE) * 0.9 + 0.2).view(n, d)
    pair = torch.sin(torch.arange(n * (n - 1) * 2, dtype=WIDE) * 0.31).view(n, n - 1, 2)
    found, _ = model(p, u, torch.tensor([0, 2, 1, 2]), pair)
    # In space the authors add 1e-7 to a length that they divide by.
    assert torch.allclose(found, torch.tensor(AUTHORS[d], dtype=WIDE), atol=1e-12 if d == 2 else 1e-7)


@pytest.mark.parametrize("d", [2, 3])
def test_without_a_field_the_forecast_turns_and_shifts_with_the_bodies(d):
    model = Aether(d, hidden=16).double()
    p, u = bodies(5, d)
    Q, shift = turn(1.1, d), torch.tensor([3.0, -7.0, 2.0], dtype=WIDE)[:d]
    expected = [x @ Q.T for x in model(p, u)]
    found = model(p @ Q.T + shift, u @ Q.T)
    assert torch.allclose(found[0], expected[0] + shift, atol=1e-10)
    assert torch.allclose(found[1], expected[1], atol=1e-10)
    absolute = Aether(d, hidden=16, coordinates="absolute").double()
    assert not torch.allclose(absolute(p + shift, u)[0], absolute(p, u)[0] + shift, atol=1e-3)


def test_a_field_that_turns_with_the_bodies_keeps_the_whole_equivariant():
    class Turned(torch.nn.Module):
        def __init__(self, Q):
            super().__init__()
            self.Q = Q

        def forward(self, p, u, context):
            x = p @ self.Q  # back, then a force that is no function of the distance, then forth
            return torch.stack([x[..., 0] * x[..., 1], x[..., 1].sin()], -1) @ self.Q.T

    Q = turn(0.7, 2)
    model = Aether(2, Turned(torch.eye(2, dtype=WIDE)), hidden=16).double()
    p, u = bodies(5, 2)
    expected = model(p, u)[0] @ Q.T
    assert not torch.allclose(model(p @ Q.T, u @ Q.T)[0], expected, atol=1e-3)
    model.field = Turned(Q)
    assert torch.allclose(model(p @ Q.T, u @ Q.T)[0], expected, atol=1e-10)


@pytest.mark.parametrize("model", [Aether(2, StaticField(2), hidden=16), Aether(2, hidden=16, coordinates="absolute")])
def test_permuting_bodies_permutes_the_forecast(model):
    p, u = bodies(5, 2)
    order = torch.tensor([3, 0, 4, 2, 1])
    model = model.double()
    for found, expected in zip(model(p[:, order], u[:, order]), model(p, u), strict=True):
        assert torch.allclose(found, expected[:, order], atol=1e-10)


def test_the_static_field_looks_at_one_body_alone():
    field = StaticField(2).double()
    p, _ = bodies(5, 2)
    other = p.clone()
    other[:, 1:] += 1
    assert torch.equal(field(p, None, None)[:, 0], field(other, None, None)[:, 0])


def test_the_dynamic_field_at_a_silent_summary_is_a_static_one():
    field = DynamicField(2, summary=4, hidden=16)
    for film in field.modulate:
        for net in (film.g, film.b):
            torch.nn.init.zeros_(net[-1].weight)
            torch.nn.init.zeros_(net[-1].bias)
    p = torch.randn(3, 5, 2)
    h = field.encoding(p)
    for layer in (field.first, field.second):
        h = torch.nn.functional.silu(layer(h))
    assert torch.allclose(field(p, None, torch.randn(3, 4)), field.last(h))


def test_the_summary_is_blind_to_the_order_of_bodies_but_not_to_that_of_frames():
    p, u = (torch.randn(2, 6, 4, 2) for _ in range(2))
    summary = TrackSummary(2, hidden=8)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(summary(p[:, :, order], u[:, :, order]), summary(p, u), atol=1e-6)
    assert not torch.allclose(summary(p.flip(1), u.flip(1)), summary(p, u), atol=1e-4)


@pytest.mark.parametrize("d", [2, 3])
def test_frames(d):
    u = torch.randn(20, d, dtype=WIDE)
    axis = torch.eye(d, dtype=WIDE)[0 if d == 2 else 2]
    R = frames(u)
    assert torch.allclose(R @ axis * u.norm(dim=-1, keepdim=True), u, atol=1e-12)
    assert torch.allclose(R.mT @ R, torch.eye(d, dtype=WIDE).expand_as(R), atol=1e-12)
    assert torch.allclose(torch.linalg.det(R), torch.ones(20, dtype=WIDE))
    assert torch.equal(frames(torch.zeros(1, d))[0], torch.eye(d))
    assert torch.equal(frames(torch.full((1, d), 1e-9))[0], torch.eye(d))
    assert torch.equal(frames(torch.zeros(1, d).half())[0], torch.eye(d).half())  # in which 1e-8 is 0


@pytest.mark.parametrize("d", [2, 3])
def test_still_bodies_and_bodies_in_one_place_have_finite_gradients(d):
    p, u = torch.zeros(1, 3, d, requires_grad=True), torch.zeros(1, 3, d, requires_grad=True)
    node, edge, _ = localize(p, u)
    (node.square().sum() + edge.square().sum()).backward()
    assert bool(p.grad.isfinite().all())
    assert bool(u.grad.isfinite().all())


def test_angles_in_space():
    assert torch.allclose(
        angles(torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, -2.0], [0.0, 3.0, 0.0]])) / torch.pi,
        torch.tensor([[0, 0], [0, 1], [0.5, 0.5]]),
    )
    assert torch.allclose(euler(frames(torch.tensor([1.0, 0.0, 0.0]))), torch.tensor([0.0, 0.5, 0.0]), atol=1e-3)


def test_explained_force():
    true = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    assert explained_force(true @ torch.tensor([[2.0, 1.0], [0.0, -1.0]]), true) == pytest.approx(1)
    assert abs(explained_force(torch.randn(100, 2, generator=torch.Generator().manual_seed(1)), true)) < 0.1


def test_sequences_learn_forecast_and_turn():
    torch.manual_seed(0)
    model = SequenceAether(2, hidden=8).double()
    u = torch.randn(3, 1, 4, 2, dtype=WIDE).expand(3, 6, 4, 2)
    p = torch.randn(3, 1, 4, 2, dtype=WIDE) + 0.3 * u.cumsum(1)
    Q = turn(0.4, 2)
    assert torch.allclose(model.forecast(p @ Q.T + 5, u @ Q.T, 3)[0], model.forecast(p, u, 3)[0] @ Q.T + 5, atol=1e-9)
    losses = [model.loss(p, u, generator=torch.Generator().manual_seed(1))]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
        losses.append(model.loss(p, u, generator=torch.Generator().manual_seed(1)))
    assert losses[-1] < 0.5 * losses[0]


def test_the_past_alone_sets_the_prior():
    model = SequenceAether(2, StaticField(2, hidden=8), hidden=8)
    p, u = torch.randn(2, 6, 4, 2), torch.randn(2, 6, 4, 2)
    changed = p.clone()
    changed[:, 3:] += 1
    (prior, posterior, _), (other, other_posterior, _) = (model.logits(*model.seen(x, u, None)[:2]) for x in (p, changed))
    assert torch.allclose(prior[:, :3], other[:, :3], atol=1e-6)
    assert not torch.allclose(posterior[:, :3], other_posterior[:, :3], atol=1e-5)


def test_state_dict_round_trip():
    torch.manual_seed(0)
    first, second = (Aether(2, StaticField(2), hidden=8) for _ in range(2))
    p, u = torch.randn(4, 2), torch.randn(4, 2)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(p, u)[0], second(p, u)[0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Aether(4), "d: must be 2 or 3"),
        (lambda: Aether(2, coordinates="polar"), "coordinates"),
        (lambda: Aether(2, layers=0), "layers"),
        (lambda: rollout(Aether(2), torch.zeros(3, 2), torch.zeros(3, 2), 0), "steps"),
        (lambda: localize(torch.zeros(1, 2), torch.zeros(1, 2)), "at least two bodies"),
        (lambda: SequenceAether(2, kinds=1), "kinds"),
        (lambda: SequenceAether(2).loss(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2)), "two frames"),
    ],
)
def test_bad_input_is_refused(make, words):
    with pytest.raises(Refused, match=words):
        make()


@pytest.mark.parametrize("claim", select("aether"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert row["method"] == row["method"]


def test_explained_force_gives_the_same_bits_whatever_memory_held_before():
    found, true = torch.randn(300, 3), torch.randn(300, 3)
    held = [torch.randint(0, 3, (n,), dtype=torch.int32) for n in range(1, 60)]  # leaves pivots behind that a solver might take up
    values = set()
    for _ in range(200):
        del held[int(torch.randint(len(held), ()))]
        held.append(torch.randint(0, 3, (int(torch.randint(1, 60, ())),), dtype=torch.int32))
        values.add(explained_force(found, true))
    assert len(values) == 1


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_forces_that_are_not_finite_are_refused_by_name(bad):
    fine, wrong = torch.randn(5, 2), torch.full((5, 2), bad)
    with pytest.raises(Refused, match="found: must be finite"):
        explained_force(wrong, fine)
    with pytest.raises(Refused, match="true: must be finite"):
        explained_force(fine, wrong)
