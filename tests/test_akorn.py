"""AKOrN's exact invariants: the sphere, the tangent, when the energy falls and when not, rotations, the authors' numbers."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from neuropil.dynamics.akorn import AKOrN, ItrSA, PatchAKOrN, PatchItrSA, SudokuAKOrN, SudokuItrSA, fill, noise, vote
from neuropil.dynamics.kuramoto import (
    Attention,
    AttentionJ,
    ConvJ,
    KuramotoLayer,
    Omega,
    Readout,
    apply,
    energy,
    normalise,
    project,
    rotations,
    step,
)
from neuropil.errors import Refused
from neuropil.lab.claims import select
from neuropil.lab.run import measure


class Dense(nn.Module):
    """J as one matrix over all numbers of all oscillators."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, x):
        return (x.flatten(1) @ self.matrix.T).view(x.shape)


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_states_stay_on_the_sphere_and_flow_along_it():
    x, y = normalise(drawn(50, 7, 4)), drawn(50, 7, 4, seed=1)
    assert (project(y, x) * x).sum(-1).abs().max() < 1e-14
    omega = Omega(7, 4, init=0.9).double()
    assert (omega(x) * x).sum(-1).abs().max() < 1e-14
    layer = KuramotoLayer(ConvJ(3, 4), 3, 4, omega=Omega(3, 4)).double()
    path = layer.path(10 * drawn(2, 5, 6, 3, 4), drawn(2, 5, 6, 3, 4), steps=30)
    assert (path.norm(dim=-1) - 1).abs().max() < 1e-14


def coupling(kind):
    """Of spectral radius near 1; `free` is not symmetric."""
    a = drawn(24, 24, seed=3) / 24**0.5
    return {"symmetric": (a + a.T) / 2, "free": 2 * (a - a.T) + 0.2 * (a + a.T), "negative": -a @ a.T}[kind]


def rises(kind, gamma, omega, half=True):
    """The largest rise of the energy of 8 starts in 200 steps."""
    layer = KuramotoLayer(Dense(coupling(kind)), 6, 4, gamma=gamma, omega=omega, norm=False).double()
    x, c = layer.start(drawn(8, 6, 4), 0.5 * drawn(8, 6, 4, seed=1))
    energies = []
    for _ in range(201):
        x, E = layer.advance(x, c, half)
        energies.append(E)
    return float(torch.stack(energies).detach().diff(dim=0).max())


def test_energy_never_rises_under_the_conditions_of_the_lyapunov_form():
    assert rises("symmetric", 0.1, None) <= 1e-9
    assert rises("symmetric", 0.02, None) <= 1e-9
    assert rises("negative", 0.1, None) <= 1e-9


@pytest.mark.parametrize(
    ("kind", "gamma", "omega"),
    [("free", 0.1, None), ("symmetric", 0.1, Omega(6, 4, init=1.0)), ("negative", 1.0, None)],
    ids=["free coupling", "rotation", "large step"],
)
def test_energy_rises_at_some_step_when_a_condition_is_missing(kind, gamma, omega):
    assert rises(kind, gamma, omega) > 1e-3


def test_the_authors_form_of_the_energy_is_no_lyapunov_function():
    """Even under all conditions: without the ½ the flow does not go down its slope."""
    assert rises("symmetric", 0.1, None, half=False) > 1e-4


def test_both_energies_by_hand():
    x, c, J = drawn(3, 6, 4), drawn(3, 6, 4, seed=1), coupling("free")
    flat = x.flatten(1)
    pairs = torch.einsum("bi,ij,bj->b", flat, J, flat)
    coupled = Dense(J)(x)
    assert torch.allclose(energy(x, coupled, c), -pairs - (x * c).flatten(1).sum(1))
    assert torch.allclose(energy(x, coupled, c, half=True), -pairs / 2 - (x * c).flatten(1).sum(1))


def test_one_rotation_of_all_states_and_inputs_rotates_the_output():
    class AcrossChannels(nn.Module):
        def forward(self, x):
            return drawn(5, 5, seed=7) @ x

    R = torch.linalg.qr(drawn(4, 4))[0]
    layer = KuramotoLayer(AcrossChannels(), 5, 4, norm=False).double()
    x, c = drawn(3, 5, 4), drawn(3, 5, 4, seed=1)
    turned, E_turned = layer(x @ R, c @ R, steps=12)
    plain, E = layer(x, c, steps=12)
    assert torch.allclose(turned, plain @ R, atol=1e-10)
    assert torch.allclose(E_turned, E)
    layer.omega = Omega(5, 4).double()
    assert not torch.allclose(layer(x @ R, c @ R, steps=12)[0], layer(x, c, steps=12)[0] @ R, atol=1e-2)


def test_without_coupling_and_input_each_pair_turns_by_its_own_angle():
    class Nothing(nn.Module):
        def forward(self, x):
            return 0 * x

    layer = KuramotoLayer(Nothing(), 2, 2, gamma=0.5, omega=Omega(2, 2), norm=False).double()
    layer.omega.w.data = torch.tensor([[[0.3, 0.4]], [[0.0, 2.0]]], dtype=torch.float64)
    x, _ = layer(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]], dtype=torch.float64), torch.zeros(1, 2, 2, dtype=torch.float64), steps=7)
    angle = torch.tensor([7 * math.atan(0.5 * 0.5), 7 * math.atan(0.5 * 2.0)], dtype=torch.float64)
    assert torch.allclose(x[0], torch.stack([angle.cos(), -angle.sin()], -1))


def test_forward_path_and_single_steps_agree():
    layer = KuramotoLayer(ConvJ(2, 4), 2, 4, gamma=0.3, omega=Omega(2, 4)).double()
    x, c = drawn(3, 4, 4, 2, 4), drawn(3, 4, 4, 2, 4, seed=1)
    end, E = layer(x, c, steps=4)
    path = layer.path(x, c, steps=4)
    state, normed = layer.start(x, c)
    for t in range(4):
        assert torch.allclose(energy(state, layer.J(state), normed), E[t])
        state = step(state, layer.J(state) + normed, layer.gamma, layer.omega(state))
        assert torch.allclose(state, path[t])
    assert torch.equal(end, path[-1])


# What the authors' classes put out (autonomousvision/akorn, run on a CPU in float64) for parameters 0.4 sin((1.7 + 0.3 k) i), k the
# number of the parameter and i = 1, 2 … over its numbers, and inputs sin(1.3 i), sin(0.7 i) of shape (2, 8, 2, 3); γ = 0.7, T = 3.
CONV = [-0.2293425541365782, -0.9402196366137293, -0.056075790866373286, -0.2454476185803567]
CONV += [0.7253858063341184, -0.6161959710597484, 0.3038533475205871, 0.04232139434455913]
CONV_E = [
    [2.4400932649844957, -2.84045103710581],
    [-2.771831103892951, -7.63400904452614],
    [-8.728559685348145, -10.458113647332224],
]
ATTENTION = [-0.2716531503651708, 0.7824306584646142, 0.006165653579338584, -0.560329202618646]
ATTENTION += [0.38041569439775563, -0.2519476169095016, -0.3410422568683644, 0.8218859268898749]
ATTENTION_E = [[0.6552252435772741, -0.92176248172042], [-10.530721944658646, -11.396512550666031]]
ATTENTION_E += [[-17.494513452611173, -17.76385933423501]]
READOUT = [0.756388910156875, 0.10418325229940137, 0.06225716090509276, 0.509364142037757, 1.039923854546341]


def wave(*shape, k):
    return torch.sin(torch.arange(1, math.prod(shape) + 1, dtype=torch.float64) * k).view(shape)


def set_all(*parameters):
    """By their number in the authors' module; None: one that keeps its start."""
    for k, parameter in enumerate(parameters):
        if parameter is not None:
            parameter.data = 0.4 * wave(*parameter.shape, k=1.7 + 0.3 * k)


def inputs():
    """From channels first to channels last, in oscillators of four."""
    return [wave(2, 8, 2, 3, k=k).movedim(1, -1).unflatten(-1, (2, 4)) for k in (1.3, 0.7)]


def test_equals_the_authors_layer_with_convolution_rotation_and_group_norm():
    layer = KuramotoLayer(ConvJ(2, 4), 2, 4, gamma=0.7, omega=Omega(2, 4)).double()
    set_all(layer.omega.w, layer.J.conv.weight, layer.J.conv.bias, layer.norm.weight, layer.norm.bias)
    x, E = layer(*inputs(), steps=3)
    assert torch.allclose(x[0, 1, 2].flatten(), torch.tensor(CONV, dtype=torch.float64), atol=1e-8)
    assert torch.allclose(E, torch.tensor(CONV_E, dtype=torch.float64), atol=1e-8)


def test_equals_the_authors_layer_with_attention_and_positions():
    layer = KuramotoLayer(AttentionJ(2, 4, 2, (2, 3)), 2, 4, gamma=0.7, omega=Omega(2, 4, shared=True), norm=False).double()
    attention = layer.J.attention
    weights = (attention.qkv.weight, attention.qkv.bias, attention.out.weight, attention.out.bias)
    set_all(layer.omega.w, *[None] * 4, *weights)
    x, E = layer(*inputs(), steps=3)
    assert torch.allclose(x[0, 1, 2].flatten(), torch.tensor(ATTENTION, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(E, torch.tensor(ATTENTION_E, dtype=torch.float64), atol=1e-5)


def test_equals_the_authors_readout():
    readout = Readout(2, 4, 5, m=2).double()
    set_all(readout.b, readout.U.weight, readout.U.bias)
    assert torch.allclose(readout(wave(1, 2, 4, k=1.3))[0], torch.tensor(READOUT, dtype=torch.float64), atol=1e-8)


def test_positions_are_rotations_that_the_output_takes_back():
    turn = rotations((3, 4), 5).double()
    assert torch.allclose(turn @ turn.mT, torch.eye(2, dtype=torch.float64).expand_as(turn), atol=1e-6)
    x = drawn(2, 12, 20)
    assert torch.allclose(apply(turn.mT, apply(turn, x, heads=2), heads=2), x, atol=1e-5)
    by_hand = torch.einsum("pfij,bpfjh->bpfih", turn, x.unflatten(-1, (5, 2, 2))).flatten(2)
    assert torch.allclose(apply(turn, x, heads=2), by_hand)


def test_attention_without_positions_does_not_know_the_order():
    attention, x, order = Attention(8, 2).double(), drawn(2, 5, 8), torch.randperm(5)
    assert torch.allclose(attention(x)[:, order], attention(x[:, order]))
    placed = Attention(8, 2, (5,)).double()
    assert not torch.allclose(placed(x)[:, order], placed(x[:, order]), atol=1e-3)


def test_vote_keeps_the_board_of_least_energy():
    net, puzzle = SudokuAKOrN(2, 4, heads=2), torch.randint(0, 5, (30, 4, 4))
    board, every, E = vote(net, puzzle, starts=6, steps=3, generator=torch.Generator().manual_seed(0))
    for i in range(30):
        assert torch.equal(board[i], every[E[:, i].argmin(), i])
    assert bool((board[puzzle > 0] == puzzle[puzzle > 0]).all())
    assert len(E.argmin(0).unique()) > 1
    x = net.start(puzzle, torch.Generator().manual_seed(0))  # the first start, by hand
    scores, _, energies = net(puzzle, x, 3)
    assert torch.equal(fill(puzzle, scores), every[0])
    assert torch.allclose(energies.sum(0), E[0])


def test_starts_are_noise_only_where_nothing_is_given():
    net, puzzle = SudokuAKOrN(2, 4, heads=2), torch.randint(0, 5, (30, 4, 4))
    one, two = (net.start(puzzle, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    same = (one == two).all(-1).all(-1)
    assert torch.equal(same, puzzle > 0)
    assert torch.equal(one[same], net.embed(puzzle)[same])


def nets():
    puzzle, images = torch.randint(0, 5, (3, 4, 4)), torch.rand(3, 1, 8, 8)
    sudoku, patch = SudokuAKOrN(2, 4, heads=2, layers=2), PatchAKOrN(2, 4, size=8, patch=4, heads=2, layers=2)
    yield sudoku, lambda net: net(puzzle, net.start(puzzle, torch.Generator().manual_seed(0)), 3)[0]
    yield SudokuItrSA(8, hidden=8, heads=2, blocks=2), lambda net: net(puzzle, 3)
    yield patch, lambda net: net(images, net.start(images, torch.Generator().manual_seed(0)), 3)[0]
    yield PatchItrSA(8, hidden=8, size=8, patch=4, heads=2, blocks=2), lambda net: net(images, 3)


@pytest.mark.parametrize("number", range(4))
def test_nets_learn_with_all_their_numbers_and_are_whole_in_their_state(number):
    net, run = list(nets())[number]
    output = run(net)
    output.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters() if p.requires_grad)
    other, _ = list(nets())[number]
    assert not torch.allclose(run(other), output)
    other.load_state_dict(net.state_dict())
    assert torch.equal(run(other), output)


def test_states_stay_on_the_sphere_under_autocast():
    net, puzzle = SudokuAKOrN(4, 4, heads=2), torch.randint(0, 5, (3, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        scores, x, E = net(puzzle, net.start(puzzle), 8)
    assert (x.float().norm(dim=-1) - 1).abs().max() < 1e-5
    assert bool(scores.isfinite().all() and E.isfinite().all())


COMPILED = """
import torch
from neuropil.dynamics.kuramoto import ConvJ, KuramotoLayer, Omega
torch.manual_seed(0)
layer = KuramotoLayer(ConvJ(2, 4), 2, 4, omega=Omega(2, 4))
x, c = torch.randn(2, 3, 3, 2, 4), torch.randn(2, 3, 3, 2, 4)
compiled = torch.compile(layer, backend="eager", fullgraph=True)
for a, b in zip(layer(x, c, 3), compiled(x, c, 3)):
    torch.testing.assert_close(a, b)
"""


def test_the_layer_is_one_graph_to_the_compiler():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


LAYER = KuramotoLayer(ConvJ(2, 4), 2, 4)
ONE = torch.zeros(1, 3, 3, 2, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LAYER(torch.zeros(1, 3, 3, 4, 2), torch.zeros(1, 3, 3, 4, 2), steps=1), r"x: must end in \(c, n\) = \(2, 4\)"),
        (lambda: LAYER(ONE, ONE, steps=0), "steps: at least 1, got 0"),
        (lambda: KuramotoLayer(ConvJ(2, 4), 2, 1), "c, n"),
        (lambda: KuramotoLayer(ConvJ(2, 4), 2, 4, gamma=0.0), "gamma"),
        (lambda: KuramotoLayer(ConvJ(2, 4), 2, 4, gamma=math.inf), "gamma"),
        (lambda: Omega(2, 3), "n: rotation in planes needs an even dimension"),
        (lambda: Omega(2, 0), "n"),
        (lambda: Omega(2, 4, init=-1.0), "init"),
        (lambda: ConvJ(2, 4, kernel=2), "kernel"),
        (lambda: Attention(8, 3), "heads"),
        (lambda: Attention(8, 2, (2, 2))(torch.zeros(1, 5, 8)), "x: this attention knows 4 places, got 5"),
        (lambda: rotations((0, 2), 2), "grid"),
        (lambda: AKOrN([]), "layers"),
        (lambda: AKOrN([LAYER, KuramotoLayer(LAYER.J, 2, 4)]), "J of its own"),
        (lambda: ItrSA(8, 2, None, hidden=0), "hidden"),
        (lambda: ItrSA(8, 2, None, hidden=4)(torch.zeros(1, 3, 8), steps=0), "steps"),
        (lambda: PatchAKOrN(2, 4, size=9, patch=4, heads=2), "patch"),
        (lambda: PatchItrSA(8, 4, size=8, patch=4, heads=2)(torch.zeros(1, 1, 3, 3), 1), "^images: sides of at least a patch, 4"),
        (lambda: SudokuAKOrN(2, heads=2).embed(torch.zeros(1, 3, 3, dtype=torch.long)), r"^puzzle: must be of shape \(b, 4, 4\)"),
        (lambda: SudokuItrSA(8, 4)(torch.zeros(1, 3, 3, dtype=torch.long), 1), r"^puzzle: must be of shape \(b, 4, 4\)"),
        (lambda: noise((2,), torch.zeros(1, dtype=torch.long)), "^like: must be of floating point"),
        (lambda: vote(SudokuAKOrN(2, heads=2), torch.zeros(1, 4, 4, dtype=torch.long), starts=0, steps=1), "starts"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(Refused, match=message):
        call()


@pytest.mark.parametrize("claim", select("akorn"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert all(-1 <= row[side] <= 1 for side in ("method", "baseline"))
