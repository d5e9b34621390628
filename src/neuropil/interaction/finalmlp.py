"""FinalMLP: two plain MLPs read the same categories, each through its own gate, and a bilinear form multiplies what they found.

    e        = concat_f E[i_f]                                   F fields, D numbers each
    x_s      = e ⊙ 2 σ(MLP_s(c_s)),   s = 1, 2                   c_s: embeddings of chosen fields (a table of its own), or learned
    h_s      = ReLU stream of x_s                                ReLU after the last layer, too
    logit    = b + w_1·h_1 + w_2·h_2 + Σ_{j=1..k} h_1jᵀ W_j h_2j

    DualMLP  = no gates, no bilinear form: logit = b + w_1·h_1 + w_2·h_2

Mao, Zhu, Su, Cai, Li & Dong 2023, FinalMLP, AAAI, arXiv:2304.00902; logits equal those of the authors' code (reczoo/FuxiCTR,
model_zoo/FinalMLP) on the same weights. Differs: one bias b where the code has the sum of two; all fields share one table with an
unknown id each; a gate is computed once for what drives it, not for each row; the models give logits, not probabilities.
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding

from neuropil.errors import Refused
from neuropil.nn.bilinear import HeadedBilinear
from neuropil.nn.checks import fits
from neuropil.nn.field_embedding import FieldEmbedding
from neuropil.nn.mlp import MLP

Widths = Sequence[int]


def stream(sizes: Widths, dropout: float = 0.0, batch_norm: bool = False) -> nn.Sequential:
    """``x ← drop(ReLU(norm(W x + b)))`` for each pair of `sizes` = (in, hidden…): unlike `MLP` it ends in a ReLU.

    W is Xavier-normal and b zero, as in the authors' code. `Refused` for sizes below 1, no layer, or dropout outside [0, 1).

    >>> stream([4, 8, 3])(torch.randn(2, 4)).shape
    torch.Size([2, 3])
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise Refused(f"sizes: at least (in, hidden), all positive, are needed, got {list(sizes)}")
    if not 0 <= dropout < 1:
        raise Refused(f"dropout: must lie in [0, 1), got {dropout}")
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(sizes):
        layers += [nn.Linear(n, m), *([nn.BatchNorm1d(m)] if batch_norm else []), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers).apply(xavier)


def xavier(layer: nn.Module) -> None:
    """A linear layer's start in the authors' code: W Xavier-normal, b zero."""
    if isinstance(layer, nn.Linear):
        nn.init.xavier_normal_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class FeatureGating(nn.Module):
    """``x = e ⊙ 2 σ(MLP(c))``: each of the F·D numbers of a row is turned up (to 2) or down (to 0).

    Args:
        sizes: ids of each of the F fields.
        dim: D.
        context: places of the fields that c is made of, by a table of its own; none: c is D learned numbers, from zero.
        hidden: widths of the gate's MLP.

    With all weights of the gate at zero x = e. Cost: the gate's MLP for each row; without a context once a call, and with one field
    at most once for each of its values.
    `Refused` for a context outside the fields.

    >>> gate = FeatureGating([5, 3], dim=4, context=[1])
    >>> gate(torch.tensor([[1, 2]]), torch.randn(1, 8)).shape
    torch.Size([1, 8])
    """

    def __init__(self, sizes: Widths, dim: int, context: Sequence[int] = (), hidden: Widths = (64,), **table: object) -> None:
        super().__init__()
        if not all(0 <= f < len(sizes) for f in context):
            raise Refused(f"context: places of fields 0 … {len(sizes) - 1} are allowed, got {list(context)}")
        self.context = list(context)
        if self.context:
            self.embed = FieldEmbedding([sizes[f] for f in context], dim, **table)  # type: ignore[arg-type]
        else:
            self.learned = nn.Parameter(torch.zeros(dim))
        self.mlp = MLP([max(1, len(self.context)) * dim, *hidden, len(sizes) * dim], activation="relu").apply(xavier)

    def gates(self, ids: Int[Tensor, "*b f"]) -> Float[Tensor, "*_b fd"]:
        """2 σ(MLP(c)), between 0 and 2: for each row, or one (F·D,) for all where c is learned."""
        if self.context and ids.shape[-1] <= max(self.context):
            raise Refused(f"ids: the fields of the context, {self.context}, are needed, got {ids.shape[-1]} fields")
        if not self.context:
            return 2 * self.mlp(self.learned).sigmoid()
        chosen = ids[..., self.context]
        if len(self.context) == 1 and len(self.embed.table) <= chosen.numel():  # fewer values than rows: one gate for each value
            return embedding(self.embed.rows(chosen)[..., 0], 2 * self.mlp(self.embed.table).sigmoid())
        return 2 * self.mlp(self.embed(chosen).flatten(-2)).sigmoid()

    def forward(self, ids: Int[Tensor, "*b f"], e: Float[Tensor, "*b fd"]) -> Float[Tensor, "*b fd"]:
        """The gated numbers of each row."""
        fits("e", e, self.mlp[-1].out_features, self.mlp[-1].weight)  # type: ignore[arg-type]
        return e * self.gates(ids)


class FinalMLP(nn.Module):
    """Two gated streams, fused by a bilinear form of k heads: rows of ids (b, F) to logits (b,).

    Args:
        sizes: ids of each field, with the unknown (`Vocabulary.sizes`).
        dim: D, numbers of an embedding.
        hidden: widths of both streams; they may differ.
        heads: k; 0: no bilinear form.
        contexts: for each stream, the places of the fields that drive its gate (none: a learned vector); None: no gates at all.
        gate_hidden: widths of the gates' MLPs.
        dropout, batch_norm: in the streams.
        out_of_range: see `FieldEmbedding`.

    O(F D w) a row for streams of width w, and w²/k for the form. `Refused` as its parts do, for other than two streams, and in
    `fuse` for what does not fit.

    >>> model = FinalMLP([5, 3, 9], dim=4, hidden=((16, 8), (16, 4)), heads=2, contexts=((0,), (1, 2)))
    >>> model(torch.tensor([[1, 2, 8], [0, 0, 0]])).shape
    torch.Size([2])
    """

    def __init__(
        self,
        sizes: Widths,
        dim: int = 16,
        hidden: Sequence[Widths] = ((64, 64, 64), (64, 64, 64)),
        heads: int = 1,
        contexts: Sequence[Sequence[int]] | None = ((), ()),
        gate_hidden: Widths = (64,),
        dropout: float = 0.0,
        batch_norm: bool = False,
        out_of_range: str = "refuse",
    ) -> None:
        super().__init__()
        if len(hidden) != 2 or (contexts is not None and len(contexts) != 2):
            raise Refused(f"hidden, contexts: one for each of two streams, got {hidden} and {contexts}")
        self.embed = FieldEmbedding(sizes, dim, out_of_range)
        table = {"out_of_range": out_of_range}
        self.gates = nn.ModuleList(FeatureGating(sizes, dim, c, gate_hidden, **table) for c in contexts or ())
        self.streams = nn.ModuleList(stream([len(sizes) * dim, *h], dropout, batch_norm) for h in hidden)
        self.linear = nn.ModuleList(nn.Linear(h[-1], 1, bias=not s).apply(xavier) for s, h in enumerate(hidden))
        self.form = HeadedBilinear(hidden[0][-1], hidden[1][-1], heads) if heads else None

    def views(self, ids: Int[Tensor, "b f"]) -> list[Tensor]:
        """x_1 and x_2, each (b, F·D): what the two streams read."""
        e = self.embed(ids).flatten(-2)
        return [gate(ids, e) for gate in self.gates] or [e, e]

    def fuse(self, h_1: Float[Tensor, "b n"], h_2: Float[Tensor, "b m"]) -> Float[Tensor, "b"]:
        """``b + w_1·h_1 + w_2·h_2 + Σ_j h_1jᵀ W_j h_2j``."""
        w_1, w_2 = self.linear
        fits("h_1", h_1, w_1.in_features, w_1.weight)  # type: ignore[arg-type]
        fits("h_2", h_2, w_2.in_features, w_2.weight)  # type: ignore[arg-type]
        logit = (w_1(h_1) + w_2(h_2))[..., 0]
        return logit if self.form is None else logit + self.form(h_1, h_2)

    def forward(self, ids: Int[Tensor, "b f"]) -> Float[Tensor, "b"]:
        """The logit of each row."""
        return self.fuse(*(mlp(x) for mlp, x in zip(self.streams, self.views(ids), strict=True)))


class DualMLP(FinalMLP):
    """Two MLPs of the same embeddings whose logits add up: the paper's plain and strong starting point.

    >>> DualMLP([5, 3], dim=4, hidden=((8,), (16, 8)))(torch.tensor([[1, 2]])).shape
    torch.Size([1])
    """

    def __init__(
        self,
        sizes: Widths,
        dim: int = 16,
        hidden: Sequence[Widths] = ((64, 64, 64), (64, 64, 64)),
        dropout: float = 0.0,
        batch_norm: bool = False,
        out_of_range: str = "refuse",
    ) -> None:
        super().__init__(
            sizes, dim, hidden, heads=0, contexts=None, dropout=dropout, batch_norm=batch_norm, out_of_range=out_of_range
        )
