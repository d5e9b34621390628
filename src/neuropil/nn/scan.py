"""Running a cell over time.

    (y_t, h_t) = cell(x_t, h_{t−1}),    t = 1 … T

A cell is any callable ``(input, state) → (output, state)`` that keeps nothing between calls; the state is a tensor or any nest of
tuples, lists, dicts and named tuples of tensors that the caller holds. Linear cells need no loop: see `numerics.linear_scan`.
"""

import types
import weakref
from collections.abc import Callable
from typing import Any, no_type_check

import torch
from jaxtyping import Float, Inexact
from torch import Tensor
from torch.utils._pytree import tree_map_only

from neuropil.errors import Refused

State = Any
Cell = Callable[[Any, State], tuple[Any, State]]


def scan(
    cell: Cell, inputs: Float[Tensor, "t *x"], state: State, *, truncate: int | None = None, compiled: int | None = None
) -> tuple[Inexact[Tensor, "t *y"], State]:
    """All outputs, stacked along time, and the last state.

    Args:
        cell: ``(x_t, state) → (y_t, state)``, say an `nn.Module`.
        inputs: x, time first.
        state: h_0, in the cell's own form.
        truncate: gradients do not cross borders of this many steps (truncated backpropagation through time); None: they cross all.
        compiled: compile this many steps as one piece of code (8 to 32 suit small cells): slow once for each shape of each kind of
            cell (class or function), fast from then on. Of a kind torch keeps 8 (`torch._dynamo.config.recompile_limit`); further
            ones run plainly, with a warning. None: a plain Python loop. Gradients are the same either way.

    O(T) calls of the cell in time; memory O(T) states for the backward pass, or O(truncate) if outputs are used chunk by chunk.
    Raises `Refused` for no time step at all, or for a number of steps below 1.

    >>> fade = lambda x, h: (h * x, h / 2)
    >>> scan(fade, torch.ones(4, 2), torch.tensor(1.0))[0][:, 0]
    tensor([1.0000, 0.5000, 0.2500, 0.1250])
    """
    if not len(inputs):
        raise Refused("inputs: at least one time step is needed, got 0")
    for name, steps in (("truncate", truncate), ("compiled", compiled)):
        if steps is not None and steps < 1:
            raise Refused(f"{name}: at least 1 step, got {steps}")
    outputs = []
    for number, chunk in enumerate(inputs.split(truncate or len(inputs))):
        if number:
            state = tree_map_only(Tensor, Tensor.detach, state)
        for block in chunk.split(compiled or len(chunk)):
            run = _compiled_steps(cell) if compiled == len(block) else _steps  # a shorter rest is not worth another compilation
            y, state = run(cell, block, state)
            outputs.append(y)
    return torch.cat(outputs), state


@no_type_check  # the tests' type checker would wrap it, and its code would be the wrapper's
def _steps(cell: Cell, inputs: Tensor, state: State) -> tuple[Tensor, State]:
    outputs = []
    for x in inputs.unbind():
        y, state = cell(x, state)
        outputs.append(y)
    return torch.stack(outputs), state


_compiled: "weakref.WeakKeyDictionary[Any, Callable[..., tuple[Tensor, State]]]" = weakref.WeakKeyDictionary()


def _compiled_steps(cell: Cell) -> Callable[..., tuple[Tensor, State]]:
    """`_steps`, compiled: a copy of its code for each kind of cell, as torch compiles one code for few shapes and kinds only."""
    kind = getattr(cell, "__code__", type(cell))
    if kind not in _compiled:
        own = types.FunctionType(_steps.__code__.replace(), _steps.__globals__)
        _compiled[kind] = torch.compile(own, dynamic=False)
    return _compiled[kind]
