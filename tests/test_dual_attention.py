"""Dual attention against the authors' layer (numbers frozen at copied weights), its exact invariants, and the games' own rules."""

import pytest
import torch
from torch import nn

from neuropil.data.relational_games import COLOURS, GAMES, SOURCES, relational_game, set_game, shapes
from neuropil.errors import Refused
from neuropil.interaction.dual_attention import (
    DualAttention,
    DualTransformer,
    PositionalSymbols,
    RelationalHeads,
    RelativeSymbols,
    SensoryHeads,
    SymbolicAttention,
    SymbolicHeads,
)
from neuropil.lab.claims import select
from neuropil.lab.run import measure
from neuropil.nn.attention import MultiHead
from neuropil.nn.sites import override, record
from neuropil.nn.transformer import Transformer


def fill(module, start=0.0):
    """The weights of the frozen numbers: sines of the index, parameters in order of their names."""
    with torch.no_grad():
        for k, (_, p) in enumerate(sorted(module.named_parameters())):
            p.copy_((torch.arange(p.numel(), dtype=p.dtype) * 0.7 + k + start).sin().view_as(p))
    return module


def wave(*shape, rate=1.3):
    """An input of cosines."""
    return (torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * rate).cos().view(shape)


X, SYMBOLS = wave(2, 5, 8), wave(2, 5, 8, rate=0.9)
TABLE = fill(RelativeSymbols(8, reach=2).double(), 0.5)(X).detach()
CAUSAL = torch.ones(1, 5, 5, dtype=torch.bool).tril()
# row [1, 3] of the authors' layers (github.com/Awni00/dual-attention, a6ef87c), weights copied from `fill`, float64; theirs rotates
# neighbouring features, ours those c/2 apart (features of queries and keys permuted), in float32
AUTHORS = {
    "mixed": [0.7223298614, -1.4687516172, 2.0454513119, -2.3857882284, -1.342617084, 1.5639708726, -1.6045995087, 1.4598081372],
    "causal": [0.5973986092, -1.0529592302, 1.3868448119, -1.5604730994, 0.1927520881, 1.6604630644, -3.3218028784, 4.5992907022],
    "few": [-3.4768921311, -3.5214167959, -1.9852892907, 0.4419715303, 2.6708453669, 3.7008615365, 3.0696784906, 1.0606142542],
    "symmetric": [
        -5.0432517275,
        -2.2495150544,
        1.5539574887,
        4.6599078642,
        5.6741735843,
        4.1414829772,
        0.7498121828,
        -2.9784254886,
    ],
    "rotary": [0.3442722529, -0.8062353307, 1.175033628, -1.40805054, -1.0341299912, 1.9700600397, -2.6783391725, 3.0771219687],
    "symbolic": [0.1247959334, -0.9329765674, 1.633346797, -2.1449751169, 1.7120674276, -1.4237476111, 0.9709061857, -0.4058713866],
    "sensory": [4.5056438072, 3.4693516798, 0.8757777596, -2.1109049847, -4.1500695175, -4.3263996378, -2.5607463541, 0.3543446462],
    "relative": [
        0.7223298614,
        -1.4687516172,
        2.0454513119,
        -2.3857882284,
        2.7914572388,
        -3.5297462876,
        3.8601543794,
        -3.7445011017,
    ],
    "relative, symbolic": [
        *(0.1753650507, -0.8108217453, 1.3525836747, -1.7380473665),
        *(-3.2115823086, 0.9335682912, 1.4523245076, -3.6703934851),
    ],
}
CASES = {
    "mixed": ((1, 1), {}, SYMBOLS, None),
    "causal": ((2, 2), {}, SYMBOLS, CAUSAL),
    "few": ((0, 4), {"relations": 2}, SYMBOLS, None),
    "symmetric": ((0, 2), {"symmetric": True}, SYMBOLS, None),
    "rotary": ((1, 1), {"rotary": True}, SYMBOLS, None),
    "symbolic": ((1, 1), {"kind": "symbolic"}, SYMBOLS, None),
    "sensory": ((2, 0), {}, None, None),
    "relative": ((1, 1), {}, TABLE, None),
    "relative, symbolic": ((1, 1), {"kind": "symbolic"}, TABLE, CAUSAL),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_layer(case):
    heads, options, symbols, mask = CASES[case]
    layer = fill(DualAttention(8, *heads, **options).double())
    theirs = torch.tensor(AUTHORS[case], dtype=torch.float64)
    assert torch.allclose(layer(X, mask, symbols)[1, 3], theirs, rtol=0, atol=1e-6 if case == "rotary" else 1e-9)


def test_symbolic_attention_equals_the_authors():
    theirs = [-0.5539578753, -0.016907197, 0.5280952002, 0.8247261731, 0.7017411773, 0.2385693815, -0.3368053222, -0.7537752201]
    ours = fill(SymbolicAttention(8, heads=2, count=3).double())(X)[1, 3]
    assert torch.allclose(ours, torch.tensor(theirs, dtype=torch.float64), rtol=0, atol=1e-9)


def test_without_relational_heads_it_is_a_transformer():
    torch.manual_seed(0)
    plain = MultiHead(8, heads=2, bias=False)
    layer = DualAttention(8, sensory=2, relational=0)
    layer.load_state_dict({f"sensory.{name}": w for name, w in plain.state_dict().items()})
    x = torch.randn(3, 5, 8)
    assert torch.allclose(layer(x), plain(x), atol=1e-6)
    net = Transformer(
        8, 2, 2, 5, positions="learned", hidden=16, causal=True, attention=lambda d, h, p, c: MultiHead(d, h, bias=False)
    )
    dual = DualTransformer(8, 2, 0, layers=2, context=5, hidden=16, causal=True)
    dual.load_state_dict({name.replace("attention.", "attention.sensory.", 1) if "attention." in name else name: w
                          for name, w in net.state_dict().items()})  # fmt: skip
    assert torch.allclose(dual(x), net(x), atol=1e-5)


@pytest.mark.parametrize("symbols", [SYMBOLS, TABLE], ids=["each", "relative"])
def test_without_w_r_it_is_attention_over_symbols(symbols):
    torch.manual_seed(0)
    layer, ablated = RelationalHeads(8, heads=2).double(), SymbolicHeads(8, heads=2).double()
    ablated.load_state_dict({name: w for name, w in layer.state_dict().items() if name in ablated.state_dict()})
    assert not torch.allclose(layer(X, symbols), ablated(X, symbols))
    layer.W_r.data.zero_()
    assert torch.allclose(layer(X, symbols), ablated(X, symbols))


def test_heads_are_the_sums_of_the_formula():
    """One pair (i, j) at a time, as it is written."""
    torch.manual_seed(0)
    layer = RelationalHeads(8, heads=2, relations=4).double()
    with record(layer, "pattern", "relation") as seen:
        y = layer(X, TABLE)
    [a], [r] = seen["pattern"], seen["relation"]
    z = torch.zeros(2, 5, 2, 4, dtype=torch.float64)
    for i in range(5):
        for j in range(5):
            for h in range(2):
                w_s = layer.value.weight[4 * h : 4 * h + 4]
                message = r[:, :, i, j] @ layer.W_r[h].T + w_s @ TABLE[min(max(j - i, -2), 2) + 2]
                z[:, i, h] += a[:, h, i, j, None] * message.detach()
    assert torch.allclose(layer.out(z.flatten(2)), y)
    assert torch.allclose(a.sum(-1), torch.ones(2, 2, 5, dtype=torch.float64))


def test_symmetric_relations_are_symmetric_and_others_not():
    torch.manual_seed(0)
    r = RelationalHeads(8, heads=2, symmetric=True).double().relate(X)
    assert torch.allclose(r, r.mT)
    r = RelationalHeads(8, heads=2).double().relate(X)
    assert not torch.allclose(r, r.mT)


def test_inner_products_do_not_see_an_orthogonal_map():
    layer = RelationalHeads(8, heads=2, relations=1, symmetric=True).double()
    nn.init.eye_(layer.relation_query.weight)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(layer.relate(X @ turn), layer.relate(X))
    assert torch.allclose(layer.relate(X)[:, 0], X @ X.mT / 8**0.5)


@pytest.mark.parametrize("rotary", [False, True])
def test_positions_are_in_the_pattern_and_never_in_the_relation(rotary):
    """Two equal objects: with rotary positions a looks at them differently, r does not."""
    torch.manual_seed(0)
    layer = RelationalHeads(8, heads=2, rotary=rotary).double()
    x = X.clone()
    x[:, 4] = x[:, 1]
    assert torch.allclose(layer.relate(x)[..., 4], layer.relate(x)[..., 1])
    assert torch.allclose(layer.attention(x)[..., 4], layer.attention(x)[..., 1]) != rotary


@pytest.mark.parametrize("symbols", ["positional", "relative", "attention"])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_a_causal_net_sees_no_future(symbols, positions):
    torch.manual_seed(0)
    made = {"positional": PositionalSymbols(8, 5), "relative": RelativeSymbols(8, 2), "attention": SymbolicAttention(8, 2, 3)}
    net = DualTransformer(8, 1, 1, 2, 5, symbols=made[symbols], positions=positions, hidden=8, causal=True)
    x = torch.randn(1, 5, 8, requires_grad=True)
    for i in range(5):
        (slope,) = torch.autograd.grad(net(x)[0, i].square().sum(), x)
        assert (slope[0, i + 1 :] == 0).all()
        assert (slope[0, : i + 1] != 0).any(-1).all()


def test_the_fused_path_equals_the_formed_pattern_and_a_blind_query_gets_zeros():
    torch.manual_seed(0)
    mask = torch.rand(2, 5, 5) < 0.5
    mask[0, 2] = False
    for layer, more in ((SensoryHeads(8, 2), ()), (SymbolicHeads(8, 2), (SYMBOLS,)), (RelationalHeads(8, 2), (SYMBOLS,))):
        layer.double()
        y = layer(X, *more, mask)
        with override(layer, {"pattern": lambda a: a}):
            assert torch.allclose(layer(X, *more, mask), y)
        assert (y[0, 2] == 0).all()
        assert (y[0, 1] != 0).any() or not mask[0, 1].any()


def test_relative_symbols_form_nothing_of_n_by_n_by_d():
    """n = 300, d = 64: the largest tensor is n × n for each head or relation."""
    layer, sizes = RelationalHeads(64, heads=2), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        layer(torch.randn(1, 300, 64), RelativeSymbols(64, 50)(torch.randn(1, 300, 64)))
    assert max(sizes) <= 2 * 300 * 300


def test_state_dict_round_trip_and_autocast():
    torch.manual_seed(0)
    options = {"symbols": RelativeSymbols(8, 2), "hidden": 8, "symmetric": True}
    net, x = DualTransformer(8, 1, 1, 2, 5, **options), torch.randn(2, 5, 8)
    other = DualTransformer(8, 1, 1, 2, 5, symbols=RelativeSymbols(8, 2), hidden=8, symmetric=True)
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x), other(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(net(x).float(), other(x).float())
        assert net(x).isfinite().all()


@pytest.mark.parametrize(
    ("word", "make"),
    [
        ("heads, total", lambda: SensoryHeads(8, 2, 3)),
        ("heads, total", lambda: SensoryHeads(8, 0, 2)),
        ("rotary", lambda: SensoryHeads(6, 1, 2, rotary=True)),
        ("relations", lambda: RelationalHeads(8, 2, relations=3)),
        ("sensory, relational", lambda: DualAttention(8, 0, 0)),
        ("kind: unknown 'relation'; did you mean 'relational'", lambda: DualAttention(8, 1, 1, kind="relation")),
        ("symbols: relational heads need them", lambda: DualAttention(8, 1, 1)(X.float())),
        (r"symbols: must be of shape \(2, 5, 8\)", lambda: DualAttention(8, 1, 1)(X.float(), symbols=torch.zeros(2, 4, 8))),
        (r"or \(2 reach \+ 1, 8\)", lambda: DualAttention(8, 1, 1)(X.float(), symbols=torch.zeros(4, 8))),
        ("context = 4", lambda: PositionalSymbols(8, 4)(X.float())),
        ("context = 4", lambda: DualTransformer(8, 1, 1, 1, 4)(X.float())),
        ("heads: must divide", lambda: SymbolicAttention(8, 3, 5)),
        ("x: the last axis must have 8 numbers", lambda: DualAttention(8, 1, 1)(X.float()[..., :1], symbols=SYMBOLS.float())),
        ("x: must be torch.float32", lambda: SensoryHeads(8, 2)(X)),
        ("x: must be torch.float32", lambda: RelationalHeads(8, 2).relate(X)),
        (r"z: must be of shape \(b, 2, n, 4\)", lambda: SensoryHeads(8, 2).merge(torch.zeros(3, 4, 5, 2))),
        ("query of x: must have no NaN", lambda: SymbolicAttention(8, 2, 5)(X.float() * torch.inf)),
        ("query of x: must have no NaN", lambda: SymbolicHeads(8, 2)(X.float() * torch.nan, SYMBOLS.float())),
        ("reach", lambda: RelativeSymbols(8, 0)),
        ("positions", lambda: DualTransformer(8, 1, 1, 1, 4, positions="attended")),
        ("layers", lambda: DualTransformer(8, 1, 1, 0, 4)),
        ("game", lambda: relational_game("occur", 5, torch.Generator())),
        ("split", lambda: set_game(5, torch.Generator(), "validation")),
        ("source", lambda: relational_game("same", 5, torch.Generator(), source="images")),
        ("batch", lambda: relational_game("same", 0, torch.Generator())),
        ("batch, d", lambda: set_game(5, torch.Generator(), d=30)),
        ("cells", lambda: shapes(7)),
    ],
)
def test_bad_input_is_refused(word, make):
    with pytest.raises(Refused, match=word):
        make()


def equal(x):
    """Which objects of a row are the same: (b, n, n)."""
    return (x[:, :, None] == x[:, None]).all(-1)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("game", GAMES)
def test_games_follow_their_rules(game, source, split):
    x, y = relational_game(game, 2_000, torch.Generator().manual_seed(0), split, source)
    alike = equal(x)
    holds = {
        "same": lambda: alike[:, 0, 1],
        "occurs": lambda: alike[:, 0, 1:].any(1),
        "match": lambda: (alike[:, :3, :3] == alike[:, 3:, 3:]).flatten(1).all(1),
        "order": lambda: ((x[:, 1] - x[:, 0]) @ torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(0))) > 0,
    }[game]()
    assert torch.equal(holds, y == 1)
    assert abs(float(y.float().mean()) - 0.5) < 0.05
    if game == "match":
        assert not alike[:, :3, 3:].any()  # the triples share no object, so that only their patterns can be compared
        assert alike[:, :3, :3].flatten(1).unique(dim=0).shape[0] == 4


def test_shapes_are_all_polyominoes_once_and_tests_are_new():
    train, test = shapes(5), shapes(6)
    assert len(train) == 63 * len(COLOURS) and len(test) == 216 * len(COLOURS)  # fixed pentominoes and hexominoes
    assert len(train.unique(dim=0)) == len(train)
    assert ((train.unflatten(1, (3, 36)).sum(1) > 0).sum(1) == 5).all()
    assert ((test.unflatten(1, (3, 36)).sum(1) > 0).sum(1) == 6).all()


def test_sets_are_sets_and_no_triple_is_in_both_splits():
    seen = {}
    for split in ("train", "test"):
        x, y = set_game(3_000, torch.Generator().manual_seed(1), split)
        attribute = x.unflatten(2, (4, 8))
        pairs = torch.stack([(attribute[:, i] == attribute[:, j]).all(-1) for i, j in ((0, 1), (0, 2), (1, 2))])
        assert torch.equal((pairs.sum(0) != 1).all(1), y == 1)  # all equal: 3 pairs; all different: 0
        assert abs(float(y.float().mean()) - 0.5) < 0.05
        assert not equal(x)[:, [0, 0, 1], [1, 2, 2]].any()
        cards, which = x.flatten(0, 1).unique(dim=0, return_inverse=True)
        assert len(cards) == 81
        seen[split] = {tuple(row) for row in which.view(-1, 3).sort(1).values.tolist()}
    assert not seen["train"] & seen["test"]


def test_needed_samples_are_read_off_the_curve():
    from neuropil.claims.interaction.dual_attention import needed

    assert needed((100, 400), (0.9, 1.0)) == pytest.approx(200)
    assert needed((100, 400), (0.5, 0.6)) == 400
    assert needed((100, 400), (0.97, 0.6)) == 100


def test_copies_learn_as_nets_of_their_own():
    from neuropil.claims.interaction.dual_attention import Copies, judge

    torch.manual_seed(0)
    net, x = judge("mixed", 8, 3), torch.randn(2, 4, 3, 8)
    copies = Copies(net, 2)
    assert torch.allclose(copies(x), torch.stack([net(x[0]), net(x[1])]), atol=1e-5)
    copies(x)[0].sum().backward()
    slopes = torch.autograd.grad(net(x[0]).sum(), list(net.parameters()))
    for weight, slope in zip(copies.weights, slopes, strict=True):
        assert torch.allclose(weight.grad[0], slope, atol=1e-4)
        assert (weight.grad[1] == 0).all()


@pytest.mark.parametrize("claim", select("dual-attention"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert all(0 <= row[side] <= 4_000 for side in ("method", "baseline"))
