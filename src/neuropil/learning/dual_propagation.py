"""Dual propagation: contrastive Hebbian learning in one phase. Each neuron has two states; their mean is its activity, their
difference its error.

    hidden      z_k± = f( W_{k−1} m_{k−1} + b_{k−1} ± (γ/2) W_kᵀ d_{k+1} )          m = (z⁺ + z⁻)/2,   d = z⁺ − z⁻
    output      z_L± = (2a ± γ y) / (2 ± γ)  for ½|a − y|²,     a ∓ (γ/2)(softmax(a) − y)  for cross-entropy,     a = W m_{L−1} + b
    learning    ΔW_{k−1} ∝ d_k m_{k−1}ᵀ / γ^{L−k},    Δb_{k−1} ∝ d_k / γ^{L−k},    mean over the batch

Layers are visited in any order; one forward pass (z⁺ = z⁻), then one sweep from the top down, is the fast form: as many matrix
products as backpropagation. On linear nets the squared loss gives the gradient times −4γ/(4 − γ²) in every layer, cross-entropy
times −γ; for γ → 0 so does any net. f is never differentiated.

Høier, Staudt & Zach 2023, arXiv:2302.01228 (ICML 2023). With γ also inside, d_k carries a factor γ for each layer above it, which
the objective's weights 1/β_k (β_k = γ β_{k+1}) take out again; the authors run γ = 1, where there is none. Differs: any f, any
linear map (convolutions by their transpose), max-pooling routed by the argmax of the mean; cross-entropy's nudge is linearised.
"""

import copy
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from neuropil.errors import Refused, choose
from neuropil.learning.rule import SHAPING, Block, Rule, blocks
from neuropil.nn.checks import same_kind, suits

LOSSES = ("cross_entropy", "squared")
ORDERS = ("down", "shuffled", "parallel")
NAME = "dual propagation"
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


@dataclass
class Dyads:
    """The two states of every layer: `plus[k]`, `minus[k]` of z_k, where z_0 is the input; `alpha` 1/2 makes `mean` their mean.

    What follows from them alone is kept until they change: each layer's `drive` W m + b (as a graph from m), its `feedback` Wᵀ d.
    `Refused` for an alpha outside [0, 1], or a layer k that is not there.
    """

    parts: list[Block]
    alpha: float
    plus: list[Tensor]
    minus: list[Tensor]
    mean: list[Tensor]
    twins: list[Block] | None = None
    drives: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    feedbacks: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise Refused(f"alpha: must lie in [0, 1], got {self.alpha}")

    def set(self, k: int, plus: Tensor, minus: Tensor) -> None:
        """New states of layer k; what hangs on them is forgotten."""
        _layer(k, 0, len(self.parts))
        self.plus[k], self.minus[k] = plus, minus
        self.mean[k] = self.alpha * plus + (1 - self.alpha) * minus if plus is not minus else plus
        self.drives.pop(k + 1, None)
        self.feedbacks.pop(k, None)  # a pool below layer k + 1 routes by the mean of z_k
        self.feedbacks.pop(k - 1, None)

    def error(self, k: int) -> Tensor:
        """d_k."""
        _layer(k, 0, len(self.parts))
        return self.plus[k] - self.minus[k]

    def drive(self, k: int) -> Tensor:
        """W_{k−1} m_{k−1} + b_{k−1}."""
        _layer(k, 1, len(self.parts))
        if k not in self.drives:
            self.drives[k] = _through(self.parts[k - 1], self.mean[k - 1], graph=k > 1 and self.twins is None)
        return self.drives[k][0].detach()

    def feedback(self, k: int) -> Tensor:
        """W_kᵀ d_{k+1}, zero as long as layer k + 1 has no error."""
        _layer(k, 1, len(self.parts) - 1)
        if k not in self.feedbacks:
            if self.plus[k + 1] is self.minus[k + 1]:
                return torch.zeros_like(self.mean[k])
            if self.twins is None:
                self.drive(k + 1)
                u, m = self.drives[k + 1]
            else:
                u, m = _through(self.twins[k], self.mean[k], graph=True)
            self.feedbacks[k] = torch.autograd.grad(u, m, self.error(k + 1), retain_graph=True)[0]
        return self.feedbacks[k]


def _layer(k: int, first: int, last: int) -> None:
    if not first <= k <= last:
        raise Refused(f"k: must lie in {first} … {last}, got {k}")


def _through(block: Block, m: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
    """The block's linear map of m, in m's own dtype, and the leaf from which its graph starts."""
    leaf = m.detach().requires_grad_(graph)
    with torch.set_grad_enabled(graph):
        h = block.before(leaf)
        suits("mean", h, block.linear)
        return block.linear(h).to(m.dtype), leaf


class DualPropagation(Rule):
    """Trains an `nn.Sequential` of linear maps or convolutions, activations, average and max-pools, and flattening.

    Args:
        loss: "cross_entropy" (targets: classes) or "squared", ½|a − y|² (targets: values of the outputs' shape, or classes, taken
            as one-hot).
        gamma: γ in (0, 2), the strength of the nudge. Differences of two states of size γ^depth must be told apart: far below 1
            a deep net needs float64.
        order: "down" (forward, then hidden layers from the top down; further sweeps go up and down), "shuffled" (in each sweep
            all layers, a fresh order from torch's generator) or "parallel" (all at once).
        sweeps: None: one for "down", as many as layers for the others, so that the error reaches the first one.
        alpha: share of the nudge that z⁺ takes, and of z⁺ in the mean. 1/2 is the rule; 1 nudges z⁺ only, 0 z⁻ only (ablations),
            whose bias is first order in γ. (1 − α) γ must be below 1.
        feedback: a net of the same layers whose weights stand in for the Wᵀ (see `feedback_twin`). It gets the same update (Kolen &
            Pollack 1994): its parameters belong into the optimizer, too, with weight decay.

    Time of backpropagation plus elementwise work for "down" with one sweep (a convolution's weights: one more forward pass of it);
    memory of two states a neuron. `Refused` for options outside these, targets that do not fit, and, by name and before anything
    changes, for layers it cannot train, an activation of the outputs included. Batch norm would need statistics of both states.

    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> x, y = torch.eye(3), torch.tensor([0, 1, 0])
    >>> rule, optimizer = DualPropagation(), torch.optim.SGD(net.parameters(), 0.5)
    >>> losses = [rule.step(net, (x, y), optimizer) for _ in range(50)]
    >>> losses[-1] < 0.5 * losses[0]
    True
    """

    def __init__(
        self,
        loss: str = "cross_entropy",
        gamma: float = 1.0,
        order: str = "down",
        sweeps: int | None = None,
        alpha: float = 0.5,
        feedback: nn.Module | None = None,
    ) -> None:
        self.loss, self.order = choose("loss", loss, LOSSES), choose("order", order, ORDERS)
        if not 0 < gamma < 2:
            raise Refused(f"gamma: must lie in (0, 2), got {gamma}")
        if not 0 <= alpha <= 1 or (1 - alpha) * gamma >= 1:
            raise Refused(f"alpha: must lie in [0, 1] with (1 − alpha) gamma < 1, got {alpha} at gamma {gamma}")
        if sweeps is not None and sweeps < 1:
            raise Refused(f"sweeps: at least 1, got {sweeps}")
        self.gamma, self.alpha, self.sweeps, self.feedback = gamma, alpha, sweeps, feedback

    @torch.no_grad()
    def gradients(self, net: nn.Module, x: Tensor, y: Tensor) -> Float[Tensor, ""]:
        z, loss = self._settle(net, x, y)
        last = len(z.parts)
        for k, part in enumerate(z.parts, 1):
            d = z.error(k) / (-len(x) * self.gamma ** (last - k))
            _accumulate(part, z.mean[k - 1], d, [part] if z.twins is None else [part, z.twins[k - 1]])
        return loss

    def infer(self, net: nn.Module, x: Tensor, y: Tensor) -> Dyads:
        """The dyadic states of a batch after all sweeps; nothing is trained."""
        return self._settle(net, x, y)[0]

    @torch.no_grad()
    def _settle(self, net: nn.Module, x: Tensor, y: Tensor) -> tuple[Dyads, Tensor]:
        parts = _parts(net)
        same_kind("x", x, next(parts[0].linear.parameters()))
        last = len(parts)
        empty = [x] * (last + 1)
        z = Dyads(parts, self.alpha, [*empty], [*empty], [*empty], None if self.feedback is None else _twins(self.feedback, parts))
        for k, part in enumerate(parts, 1):
            state = _f(part, z.drive(k))
            z.set(k, state, state)
        a = z.mean[last]
        y = self._targets(a, y)
        loss = (a - y).square().sum() / (2 * len(a)) if self.loss == "squared" else cross_entropy(a, y)
        for sweep in range(self.sweeps or (1 if self.order == "down" else last)):
            if self.order == "down":
                up = range(1, last) if sweep else ()
                rounds = [[k] for k in (*up, *range(last, 0, -1))]
            elif self.order == "shuffled":
                rounds = [[int(k) + 1] for k in torch.randperm(last)]
            else:
                rounds = [list(range(1, last + 1))]
            for together in rounds:
                new = {k: self._output(z.drive(k), y) if k == last else self._hidden(z, k) for k in together}
                for k, states in new.items():
                    z.set(k, *states)
        return z, loss

    def _hidden(self, z: Dyads, k: int) -> tuple[Tensor, Tensor]:
        drive, nudge = z.drive(k), self.gamma * z.feedback(k)
        f = z.parts[k - 1]
        return _f(f, drive + self.alpha * nudge), _f(f, drive - (1 - self.alpha) * nudge)

    def _output(self, a: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        plus, minus = self.alpha * self.gamma, (1 - self.alpha) * self.gamma
        if self.loss == "squared":
            return (a + plus * y) / (1 + plus), (a - minus * y) / (1 - minus)
        slope = a.softmax(1) - y
        return a - plus * slope, a + minus * slope

    def _targets(self, a: Tensor, y: Tensor) -> Tensor:
        """The targets in the outputs' shape and dtype."""
        classes = y.dtype in (torch.int64, torch.int32) and y.shape == a.shape[:1] and a.dim() == 2
        if classes and len(y) and int(y.min()) >= 0 and int(y.max()) < a.shape[1]:
            return one_hot(y.long(), a.shape[1]).to(a.dtype)
        if self.loss == "squared" and y.shape == a.shape:
            return y.to(a.dtype)
        allowed = (
            f"classes 0 … {a.shape[1] - 1} of shape {tuple(a.shape[:1])}" if a.dim() == 2 else "outputs of shape (batch, classes)"
        )
        values = f", or values of shape {tuple(a.shape)}" if self.loss == "squared" else ""
        raise Refused(f"y: must be {allowed}{values}, got {y.dtype} of shape {tuple(y.shape)}")


def feedback_twin(net: nn.Module) -> nn.Module:
    """A net of the same layers with weights of its own, drawn as torch draws them: separate feedback for `DualPropagation`.

    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> twin = feedback_twin(net)
    >>> twin[0].weight.shape == net[0].weight.shape, bool((twin[0].weight == net[0].weight).any())
    (True, False)
    """
    twin = copy.deepcopy(net)
    for part in _parts(twin):
        part.linear.reset_parameters()  # type: ignore[operator]
    return twin


def _parts(net: nn.Module) -> list[Block]:
    parts = blocks(net, NAME, shaping=(*SHAPING, *POOLS))
    if len(parts[-1].after):
        names = {id(layer): name for name, layer in net.named_modules()}
        f = parts[-1].after[0]
        raise Refused(
            f"net: {NAME} cannot train layer {names[id(f)]!r}, a {type(f).__name__} of the outputs: the loss nudges W m + b"
        )
    return parts


def _twins(feedback: nn.Module, parts: list[Block]) -> list[Block]:
    twins = _parts(feedback)
    if len(twins) != len(parts):
        raise Refused(f"feedback: must have the {len(parts)} weighted layers of net, got {len(twins)}")
    for part, twin in zip(parts, twins, strict=True):
        shapes = [[tuple(p.shape) for p in b.linear.parameters()] for b in (part, twin)]
        if type(part.linear) is not type(twin.linear) or shapes[0] != shapes[1]:
            raise Refused(f"feedback: layer {twin.name!r} must be as layer {part.name!r} of net, {shapes[0]}, got {shapes[1]}")
    return twins


def _f(part: Block, a: Tensor) -> Tensor:
    """The activation, out of place."""
    inplace = any(getattr(f, "inplace", False) for f in part.after)
    return part.after(a.clone() if inplace else a)  # type: ignore[no-any-return]


def _accumulate(part: Block, m: Tensor, d: Tensor, receivers: list[Block]) -> None:
    """Σ over the batch of d mᵀ, and of d, added to the `.grad` of the receivers' parameters."""
    linear, h = part.linear, part.before(m)
    if type(linear) is nn.Linear:  # without the forward pass that autograd needs
        d, h = d.reshape(-1, d.shape[-1]), h.reshape(-1, h.shape[-1])
        found = {"weight": d.T @ h, "bias": d.sum(0)}
    else:
        own = {name: p.detach().requires_grad_() for name, p in linear.named_parameters()}
        with torch.enable_grad():
            u = torch.func.functional_call(linear, own, (h,))
        found = dict(zip(own, torch.autograd.grad(u, list(own.values()), d.to(u.dtype)), strict=True))
    for receiver in receivers:
        for name, p in receiver.linear.named_parameters():
            if p.requires_grad:
                p.grad = found[name].to(p.dtype) if p.grad is None else p.grad + found[name]
