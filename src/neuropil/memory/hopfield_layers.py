"""The modern Hopfield network as three layers for deep nets: association, pooling and lookup.

    q = W_Q R,  k = W_K Y,  v = W_V V          R: states, Y: stored patterns, V: what to read (default Y), inputs layer-normed
    q ← softmax(β q kᵀ) k                      steps − 1 times, in key space
    Z = W_O concat_heads softmax(β q kᵀ) v     β = 1/√hidden unless given, one for each head

`Hopfield` is given both sets, `HopfieldPooling` learns the states, `HopfieldLayer` learns the stored patterns. Without sizes,
``Hopfield()`` neither projects nor normalises: it is `neuropil.memory.hopfield.retrieve`, batched over sets.

Ramsauer et al., "Hopfield Networks is All You Need", ICLR 2021, arXiv:2008.02217. Two differences from the authors' code:
`steps` counts all updates (their `update_steps_max` all but the first), and with `tol` each query stops by itself, so that a
result never depends on the other members of the batch (theirs stops a head when all of the batch has settled).
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from neuropil.errors import Refused
from neuropil.nn.attention import attend, members
from neuropil.nn.checks import finite, fits

NAMES = ("state", "stored")  # what a caller knows queries and keys as


class Hopfield(nn.Module):
    """Association of a set of states with a set of stored patterns.

    `d_state`, `d_stored`, `d_value`: widths of the inputs (stored and value default to `d_state`; none at all: no projection and no
    normalisation). `hidden`: width of a head's association space (default d_state / heads); `d_out`: width of the output
    (default d_state). `beta`: a number (default 1/√hidden; 1 without projection), learned for each head with `learn_beta`.
    `steps`: updates, fewer for a query that moves less than `tol`. `connected`: read from the keys, ``v = W_V k``.
    `dropout`: of the associations, in training. O(b·heads·n·m·hidden) time a step; fused, so no b·n·m matrix, unless masked.

    Raw patterns, no projection, no normalisation: retrieval just works.

    >>> Y = torch.randn(1, 1000, 64, generator=torch.Generator().manual_seed(0))
    >>> noisy = Y[:, :5] + 0.3 * torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(1))
    >>> bool(torch.allclose(Hopfield()(noisy, Y), Y[:, :5], atol=1e-4))
    True

    As a layer of a deep net:

    >>> layer = Hopfield(16, d_stored=32, hidden=8, heads=4, steps=3)
    >>> layer(torch.randn(2, 5, 16), torch.randn(2, 7, 32)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        d_state: int | None = None,
        d_stored: int | None = None,
        d_value: int | None = None,
        *,
        hidden: int | None = None,
        d_out: int | None = None,
        heads: int = 1,
        beta: float | None = None,
        learn_beta: bool = False,
        steps: int = 1,
        tol: float = 0.0,
        normalize: bool = True,
        connected: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, size in {"steps": steps, "heads": heads, "d_state": d_state, "hidden": hidden, "d_out": d_out}.items():
            if size is not None and size < 1:
                raise Refused(f"{name}: must be at least 1, got {size}")
        if beta is not None and not beta > 0:
            raise Refused(f"beta: must be positive, got {beta}")
        if d_state is None and (d_stored or d_value or hidden or d_out or heads > 1 or connected):
            raise Refused("d_state: needed as soon as any other size, several heads or connected values are asked for")
        if d_state and not hidden and d_state % heads:
            raise Refused(f"heads: must divide d_state={d_state} unless `hidden` is given, got {heads}")
        self.heads, self.steps, self.tol, self.dropout = heads, steps, tol, dropout
        self.projects, self.connected = d_state is not None, connected
        if d_state:
            hidden = hidden or d_state // heads
            d_stored = d_stored or d_state
            d_value = d_value or d_stored
            norm = nn.LayerNorm if normalize else nn.Identity
            self.norm_state, self.norm_stored = norm(d_state), norm(d_stored)
            self.norm_value = nn.Identity() if connected else norm(d_value)
            self.query = nn.Linear(d_state, heads * hidden)
            self.key = nn.Linear(d_stored, heads * hidden)
            self.value = nn.Linear(heads * hidden if connected else d_value, heads * hidden)
            self.out = nn.Linear(heads * hidden, d_out or d_state)
            for linear in (self.query, self.key, self.value, self.out):
                nn.init.normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)
        betas = torch.full((heads,), beta or (hidden**-0.5 if hidden else 1.0))
        self.beta = nn.Parameter(betas, requires_grad=learn_beta)

    def forward(
        self,
        state: Float[Tensor, "b n r"],
        stored: Float[Tensor, "b m y"],
        values: Float[Tensor, "b m v"] | None = None,
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n z"]:
        """What `state` calls up from `stored`; `mask` is True where a stored pattern is there (a padded place is False)."""
        read = self._recall(*self._project(state, stored, values), mask, self.dropout if self.training else 0.0)
        read = read.transpose(1, 2).flatten(2)
        return self.out(read) if self.projects else read

    def associations(
        self, state: Float[Tensor, "b n r"], stored: Float[Tensor, "b m y"], mask: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b heads n m"]:
        """``softmax(β q kᵀ)`` of the last update, without dropout: what `mass_count` reads. Memory O(b·heads·n·m)."""
        q, k, _ = self._project(state, stored, None, values_matter=False)
        each = torch.eye(k.shape[-2], dtype=k.dtype, device=k.device).expand(*k.shape[:2], -1, -1)
        return self._recall(q, k, each, mask, dropout=0.0)

    def _project(
        self, state: Tensor, stored: Tensor, values: Tensor | None, values_matter: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v: b heads n hidden."""
        if self.connected and values is not None:
            raise Refused("values: connected values are read from the keys, give none")
        finite("state", state)
        finite("stored", stored)
        values = stored if values is None else values
        if not self.projects:
            if state.shape[-1] != stored.shape[-1]:
                widths = f"{state.shape[-1]} and {stored.shape[-1]}"
                raise Refused(f"state, stored: must have one width without projection, got {widths}")
            return state.unsqueeze(1), stored.unsqueeze(1), values.unsqueeze(1)
        fits("state", state, self.query.in_features, self.query.weight)
        fits("stored", stored, self.key.in_features, self.key.weight)
        if values_matter and not self.connected:
            fits("values", values, self.value.in_features, self.value.weight)
        q, k = self.query(self.norm_state(state)), self.key(self.norm_stored(stored))
        v = self.value(k if self.connected else self.norm_value(values)) if values_matter else k
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return q, k, v

    def _recall(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
        beta = self.beta[:, None, None]
        there = None if mask is None else members(k[:, 0], mask)[:, None, None]
        for _ in range(self.steps - 1):
            new = attend((beta * q).to(k.dtype), k, k, 1.0, there, names=NAMES)
            moving = (new - q).norm(dim=-1, keepdim=True) > self.tol
            q = torch.where(moving, new, q)
            if self.tol and not torch.compiler.is_compiling() and not bool(moving.any()):
                break
        return attend((beta * q).to(k.dtype), k, v, 1.0, there, dropout, NAMES)


class HopfieldPooling(nn.Module):
    """A bag into `quantity` vectors: what as many learned states call up from its members (options as in `Hopfield`).

    >>> HopfieldPooling(16, quantity=2)(torch.randn(3, 7, 16)).shape
    torch.Size([3, 32])
    """

    def __init__(self, d_state: int, *, d_stored: int | None = None, quantity: int = 1, **options: Any) -> None:
        super().__init__()
        if quantity < 1:
            raise Refused(f"quantity: must be at least 1, got {quantity}")
        self.hopfield = Hopfield(d_state, d_stored, **options)
        self.states = nn.Parameter(0.02 * torch.randn(quantity, d_state))

    def forward(
        self, bag: Float[Tensor, "b m y"], mask: Bool[Tensor, "b m"] | None = None, values: Float[Tensor, "b m v"] | None = None
    ) -> Float[Tensor, "b z"]:
        """The pooled bags, ``quantity · d_out`` wide; members where `mask` is False have no influence."""
        finite("bag", bag)
        if self.hopfield.projects:
            fits("bag", bag, self.hopfield.key.in_features, self.hopfield.key.weight)
        return self.hopfield(self.states.expand(len(bag), -1, -1), bag, values, mask).flatten(1)


class HopfieldLayer(nn.Module):
    """A lookup in `quantity` learned stored patterns, with values of their own if `d_value` is given (options as in `Hopfield`).

    >>> HopfieldLayer(16, quantity=100)(torch.randn(3, 7, 16)).shape
    torch.Size([3, 7, 16])
    """

    def __init__(
        self, d_state: int, *, quantity: int, d_stored: int | None = None, d_value: int | None = None, **options: Any
    ) -> None:
        super().__init__()
        if quantity < 1:
            raise Refused(f"quantity: must be at least 1, got {quantity}")
        self.hopfield = Hopfield(d_state, d_stored, d_value, **options)
        self.stored = nn.Parameter(0.02 * torch.randn(quantity, d_stored or d_state))
        self.values = nn.Parameter(0.02 * torch.randn(quantity, d_value)) if d_value else None

    def forward(self, state: Float[Tensor, "b n r"]) -> Float[Tensor, "b n z"]:
        """What `state` calls up from the learned patterns."""
        stored, values = (None if x is None else x.expand(len(state), -1, -1) for x in (self.stored, self.values))
        return self.hopfield(state, stored, values)
