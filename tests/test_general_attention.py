"""General attention: the default is `attend`, the maps are what they are defined to be, masks and priors hold, a block runs."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from neuropil.errors import Refused
from neuropil.nn.attention import MultiHead, attend
from neuropil.nn.general_attention import (
    ALIGN,
    DISTRIBUTE,
    Additive,
    Alibi,
    Bilinear,
    GeneralAttention,
    RelativePositions,
    attend_by,
    entmax15,
    gumbel,
    sparsemax,
    top_k,
    weigh,
)
from neuropil.nn.transformer import Block, Transformer

ALIGNS = {**ALIGN, "bilinear": Bilinear(4), "additive": Additive(4, hidden=6)}
MAPS = {**DISTRIBUTE, "top 2": top_k(2), "gumbel": gumbel(0.7, hard=False), "hard": gumbel()}
TO_ONE = [name for name in MAPS if name != "sigmoid"]


def qkv(*batch, q=5, k=7, d=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*batch, n, d, generator=g) for n in (q, k, k))


def test_the_default_is_attend():
    query, key, value = qkv(2, 3)
    mask = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[0, 0, 2] = False
    torch.testing.assert_close(attend_by(query, key, value), attend(query, key, value))
    torch.testing.assert_close(attend_by(query, key, value, mask=mask), attend(query, key, value, mask=mask))
    torch.testing.assert_close(attend_by(query, key, value, "dot"), attend(query, key, value, beta=1.0))


def by_bisection(e, power):
    """τ of Σ [e − τ]₊^power = 1, by halving."""
    low, high = e.amax(-1, keepdim=True) - 1, e.amax(-1, keepdim=True)
    for _ in range(60):
        tau = (low + high) / 2
        above = (e - tau).clamp_min(0).pow(power).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, tau, low), torch.where(above, high, tau)
    return (e - low).clamp_min(0).pow(power)


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0, 1e6])
def test_sparsemax_and_entmax_are_their_closed_forms(scale):
    e = scale * torch.randn(50, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    e[0] = 1.0
    e[1, 1] = e[1, 0]
    torch.testing.assert_close(sparsemax(e), by_bisection(e, 1), rtol=0, atol=1e-9)
    torch.testing.assert_close(entmax15(e), by_bisection(e / 2, 2), rtol=0, atol=1e-9)


def test_nothing_on_the_simplex_is_better():
    g = torch.Generator().manual_seed(3)
    e = torch.randn(20, 1, 4, dtype=torch.float64, generator=g)
    rivals = torch.distributions.Dirichlet(torch.full((4,), 0.5, dtype=torch.float64)).sample((4000,))
    near = lambda a, e: -(a - e).square().sum(-1)  # noqa: E731
    tsallis = lambda a, e: (a * e).sum(-1) + 4 / 3 * (a - a.pow(1.5)).sum(-1)  # noqa: E731
    for found, value in ((sparsemax(e), near), (entmax15(e), tsallis)):
        best = value(found, e)
        assert (value(rivals, e) < best + 1e-12).all()
        assert (value(0.999 * found + 0.001 * rivals, e) < best + 1e-12).all()  # also next to it
        assert (best - value(rivals, e).amax(-1, keepdim=True)).max() < 0.1  # and some rivals come near


@pytest.mark.parametrize("spread", [sparsemax, entmax15])
def test_gradients_and_zeros(spread):
    e = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for scale in (0.1, 1.0, 4.0):  # at the last, one key has it all in most rows
        assert torch.autograd.gradcheck(spread, ((scale * e).requires_grad_(),))
    assert (spread(0.01 * e) > 0).all() and ((spread(4 * e) == 1).sum(-1) == 1).sum() > 2
    assert ((spread(e) == 0).any() and (spread(e) > 0).sum() > 6).item()
    assert spread(torch.tensor([0.0, 1.0], dtype=torch.bfloat16)).isfinite().all()
    alone = torch.tensor([2.0], requires_grad=True)
    assert spread(alone).item() == 1 and torch.autograd.grad(spread(alone), alone)[0].item() == 0


def test_the_maps_are_those_of_the_entmax_package():
    entmax = pytest.importorskip("entmax")
    e = (3 * torch.randn(100, 20, dtype=torch.float64)).requires_grad_()
    g = torch.randn(100, 20, dtype=torch.float64)
    for ours, theirs in ((sparsemax, entmax.sparsemax), (entmax15, entmax.entmax15)):
        a, b = ours(e), theirs(e, -1)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        torch.testing.assert_close(*(torch.autograd.grad((x * g).sum(), e)[0] for x in (a, b)), rtol=0, atol=1e-12)


def test_aligns_are_their_formulas():
    query, key, _ = qkv(2)
    q, k = query[:, :, None], key[:, None]
    expected = {
        "scaled-dot": (q * k).sum(-1) / 2,
        "dot": (q * k).sum(-1),
        "cosine": torch.cosine_similarity(q, k, dim=-1),
        "distance": -(q - k).square().sum(-1) / 4,
        "bilinear": torch.einsum("bqd,de,bke->bqk", query, ALIGNS["bilinear"].weigh.weight, key),
    }
    additive = ALIGNS["additive"]
    both = torch.cat([additive.of_query.weight, additive.of_key.weight], 1)  # the "concat" form
    pairs = torch.cat([q.expand(-1, -1, 7, -1), k.expand(-1, 5, -1, -1)], -1)
    expected["additive"] = torch.tanh(pairs @ both.T + additive.of_key.bias) @ additive.score.weight[0]
    assert expected.keys() == ALIGNS.keys()
    for name, scores in expected.items():
        torch.testing.assert_close(ALIGNS[name](query, key), scores)
    unit = torch.nn.functional.normalize(key, dim=-1)
    torch.testing.assert_close(attend_by(query, unit, key, "distance"), attend(query, unit, key))
    wide = torch.randn(2, 7, 3)
    for align in (Bilinear(4, 3, bias=True, activation=nn.Tanh()), Additive(4, 3)):
        assert attend_by(query, wide, wide, align).shape == (2, 5, 3)


@pytest.mark.parametrize("name", MAPS)
def test_weights_masks_and_nowhere(name):
    torch.manual_seed(0)
    mask = torch.rand(3, 5, 7) < 0.4
    mask[:, 0], mask[:, 1] = False, torch.arange(7) == 3
    query, key, value = (x.requires_grad_() for x in qkv(3))
    for align in ALIGNS.values():
        scores = align(query, key)
        weights = weigh(scores, MAPS[name], mask=mask)
        assert (weights >= 0).all() and (weights[~mask] == 0).all() and (weights[:, 0] == 0).all()
        out = attend_by(query, key, value, align, MAPS[name], mask=mask)
        assert (out[:, 0] == 0).all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (query, key, value)))
        if name in TO_ONE:
            torch.testing.assert_close(weights.sum(-1), mask.any(-1).float())
            torch.testing.assert_close(out[:, 1], value[:, 3])
        if name == "sigmoid":
            torch.testing.assert_close(weights, scores.sigmoid() * mask)


@pytest.mark.parametrize("name", [n for n in MAPS if "gumbel" not in n and n != "hard"])
def test_the_order_of_keys_does_not_matter(name):
    query, key, value = qkv(2)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(5))
    for align in ALIGNS.values():
        same = attend_by(query, key[:, order], value[:, order], align, MAPS[name])
        torch.testing.assert_close(attend_by(query, key, value, align, MAPS[name]), same)


def test_hard_maps():
    scores = torch.tensor([[1.0, 3.0, 2.0, -1.0]])
    torch.testing.assert_close(top_k(2)(scores), torch.tensor([[0.0, math.e / (1 + math.e), 1 / (1 + math.e), 0.0]]))
    torch.testing.assert_close(top_k(9)(scores), scores.softmax(-1))
    assert torch.equal(top_k(1)(scores), torch.tensor([[0.0, 1.0, 0.0, 0.0]]))
    drawn = gumbel(generator=torch.Generator().manual_seed(6))(scores.expand(20_000, 4))
    assert (drawn.mean(0) - scores[0].softmax(-1)).abs().max() < 4 * 0.5 / math.sqrt(20_000)


def test_priors():
    scores, p = torch.randn(5, 7), torch.rand(5, 7) + 0.1
    expected = p * scores.exp() / (p * scores.exp()).sum(-1, keepdim=True)
    torch.testing.assert_close(weigh(scores, prior=p.log()), expected)
    torch.testing.assert_close(weigh(scores, factor=p), expected)  # for softmax both are one
    weights = weigh(scores, "entmax15", factor=p)
    assert torch.equal(weights > 0, entmax15(scores) > 0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(5))
    p[0] = 0
    assert (weigh(scores, factor=p)[0] == 0).all()
    scores = (scores + 9).requires_grad_()
    weights = weigh(scores, "sigmoid", factor=p)  # seven weights near 1
    (gradient,) = torch.autograd.grad(1e3 * weights.sum(), scores)
    assert (weights[0] == 0).all() and (gradient[0] == 0).all() and gradient.isfinite().all()
    torch.testing.assert_close(weights[1:].sum(-1), scores[1:].sigmoid().sum(-1))
    scores = scores.detach() - 9
    near = Alibi(4)(3, 7)
    assert near.shape == (4, 3, 7) and torch.equal(near[1], -(2.0**-4) * (torch.tensor([[4], [5], [6]]) - torch.arange(7)).abs())
    relative = RelativePositions(2, reach=2)
    nn.init.normal_(relative.bias)
    bias = relative(4, 4)
    assert torch.equal(bias[:, 0, 0], bias[:, 3, 3]) and torch.equal(bias[:, 3, 0], bias[:, 2, 0])  # 3 away counts as 2
    assert torch.equal(bias[:, 0, 1], relative.bias[:, 1]) and torch.equal(bias[:, 1, 0], relative.bias[:, 3])


def test_heads_and_blocks():
    x, mask = torch.randn(2, 6, 8), torch.ones(1, 6, 6, dtype=torch.bool).tril()
    plain, ours = MultiHead(8, 2), GeneralAttention(8, 2)
    ours.load_state_dict(plain.state_dict())
    torch.testing.assert_close(ours(x, mask=mask, beta=0.3 * 2), plain(x, mask=mask, beta=0.3))  # ours multiplies q·k/√4
    torch.testing.assert_close(ours(x, x[:, :3]), plain(x, x[:, :3]))
    block = Block(8, GeneralAttention(8, 2, Additive(4, hidden=8), "entmax15", prior=RelativePositions(2, 3)), hidden=16)
    out = block(x, mask)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    changed = x.clone()
    changed[:, 4:] += 1.0
    torch.testing.assert_close(block(changed, mask)[:, :4], out[:, :4])  # causal
    again = Block(8, GeneralAttention(8, 2, Additive(4, hidden=8), "entmax15", prior=RelativePositions(2, 3)), hidden=16)
    again.load_state_dict(block.state_dict())
    assert torch.equal(again(x, mask), out)
    made = Transformer(8, 2, 2, 6, attention=lambda d, heads, positions, context: GeneralAttention(d, heads, prior=Alibi(heads)))
    assert made(x).shape == x.shape
    with torch.autocast("cpu", torch.bfloat16):
        assert made(x).isfinite().all()


def test_bad_input():
    query, key, value = qkv()
    for call, says in (
        (lambda: attend_by(query, key, value, "dott"), "align: unknown 'dott'; did you mean 'dot'"),
        (lambda: attend_by(query, key, value, distribute="sparse"), "distribute: unknown 'sparse'; did you mean 'sparsemax'"),
        (lambda: top_k(0), "k: must be at least 1"),
        (lambda: RelativePositions(0, 1), "heads, reach: at least 1 and 0"),
        (lambda: Alibi(0), "heads: must be at least 1"),
    ):
        with pytest.raises(Refused, match=says):
            call()


UNHOOKED = """
import torch
from neuropil.errors import Refused
from neuropil.nn.general_attention import attend_by
q, k, v = (torch.randn(2, n, 4) for n in (5, 7, 7))
mask = torch.rand(2, 5, 7) < 0.5
f = lambda q, k, v: attend_by(q, k, v, "cosine", "entmax15", mask=mask)
torch.testing.assert_close(torch.compile(f, backend="eager", fullgraph=True)(q, k, v), f(q, k, v))
for bad, says in (((q, k, v[:, 1:]), "query, key, value: got shapes"), ((q, k[..., 1:], v), "key: needs the width")):
    try:
        attend_by(*bad)
    except Refused as refused:
        assert says in str(refused), refused
    else:
        raise AssertionError(says)
"""


def test_compiles_and_refuses_shapes():
    """In a process of its own: here, shapes are checked before the library sees them."""
    done = subprocess.run([sys.executable, "-c", UNHOOKED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
