"""SIREN: a multilayer perceptron of sines, a field whose derivatives are fields of the same kind.

    x ← sin(ω_l (W_l x + b_l)),    W_1 ~ U(±1/n),    W_l ~ U(±√(6/n)/ω_l)  for l > 1  (n the layer's inputs)

Sitzmann, Martel, Bergman, Lindell & Wetzstein 2020, arXiv:2006.09661, §3.2. Biases keep torch's uniform ±1/√n, as the authors' do.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.errors import Refused
from neuropil.nn.checks import fits


class Sine(nn.Module):
    """``x ↦ sin(ω x)``.

    >>> Sine(30.0)(torch.zeros(3))
    tensor([0., 0., 0.])
    """

    def __init__(self, omega: float) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """The sines."""
        return torch.sin(self.omega * x)

    def extra_repr(self) -> str:
        return f"omega={self.omega:g}"


class Siren(nn.Sequential):
    """Sine layers of widths `sizes` = (in, hidden…, out), the last layer linear.

    `omega` is the first layer's ω, the bandwidth on [−1, 1]^in; `hidden_omega` that of the others; a sequence of one ω a sine layer
    sets each. O(Σ sizes_i sizes_{i+1}) numbers and time a point. `Refused` for fewer than two sizes or an ω that is not positive.

    >>> Siren([2, 64, 64, 3])(torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """

    def __init__(self, sizes: Sequence[int], omega: float | Sequence[float] = 30.0, hidden_omega: float = 30.0) -> None:
        if len(sizes) < 2 or min(sizes) < 1:
            raise Refused(f"sizes: at least two positive widths (in, hidden…, out) are needed, got {list(sizes)}")
        hidden = len(sizes) - 2
        omegas = [omega, *[hidden_omega] * (hidden - 1)][:hidden] if isinstance(omega, int | float) else list(omega)
        if len(omegas) != hidden or any(not o > 0 for o in [*omegas, hidden_omega]):
            given = f"{omegas} and hidden_omega = {hidden_omega}"
            raise Refused(f"omega: one positive number for each of {hidden} sine layers is needed, got {given}")
        layers: list[nn.Module] = []
        for number, (n, m) in enumerate(itertools.pairwise(sizes)):
            linear = nn.Linear(n, m)
            # the last layer reads sines, as a hidden one does, and is scaled as if ω were hidden_omega
            spread = 1 / n if number == 0 else math.sqrt(6 / n) / (omegas[number] if number < hidden else hidden_omega)
            nn.init.uniform_(linear.weight, -spread, spread)
            layers += [linear, Sine(omegas[number])] if number < hidden else [linear]
        super().__init__(*layers)

    def forward(self, x: Float[Tensor, "*b d_in"]) -> Float[Tensor, "*b d_out"]:
        """The field's values at x."""
        fits("x", x, self[0].in_features, self[0].weight)  # type: ignore[arg-type]
        return super().forward(x)
