"""What attention heads do: induction, copying, looking one back, composition; and what becomes of a model without some of them.

An induction head finds where the present token stood before, and predicts what followed it there. With A the head's pattern, W_E,
W_U the (un)embedding and W_OV = W_O W_V, W_QK = W_Qᵀ W_K its circuits (d × d), the scores are

    prefix matching    mean over i of Σ_j A_ij [t_{j−1} = t_i]          over tokens t_i that stood before
    previous token     mean over i of A_{i, i−1}
    copying            Σ λ / Σ |λ| over the eigenvalues of M = W_U W_OV W_E;  or the mean over tokens t of ℓ_t / Σ ℓ,
                       ℓ = relu(M_{:t} − mean M_{:t}): how much of all logits that are raised belongs to the attended token
    composition        ‖W_QKᵀ W_OV'‖ / ‖W_QK‖ ‖W_OV'‖ (queries), ‖W_QK W_OV'‖ / … (keys), ‖W_OV W_OV'‖ / … (values), where ' is
                       a head of an earlier layer; less 1/√d, the root mean square level of matrices turned at random
    in context         mean loss at a late position − mean loss at an early one: below 0 if the model learns from its context

C. Olsson, N. Elhage, N. Nanda et al., "In-context Learning and Induction Heads", 2022, arXiv:2209.11895; composition and
eigenvalues are those of N. Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021. Heads are ablated as there:
patterns stay those of the whole model, only what the heads write is missing.

Differences: the scores from weights fold in what is linear of the layer norms (gain and centring; the division by the spread is
left out), and see W_QK at distance 0 where positions are rotary; the paper takes the level of composition from random matrices.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.errors import Refused, choose
from neuropil.nn.checks import has_eigenvalues, some
from neuropil.nn.sites import override, record, replace
from neuropil.nn.transformer import GPT, Attention, Transformer


class SmearedAttention(Attention):
    """Attention with smeared keys: ``k_j ← s k_j + (1 − s) k_{j−1}``, s = sigmoid(α), one learned α a head.

    A key then knows the token before it, which else takes a head of an earlier layer: induction heads can form in one layer. α
    starts at 0; the first key stays as it is. Arguments are those of `Attention`; for a layer of `Transformer`,
    ``attention=SmearedAttention``.

    >>> SmearedAttention(8, heads=2, positions="rotary", context=5)(torch.randn(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, d: int, heads: int, positions: str, context: int, bias: bool = True) -> None:
        super().__init__(d, heads, positions, context, bias=bias)
        self.alpha = nn.Parameter(torch.zeros(heads, 1, 1))

    def project(
        self, x: Float[Tensor, "b n d"], memory: Float[Tensor, "b m d"]
    ) -> tuple[Float[Tensor, "b h n c"], Float[Tensor, "b h m c"], Float[Tensor, "b h m c"]]:
        """Queries, smeared keys and values."""
        q, k, v = super().project(x, memory)
        s, before = self.alpha.sigmoid().to(k), torch.cat([k[..., :1, :], k[..., :-1, :]], -2)
        return q, s * k + (1 - s) * before, v


@torch.no_grad()
def patterns(model: Transformer, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "l b h n n"]:
    """The attention patterns A of all layers and heads. One pass, and memory of l b h n² numbers.

    >>> patterns(GPT(10, d=8, heads=2, layers=3, context=5), torch.zeros(4, 5, dtype=torch.long)).shape
    torch.Size([3, 4, 2, 5, 5])
    """
    with record(model, "layers.*.attention.pattern") as seen:
        model(tokens)
    return torch.stack([seen[f"layers.{i}.attention.pattern"][0] for i in range(len(model.layers))])


def prefix_matching(A: Float[Tensor, "*l b h n n"], tokens: Int[Tensor, "b n"]) -> Float[Tensor, "*l h"]:
    """How much each head attends to tokens just after earlier occurrences of the present one: mean over tokens that have one.

    Take tokens that can be told apart in no other way, such as random ones repeated after random lengths. O(l b h n²). `Refused`
    if no token occurs twice.

    >>> tokens = torch.tensor([[7, 8, 7]])
    >>> A = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.75, 0.25]])[None, None]
    >>> prefix_matching(A, tokens)
    tensor([0.7500])
    """
    n = tokens.shape[1]
    same = tokens[:, :, None] == tokens.roll(1, 1)[:, None, :]  # b i j: t_i = t_{j−1}
    index = torch.arange(n, device=tokens.device)
    after = same & (index[None, :] <= index[:, None]) & (index > 0)
    stood = after.any(-1)
    if not bool(stood.any()):
        raise Refused("tokens: none occurs twice, and nothing can be matched; give repeated ones, see neuropil.data.repeats")
    attention = torch.einsum("...bhij,bij->...bhi", A, after.to(A))
    return (attention * stood[:, None]).sum((-3, -1)) / stood.sum()


def previous_token(A: Float[Tensor, "*l b h n n"]) -> Float[Tensor, "*l h"]:
    """How much each head attends to the token just before: mean over all tokens but the first. `Refused` for a single token.

    >>> previous_token(torch.tensor([[1.0, 0.0], [0.75, 0.25]])[None, None])
    tensor([0.7500])
    """
    if A.shape[-1] < 2:
        raise Refused(f"A: at least 2 positions are needed, got {A.shape[-1]}")
    some("A", A, -4)
    return A.diagonal(-1, -2, -1).mean((-3, -1))


@torch.no_grad()
def copying_eigenvalues(model: GPT) -> Float[Tensor, "l h"]:
    """``Re Σ λ / Σ |λ|`` of each head's W_U W_OV W_E: 1 if whatever token is attended raises its own logit, −1 if it lowers it.

    Eigenvalues of the c × c matrix W_V W_E W_U W_O, which are the same but for zeros. O(l h (v c d + c³)), for head size c.

    >>> copying_eigenvalues(GPT(10, d=8, heads=2, layers=3, context=5)).shape
    torch.Size([3, 2])
    """
    write, read = _copies(model)
    product = read @ write
    has_eigenvalues("weights of model", product)
    eigenvalues = torch.linalg.eigvals(product)
    return eigenvalues.sum(-1).real / eigenvalues.abs().sum(-1).clamp_min(torch.finfo(write.dtype).tiny)


@torch.no_grad()
def copying_logits(model: GPT) -> Float[Tensor, "l h"]:
    """Share of the attended token in all logits that each head raises above their mean: 1 at best, 1/v or so by chance.

    The mean over all tokens. O(l h v² c) time, O(l h v²) memory: for small vocabularies.

    >>> copying_logits(GPT(10, d=8, heads=2, layers=3, context=5)).shape
    torch.Size([3, 2])
    """
    write, read = _copies(model)
    logits = write @ read  # l h v t
    raised = (logits - logits.mean(-2, keepdim=True)).relu()
    return (raised.diagonal(0, -2, -1) / raised.sum(-2).clamp_min(torch.finfo(raised.dtype).tiny)).mean(-1)


@torch.no_grad()
def composition(model: Transformer, side: str) -> Float[Tensor, "l h l h"]:
    """How much each head [layer, head, ·, ·] reads what each head [·, ·, layer, head] of an earlier layer writes, above chance.

    `side` says through what it reads: "query", "key" or "value". 0 if that is no earlier. O(l² h² d c²) time, O(l² h² c²) memory.

    >>> found = composition(GPT(10, d=8, heads=2, layers=2, context=5), "key")
    >>> found.shape, found[0].abs().max().item(), found[:, :, 1].abs().max().item()
    (torch.Size([2, 2, 2, 2]), 0.0, 0.0)
    """
    choose("side", side, ("query", "key", "value"))
    Q, K, V, out = (torch.stack(w) for w in zip(*(_weights(layer) for layer in model.layers), strict=True))  # l h c d, out l h d c
    left, right = {"query": (K.mT, Q), "key": (Q.mT, K), "value": (out, V)}[side]  # left @ right: its columns are what is read
    # ‖L R O V‖² = ⟨LᵀL M VVᵀ, M⟩ with M = R O: all in c × c
    M, LL, VV = torch.einsum("lhcd,mgde->lhmgce", right, out), left.mT @ left, V @ V.mT
    both = (LL[:, :, None, None] @ M @ VV * M).sum((-2, -1))
    reading, writing = (LL * (right @ right.mT)).sum((-2, -1)), (out.mT @ out * VV).sum((-2, -1))
    share = (both / (reading[..., None, None] * writing)).clamp_min(0).sqrt()
    layer = torch.arange(len(model.layers), device=both.device)
    earlier = (layer[None, :] < layer[:, None])[:, None, :, None]
    return torch.where(earlier, share - V.shape[-1] ** -0.5, 0.0)


@torch.no_grad()
def token_losses(
    model: Transformer, tokens: Int[Tensor, "b n"], without: Bool[Tensor, "l h"] | None = None
) -> Float[Tensor, "b m"]:
    """−log p of each token but the first, given those before it, in nats; of the model `without` some heads, if they are given.

    Those heads write nothing, while all patterns stay as they are in the whole model. One pass, or two. `Refused` for a mask of
    another shape or type.

    >>> tokens = torch.zeros(4, 5, dtype=torch.long)
    >>> model = GPT(10, d=8, heads=2, layers=3, context=5)
    >>> _ = model.unembed.weight.data.zero_()
    >>> token_losses(model, tokens).shape, token_losses(model, tokens).mean()
    (torch.Size([4, 4]), tensor(2.3026))
    """
    if without is None:
        logits = model(tokens)
    else:
        shape = (len(model.layers), model.layers[0].attention.heads)  # type: ignore[union-attr]
        if without.shape != shape or without.dtype != torch.bool:
            raise Refused(
                f"without: must be boolean of shape {shape}, (layers, heads), got {without.dtype} of {tuple(without.shape)}"
            )
        sites = [f"layers.{i}.attention" for i in range(len(model.layers))]
        frozen = {f"{site}.pattern": replace(A) for site, A in zip(sites, patterns(model, tokens), strict=True)}
        silent = {f"{site}.z": replace(0.0, where=heads[:, None, None]) for site, heads in zip(sites, without, strict=True)}
        with override(model, frozen | silent):
            logits = model(tokens)
    return cross_entropy(logits[:, :-1].float().transpose(1, 2), tokens[:, 1:].long(), reduction="none")


def in_context_score(losses: Float[Tensor, "b n"], early: int, late: int) -> float:
    """Mean loss at position `late` less that at position `early`, in nats: below 0 if the model learns from its context.

    The paper has 50 and 500, of 512. `Refused` for positions that do not rise within the sequence.

    >>> in_context_score(torch.tensor([[4.0, 3.0, 1.0]]), early=0, late=2)
    -3.0
    """
    if not 0 <= early < late < losses.shape[1]:
        raise Refused(f"early, late: must rise within 0 … {losses.shape[1] - 1}, got {early} and {late}")
    some("losses", losses, 0)
    return float((losses[:, late] - losses[:, early]).mean())


def _through(norm: nn.Module, W: Tensor) -> Tensor:
    """W ∘ norm, as far as the norm is linear: gain and centring."""
    if not isinstance(norm, nn.LayerNorm):
        return W
    W = W if norm.weight is None else W * norm.weight
    return W - W.mean(-1, keepdim=True)


def _weights(block: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W_Q, W_K, W_V (h, c, d) of what comes before the norm, and W_O (h, d, c), of a `Block`."""
    attention, heads = block.attention, (block.attention.heads, -1)
    Q, K, V = (
        _through(block.attention_norm, w.weight).unflatten(0, heads) for w in (attention.query, attention.key, attention.value)
    )
    return Q, K, V, attention.out.weight.unflatten(1, heads).transpose(0, 1)


def _copies(model: GPT) -> tuple[Tensor, Tensor]:
    """W_U W_O (l, h, v, c) and W_V W_E (l, h, c, v): from the attended token to the logits, in two factors."""
    *_, V, out = (torch.stack(w) for w in zip(*(_weights(layer) for layer in model.layers), strict=True))
    return _through(model.norm, model.unembed.weight) @ out, V @ model.embed.weight.T
