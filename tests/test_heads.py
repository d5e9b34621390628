"""Induction heads: a circuit built by hand scores 1, scores agree with plain sums, ablation and smearing do what they say."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from neuropil.data.repeats import Repeats, repeats
from neuropil.data.sources import path
from neuropil.errors import Refused
from neuropil.interpret.heads import (
    SmearedAttention,
    composition,
    copying_eigenvalues,
    copying_logits,
    in_context_score,
    patterns,
    prefix_matching,
    previous_token,
    token_losses,
)
from neuropil.lab.claims import select
from neuropil.lab.run import measure
from neuropil.nn.transformer import GPT, Attention

V, N, SURE = 12, 20, 1000.0


@torch.no_grad()
def built():
    """Parts of the stream: token, token before, prediction, position. Layer 1 looks one back; layer 2 matches and copies."""
    token, before, said, place = slice(0, V), slice(V, 2 * V), slice(2 * V, 3 * V), slice(3 * V, 3 * V + N)
    model = GPT(V, 3 * V + N, heads=1, layers=2, context=N, positions="attended", norm=False)
    for p in model.parameters():
        p.zero_()
    model.embed.weight[:, token] = torch.eye(V)
    model.unembed.weight[:, said] = SURE * torch.eye(V)
    first, second = (layer.attention for layer in model.layers)
    first.place[:, place] = second.place[:, place] = torch.eye(N)
    first.query.weight[place, place] = SURE * torch.eye(N).roll(-1, 0)  # position i asks for i − 1
    first.key.weight[place, place] = torch.eye(N)
    first.value.weight[before, token] = torch.eye(V)
    second.query.weight[before, token] = SURE * torch.eye(V)
    second.key.weight[before, before] = torch.eye(V)
    second.query.bias[3 * V], second.key.weight[3 * V, 3 * V] = SURE, -1.0  # nothing stands before position 0: away from it
    second.value.weight[said, token] = torch.eye(V)
    for attention in (first, second):
        attention.out.weight.copy_(torch.eye(3 * V + N))
    return model.eval()


def without_doubt(count):
    """Repeats whose segment has no token twice."""
    period = torch.randint(4, 9, (count,))
    segment = torch.stack([torch.randperm(V) for _ in range(count)])
    return Repeats(segment.gather(1, torch.arange(N) % period[:, None]), period)


def test_the_circuit_built_by_hand_scores_one():
    model, data = built(), without_doubt(16)
    A = patterns(model, data.tokens)
    torch.testing.assert_close(prefix_matching(A, data.tokens)[1], torch.ones(1))
    torch.testing.assert_close(previous_token(A)[0], torch.ones(1))
    assert prefix_matching(A, data.tokens)[0] == 0 and previous_token(A)[1] < 0.5
    for copying in (copying_eigenvalues, copying_logits):
        assert copying(model).flatten().tolist() == pytest.approx([0.0, 1.0]), copying.__name__
    assert data.split(token_losses(model, data.tokens))[1] < 1e-4
    key, query, value = (float(composition(model, side)[1, 0, 0, 0]) for side in ("key", "query", "value"))
    # ‖W_QK W_OV'‖² = V SURE², ‖W_QK‖² = V SURE², ‖W_OV'‖² = V
    level = (3 * V + N) ** -0.5
    assert [key, query, value] == pytest.approx([V**-0.5 - level, -level, -level], rel=1e-5)


def test_frozen_patterns_tell_what_a_head_writes_from_what_it_lets_others_see():
    model, data = built(), without_doubt(16)
    whole = token_losses(model, data.tokens)
    none, previous, induction = (torch.tensor(heads)[:, None] for heads in ([False, False], [True, False], [False, True]))
    assert torch.equal(token_losses(model, data.tokens, none), whole)
    torch.testing.assert_close(token_losses(model, data.tokens, previous), whole)  # only the pattern of layer 2 needs it
    torch.testing.assert_close(token_losses(model, data.tokens, induction), torch.full_like(whole, math.log(V)))
    model.layers[0].attention.out.weight.data.zero_()  # not frozen: layer 2 no longer finds anything
    assert data.split(token_losses(model, data.tokens))[1] > 1.0


def test_ablation_equals_a_net_without_the_heads_weights_where_there_is_one_layer():
    model, tokens = GPT(V, 8, 4, 1, N), repeats(3, N, V, (4, 8)).tokens
    without = torch.tensor([[False, True, False, True]])
    found = token_losses(model, tokens, without)
    model.layers[0].attention.out.weight.data.view(8, 4, 2)[:, without[0]] = 0
    torch.testing.assert_close(found, token_losses(model, tokens))


def test_rows_of_patterns_sum_to_one_and_scores_agree_with_plain_sums():
    model, tokens = GPT(V, 8, 2, 2, N), torch.randint(V, (3, N))
    A = patterns(model, tokens)
    torch.testing.assert_close(A.sum(-1), torch.ones(A.shape[:-1]))
    matched, stood = torch.zeros(2, 2), 0
    for b in range(3):
        for i in range(N):
            after = [j for j in range(1, i + 1) if tokens[b, j - 1] == tokens[b, i]]
            stood += bool(after)
            matched += A[:, b, :, i, after].sum(-1)
    torch.testing.assert_close(prefix_matching(A, tokens), matched / stood)
    back = sum(A[:, b, :, i, i - 1] for b in range(3) for i in range(1, N)) / (3 * (N - 1))
    torch.testing.assert_close(previous_token(A), back)
    torch.testing.assert_close(prefix_matching(A[1], tokens), matched[1] / stood)


def test_scores_of_weights_agree_with_whole_matrices():
    d, heads = 8, 2
    model = GPT(V, d, heads, 3, N).double()
    for layer in model.layers:
        nn.init.normal_(layer.attention_norm.weight)
    nn.init.normal_(model.norm.weight)
    centred = torch.eye(d, dtype=torch.double) - 1 / d

    def circuits(i, h):
        layer, part = model.layers[i], slice(4 * h, 4 * h + 4)
        norm = torch.diag(layer.attention_norm.weight) @ centred
        Q, K, W = ((w.weight[part] @ norm) for w in (layer.attention.query, layer.attention.key, layer.attention.value))
        return Q.T @ K, layer.attention.out.weight[:, part] @ W

    norms = lambda a, b: (a @ b).norm() / (a.norm() * b.norm()) - d**-0.5  # noqa: E731
    for i in range(3):
        for h in range(heads):
            QK, OV = circuits(i, h)
            M = model.unembed.weight @ torch.diag(model.norm.weight) @ centred @ OV @ model.embed.weight.T
            eigenvalues = torch.linalg.eigvals(M)
            torch.testing.assert_close(copying_eigenvalues(model)[i, h], eigenvalues.sum().real / eigenvalues.abs().sum())
            raised = (M - M.mean(0)).relu()
            torch.testing.assert_close(copying_logits(model)[i, h], (raised.diag() / raised.sum(0)).mean())
            for j in range(3):
                earlier = circuits(j, 1)[1]
                for side, W in (("query", QK.T), ("key", QK), ("value", OV)):
                    want = norms(W, earlier) if j < i else torch.zeros((), dtype=torch.double)
                    torch.testing.assert_close(composition(model, side)[i, h, j, 1], want, check_dtype=False)


def test_random_weights_do_not_compose():
    found = composition(GPT(V, 64, 8, 2, N, norm=False), "key")[1, :, 0]
    assert abs(float(found.mean())) < 0.02


def test_a_head_that_looks_back_by_a_fixed_distance_passes_only_where_the_period_is_fixed():
    back = torch.zeros(1, 1, 1, N, N)
    back[..., range(5, N), range(N - 5)] = 1  # for period 6: what came after
    fixed, free = repeats(400, N, 1000, (6, 6)), repeats(400, N, 1000, (3, 9))
    assert prefix_matching(back.expand(1, 400, 1, N, N), fixed.tokens) > 0.99
    assert prefix_matching(back.expand(1, 400, 1, N, N), free.tokens) < 0.3


def test_keys_that_are_not_smeared_are_plain_and_smeared_ones_are_mixed():
    plain, smeared = Attention(8, 2, "rotary", 6), SmearedAttention(8, 2, "rotary", 6)
    smeared.load_state_dict(plain.state_dict() | {"alpha": torch.full((2, 1, 1), math.inf)})
    x = torch.randn(3, 6, 8)
    assert torch.equal(smeared(x), plain(x))
    smeared.alpha.data[1] = 0.0
    (_, k, _), (_, mixed, _) = plain.project(x, x), smeared.project(x, x)
    assert torch.equal(mixed[:, 0], k[:, 0])
    torch.testing.assert_close(mixed[:, 1, 1:], (k[:, 1, 1:] + k[:, 1, :-1]) / 2)
    assert torch.equal(mixed[:, :, 0], k[:, :, 0])
    twin = SmearedAttention(8, 2, "rotary", 6)
    twin.load_state_dict(smeared.state_dict())
    assert torch.equal(twin(x), smeared(x))
    with torch.autocast("cpu", torch.bfloat16):
        low = smeared(x)
    torch.testing.assert_close(low.float(), smeared(x), rtol=0.1, atol=0.05)
    smeared(x).sum().backward()
    assert (smeared.alpha.grad[0] == 0).all() and (smeared.alpha.grad[1] != 0).all()  # saturated, not


def test_smeared_keys_let_one_layer_match():
    """The built circuit in one layer: the query asks for a key of the same token, which the smearing has put one on."""
    model = GPT(V, 2 * V, 1, 1, N, positions="none", norm=False, attention=SmearedAttention)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.embed.weight[:, :V] = torch.eye(V)
        attention = model.layers[0].attention
        attention.query.weight[:V, :V] = SURE * torch.eye(V)
        attention.key.weight[:V, :V] = torch.eye(V)
        attention.alpha.fill_(-50.0)
    data = without_doubt(16)
    score = prefix_matching(patterns(model, data.tokens), data.tokens)
    attention.alpha.data.fill_(50.0)
    assert score > 0.8 and prefix_matching(patterns(model, data.tokens), data.tokens) < 0.01  # the first key has none before it


def test_smeared_attention_compiles_whole():
    lines = [
        "import torch; from neuropil.nn.transformer import GPT; from neuropil.interpret.heads import SmearedAttention",
        "model = GPT(11, 8, 2, 2, 6, attention=SmearedAttention); x = torch.randint(11, (3, 6))",
        "torch.testing.assert_close(torch.compile(model, backend='eager', fullgraph=True)(x), model(x))",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_repeats_repeat_after_lengths_of_the_range_and_say_what_is_known():
    data = repeats(300, 30, 50, (3, 12), torch.Generator().manual_seed(1))
    again = repeats(300, 30, 50, (3, 12), torch.Generator().manual_seed(1))
    assert torch.equal(data.tokens, again.tokens) and len(data) == 300
    assert set(data.period.tolist()) == set(range(3, 13)) and set(data.tokens.unique().tolist()) == set(range(50))
    for row, p, known in zip(data.tokens, data.period.tolist(), data.predictable, strict=True):
        assert torch.equal(row[p:], row[:-p]) and known.tolist() == [i > p for i in range(1, 30)]
    losses = torch.rand(300, 29)
    first, second = data.split(losses)
    known = int(data.predictable.sum())
    assert first * (losses.numel() - known) + second * known == pytest.approx(float(losses.sum()), rel=1e-4)


def test_bad_input_is_refused():
    model, tokens = GPT(V, 8, 2, 2, N), torch.randint(V, (3, N))
    spoilt = GPT(V, 8, 2, 2, N)
    torch.nn.init.constant_(spoilt.embed.weight, torch.nan)
    for bad, message in (
        (lambda: repeats(3, 10, 5, (4, 9)), r"period: a range within 1 … length − 2 = 8 is needed, got \(4, 9\)"),
        (lambda: repeats(3, 10, 5, (0, 4)), "period"),
        (lambda: repeats(0, 10, 5, (2, 4)), "count, vocabulary: .* got 0 and 5"),
        (lambda: repeats(3, 10, 5, (2, 4)).split(torch.zeros(3, 10)), r"losses: must have shape \(3, 9\), .* got \(3, 10\)"),
        (lambda: prefix_matching(torch.zeros(1, 1, 3, 3), torch.tensor([[1, 2, 3]])), "none occurs twice"),
        (lambda: previous_token(torch.ones(1, 1, 1, 1)), "at least 2 positions are needed, got 1"),
        (lambda: composition(model, "keys"), "did you mean 'key'"),
        (
            lambda: patterns(model, torch.zeros(1, N + 1, dtype=torch.long)),
            f"^tokens: at most context = {N} positions",
        ),
        (lambda: copying_eigenvalues(spoilt), "^weights of model: must be finite"),
        (lambda: token_losses(model, tokens, torch.zeros(2, 3, dtype=torch.bool)), r"shape \(2, 2\), \(layers, heads\), got"),
        (lambda: in_context_score(torch.zeros(2, 5), 3, 5), "within 0 … 4, got 3 and 5"),
    ):
        with pytest.raises(Refused, match=message):
            bad()


@pytest.mark.parametrize("claim", select("induction_heads"), ids=lambda c: c.name)
def test_claims_run(claim, tmp_path_factory, monkeypatch):
    nets = tmp_path_factory.getbasetemp() / "nets"
    if claim.name.startswith("on-text"):
        try:
            there = path("text")
        except Refused as refused:
            pytest.skip(f"needs the wheel of gensim: {refused}")
        nets.mkdir(exist_ok=True)
        (nets / "text").symlink_to(there)
    monkeypatch.setenv("NEUROPIL_DATA", str(nets))
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert all(math.isfinite(row[side]) for side in ("method", "baseline"))
