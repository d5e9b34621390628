"""FinalMLP: the authors' logits, what gates and heads come to, and the models beside it; how clicks are learned."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch.func import functional_call

from neuropil.errors import Refused
from neuropil.interaction import click_models as cm
from neuropil.interaction.finalmlp import DualMLP, FeatureGating, FinalMLP, stream
from neuropil.lab.claims import select
from neuropil.lab.run import measure

SIZES = [5, 3, 9]
IDS = torch.tensor([[1, 2, 8], [0, 0, 0], [4, 1, 3], [2, 2, 5]])
TOWERS = ((16, 8), (12, 6, 4))
# From the authors' FinalMLP.py and DualMLP.py (reczoo/FuxiCTR, model_zoo/FinalMLP) on fuxictr 2.3.10, torch 2.13, float64,
# the sigmoid at the end left out, on the weights of `fill`.
AUTHORS = {
    "contexts": [-0.06098327549882224, -0.16589728296979125, -0.12188339176933999, -0.14822944753782308],
    "no contexts": [-0.05664267074438911, -0.1589300186261171, -0.11589238973382547, -0.12104166331829144],
    "dual": [0.3560228783461632, 0.10886911405588745, 0.4069202438372123, 0.04988420324919546],
}


def fill(model):
    """The k-th parameter is ½ sin(0.7 i + k)."""
    model = model.double()
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_((torch.arange(p.numel(), dtype=torch.float64) * 0.7 + k).sin().view(p.shape) / 2)
    return model


def final(**given):
    return FinalMLP(SIZES, 4, TOWERS, **({"heads": 2, "contexts": ((0,), (1, 2)), "gate_hidden": (7,)} | given))


def drawn(model, std=0.5):
    """Weights large enough to tell the parts apart."""
    torch.manual_seed(0)
    for p in model.double().parameters():
        torch.nn.init.normal_(p, std=std)
    return model


def test_logits_are_those_of_the_authors_code():
    models = {"contexts": final(), "no contexts": final(contexts=((), ())), "dual": DualMLP(SIZES, 4, TOWERS)}
    for name, model in models.items():
        logits = fill(model)(IDS)
        assert torch.allclose(logits, torch.tensor(AUTHORS[name], dtype=torch.float64), atol=1e-12, rtol=0), name
        for part in ("form.weight", "gates.1.mlp.0.weight", "streams.0.0.weight", "linear.1.weight", "embed.table"):
            if part in (weights := model.state_dict()):  # each of them matters
                changed = functional_call(model, weights | {part: weights[part] * 0}, (IDS,))
                assert (changed - logits).abs().max() > 1e-3, (name, part)


@pytest.mark.parametrize("context", [(), (2, 0)])
def test_a_gate_of_zeros_lets_everything_through(context):
    gate = drawn(FeatureGating(SIZES, 4, context))
    e = torch.randn(4, 12).double()
    assert not torch.allclose(gate(IDS, e), e, atol=0.1)
    assert gate.gates(IDS).min() >= 0
    assert gate.gates(IDS).max() <= 2
    last = gate.mlp[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    assert torch.equal(gate(IDS, e), e)


def test_gates_see_their_own_fields_alone():
    gate = drawn(FeatureGating(SIZES, 4, [1]))
    other = IDS.clone()
    other[:, [0, 2]] = 0
    assert torch.equal(gate.gates(IDS), gate.gates(other))
    other[:, 1] = 1 - other[:, 1].clamp(max=1)
    assert not torch.allclose(gate.gates(IDS), gate.gates(other))


def test_a_gate_of_one_field_is_computed_for_values_or_for_rows_alike():
    gate = drawn(FeatureGating(SIZES, 4, [2]))
    many = IDS.repeat(3, 1)  # 12 rows, 9 values
    grads = []
    for at_once in (True, False):
        gate.zero_grad()
        gates = gate.gates(many) if at_once else torch.cat([gate.gates(row[None]) for row in many])
        gates.square().sum().backward()
        grads.append([gates, *(p.grad.clone() for p in gate.parameters())])
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*grads, strict=True))


def test_heads_are_a_block_diagonal_form():
    for heads in (1, 2, 4):
        model = drawn(final(heads=heads))
        h_1, h_2 = torch.randn(6, 8).double(), torch.randn(6, 4).double()
        w_1, w_2 = model.linear
        full = torch.einsum("bn,nm,bm->b", h_1, model.form.matrix(), h_2)
        plain = h_1 @ w_1.weight[0] + h_2 @ w_2.weight[0] + w_1.bias
        assert torch.allclose(model.fuse(h_1, h_2), plain + full, atol=1e-12)


def test_swapped_streams_and_a_transposed_form_give_the_same_logit():
    one = drawn(final())
    two = FinalMLP(SIZES, 4, TOWERS[::-1], heads=2, contexts=((1, 2), (0,)), gate_hidden=(7,)).double()
    swap = {"0": "1", "1": "0"}
    weights = {}
    for name, x in one.state_dict().items():
        kind, _, rest = name.partition(".")
        if kind in ("gates", "streams", "linear"):
            name = f"{kind}.{swap[rest[0]]}{rest[1:]}"
        weights[name] = x.mT if kind == "form" else x
    bias = weights.pop("linear.1.bias")  # the one bias belongs to the first stream of either
    two.load_state_dict(weights | {"linear.0.bias": bias})
    assert torch.allclose(one(IDS), two(IDS), atol=1e-12)


def test_the_logit_is_linear_in_each_stream_for_a_fixed_other():
    model = drawn(final())
    g = torch.Generator().manual_seed(1)
    h, other = torch.randn(2, 6, 8, generator=g).double(), torch.randn(6, 4, generator=g).double()
    zero = model.fuse(torch.zeros(6, 8).double(), other)
    both = model.fuse(2 * h[0] - 3 * h[1], other) - zero
    assert torch.allclose(both, 2 * (model.fuse(h[0], other) - zero) - 3 * (model.fuse(h[1], other) - zero), atol=1e-12)
    assert not torch.allclose(model.fuse(h[0], other) - zero, model.fuse(h[0], 2 * other) - model.fuse(h[0] * 0, 2 * other))


def test_dual_is_final_without_add_ons():
    dual, bare = DualMLP(SIZES, 4, TOWERS), final(heads=0, contexts=None)
    assert {n: p.shape for n, p in dual.named_parameters()} == {n: p.shape for n, p in bare.named_parameters()}
    x_1, x_2 = dual.views(IDS)
    assert torch.equal(x_1, x_2)
    assert torch.equal(x_1, dual.embed(IDS).flatten(1))


def test_streams_end_in_a_relu_and_take_norm_and_dropout():
    kinds = [type(layer).__name__ for layer in stream([4, 3, 2], dropout=0.5, batch_norm=True)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Dropout"] * 2
    assert stream([4, 3])(torch.randn(50, 4)).min() == 0


def test_new_values_are_the_unknown_and_bad_ids_are_refused():
    model, mapping = final(), final(out_of_range="unknown")
    mapping.load_state_dict(model.state_dict())
    far, unknown = torch.tensor([[1, 3, 99]]), torch.tensor([[1, 0, 0]])
    with pytest.raises(Refused, match="ids: field 1 takes 0 … 2, got 3"):
        model(far)
    assert torch.equal(mapping(far), model(unknown))


def test_bad_arguments_are_refused():
    with pytest.raises(Refused, match="heads: must divide the sizes 8 and 4, got 3"):
        final(heads=3)
    with pytest.raises(Refused, match="context: places of fields 0 … 2"):
        final(contexts=((3,), ()))
    with pytest.raises(Refused, match="one for each of two streams"):
        final(contexts=((0,),))
    with pytest.raises(Refused, match="dropout"):
        final(dropout=1.0)
    with pytest.raises(Refused, match="sizes: at least"):
        stream([4])
    with pytest.raises(Refused, match="h_1: the last axis must have 8 numbers"):
        final().fuse(torch.zeros(2, 9), torch.zeros(2, 4))
    with pytest.raises(Refused, match=r"h_2: must be torch\.float32"):
        final().fuse(torch.zeros(2, 8), torch.zeros(2, 4).half())


def test_weights_go_to_a_new_model_and_into_bfloat16():
    one, two = final(), final()
    assert not torch.equal(one(IDS), two(IDS))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(IDS), two(IDS))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(one(IDS).float(), two(IDS).float(), atol=0.05)


def test_compiles_whole_where_ids_are_not_refused():
    code = """
import torch
from neuropil.interaction.finalmlp import FinalMLP
ids = torch.tensor([[1, 2, 8], [0, 9, 3]])
model = FinalMLP([5, 3, 9], 4, ((16, 8), (12, 4)), heads=2, contexts=((0,), ()), out_of_range="unknown")
torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(ids), model(ids))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_factorisation_machine_is_the_sum_over_pairs():
    model = drawn(cm.FactorizationMachine(SIZES, 4))
    e = model.embed(IDS)
    pairs = sum((e[:, i] * e[:, j]).sum(-1) for i, j in itertools.combinations(range(3), 2))
    first = model.first.weight(IDS)[..., 0].sum(-1) + model.first.bias
    assert torch.allclose(model(IDS), first + pairs, atol=1e-12)
    deep = drawn(cm.DeepFM(SIZES, 4, (6,)))
    deep.load_state_dict(
        deep.state_dict() | {f"{part}.{n}": x for part in ("first", "embed") for n, x in getattr(model, part).state_dict().items()}
    )
    assert torch.allclose(deep(IDS), model(IDS) + deep.mlp(e.flatten(1)), atol=1e-12)


def test_cross_layers_multiply_by_the_embedding_once_more():
    """Of one field and one number, without a bias: x₂ = e (w₂ x₁) + x₁, x₁ = w₁ e² + e, a cubic in e."""
    model = drawn(cm.DCNv2([9], 1, (3,), layers=2, rank=1))
    w = []
    for u, v in model.cross:
        torch.nn.init.zeros_(v.bias)
        w.append((u.weight * v.weight).item())
    torch.nn.init.zeros_(model.out.bias)
    model.out.weight.data[:, 1:] = 0
    e = model.embed.table[:, 0]
    x_1 = w[0] * e**2 + e
    assert torch.allclose(model(torch.arange(9)[:, None]), model.out.weight[0, 0] * (e * w[1] * x_1 + x_1), atol=1e-12)


def test_equal_weights_are_as_many_as_fit():
    makers = [
        lambda w: cm.PlainMLP(SIZES, 4, (w, w)),
        lambda w: cm.DeepFM(SIZES, 4, (w, w)),
        lambda w: cm.DCNv2(SIZES, 4, (w, w), rank=4),
        lambda w: cm.InnerProductNet(SIZES, 4, (w, w)),
        lambda w: DualMLP(SIZES, 4, ((w, w), (w, w))),
        lambda w: FinalMLP(SIZES, 4, ((w, w), (w, w)), contexts=((0,), ())),
    ]
    for make in makers:
        model = cm.matched(make, 4000)
        width = _width(model)
        assert cm.network_weights(model) <= 4000 < cm.network_weights(make(width + 1))
    with pytest.raises(Refused, match="weights: too few"):
        cm.matched(makers[0], 5)
    assert cm.network_weights(cm.LogisticRegression(SIZES)) == 1


def _width(model):
    deep = next(getattr(model, name) for name in ("mlp", "deep", "streams") if hasattr(model, name))
    return next(m for m in deep.modules() if isinstance(m, torch.nn.Linear)).out_features


def xor(n, seed):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 5, (n, 3), generator=g)
    return ids, ((ids[:, 0] > 2) ^ (ids[:, 1] > 2)).float()


def test_training_ends_at_the_best_look_and_decays_embeddings_alone():
    training, validation = xor(2048, 0), xor(512, 1)
    torch.manual_seed(0)
    model = FinalMLP([5, 5, 5], 4, ((16, 8), (16, 8)))
    found = cm.fit_clicks(model, training, validation, lr=3e-3, size=128, epochs=25, every=30, patience=9)
    assert found.auc > 0.99
    model.streams[0].eval()  # frozen, and stays so
    assert cm.score(model, *validation) == found
    assert model.training and model.streams[1].training and not model.streams[0].training
    heavy = FinalMLP([5, 5, 5], 4, ((16, 8), (16, 8)))
    cm.fit_clicks(heavy, training, validation, lr=3e-3, size=128, epochs=5, decay=10.0, patience=9)
    assert cm.tables(heavy)[0].abs().max() < 0.05 < cm.tables(model)[0].abs().max()
    assert heavy.streams[0][0].weight.std() > 0.1


def test_a_stall_cuts_the_rate_and_the_second_ends_the_training(monkeypatch):
    looks = iter([0.6, 0.7, 0.7, 0.8, 0.5, 0.6, 0.9])
    monkeypatch.setattr(cm, "score", lambda *rows: cm.Score(next(looks), 0.0))
    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self))[1])
    found = cm.fit_clicks(cm.LogisticRegression([5, 5, 5]), xor(100, 0), xor(10, 1), lr=1.0, size=50, epochs=50)
    assert found.auc == 0.8
    assert rates == pytest.approx([1.0] * 6 + [0.1] * 4 + [0.01] * 2)


def test_bad_training_is_refused():
    rows = xor(64, 0)
    for given in ({"decay": -1.0}, {"epochs": 0}, {"patience": 0}, {"every": 0}):
        with pytest.raises(Refused, match="decay, epochs, patience, every"):
            cm.fit_clicks(cm.LogisticRegression([5, 5, 5]), rows, rows, **given)
    with pytest.raises(Refused, match="loss: must be at least 0, got nan"):
        cm.Score(0.5, float("nan"))
    with pytest.raises(Refused, match="labels: both 0 and 1"):
        cm.fit_clicks(cm.LogisticRegression([5, 5, 5]), rows, (rows[0], torch.ones(64)), epochs=1)


@pytest.mark.parametrize("claim", select("finalmlp"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert all(0 <= row[side] <= 1 for side in ("method", "baseline"))
