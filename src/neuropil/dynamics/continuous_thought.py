"""Continuous Thought Machine: neurons with private nets over their recent input, an inner clock, and synchrony as representation.

At each tick t of T, with the data's tokens KV = LayerNorm(linear(data)) held:

    q = linear(S_action)                    o = MultiHead(q, KV)              look at the data with the neurons' synchrony so far
    a = synapses([o; z])                    A ← [A without its oldest column, a]            pre-activations, their last M: the trace
    z_d = g_d(A_d)                          a net of its own for each neuron d              `nn.per_unit`
    S ← synchrony of z over all ticks       y_t = linear(S_out)                             `nn.synchrony`

    certainty(y) = 1 − H(softmax y) / log classes           loss = mean ½ (l at the tick of least l + l at the most certain tick)

Darlow, Regan, Risi, Seely & Jones 2025, arXiv:2505.05522. Both nets here are cells ``(tokens, state) → (y, state)`` that `nn.scan`
runs over ticks: `ContinuousThoughtMachine` and `ThinkingLSTM`, the paper's baseline that thinks as long with an LSTM.
Differs: keys and values of unchanging data are computed once (`look`), not at each tick; dropout acts on the synapses only.
"""

import itertools
import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.errors import Refused, choose
from neuropil.nn.attention import MultiHead
from neuropil.nn.checks import at_least, fits, some, within
from neuropil.nn.per_unit import PerUnitMLP
from neuropil.nn.scan import scan
from neuropil.nn.synchrony import Synchrony, SynchronyState, pairs

NARROW = 16  # width at the bottom of the synapses' U


class ThoughtState(NamedTuple):
    """Trace A (batch last, as `PerUnitMLP` wants it), activity z, and the sums of the two synchronies."""

    trace: Float[Tensor, "n m b"]
    z: Float[Tensor, "b n"]
    action: SynchronyState
    out: SynchronyState


class LSTMState(NamedTuple):
    """Output and cell of an LSTM."""

    h: Float[Tensor, "b n"]
    c: Float[Tensor, "b n"]


class HeldAttention(MultiHead):
    """Attention to a memory whose keys and values were computed before (`hold`): for a memory that is read many times.

    >>> attention = HeldAttention(8, heads=2)
    >>> x, memory = torch.randn(3, 1, 8), torch.randn(3, 5, 8)
    >>> attention(x, attention.hold(memory)).shape
    torch.Size([3, 1, 8])
    """

    def hold(self, memory: Float[Tensor, "b m e"]) -> Float[Tensor, "b m k"]:
        """Keys and values side by side."""
        fits("memory", memory, self.key.in_features, self.key.weight)
        return torch.cat([self.key(memory), self.value(memory)], -1)

    def project(
        self, x: Float[Tensor, "b n d"], memory: Float[Tensor, "b m e"]
    ) -> tuple[Float[Tensor, "b h n c"], Float[Tensor, "b h m c"], Float[Tensor, "b h m c"]]:
        """Queries of `x`; keys and values as held."""
        fits("x", x, self.query.in_features, self.query.weight)
        fits("memory", memory, 2 * self.key.out_features, self.key.weight)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.query(x), *memory.chunk(2, -1)))
        return q, k, v


class _Thinker(nn.Module):
    """What both nets share: tokens, and a look at them that a query of the net steers."""

    def __init__(self, d_in: int, d_look: int, heads: int, d_query: int) -> None:
        super().__init__()
        at_least(1, d_in=d_in, d_look=d_look)
        self.tokens = nn.Sequential(nn.Linear(d_in, d_look), nn.LayerNorm(d_look))
        self.ask = nn.Linear(d_query, d_look)
        self.attention = HeldAttention(d_look, heads)

    def look(self, data: Float[Tensor, "b k e"]) -> Float[Tensor, "b k d"]:
        """Keys and values of the data's tokens: the cell's input at every tick."""
        fits("data", data, self.tokens[0].in_features, self.tokens[0].weight)  # type: ignore[arg-type]
        return self.attention.hold(self.tokens(data))

    def seen(self, query: Float[Tensor, "b p"], tokens: Float[Tensor, "b k d"]) -> Float[Tensor, "b o"]:
        fits("tokens", tokens, 2 * self.attention.key.out_features, self.attention.key.weight)
        return self.attention(self.ask(query).unsqueeze(1), tokens).squeeze(1)


class ContinuousThoughtMachine(_Thinker):
    """``(tokens, state) → (y, state)``: one tick of the machine.

    Args:
        d_in: width of the data's tokens.
        d_out: numbers in the answer y.
        neurons, memory: D and M, the length of each neuron's trace.
        d_look, heads: width and heads of the attention to the data.
        n_out, n_action: size n of the two choices of pairs (see `synchrony.pairs`).
        choice: "pairs", "grid", or "dense": first n_out neurons for the answer, last n_action for the look, all with all.
        selves: of "pairs", so many are neurons with themselves.
        hidden: h of the neurons' nets; None: one layer.
        depth: of the synapse model; 1: one GLU layer, more: a U-Net with widths from D down to 16.
        dropout: before each layer of the synapses.
        shared: one net for all neurons (ablation).
        readout: "synchrony", or "activity": z itself stands for both synchronies (ablation).

    O(D (h M + d_look + D)) time a tick and batch element at depth 1, and O(D h) memory for the backward pass. Raises `Refused` for
    sizes or choices that do not fit.

    >>> machine = ContinuousThoughtMachine(d_in=3, d_out=4, neurons=16)
    >>> think(machine, torch.randn(2, 7, 3), ticks=5).shape
    torch.Size([5, 2, 4])
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        neurons: int = 128,
        memory: int = 5,
        d_look: int = 64,
        heads: int = 4,
        n_out: int = 32,
        n_action: int = 32,
        choice: str = "pairs",
        selves: int = 0,
        hidden: int | None = 16,
        depth: int = 1,
        dropout: float = 0.0,
        shared: bool = False,
        readout: str = "synchrony",
    ) -> None:
        at_least(1, d_out=d_out, neurons=neurons)
        choose("choice", choice, ("pairs", "grid", "dense"))
        choose("readout", readout, ("synchrony", "activity"))
        if readout == "synchrony":
            sides = [("first", n_out), ("last", n_action)] if choice == "dense" else [(choice, n_out), (choice, n_action)]
            out, action = (Synchrony(*pairs(which, neurons, n, selves=selves)) for which, n in sides)
        else:
            out, action = _Activity(neurons), _Activity(neurons)  # type: ignore[assignment]
        super().__init__(d_in, d_look, heads, len(action))
        self.out, self.action = out, action
        self.synapses = _synapses(d_look + neurons, neurons, depth, dropout)
        self.neurons = PerUnitMLP(neurons, memory, hidden, shared)
        self.answer = nn.Linear(len(out), d_out)
        self.z0 = nn.Parameter(_uniform((neurons,), neurons))
        self.trace0 = nn.Parameter(_uniform((neurons, memory), neurons + memory))

    def start(self, batch: int) -> ThoughtState:
        """The learned start, seen once by the synchrony that answers."""
        at_least(0, batch=batch)
        z = self.z0.expand(batch, -1)
        _, out = self.out(z, self.out.start(batch))
        return ThoughtState(self.trace0.unsqueeze(-1).expand(-1, -1, batch), z, self.action.start(batch), out)

    def forward(self, tokens: Float[Tensor, "b k d"], state: ThoughtState) -> tuple[Float[Tensor, "b y"], ThoughtState]:
        """One tick; `tokens` as `look` gives them (they may be others at each tick)."""
        query, action = self.action(state.z, state.action)
        a = self.synapses(torch.cat([self.seen(query, tokens), state.z], -1))
        trace = torch.cat([state.trace[:, 1:], a.T.unsqueeze(1)], 1)
        z = self.neurons(trace).T
        together, out = self.out(z, state.out)
        return self.answer(together), ThoughtState(trace, z, action, out)


class ThinkingLSTM(_Thinker):
    """The paper's baseline: at each tick an LSTM of `units` takes in what it looks at with its own output, and answers from that.

    4 units (units + d_look + 2) numbers for the LSTM.

    >>> think(ThinkingLSTM(d_in=3, d_out=4, units=16), torch.randn(2, 7, 3), ticks=5).shape
    torch.Size([5, 2, 4])
    """

    def __init__(self, d_in: int, d_out: int, units: int = 128, d_look: int = 64, heads: int = 4) -> None:
        at_least(1, units=units, d_out=d_out)
        super().__init__(d_in, d_look, heads, units)
        self.lstm = nn.LSTMCell(d_look, units)
        self.answer = nn.Linear(units, d_out)
        self.h0, self.c0 = nn.Parameter(_uniform((units,), units)), nn.Parameter(_uniform((units,), units))

    def start(self, batch: int) -> LSTMState:
        """The learned start."""
        at_least(0, batch=batch)
        return LSTMState(self.h0.expand(batch, -1), self.c0.expand(batch, -1))

    def forward(self, tokens: Float[Tensor, "b k d"], state: LSTMState) -> tuple[Float[Tensor, "b y"], LSTMState]:
        """One tick."""
        state = LSTMState(*self.lstm(self.seen(state.h, tokens), state))
        return self.answer(state.h), state


class _Activity(nn.Module):
    """z in place of its synchrony: nothing to sum up."""

    nothing: Tensor

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = units
        self.register_buffer("nothing", torch.zeros(0), persistent=False)

    def __len__(self) -> int:
        return self.units

    def start(self, batch: int) -> SynchronyState:
        return SynchronyState(self.nothing.expand(batch, 0), self.nothing)

    def forward(self, z: Tensor, state: SynchronyState) -> tuple[Tensor, SynchronyState]:
        return z, state


def think(machine: nn.Module, data: Float[Tensor, "b k e"], ticks: int, compiled: int | None = None) -> Float[Tensor, "t b y"]:
    """The answers of a machine at each of `ticks` while it looks at the same data; `compiled` as in `nn.scan`.

    Raises `Refused` for no tick at all.
    """
    if ticks < 1:
        raise Refused(f"ticks: must be at least 1, got {ticks}")
    tokens = machine.look(data)  # type: ignore[operator]
    return scan(machine, tokens.expand(ticks, *tokens.shape), machine.start(len(data)), compiled=compiled)[0]  # type: ignore[operator]


@torch.no_grad()
def activity(machine: ContinuousThoughtMachine, data: Float[Tensor, "b k e"], ticks: int) -> Float[Tensor, "t b n"]:
    """z of every neuron at every tick, for pictures.

    >>> activity(ContinuousThoughtMachine(3, 4, neurons=16), torch.randn(2, 7, 3), ticks=5).shape
    torch.Size([5, 2, 16])
    """

    at_least(1, ticks=ticks)

    def cell(tokens: Tensor, state: ThoughtState) -> tuple[Tensor, ThoughtState]:
        state = machine(tokens, state)[1]
        return state.z, state

    tokens = machine.look(data)
    return scan(cell, tokens.expand(ticks, *tokens.shape), machine.start(len(data)))[0]


def certainty(logits: Float[Tensor, "*b k c"]) -> Float[Tensor, "*b"]:
    """``1 − H / log c``, the mean over the k questions of an answer with c classes each: 0 for a guess, 1 for no doubt.

    >>> certainty(torch.tensor([[[0.0, 0.0]], [[50.0, 0.0]]]))
    tensor([0., 1.])
    """
    if logits.shape[-1] < 2 or not logits.shape[-2]:
        raise Refused(f"logits: at least 1 question of at least 2 classes is needed, got shape {tuple(logits.shape)}")
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return 1 - entropy.mean(-1) / math.log(logits.shape[-1])


def two_tick_loss(logits: Float[Tensor, "t b k c"], target: Int[Tensor, "b k"], lookahead: int | None = None) -> Float[Tensor, ""]:
    """Cross-entropy (mean over questions) at each example's tick of least loss and its most certain tick; the mean of all of them.

    With `lookahead` the questions are a route (the authors' curriculum for mazes): only those count up to the last right one
    before the first mistake, at the tick that gets furthest, and so many more. Raises `Refused` for a lookahead below 1.

    >>> logits = torch.tensor([[0.0, 0.0], [0.0, 9.0], [1.0, 0.0]]).view(3, 1, 1, 2)  # unsure; certain and wrong; right
    >>> two_tick_loss(logits, torch.tensor([[0]]))  # (0.3133 + 9.0001) / 2
    tensor(4.6567)
    """
    if lookahead is not None and lookahead < 1:
        raise Refused(f"lookahead: must be at least 1, got {lookahead}")
    t, b, k, c = logits.shape
    if 0 in (t, b, k):
        raise Refused(f"logits: ticks, examples and questions are needed, got shape {tuple(logits.shape)}")
    within("target", target, c)
    targets = target.expand(t, b, k)
    losses = cross_entropy(logits.reshape(-1, c), targets.reshape(-1), reduction="none").view(t, b, k)
    if lookahead is None:
        losses = losses.mean(-1)
    else:
        right = (logits.argmax(-1) == targets).long().cumprod(-1).sum(-1).amax(0)  # steps before the first mistake
        counts = torch.arange(k, device=logits.device) < (right - 1).clamp_min(0).unsqueeze(-1) + lookahead  # b k
        losses = (losses * counts).sum(-1) / counts.sum(-1)
    ticks = torch.stack([losses.argmin(0), certainty(logits).argmax(0)])
    return losses.gather(0, ticks).mean()


def stop(logits: Float[Tensor, "t b k c"], threshold: float) -> tuple[Float[Tensor, "b k c"], Int[Tensor, " b"]]:
    """Each example's answer at its first tick whose certainty reaches `threshold`, and that tick (from 0).

    If none does, the most certain tick answers: a threshold above 1 always asks for that one, and then all ticks were thought.

    >>> logits = torch.tensor([[0.0, 0.0], [0.0, 9.0], [99.0, 0.0]]).view(3, 1, 1, 2)
    >>> stop(logits, 0.8)[1], stop(logits, 2.0)[1]
    (tensor([1]), tensor([2]))
    """
    some("logits", logits, 0)
    if math.isnan(threshold):
        raise Refused("threshold: must be a number, got nan")
    sure = certainty(logits)
    reached = sure >= threshold
    tick = torch.where(reached.any(0), reached.long().argmax(0), sure.argmax(0))
    return logits[tick, torch.arange(logits.shape[1], device=logits.device)], tick


def _uniform(shape: tuple[int, ...], size: int) -> Tensor:
    return torch.empty(shape).uniform_(-(size**-0.5), size**-0.5)


def _synapses(d_in: int, neurons: int, depth: int, dropout: float) -> nn.Module:
    """[o; z] → a."""
    if depth < 1:
        raise Refused(f"depth: must be at least 1, got {depth}")
    if not 0 <= dropout < 1:
        raise Refused(f"dropout: must lie in [0, 1), got {dropout}")
    if depth == 1:
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(d_in, 2 * neurons), nn.GLU(), nn.LayerNorm(neurons))
    widths = [(neurons * (depth - 1 - i) + NARROW * i) // (depth - 1) for i in range(depth)]
    return nn.Sequential(_layer(d_in, neurons), _Level(widths, dropout))


def _layer(n: int, m: int, dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(n, m), nn.LayerNorm(m), nn.SiLU())


class _Level(nn.Module):
    """One level of the U: down, whatever is below, up, and the way past it."""

    def __init__(self, widths: list[int], dropout: float) -> None:
        super().__init__()
        (wide, narrow), *below = itertools.pairwise(widths)
        self.down, self.up = _layer(wide, narrow, dropout), _layer(narrow, wide, dropout)
        self.below: nn.Module = _Level(widths[1:], dropout) if below else nn.Identity()
        self.norm = nn.LayerNorm(wide)

    def forward(self, x: Tensor) -> Tensor:
        y: Any = self.up(self.below(self.down(x)))
        return self.norm(y + x)
