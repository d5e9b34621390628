"""Whole fields ``(… d_in) → (… d_out)`` on [−1, 1]^{d_in} by one short name and a parameter budget, and many fits at once.

build("hash", 2, 3, parameters=50_000)        the largest field of that kind that has at most 50,000 parameters
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from neuropil.errors import Refused, choose
from neuropil.fields.encodings import Fourier, GaussianFourier
from neuropil.fields.grids import DenseGrid, HashGrid, Planes
from neuropil.fields.siren import Siren
from neuropil.nn.mlp import MLP


class Field(nn.Sequential):
    """An encoding with its `width`, then a `head` that reads it: a field.

    >>> Field(Fourier(2, octaves=4), MLP([18, 32, 3]))(torch.zeros(7, 2)).shape
    torch.Size([7, 3])
    """

    def __init__(self, encoding: nn.Module, head: nn.Module) -> None:
        super().__init__(encoding, head)

    def forward(self, x: Float[Tensor, "*b d_in"]) -> Float[Tensor, "*b d_out"]:
        """The field's values at x."""
        return super().forward(x)


def parameters_of(field: nn.Module) -> int:
    """How many numbers training may change.

    >>> parameters_of(MLP([2, 4, 1]))
    17
    """
    return sum(p.numel() for p in field.parameters() if p.requires_grad)


def _mlp(encoding: nn.Module, width: int, layers: int, d_out: int) -> Field:
    return Field(encoding, MLP([int(encoding.width), *[width] * layers, d_out], "relu"))  # type: ignore[arg-type]


def _hash(d_in: int, d_out: int, size: int) -> nn.Module:
    """`size` counts eighths of an octave of rows: tables double, `finest` grows between, so that budgets are met closely."""
    table = 2 ** (size // 8)
    coarsest, finest = 4, max(8, int(4 * table ** (1 / d_in) * 2 ** ((size % 8) / 8)))
    return _mlp(HashGrid(d_in, levels=8, features=2, table=table, coarsest=coarsest, finest=finest), 32, 1, d_out)


# the largest `size` within the budget is taken: widths for networks, cells an axis for grids
_MAKERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "siren": lambda i, o, size: Siren([i, size, size, size, o]),
    "fourier": lambda i, o, size: _mlp(Fourier(i, octaves=8), size, 3, o),
    "gaussian": lambda i, o, size: _mlp(GaussianFourier(i, size, 8.0 if i < 3 else 1.0), size, 2, o),
    "dense": lambda i, o, size: DenseGrid(i, o, size),
    "planes": lambda i, o, size: _mlp(Planes(i, 8, size), 32, 1, o),
    "hash": _hash,
}
NAMES = tuple(_MAKERS)


def build(name: str, d_in: int, d_out: int, parameters: int) -> nn.Module:
    """The largest field of kind `name` (one of `NAMES`) with at most `parameters` parameters.

    "siren": three sine layers; "fourier", "gaussian": positional or random features (σ = 8, from three axes on 1: samples lie too
    far apart for more) and a ReLU MLP; "dense": values on a grid; "planes", "hash": that encoding and one hidden layer of 32. First
    values come from torch's generator.
    Raises `Refused` for an unknown name or a budget that the smallest such field exceeds.

    >>> field = build("dense", 2, 1, parameters=100)
    >>> parameters_of(field), field(torch.zeros(5, 2)).shape
    (100, torch.Size([5, 1]))
    """
    make = _MAKERS[choose("name", name, NAMES)]

    def count(size: int) -> int:
        with torch.device("meta"):
            return parameters_of(make(d_in, d_out, size))

    if count(1) > parameters:
        raise Refused(f"parameters: the smallest {name!r} field from {d_in} to {d_out} numbers has {count(1)}, got {parameters}")
    low, high = 1, 2
    while count(high) <= parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= parameters else (low, middle)
    return make(d_in, d_out, low)


def fit_many(
    fields: Sequence[nn.Module],
    x: Float[Tensor, "m n d_in"],
    y: Float[Tensor, "m n d_out"],
    steps: int,
    lr: float = 1e-3,
    batch: int | None = None,
) -> Float[Tensor, "steps m"]:
    """Fit m fields of one architecture to m signals at once, in place; gives each one's squared error at each step.

    One Adam on the stacked parameters and one `vmap` of the model: m small fits cost one larger one instead of m Python loops.
    `batch` draws that many of the n points a step (the same for all fields); all of them by default. Fields have no shared
    term in the loss, so each is fitted as if it were alone.

    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> x = torch.linspace(-1, 1, 32)[None, :, None].expand(2, -1, -1)
    >>> fields = [build("siren", 1, 1, 500) for _ in range(2)]
    >>> errors = fit_many(fields, x, torch.stack([x[0], -x[0]]), steps=50)
    >>> bool((errors[-1] < 0.1 * errors[0]).all())
    True
    """
    if len(fields) != len(x) or len(fields) != len(y):
        raise Refused(f"fields, x, y: as many of each are needed, got {len(fields)}, {len(x)} and {len(y)}")
    shapes = [[(name, tuple(p.shape)) for name, p in field.named_parameters()] for field in fields]
    if not shapes or any(shape != shapes[0] for shape in shapes):
        raise Refused("fields: at least one, and all of one architecture")
    parameters, buffers = stack_module_state(list(fields))  # type: ignore[arg-type]
    base = fields[0]
    model = vmap(lambda p, b, points: functional_call(base, (p, b), (points,)))
    optimizer = torch.optim.Adam(parameters.values(), lr)
    errors = []
    for _ in range(steps):
        pick = slice(None) if batch is None else torch.randint(x.shape[1], (batch,), device=x.device)
        error = (model(parameters, buffers, x[:, pick]) - y[:, pick]).square().mean((1, 2))
        optimizer.zero_grad()
        error.sum().backward()
        optimizer.step()
        errors.append(error.detach())
    with torch.no_grad():
        for m, field in enumerate(fields):
            for name, p in field.named_parameters():
                p.copy_(parameters[name][m])
    return torch.stack(errors)
