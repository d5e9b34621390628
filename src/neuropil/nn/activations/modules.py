"""Activations as functions and as modules: the table's names and initial values joined with torch's code."""

import functools
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neuropil.errors import Refused, nearest
from neuropil.nn.activations.layers import LAYERS
from neuropil.nn.activations.table import FILES, Entry, find

FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: f for file in FILES for name, f in importlib.import_module(f"{__package__}.{file}").FUNCTIONS.items()
}


def _checked(entry: Entry, params: Mapping[str, Any]) -> dict[str, Any]:
    """The initial values with `params` in their place."""
    for name, value in params.items():
        if name not in entry.params:
            allowed = ", ".join(entry.params) or "it has none"
            raise Refused(f"{entry.name}: unknown parameter {name!r}{nearest(name, entry.params)} (allowed: {allowed})")
        if name in entry.positive and bool((torch.as_tensor(value) <= 0).any()):
            raise Refused(f"{entry.name}: {name} must be positive, got {value}")
        if not isinstance(value, Tensor) and isinstance(value, list | tuple) != isinstance(entry.params[name], list):
            raise Refused(f"{entry.name}: {name} must look like {entry.params[name]}, got {value}")
    return dict(entry.params) | dict(params)


@dataclass(frozen=True)
class Function:
    """``f(z, **params)`` of one entry, with its base functions; made by `functional`."""

    entry: Entry
    bases: Mapping[str, "Function"]

    def __call__(self, z: Tensor, *gate: Tensor, dim: int = -1, **params: Any) -> Any:
        """A tensor, or a tuple of K tensors of an [1->K] entry."""
        values = _checked(self.entry, params) if params else self.entry.params
        values = {p: z.new_tensor(v) if isinstance(v, list | tuple) else v for p, v in values.items()}
        place = {"dim": dim} if self.entry.kind == "vector" else {}
        return FUNCTIONS[self.entry.name](z, *gate, **values, **self.bases, **place)


def _bases(entry: Entry, base: str | Sequence[str] | None) -> dict[str, Function]:
    """The functions g and h of a frame such as TAAF."""
    names = entry.base if base is None else (base,) if isinstance(base, str) else tuple(base)
    if len(names) != len(entry.base):
        raise Refused(f"base: {entry.name} takes {len(entry.base)} base functions, got {len(names)}")
    if any(find(name).kind != "elementwise" for name in names):
        raise Refused(f"base: must be elementwise, got {', '.join(names)}")
    return {letter: functional(name) for letter, name in zip("gh", names, strict=False)}


def functional(name: str, base: str | Sequence[str] | None = None) -> Function:
    """The function ``f(z, **params)`` of a name; the initial values of the table stand for the params that are left out.

    - [2->1] entries are ``f(z, gate)``, [1->K] ones return a tuple of K tensors, [vec] ones take ``dim=-1``.
    - Params are numbers, lists or tensors that broadcast against `z`; of a list's K terms, the tensor has a last dimension K.
    - Random ones are at rest: give the drawn params yourself, or use the module.

    Values and gradients are finite in float32 as far as the formula's own are. Time and memory: some elementwise operations.
    Raises `Refused` for an unknown name, parameter or base, and for a layer, which is not a function.

    >>> functional("srs")(torch.tensor([-1.0, 0.0, 1.0]), a=3.0)
    tensor([-0.9414,  0.0000,  0.9525])
    """
    entry = find(name)
    if entry.kind == "layer":
        raise Refused(f"activation: {entry.name} has weights of its own: use activation({entry.name!r}, size=…)")
    return Function(entry, _bases(entry, base))


def _law(text: str) -> tuple[str, float, float]:
    """``U(lo, hi)`` or ``N(mean, deviation)``."""
    a, b = map(float, text[2:-1].split(","))
    return text[0], a, b


def _draw(z: Tensor, kind: str, a: float, b: float) -> Tensor:
    """One number of a law for each of z's."""
    return torch.rand_like(z) * (b - a) + a if kind == "U" else torch.randn_like(z) * b + a


class Activation(nn.Module):
    """One entry of the registry as a module; made by `activation`.

    A trained parameter is an `nn.Parameter` under its letter, shape () or (size,), with K more for a list; a positive one is kept
    as its logarithm, ``log_b``. Random entries draw in training and rest in evaluation. No state is kept between calls.
    """

    def __init__(
        self,
        entry: Entry,
        params: Mapping[str, Any],
        train: tuple[str, ...],
        size: int | None,
        dim: int,
        base: str | Sequence[str] | None,
    ) -> None:
        super().__init__()
        self.name, self.size, self.dim, self.kind = entry.name, size, dim, entry.kind
        self.positive, self.trained, self.bases = entry.positive, train, _bases(entry, base)
        self.laws = {p: _law(text) for p, text in entry.draw.items()}
        self.fixed: dict[str, Any] = {}
        self.lists: tuple[str, ...] = ()
        for p, value in _checked(entry, params).items():
            if p in train:
                start = torch.as_tensor(value, dtype=torch.get_default_dtype())
                start = start.expand((*(() if size is None else (size,)), *start.shape))
                weight = start.log() if p in self.positive else start.clone()
                self.register_parameter(f"log_{p}" if p in self.positive else p, nn.Parameter(weight))
            elif isinstance(value, list | tuple | Tensor):
                self.register_buffer(p, torch.as_tensor(value, dtype=torch.get_default_dtype()), persistent=False)
                self.lists += (p,)
            else:
                self.fixed[p] = value

    def values(self) -> dict[str, Any]:
        """The parameters as the formula takes them."""
        trained = {p: getattr(self, f"log_{p}").exp() if p in self.positive else getattr(self, p) for p in self.trained}
        return self.fixed | {p: getattr(self, p) for p in self.lists} | trained

    def forward(self, z: Tensor) -> Tensor:
        """The activation of z; a gate halves `dim`, an expansion multiplies it by K."""
        if self.size is None or self.dim in (-1, z.dim() - 1):
            return self._activate(z, self.dim)
        return self._activate(z.movedim(self.dim, -1), -1).movedim(-1, self.dim)  # the parameters broadcast from the right

    def _activate(self, z: Tensor, dim: int) -> Tensor:
        values = self.values()
        if self.training:
            values |= {p: _draw(z, *law) for p, law in self.laws.items()}
        values |= self.bases
        f = FUNCTIONS[self.name]
        if self.kind == "gate":
            return f(*z.chunk(2, dim), **values)
        if self.kind == "expand":
            return torch.cat(f(z, **values), dim)
        return f(z, **values, dim=dim) if self.kind == "vector" else f(z, **values)

    def extra_repr(self) -> str:
        entry = find(self.name)
        shown = [f"{p}={v}" for p, v in self.fixed.items() if p not in entry.draw]
        shown += [f"{p} trained" for p in self.trained] + [f"{p} ~ {law}" for p, law in entry.draw.items()]
        shown += [f"{letter}={base.entry.name}" for letter, base in self.bases.items()]
        return ", ".join([self.name, *shown, *([f"size={self.size}"] if self.size else [])])


def activation(
    name: str,
    *,
    size: int | None = None,
    dim: int = -1,
    train: bool | None = None,
    base: str | Sequence[str] | None = None,
    **params: Any,
) -> nn.Module:
    """The activation of a name or alias as a module; `params` replace the table's initial values.

    - `size`: one set of trained parameters for each of the `size` features of dimension `dim` (a neuron's or a channel's own);
      without it one set for the module, which is a layer's own, or the net's where the same module is used everywhere.
    - `dim`: the dimension of the features: that of `size`, and the one which [2->1], [1->K] and [vec] entries work along.
    - `train`: None trains what the paper trains, True every number, False none.
    - `base`: the name of the function inside a frame (TAAF, LAAF, ProbAct, …), if not the table's.

    Raises `Refused` for an unknown name, parameter or base, a positive parameter that is not, or a layer without `size`.

    >>> activation("prelu", size=3)
    Activation(prelu, a trained, size=3)
    >>> activation("PReLU")(torch.tensor([-1.0, 2.0])).tolist()
    [-0.25, 2.0]
    """
    entry = find(name)
    if size is not None and size < 1:
        raise Refused(f"size: must be positive, got {size}")
    if entry.kind == "layer":
        _checked(entry, params)
        if size is None:
            raise Refused(f"size: {entry.name} needs the number of features")
        return LAYERS[entry.name](size)
    free = tuple(p for p, v in entry.params.items() if p not in entry.draw and not isinstance(v, int))
    return Activation(entry, params, entry.train if train is None else free if train else (), size, dim, base)


@functools.cache
def _bell() -> tuple[Tensor, Tensor]:
    z = torch.linspace(-12, 12, 48_001, dtype=torch.float64)
    return z, (-0.5 * z * z).exp() / math.sqrt(2 * math.pi) * (24 / 48_000)


def gain(name: str, **params: Any) -> float:
    """``1/sqrt(E f(g)²)`` for g ~ N(0, 1): weights of standard deviation gain/sqrt(fan in) keep the second moment of the signal.

    By the trapezoid rule. Raises `Refused` for entries that are no function of one number.

    >>> round(gain("relu"), 4)
    1.4142
    """
    entry = find(name)
    if entry.kind != "elementwise":
        raise Refused(f"gain: {entry.name} is not a function of one number ({entry.kind})")
    z, weight = _bell()
    inside = (z >= entry.domain[0]) & (z <= entry.domain[1])
    return float((functional(name)(z[inside], **params).square() * weight[inside]).sum() ** -0.5)
