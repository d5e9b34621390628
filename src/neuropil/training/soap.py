"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

    L ← β L + (1 − β) G Gᵀ,   R ← β R + (1 − β) Gᵀ G,   Q_L, Q_R their eigenvectors
    W ← W − η Q_L Adam(Q_Lᵀ G Q_R) Q_Rᵀ

Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson & Kakade 2024, arXiv:2409.11321, algorithm 3. The eigenvectors follow by
one step of orthogonal iteration (a QR) every `every` steps. Matrices only; a vector or a tensor of more axes gets plain Adam.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from neuropil.errors import Refused


class SOAP(torch.optim.Optimizer):
    """A second-order optimizer for small dense networks; `betas`: of the momentum, and of all second moments.

    For an m × n matrix: memory 2 (m² + n² + mn), time O(m²n + mn²) a step and O(m³ + n³) every `every` steps. The first step only
    looks at the gradient. No weight decay. Raises `Refused` for an lr, betas or `every` out of range.

    >>> w = torch.nn.Parameter(torch.ones(3, 2))
    >>> optimizer = SOAP([w], lr=0.03)
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     w.square().sum().backward()
    ...     _ = optimizer.step()
    >>> bool(w.abs().max() < 0.1)
    True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        every: int = 10,
        eps: float = 1e-8,
    ) -> None:
        if not (lr > 0 and all(0 <= b < 1 for b in betas) and every >= 1):
            raise Refused(f"lr, betas, every: lr > 0, betas in [0, 1) and every ≥ 1 are needed, got {lr}, {betas} and {every}")
        super().__init__(params, {"lr": lr, "betas": betas, "every": every, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure`, if given, computes the loss and its gradients anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, self.state[p], group)
        return loss

    def _update(self, p: Tensor, G: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        b1, b2 = group["betas"]
        if not state:
            state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
            if p.ndim == 2:
                state.update(L=G @ G.T * (1 - b2), R=G.T @ G * (1 - b2))
                state.update(QL=_eigenvectors(state["L"]), QR=_eigenvectors(state["R"]))
                return
        state["step"] += 1
        m, v = state["m"].lerp_(G, 1 - b1), state["v"]
        turned, momentum = (_turn(x, state) for x in (G, m))
        v.lerp_(turned.square(), 1 - b2)
        rate = group["lr"] * (1 - b2 ** state["step"]) ** 0.5 / (1 - b1 ** state["step"])
        direction = momentum / (v.sqrt() + group["eps"])
        p.sub_(_turn(direction, state, back=True), alpha=rate)
        if p.ndim == 2:
            state["L"].lerp_(G @ G.T, 1 - b2)
            state["R"].lerp_(G.T @ G, 1 - b2)
            if state["step"] % group["every"] == 0:
                _follow(state)


def _turn(G: Tensor, state: dict[str, Any], back: bool = False) -> Tensor:
    """``Q_Lᵀ G Q_R``, or ``Q_L G Q_Rᵀ``."""
    if G.ndim != 2:
        return G
    return state["QL"] @ G @ state["QR"].T if back else state["QL"].T @ G @ state["QR"]


def _eigenvectors(symmetric: Tensor) -> Tensor:
    return torch.linalg.eigh(symmetric)[1].flip(1)  # the largest first, the order that a QR keeps


def _follow(state: dict[str, Any]) -> None:
    """One step of orthogonal iteration on each side, in the order of today's eigenvalues; the second moments keep their vectors."""
    for side, Q, axis in (("L", "QL", 0), ("R", "QR", 1)):
        moved = state[side] @ state[Q]
        order = (state[Q] * moved).sum(0).argsort(descending=True)
        state["v"] = state["v"].index_select(axis, order)
        state[Q] = torch.linalg.qr(moved[:, order])[0]
