"""Linear layers that a code c changes: scaled and shifted (FiLM), or with a residual weight of low rank; a SIREN made of them.

    ModulatedLinear:  y = (1 + S c) ⊙ (W x) + b + T c
    ResidualLinear:   y = (W + Σ_r c_r M_r) x + b            "lora": M_r = u_r w_rᵀ, so  y = W x + U (c ⊙ (W' x)) + b

The code is the second argument of `forward` and broadcasts against x: a latent vector ``(c)`` or ``(items, 1, c)``, a grid's
features at every point ``(*b, c)``, or a learned curve in time, `TimeCodes`. A zero code is the plain layer. Scale and
shift: Perez et al. 2018, arXiv:1709.07871; shifts of a SIREN from a latent: Dupont et al. 2022, arXiv:2201.12204; residuals:
Mihajlovic et al. 2024, arXiv:2309.03160; rank one: Hu et al. 2022, arXiv:2106.09685. Plain tensor operations: derivatives of every
order, `vmap`, `torch.compile`, autocast.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from neuropil.errors import Refused, choose
from neuropil.fields.siren import Siren
from neuropil.nn.checks import at_least, fits, numbers, same_kind, within

SPREAD = 0.01  # of first residuals and time codes: training starts near the plain layer, and not where both factors are zero


def at_time(table: Float[Tensor, "rows c"], t: Int[Tensor, "*f"] | Float[Tensor, "*f"]) -> Float[Tensor, "*f c"]:
    """Rows of a table over time: an integer t takes row t; a real t in [−1, 1] lies between rows, row k of T at ``2k/(T − 1) − 1``.

    The first and the last row lie at the ends (not half a frame inside them); beyond them the end row holds. O(c) a time. `Refused`
    (on the CPU) for an integer outside 0 … T − 1, or NaN.

    >>> line = torch.tensor([[0.0], [1.0], [4.0]])
    >>> at_time(line, torch.tensor([2, 0])).T, at_time(line, torch.tensor([0.0, 0.5, 7.0])).T
    (tensor([[4., 0.]]), tensor([[1.0000, 2.5000, 4.0000]]))
    """
    if not t.is_floating_point():
        within("t", t, len(table))
        return table[t]
    numbers("t", t)
    last = len(table) - 1
    u = (t.clamp(-1, 1) + 1) * (0.5 * last)
    k = u.detach().floor().long().clamp(max=max(last - 1, 0))
    return torch.lerp(table[k], table[(k + 1).clamp(max=last)], (u - k).to(table.dtype)[..., None])


class TimeCodes(nn.Module):
    """A learned code for every time: `rows` codes over [−1, 1], read by frame number or between frames (see `at_time`).

    >>> TimeCodes(24, 10)(torch.tensor([0.0, 0.5])).shape
    torch.Size([2, 10])
    """

    def __init__(self, rows: int, code: int, spread: float = SPREAD) -> None:
        super().__init__()
        at_least(1, rows=rows, code=code)
        self.table = nn.Parameter(spread * torch.randn(rows, code))

    def forward(self, t: Int[Tensor, "*f"] | Float[Tensor, "*f"]) -> Float[Tensor, "*f c"]:
        """The codes at frames (integers) or times (real numbers) t."""
        return at_time(self.table, t)


class ModulatedLinear(nn.Linear):
    """``y = (1 + S c) ⊙ (W x) + b + T c`` for a code of width `code`; `scale` or `shift` may be left out.

    S and T start as `nn.Linear`'s weights do. O(n m + c m) a point, O(c m) once for a code that is shared by points.

    >>> layer = ModulatedLinear(4, 8, code=3)
    >>> layer(torch.zeros(5, 4), torch.zeros(3)).shape
    torch.Size([5, 8])
    """

    def __init__(self, n: int, m: int, code: int, scale: bool = True, shift: bool = True) -> None:
        at_least(1, n=n, m=m, code=code)
        if not (scale or shift):
            raise Refused("scale, shift: at least one is needed")
        super().__init__(n, m)
        self.scale = nn.Linear(code, m, bias=False) if scale else None
        self.shift = nn.Linear(code, m, bias=False) if shift else None

    def forward(self, x: Float[Tensor, "*#b n"], code: Float[Tensor, "*#b c"]) -> Float[Tensor, "*#b m"]:  # type: ignore[override]
        """The layer's values at x under the code."""
        fits("x", x, self.in_features, self.weight)
        fits("code", code, (self.scale or self.shift).in_features, self.weight)  # type: ignore[union-attr]
        y = linear(x, self.weight)
        if self.scale is not None:
            y = (1 + self.scale(code)) * y
        return y + (self.bias if self.shift is None else self.bias + self.shift(code))


class ResidualLinear(nn.Linear):
    """``y = (W + Σ_r c_r M_r) x + b`` for a code of `rank` numbers.

    "full": any M_r. One weight matrix a code, shared by the points of a group: code ``(c)`` or ``(*g, 1, c)`` for x ``(*g, s, n)``;
    O(R n m) time and O(n m) memory a code, O(n m) time a point. A code for every point is `Refused`.
    "lora": ``M_r = u_r w_rᵀ``. No matrix is built, so every point may have its own code; O(n m + R (n + m)) time a point.
    All residuals start as 0.01 N(0, 1).

    >>> layer = ResidualLinear(4, 8, rank=2)
    >>> layer(torch.zeros(6, 5, 4), torch.zeros(6, 1, 2)).shape
    torch.Size([6, 5, 8])
    """

    def __init__(self, n: int, m: int, rank: int, form: str = "full") -> None:
        at_least(1, n=n, m=m, rank=rank)
        super().__init__(n, m)
        self.form = choose("form", form, ("full", "lora"))
        if form == "full":
            self.M = nn.Parameter(SPREAD * torch.randn(rank, m * n))
        else:
            self.U, self.V = nn.Parameter(SPREAD * torch.randn(m, rank)), nn.Parameter(SPREAD * torch.randn(rank, n))

    def forward(self, x: Float[Tensor, "*#b n"], code: Float[Tensor, "*#b c"]) -> Float[Tensor, "*#b m"]:  # type: ignore[override]
        """The layer's values at x under the code."""
        fits("x", x, self.in_features, self.weight)
        fits("code", code, len(self.M) if self.form == "full" else self.U.shape[1], self.weight)
        if self.form == "lora":
            return linear(x, self.weight, self.bias) + linear(code * linear(x, self.V), self.U)
        if code.ndim > 1:
            if code.shape[-2] != 1:
                raise Refused(f'code: one a group of points, (*groups, 1, {len(self.M)}), got {tuple(code.shape)}; or form="lora"')
            code = code.squeeze(-2)
        return by_group(x, self.weight + (code @ self.M).unflatten(-1, self.weight.shape), self.bias)


def by_group(x: Float[Tensor, "*#g s n"], weight: Float[Tensor, "*#g m n"], bias: Float[Tensor, " m"]) -> Float[Tensor, "*#g s m"]:
    """``y_g = W_g x_g + b_g``: one matrix for all s points of a group, one batched product."""
    fits("x", x, weight.shape[-1], weight)
    same_kind("weight", weight, bias)
    return linear(x, weight, bias) if weight.ndim == 2 else x @ weight.mT + bias


class ModulatedSiren(nn.Module):
    """`Siren` of widths `sizes` in which the linear layers numbered `layers` are made by ``modulated(n, m)`` and read the code.

    By default all but the first and the last are: those hold the coordinates' frequencies and the range of the values. First
    weights and biases are those that `Siren` draws from the same state of torch's generator, so a zero code is the plain field.

    >>> field = ModulatedSiren([2, 32, 32, 32, 1], lambda n, m: ModulatedLinear(n, m, code=8, scale=False))
    >>> field(torch.zeros(10, 2), torch.zeros(4, 1, 8)).shape  # four latents, the same ten points
    torch.Size([4, 10, 1])
    """

    def __init__(
        self,
        sizes: Sequence[int],
        modulated: Callable[[int, int], nn.Module],
        layers: Sequence[int] | None = None,
        omega: float | Sequence[float] = 30.0,
        hidden_omega: float = 30.0,
    ) -> None:
        super().__init__()
        plain = list(Siren(sizes, omega, hidden_omega))
        self.linears, self.sines = nn.ModuleList(plain[::2]), nn.ModuleList(plain[1::2])
        last = len(sizes) - 2
        self.layers = tuple(range(1, last) if layers is None else layers)
        if not set(self.layers) <= set(range(last + 1)):
            raise Refused(f"layers: must lie in 0 … {last}, got {list(self.layers)}")
        for number in self.layers:
            layer = modulated(sizes[number], sizes[number + 1])
            layer.load_state_dict(self.linears[number].state_dict(), strict=False)  # W and b, under the names of `nn.Linear`
            self.linears[number] = layer

    def forward(self, x: Float[Tensor, "*#b d_in"], code: Tensor) -> Float[Tensor, "*#b d_out"]:
        """The field's values at x under the code, which goes to every modulated layer."""
        fits("x", x, self.linears[0].in_features, self.linears[0].weight)  # type: ignore[arg-type]
        for number, layer in enumerate(self.linears):
            x = layer(x, code) if number in self.layers else layer(x)
            if number < len(self.sines):
                x = self.sines[number](x)
        return x
