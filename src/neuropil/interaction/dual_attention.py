"""Dual attention: some heads carry features of objects, others the relations between them.

    sensory       z_i = Σ_j a_ij W_v x_j,                        a_ij = softmax_j(⟨W_q x_i, W_k x_j⟩ / √d_h)
    relational    z_i = Σ_j a_ij (W_r r_ij + W_s s_j),           r_ij,l = ⟨W_q^l x_i, W_k^l x_j⟩ / √d_p,    l = 1 … d_r
    symbolic      z_i = Σ_j a_ij W_s s_j                         ("relational cross-attention", the ablation)

for each head, all with their own a. The relation r_ij has no softmax; the symbol s_j says who j is, and nothing of what j is like:

    SymbolicAttention    s_j = Σ_k softmax_k(⟨W x_j, f_k⟩ / √c) z_k        a learned library z with templates f
    PositionalSymbols    s_j = z_j
    RelativeSymbols      s_ij = z_clip(j − i)

Memory: Σ_j a_ij r_ij (n × heads × d_r) comes first, W_r after it, and Σ_j a_ij s_ij first sums a over equal offsets: nothing of
n × n × d is formed.

Altabaa & Lafferty 2024, arXiv:2405.16727; symbolic heads: Altabaa et al. 2024, arXiv:2304.00195. As in the authors' code, the
two kinds have each an output map W_o of their own, and no projection has a bias. Differs: symbols come once, from the embedded
input, for all layers (the authors' nets ask the shared module again in each layer, with that layer's input); no dropout; a query
that may look nowhere gets zeros. Rotary positions turn queries and keys of a, never those of r: r would no longer be a relation of
what x_i and x_j are. The paper's "disentangled" precursor (values r_ij s_j) is not here.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from neuropil.errors import Refused, choose
from neuropil.nn.attention import attend, masked_softmax
from neuropil.nn.checks import at_least, fits, same_kind
from neuropil.nn.sites import Site
from neuropil.nn.transformer import Block, placed, rotate

POSITIONS = ("learned", "rotary", "none")
Symbols = Float[Tensor, "_b _n _d"] | Float[Tensor, "_offsets _d"]  # checked by `check_symbols`


class SymbolicAttention(nn.Module):
    """``s_j = Σ_k softmax_k(⟨W x_j, f_k⟩ / √(d/heads)) z_k``: `count` symbols z with templates f, looked up by what x_j is like.

    (count + count + d + 1) d numbers, O(n d (d + count)) time. `Refused` for sizes below 1, heads that do not divide d, input that
    does not fit, or NaN.

    >>> SymbolicAttention(8, heads=2, count=5)(torch.randn(3, 4, 8)).shape
    torch.Size([3, 4, 8])
    """

    def __init__(self, d: int, heads: int, count: int) -> None:
        super().__init__()
        at_least(1, d=d, heads=heads, count=count)
        if d % heads:
            raise Refused(f"heads: must divide d = {d}, got {heads}")
        self.heads = heads
        self.query = nn.Linear(d, d)
        self.templates = nn.Parameter(torch.randn(count, d))
        self.library = nn.Parameter(torch.randn(count, d))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The symbol of each object. `x` must be features, not relations: give it the embedded input."""
        fits("x", x, self.query.in_features, self.query.weight)
        q, f, z = (split(y, self.heads) for y in (self.query(x), self.templates, self.library))
        f, z = (y.expand(len(x), -1, -1, -1) for y in (f, z))
        return attend(q, f, z, names=("query of x", "templates")).transpose(1, 2).flatten(2)


class PositionalSymbols(nn.Module):
    """``s_j = z_j``: a learned symbol for each of `context` places; longer sequences are `Refused`. context · d numbers.

    >>> PositionalSymbols(8, context=5)(torch.randn(3, 4, 8)).shape
    torch.Size([3, 4, 8])
    """

    def __init__(self, d: int, context: int) -> None:
        super().__init__()
        at_least(1, d=d, context=context)
        self.table = nn.Parameter(torch.randn(context, d))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The symbols of the first n places, the same in the whole batch."""
        fits("x", x, self.table.shape[1])
        if x.shape[1] > len(self.table):
            raise Refused(f"x: at most context = {len(self.table)} positions, got {x.shape[1]}")
        return self.table[: x.shape[1]].expand(len(x), -1, -1)


class RelativeSymbols(nn.Module):
    """``s_ij = z_clip(j − i, −reach, reach)``: a learned symbol for each offset. (2 reach + 1) d numbers.

    >>> RelativeSymbols(8, reach=3)(torch.randn(3, 4, 8)).shape
    torch.Size([7, 8])
    """

    def __init__(self, d: int, reach: int) -> None:
        super().__init__()
        at_least(1, d=d, reach=reach)
        self.table = nn.Parameter(nn.init.xavier_uniform_(torch.empty(2 * reach + 1, d)))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "offsets d"]:
        """The table itself, row j − i + reach for j seen from i, whatever `x` is."""
        fits("x", x, self.table.shape[1])
        return self.table


def split(x: Float[Tensor, "*b n w"], heads: int) -> Float[Tensor, "*b {heads} n c"]:
    """Features to heads.

    >>> split(torch.randn(3, 4, 6), 2).shape
    torch.Size([3, 2, 4, 3])
    """
    if heads < 1 or x.shape[-1] % heads:
        raise Refused(f"heads: must be a positive divisor of {x.shape[-1]} features, got {heads}")
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


class Heads(nn.Module):
    """What all three kinds share: queries and keys, hence a; a value map for what passes from j to i; W_o. Not used by itself.

    >>> Heads(8, heads=1, total=2).attention(torch.randn(3, 5, 8)).shape
    torch.Size([3, 1, 5, 5])
    """

    def __init__(self, d: int, heads: int, total: int | None = None, rotary: bool = False) -> None:
        super().__init__()
        total = heads if total is None else total
        if total < 1 or d % total or not 1 <= heads <= total:
            raise Refused(f"heads, total: 1 ≤ heads ≤ total and total a divisor of d = {d} are needed, got {heads} and {total}")
        if rotary and d // total % 2:
            raise Refused(f"rotary: needs an even number of features a head, got {d} / {total}")
        self.heads, self.rotary = heads, rotary
        width = d // total * heads
        self.query, self.key, self.value = (nn.Linear(d, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)
        self.pattern = Site()

    def match(self, x: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b h n c"], Float[Tensor, "b h n c"]]:
        """Queries and keys, with positions if there are any."""
        fits("x", x, self.query.in_features, self.query.weight)
        q, k = split(self.query(x), self.heads), split(self.key(x), self.heads)
        return (rotate(q), rotate(k)) if self.rotary else (q, k)

    def attention(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "#b #n #n"] | None = None) -> Float[Tensor, "b h n n"]:
        """a_ij of each head."""
        q, k = self.match(x)
        scores = q @ k.mT * q.shape[-1] ** -0.5
        return self.pattern(masked_softmax(scores, None if mask is None else mask.unsqueeze(1)))

    def mix(self, x: Float[Tensor, "b n d"], values: Float[Tensor, "b h n c"], mask: Tensor | None) -> Float[Tensor, "b h n c"]:
        """Σ_j a_ij v_j."""
        if self.pattern.watched:
            return self.attention(x, mask) @ values
        same_kind("values", values, self.query.weight)
        mask = None if mask is None else mask.unsqueeze(1)
        return attend(*self.match(x), values, mask=mask, names=("query of x", "key of x"))

    def merge(self, z: Float[Tensor, "b h n c"]) -> Float[Tensor, "b n w"]:
        """W_o of all heads, side by side."""
        width = self.out.in_features // self.heads
        if z.shape[1::2] != (self.heads, width):
            raise Refused(f"z: must be of shape (b, {self.heads}, n, {width}), got {tuple(z.shape)}")
        same_kind("z", z, self.out.weight)
        return self.out(z.transpose(1, 2).flatten(2))


class SensoryHeads(Heads):
    """Ordinary attention: `heads` of the `total` heads that share a width d, so that the output has heads · d/total features.

    Site: pattern, a (b, heads, n, n); while it is recorded or overridden it is formed, else a fused kernel runs. O(n d w + n² w)
    time for w = heads · d/total. `Refused` for a `total` that does not divide d, heads outside 1 … total, rotary positions at an
    odd width, input that does not fit, or NaN that would not come out.

    >>> SensoryHeads(8, heads=1, total=2)(torch.randn(3, 5, 8)).shape
    torch.Size([3, 5, 4])
    """

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "#b #n #n"] | None = None) -> Float[Tensor, "b n w"]:
        """`mask` is True where i may look at j."""
        fits("x", x, self.value.in_features, self.value.weight)
        return self.merge(self.mix(x, split(self.value(x), self.heads), mask))


class SymbolicHeads(Heads):
    """Heads that move symbols only, ``z_i = Σ_j a_ij W_s s_j``: relations show in a alone ("relational cross-attention").

    Arguments, sites and cost as `SensoryHeads`; relative symbols: O(n²) memory a head for a.

    >>> x = torch.randn(3, 5, 8)
    >>> SymbolicHeads(8, heads=2)(x, PositionalSymbols(8, 5)(x)).shape
    torch.Size([3, 5, 8])
    """

    def carry(self, a: Float[Tensor, "b h n n"], symbols: Symbols) -> Float[Tensor, "b h n c"]:
        """Σ_j a_ij W_s s_j, or s_ij; there, a is first summed over the j of each offset, so that no n × n × d is formed."""
        if symbols.ndim == 3 and (symbols.shape[0], symbols.shape[1]) != (a.shape[0], a.shape[-1]):
            raise Refused(f"symbols: must be those of {a.shape[0]} × {a.shape[-1]} objects, as a, got {tuple(symbols.shape)}")
        fits("symbols", symbols, self.value.in_features, self.value.weight)
        same_kind("a", a, self.value.weight)
        values = split(self.value(symbols), self.heads)
        if symbols.ndim == 3:
            return a @ values
        place, reach = torch.arange(a.shape[-1], device=a.device), len(symbols) // 2
        offset = (place - place[:, None]).clamp(-reach, reach) + reach
        share = a.new_zeros(*a.shape[:-1], len(symbols)).scatter_add(-1, offset.expand_as(a), a)
        return share @ values

    def forward(
        self, x: Float[Tensor, "b n d"], symbols: Symbols, mask: Bool[Tensor, "#b #n #n"] | None = None
    ) -> Float[Tensor, "b n w"]:
        """`symbols` (b, n, d), or (2 reach + 1, d), one for each offset; `mask` is True where i may look at j."""
        check_symbols(x, symbols)
        same_kind("symbols", symbols, self.value.weight)
        if symbols.ndim == 3:
            return self.merge(self.mix(x, split(self.value(symbols), self.heads), mask))
        return self.merge(self.carry(self.attention(x, mask), symbols))


class RelationalHeads(SymbolicHeads):
    """``z_i = Σ_j a_ij (W_r r_ij + W_s s_j)``: what passes from j to i is their relations, and who j is.

    Args:
        relations: how many, d_r (default `heads`); it must divide the width w = heads · d/total, and each compares w/d_r features.
        symmetric: W_q^l = W_k^l, so that r_ij = r_ji.

    Sites: pattern, a (b, heads, n, n), and relation, r (b, relations, n, n). 5 d w + w² + w relations numbers (4 d w if symmetric);
    O(n d w + n² (w + heads relations)) time, O(n² (heads + relations)) memory a sequence.

    >>> x = torch.randn(3, 5, 8)
    >>> RelationalHeads(8, heads=2, symmetric=True)(x, PositionalSymbols(8, 5)(x)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        d: int,
        heads: int,
        total: int | None = None,
        rotary: bool = False,
        relations: int | None = None,
        symmetric: bool = False,
    ) -> None:
        super().__init__(d, heads, total, rotary)
        self.relations = heads if relations is None else relations
        width = self.out.in_features
        if self.relations < 1 or width % self.relations:
            raise Refused(f"relations: must be a positive divisor of the heads' width {width}, got {relations}")
        self.relation_query = nn.Linear(d, width, bias=False)
        self.relation_key = None if symmetric else nn.Linear(d, width, bias=False)
        self.W_r = nn.Parameter(torch.empty(heads, width // heads, self.relations))
        nn.init.kaiming_uniform_(self.W_r, a=math.sqrt(5))
        self.relation = Site()

    def relate(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b r n n"]:
        """r_ij,l of each relation l."""
        fits("x", x, self.relation_query.in_features, self.relation_query.weight)
        q = split(self.relation_query(x), self.relations)
        k = q if self.relation_key is None else split(self.relation_key(x), self.relations)
        return self.relation(q @ k.mT * q.shape[-1] ** -0.5)

    def forward(
        self, x: Float[Tensor, "b n d"], symbols: Symbols, mask: Bool[Tensor, "#b #n #n"] | None = None
    ) -> Float[Tensor, "b n w"]:
        """`symbols` (b, n, d), or (2 reach + 1, d), one for each offset; `mask` is True where i may look at j."""
        check_symbols(x, symbols)
        a = self.attention(x, mask)
        seen = torch.einsum("bhij,blij->bhil", a, self.relate(x))  # Σ_j a_ij r_ij
        return self.merge(seen @ self.W_r.mT + self.carry(a, symbols))


def check_symbols(x: Float[Tensor, "b n d"], symbols: Tensor) -> None:
    """`Refused` unless there is a symbol of width d for each object, or for each offset.

    >>> check_symbols(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
    """
    one_each = symbols.shape == x.shape
    table = symbols.ndim == 2 and len(symbols) % 2 == 1 and symbols.shape[-1] == x.shape[-1]
    if not (one_each or table):
        wanted = f"{tuple(x.shape)} or (2 reach + 1, {x.shape[-1]})"
        raise Refused(f"symbols: must be of shape {wanted}, got {tuple(symbols.shape)}")


HEADS = {"relational": RelationalHeads, "symbolic": SymbolicHeads}


class DualAttention(nn.Module):
    """`sensory` ordinary heads beside `relational` ones, each d/(sensory + relational) wide: their outputs side by side, d in all.

    Args:
        relations, symmetric: of `RelationalHeads`.
        rotary: rotary positions in the patterns of all heads.
        kind: "relational", or "symbolic" for the ablation without relations.

    For H heads in all, n_r of them relational: about (3 n_s + 5 n_r) d²/H + (n_s² + n_r²) d²/H² numbers, so a relational head costs
    more than a sensory one: match widths before you compare. `Refused` for negative or no heads, and as the heads do.

    >>> x = torch.randn(3, 5, 8)
    >>> DualAttention(8, sensory=1, relational=1)(x, symbols=PositionalSymbols(8, 5)(x)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        d: int,
        sensory: int,
        relational: int,
        *,
        relations: int | None = None,
        symmetric: bool = False,
        rotary: bool = False,
        kind: str = "relational",
    ) -> None:
        super().__init__()
        choose("kind", kind, HEADS)
        if min(sensory, relational) < 0 or sensory + relational < 1:
            raise Refused(f"sensory, relational: none negative and one head at least, got {sensory} and {relational}")
        total = sensory + relational
        self.sensory = SensoryHeads(d, sensory, total, rotary) if sensory else None
        self.relational: RelationalHeads | SymbolicHeads | None = None
        if relational and kind == "symbolic":
            self.relational = SymbolicHeads(d, relational, total, rotary)
        elif relational:
            self.relational = RelationalHeads(d, relational, total, rotary, relations, symmetric)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "#b #n #n"] | None = None,
        symbols: Symbols | None = None,
    ) -> Float[Tensor, "b n d"]:
        """`symbols` as the relational heads want them (not needed without such heads); `mask` is True where i may look at j."""
        parts = [] if self.sensory is None else [self.sensory(x, mask)]
        if self.relational is not None:
            if symbols is None:
                raise Refused("symbols: relational heads need them, got None")
            parts.append(self.relational(x, symbols, mask))
        return torch.cat(parts, -1)


class DualBlock(Block):
    """One layer: ``x ← x + dual_attention(norm(x), symbols)``, then ``x ← x + mlp(norm(x))`` if there is an MLP.

    Arguments and sites as `nn.transformer.Block`, whose `attention` is a `DualAttention` here.

    >>> x = torch.randn(3, 5, 8)
    >>> DualBlock(8, DualAttention(8, 1, 1), hidden=16)(x, symbols=PositionalSymbols(8, 5)(x)).shape
    torch.Size([3, 5, 8])
    """

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "#b #n #n"] | None = None,
        symbols: Symbols | None = None,
    ) -> Float[Tensor, "b n d"]:
        """`mask` is True where i may look at j."""
        if isinstance(self.attention_norm, nn.LayerNorm):
            fits("x", x, self.attention_norm.normalized_shape[0], self.attention_norm.weight)
        x = self.middle(x + self.attention(self.attention_norm(x), mask=mask, symbols=symbols))
        return x if self.mlp is None else x + self.mlp(self.mlp_norm(x))


class DualTransformer(nn.Module):
    """`layers` blocks of dual attention over sequences of vectors, and a last norm: an encoder, or a decoder if `causal`.

    Args:
        d, layers, context: width, number of blocks, longest sequence.
        sensory, relational: heads of each kind in a layer; with ``relational=0`` it is a plain pre-norm transformer.
        symbols: a module from the embedded input to symbols, used once for all layers (default `PositionalSymbols`).
        positions: "learned" (added to x), "rotary" (in the patterns) or "none".
        hidden: width of each MLP, 0 for none.
        relations, symmetric, kind: of `DualAttention`.

    O(layers (n d² + n d hidden + n² d)) time a sequence. `Refused` for bad sizes and for sequences longer than `context`.

    >>> DualTransformer(8, sensory=1, relational=1, layers=2, context=5, hidden=16)(torch.randn(3, 4, 8)).shape
    torch.Size([3, 4, 8])
    """

    def __init__(
        self,
        d: int,
        sensory: int,
        relational: int,
        layers: int,
        context: int,
        *,
        symbols: nn.Module | None = None,
        positions: str = "learned",
        hidden: int = 0,
        activation: str = "gelu",
        causal: bool = False,
        relations: int | None = None,
        symmetric: bool = False,
        kind: str = "relational",
    ) -> None:
        super().__init__()
        at_least(1, d=d, layers=layers, context=context)
        rotary = choose("positions", positions, POSITIONS) == "rotary"
        self.context, self.causal = context, causal
        self.place = nn.Parameter(0.1 * torch.randn(context, d)) if positions == "learned" else None
        self.symbols = (PositionalSymbols(d, context) if symbols is None else symbols) if relational else None
        options = {"relations": relations, "symmetric": symmetric, "rotary": rotary, "kind": kind}
        made = (DualAttention(d, sensory, relational, **options) for _ in range(layers))  # type: ignore[arg-type]
        self.layers = nn.ModuleList(DualBlock(d, attention, hidden, activation) for attention in made)
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "#b #n #n"] | None = None) -> Float[Tensor, "b n d"]:
        """`mask` is True where i may look at j, beside what causality forbids."""
        fits("x", x, self.norm.normalized_shape[0], self.norm.weight)
        x, mask = placed(x, mask, self.place, self.context, self.causal)
        symbols = None if self.symbols is None else self.symbols(x)
        for layer in self.layers:
            x = layer(x, mask=mask, symbols=symbols)
        return self.norm(x)
