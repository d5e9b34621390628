"""A circuit of lateral linear units that learns, by Hebbian and anti-Hebbian updates, the principal subspace of what it sees.

    y = H x        x̂ = Hᵀ y        ΔH = yᵀ (x − x̂) / B, clipped        m ← μ m + (1 − μ) ΔH        H ← H + η m        (Oja 1989)

H = [H_old; H_new]. Only H_new learns; H_old takes part in x̂, so that the new rows find what the old ones do not explain. In a
stationary world the rows become orthonormal and span the directions of most power (of xxᵀ: no mean is taken away).

Spiking units send y in `levels` steps of ±`scale`:  y = scale · round(levels · clip(H x / scale, ±1)) / levels.

Xiao, Meng, Zhang, He & Lin 2024, arXiv:2402.11984 (ICLR 2024). Differs: new rows start orthogonal to the old ones, too, not only to
one another; all old rows are one group, as the authors have it once they merge a task's rows with those before.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.errors import Refused
from neuropil.nn.checks import fits


class OjaSubspace(nn.Module):
    """Rows H over inputs of d features: `old` ones, which stay, and `new` ones, which learn. All state is in three buffers.

    Args:
        d: features of the input.
        rows: how many new rows there are to start with.
        lr: η; 0 keeps the new rows as they started, random and orthonormal. The fastest stable rate goes as 1 / (power of x).
        momentum: μ.
        repeats: updates a batch.
        clip: largest size of an entry of ΔH.
        levels: None for exact y, else the steps of spiking units on either side of 0.
        scale: largest |y| of spiking units.

    O(repeats · B d M_new + B d M_old) time a batch, (M_old + 2 M_new) d numbers of memory. `state_dict` carries rows and momentum;
    loading it brings their number along. Raises `Refused` for values out of range and for more rows than features.

    >>> circuit = OjaSubspace(3, rows=1, lr=0.2)
    >>> for _ in range(50):
    ...     circuit.learn(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> circuit.grow(1)  # the first row is old now
    >>> circuit(torch.tensor([3.0, 4.0, 5.0])).abs().round(decimals=2)
    tensor([0., 4., 5.])
    """

    def __init__(
        self,
        d: int,
        rows: int = 0,
        lr: float = 0.01,
        momentum: float = 0.9,
        repeats: int = 5,
        clip: float = 10.0,
        levels: int | None = None,
        scale: float = 20.0,
    ) -> None:
        super().__init__()
        if d < 1 or repeats < 1 or (levels is not None and levels < 1):
            raise Refused(f"d, repeats, levels: at least 1 is needed, got {d}, {repeats}, {levels}")
        if not (lr >= 0 and 0 <= momentum < 1 and clip > 0 and scale > 0):
            raise Refused(
                f"lr, momentum, clip, scale: lr ≥ 0, momentum in [0, 1) and positive others, got {lr}, {momentum}, {clip}, {scale}"
            )
        self.lr, self.momentum, self.repeats, self.clip, self.levels, self.scale = lr, momentum, repeats, clip, levels, scale
        for name in ("old", "new", "m"):
            self.register_buffer(name, torch.zeros(0, d))
        self.grow(rows)

    old: Tensor
    new: Tensor
    m: Tensor

    @property
    def H(self) -> Float[Tensor, "rows d"]:
        """All rows, old ones first."""
        return torch.cat([self.old, self.new])

    @property
    def room(self) -> int:
        """How many more rows are possible."""
        return self.new.shape[1] - len(self.old) - len(self.new)

    @torch.no_grad()
    def grow(self, rows: int) -> None:
        """A new task: all rows become old; `rows` new ones start random, orthonormal and orthogonal to them, momentum at 0."""
        known, d = len(self.old) + len(self.new), self.new.shape[1]
        if not 0 <= rows <= self.room:
            raise Refused(f"rows: {known} rows of {d} features leave room for 0 to {self.room} more, got {rows}")
        span = torch.cat([self.H, torch.randn(rows, d, device=self.new.device, dtype=self.new.dtype)])
        fresh = torch.linalg.qr(span.T.double())[0][:, known:].T
        self.old, self.new = self.H, fresh.to(self.new.dtype).contiguous()
        self.m = torch.zeros_like(self.new)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """x − H_oldᵀ H_old x: what the old rows do not explain."""
        fits("x", x, self.new.shape[1], self.new)
        return x - self._sent(x, self.old) @ self.old

    @torch.no_grad()
    def learn(self, x: Float[Tensor, "*b d"]) -> None:
        """Move the new rows toward what batch x has beyond the old ones."""
        fits("x", x, self.new.shape[1])
        if not len(self.new):
            return
        with torch.autocast(x.device.type, enabled=False):
            x = x.reshape(-1, x.shape[-1]).to(self.new.dtype)
            left = self(x)  # H_old stays, and with it its part of x − x̂
            for _ in range(self.repeats):
                y = self._sent(x, self.new)
                change = (y.T @ (left - y @ self.new) / len(x)).clamp(-self.clip, self.clip)
                self.m = torch.lerp(change, self.m, self.momentum)
                self.new = self.new + self.lr * self.m

    def _sent(self, x: Tensor, H: Tensor) -> Tensor:
        """y of the rows H, as exact or as spiking units send it."""
        y = x @ H.T
        if self.levels is None:
            return y
        return (y / self.scale).clamp(-1, 1).mul(self.levels).round() * (self.scale / self.levels)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("old", "new", "m"):  # a circuit that has learned more tasks has more rows
            given = state_dict.get(prefix + name)
            if given is not None and given.shape[1:] == self.new.shape[1:]:
                setattr(self, name, self.new.new_empty(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)
