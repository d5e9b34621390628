"""HLOP: lateral circuits learn the subspace of each layer's input; later tasks change only what lies outside it.

    ΔW ∝ δᵀ (x − HᵀH x)        H: the rows that `oja.OjaSubspace` learned from this layer's inputs in earlier tasks

What the layer does to inputs within the span of H stays as it is. The forward pass and the error δ are the true ones, so that any
rule of the form error × presynaptic activity can be wrapped: backpropagation, feedback alignment (fixed random weights carry δ) or
sign-symmetry (sign(W)/√fan_in do). Biases, which no projection protects, stop after the first task.

Spiking nets, time first: the presynaptic activity is the weighted rate  a = Σ_t λ^{T−t} s_t / Σ_t λ^{T−t}  (`WeightedRate`), and
`RateLIF` units learn by that of their drive d, for which a ≈ clip(d̄, 0, θ):  ∂a/∂d_t = w_t 1[0 < d̄ < θ].

Xiao, Meng, Zhang, He & Lin 2024, arXiv:2402.11984 (ICLR 2024); rates: Meng et al. 2022, arXiv:2205.00459 (DSR). Differs: thresholds
are fixed from the start, units start at θ/2 instead of firing at 0.3 θ, and the rate's weights stand in ∂a/∂d_t, too, where the
authors write 1/T. Nets with norms are refused. Use plain SGD: momentum of an earlier task or Adam's scales leave the complement.
"""

import math
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.errors import Refused, choose
from neuropil.learning.oja import OjaSubspace
from neuropil.learning.replaced_input import plain, replaced, rows
from neuropil.learning.rule import ELEMENTWISE, Block, Loss, Rule, blocks, fit_targets
from neuropil.nn.checks import same_kind, some
from neuropil.nn.scan import scan
from neuropil.nn.spiking import LIF

ERRORS = ("backprop", "feedback alignment", "sign-symmetric")


class WeightedRate(nn.Module):
    """``a = Σ_t λ^{T−t} s_t / Σ_t λ^{T−t}`` over the first axis: how a spiking net is read, late spikes counting most.

    >>> WeightedRate(0.5)(torch.tensor([[1.0], [0.0], [1.0]])).item()  # (1/4 + 1) / (1/4 + 1/2 + 1)
    0.714...
    """

    def __init__(self, decay: float = math.exp(-0.05)) -> None:
        super().__init__()
        if not 0 < decay <= 1:
            raise Refused(f"decay: must lie in (0, 1], got {decay}")
        self.decay = decay

    def forward(self, s: Float[Tensor, "t *b"]) -> Float[Tensor, "*b"]:
        """The rate of what came over time."""
        w = self.decay ** torch.arange(len(s) - 1, -1, -1, device=s.device, dtype=s.dtype)
        return torch.tensordot(w / w.sum(), s, 1)


class RateLIF(nn.Module):
    """A layer of LIF units over all time steps: drives (t, *b) to spikes of height θ; its gradient is that of the weighted rate.

    Args:
        decay: λ of the units and of the rate.
        threshold: θ, and the height of a spike, so that a rate is a clipped copy of the drive's.

    O(T) time and memory a unit, no memory for the steps of the backward pass. Raises `Refused` as `LIF` does.

    >>> units, drive = RateLIF(decay=0.95, threshold=1.0), torch.full((10, 1), 0.4, requires_grad=True)
    >>> spikes = units(drive)
    >>> spikes[:, 0].tolist()
    [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    """

    def __init__(self, decay: float = math.exp(-0.05), threshold: float = 1.0) -> None:
        super().__init__()
        self.units, self.rate = LIF(decay, threshold), WeightedRate(decay)

    def forward(self, drive: Float[Tensor, "t *b"]) -> Float[Tensor, "t *b"]:
        """Spikes, 0 or θ."""
        some("drive", drive, 0)
        theta = self.units.threshold
        with torch.no_grad():
            spikes, _ = scan(self.units, drive, torch.full_like(drive[0], theta / 2))
        smooth = self.rate(drive).clamp(0, theta)
        return theta * spikes + (smooth - smooth.detach())


class Memory(nn.Module):
    """What HLOP keeps beside a net: a circuit for each weighted layer, and weights for the error if it has its own."""

    def __init__(self, circuits: list[OjaSubspace], back: list[Tensor]) -> None:
        super().__init__()
        self.circuits = nn.ModuleList(circuits)
        for number, weights in enumerate(back):
            self.register_buffer(f"back{number}", weights)


class HLOP(Rule):
    """A rule with a memory: `gradients` learns weights and circuits, `new_task` turns what was learned into what is kept.

    Args:
        rows: of each circuit a task: a fraction of the layer's inputs, or one number for each weighted layer. Keep the sum over all
            tasks well below the inputs: with no room left a layer cannot learn. 0: the wrapped rule itself.
        error: "backprop", "feedback alignment" or "sign-symmetric": how δ travels.
        lr: of the circuits, one for all or one a layer; 0 keeps random orthonormal rows.
        momentum, repeats, levels, scale: see `OjaSubspace`.
        loss: mean loss of a batch.

    Nets are `nn.Sequential` of linear layers or plain 2-D convolutions and activations; spiking ones take inputs (t, b, d), have
    `RateLIF` for activations and end in a `WeightedRate`. The rule keeps a `Memory` for each net that it trains, as long as it
    lives. A batch costs O(B d M (repeats + 2)) more time a layer than the wrapped rule. `Refused` for other layers, by name.

    >>> _ = torch.manual_seed(0)
    >>> net, rule = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), HLOP(rows=[2, 4], lr=0.1)
    >>> optimizer = torch.optim.SGD(net.parameters(), 0.1)
    >>> x, y = torch.randn(64, 8), torch.randint(2, (64,))
    >>> losses = [rule.step(net, (x, y), optimizer) for _ in range(50)]
    >>> rule.new_task(net)
    >>> losses[-1] < losses[0], [len(circuit.old) for circuit in rule.memory(net).circuits]
    (True, [2, 4])
    """

    def __init__(
        self,
        rows: int | float | Sequence[int] = 0.1,
        error: str = "backprop",
        lr: int | float | Sequence[float] = 0.01,
        momentum: float = 0.9,
        repeats: int = 5,
        levels: int | None = None,
        scale: float = 20.0,
        loss: Loss = cross_entropy,
    ) -> None:
        if isinstance(rows, int | float) and not 0 <= rows < 1:
            raise Refused(f"rows: a fraction must lie in [0, 1), got {rows}; give a number for each layer as a list")
        self.rows, self.error, self.lr, self.loss = rows, choose("error", error, ERRORS), lr, loss
        self.circuit = {"momentum": momentum, "repeats": repeats, "levels": levels, "scale": scale}
        OjaSubspace(1, lr=lr if isinstance(lr, int | float) else min(lr), **self.circuit)  # type: ignore[arg-type]  # refuses early
        self._memories: WeakKeyDictionary[nn.Module, Memory] = WeakKeyDictionary()

    def memory(self, net: nn.Module) -> Memory:
        """The memory of this net, made (by torch's generator) when it is first asked for: all of the rule's state."""
        if net not in self._memories:
            layers = [block.linear for block in self._parts(net)]
            weights: list[Tensor] = [layer.weight for layer in layers]  # type: ignore[misc]
            rates = [self.lr] * len(layers) if isinstance(self.lr, int | float) else list(self.lr)
            if len(rates) != len(layers):
                raise Refused(f"lr: one for all or one for each of the {len(layers)} weighted layers, got {len(rates)}")
            given = zip(weights, self._rows(weights), rates, strict=True)
            circuits = [OjaSubspace(w[0].numel(), n, lr, **self.circuit).to(w) for w, n, lr in given]  # type: ignore[arg-type]
            bounds = [w[0].numel() ** -0.5 for w in weights] if self.error == "feedback alignment" else []
            back = [torch.empty_like(w, requires_grad=False).uniform_(-b, b) for w, b in zip(weights, bounds, strict=False)]
            self._memories[net] = Memory(circuits, [b.detach() for b in back])
        memory, device = self._memories[net], next(net.parameters()).device
        return memory if memory.circuits[0].new.device == device else memory.to(device)  # type: ignore[union-attr]

    def new_task(self, net: nn.Module, rows: int | float | Sequence[int] | None = None) -> None:
        """What the circuits have learned is kept from now on; each gets new rows (as many as before, or `rows`), biases stop.

        `Refused`, and nothing changed, if a layer has no room for them.
        """
        memory = self.memory(net)
        parts = self._parts(net)
        asked = self._rows([block.linear.weight for block in parts], rows)  # type: ignore[misc]
        for block, circuit, more in zip(parts, memory.circuits, asked, strict=True):
            if not 0 <= more <= circuit.room:  # type: ignore[operator]  # before any of them grows
                raise Refused(f"rows: layer {block.name!r} has room for 0 to {circuit.room} more, got {more}")
        for circuit, more in zip(memory.circuits, asked, strict=True):
            circuit.grow(more)  # type: ignore[operator]

    def gradients(self, net: nn.Module, x: Tensor, y: Tensor) -> Float[Tensor, ""]:
        parts, memory = self._parts(net), self.memory(net)
        same_kind("x", x, next(parts[0].linear.parameters()))
        presynaptic, z = [], x
        for number, (block, circuit) in enumerate(zip(parts, memory.circuits, strict=True)):
            z = block.before(z)
            presynaptic.append(z.detach())
            z = block.after(replaced(block.linear, z, circuit, self._back(number, block.linear, memory), len(circuit.old) > 0))  # type: ignore
        fit_targets(self.loss, z, y)
        loss = self.loss(z, y)
        loss.backward()
        trace = parts[-1].after[0] if _reads_rates(parts[-1]) else nn.Identity()
        for block, circuit, z in zip(parts, memory.circuits, presynaptic, strict=True):
            circuit.learn(rows(block.linear, trace(z)))  # type: ignore[operator]
        return loss.detach()

    def _back(self, number: int, layer: nn.Module, memory: Memory) -> Tensor | None:
        """The weights by which the error passes this layer; None: its own."""
        if self.error == "backprop":
            return None
        if self.error == "feedback alignment":
            return memory.get_buffer(f"back{number}")
        weight: Tensor = layer.weight.detach()  # type: ignore[union-attr, operator, assignment]
        return weight.sign() * weight[0].numel() ** -0.5

    def _rows(self, weights: list[Tensor], rows: int | float | Sequence[int] | None = None) -> list[int]:
        asked = self.rows if rows is None else rows
        if isinstance(asked, int | float):
            return [math.ceil(asked * w[0].numel()) for w in weights]
        if len(asked) != len(weights):
            raise Refused(f"rows: a fraction, or one number for each of the {len(weights)} weighted layers, got {len(asked)}")
        return list(asked)

    @staticmethod
    def _parts(net: nn.Module) -> list[Block]:
        parts = blocks(net, "HLOP", (*ELEMENTWISE, RateLIF, WeightedRate))
        for block in parts:
            if not plain(block.linear):
                raise Refused(f"net: HLOP cannot train layer {block.name!r}, {block.linear} (a Linear or a plain Conv2d is needed)")
            if block is not parts[-1] and _reads_rates(block):
                raise Refused(f"net: HLOP reads rates at the end of a net, got a WeightedRate behind layer {block.name!r}")
            if any(isinstance(after, RateLIF) for after in block.after) and not _reads_rates(parts[-1]):
                raise Refused(f"net: HLOP needs a WeightedRate at the end of a spiking net, layer {parts[-1].name!r} has none")
        return parts


def _reads_rates(block: Block) -> bool:
    return len(block.after) > 0 and isinstance(block.after[0], WeightedRate)
