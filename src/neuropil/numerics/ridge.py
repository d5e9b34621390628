"""Ridge regression of many columns on the same features, each with its own penalty λ.

    w_v, b_v = argmin ‖y_v − X w − b‖² + λ_v ‖w‖²,    w_v = P diag(1 / (s² + λ_v)) Qᵀ y_v

    primal, n ≥ p:  XᵀX = V s² Vᵀ,  P = V,     Q = X V                        (X, y centred; b is not penalised)
    dual,   n < p:  XXᵀ = U s² Uᵀ,  P = XᵀU,   Q = U

One eigendecomposition serves all penalties and columns. With A = X_val P, one product [A diag(1/(s² + λ₁)); …] Qᵀy gives the
predictions of all penalties: n_val k l numbers a column, where forming the weights first costs p k l more. For a
single penalty it takes up to three times as long as to solve the normal equations. (Hoerl & Kennard 1970)
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import finite, looks, same_kind, some

BLOCK = 2**22  # numbers that are formed at once


def eigenbasis(x: Float[Tensor, "n p"]) -> tuple[Float[Tensor, "p k"], Float[Tensor, "n k"], Float[Tensor, "k"]]:
    """P, Q and s² of centred features: ``w = P (Qᵀ y / (s² + λ))``, k = min(n, p). By float64, so that small λ are safe.

    O(n p k + k³) time, O(k² + k (n + p)) memory. `Refused` (on the CPU) for features that are not finite.

    >>> P, Q, s2 = eigenbasis(torch.tensor([[2.0], [-2.0]]))
    >>> P @ (Q.T @ torch.tensor([1.0, -1.0]) / (s2 + 8.0))   # Σxy / (Σx² + λ) = 4 / 16
    tensor([0.2500])
    """
    z = x.double()
    if len(z) < z.shape[1]:
        gram = z @ z.T
        finite("products of x", gram)
        s2, u = torch.linalg.eigh(gram)
        p, q = z.T @ u, u
    else:
        gram = z.T @ z
        finite("products of x", gram)
        s2, v = torch.linalg.eigh(gram)
        p, q = v, z @ v
    return p.to(x), q.to(x), s2.clamp(min=0).to(x)


def ridge(
    x: Float[Tensor, "n p"], y: Float[Tensor, "n v"], lambdas: Float[Tensor, "v"]
) -> tuple[Float[Tensor, "p v"], Float[Tensor, "v"]]:
    """W and b, each column of y with its own penalty. O(n p k + k³ + k (n + p) v) time, k = min(n, p).

    `Refused` for no samples, and (on the CPU) for penalties that are not above 0 or features that are not finite.

    >>> ridge(torch.tensor([[3.0], [-1.0]]), torch.tensor([[1.0], [-1.0]]), torch.tensor([8.0]))
    (tensor([[0.2500]]), tensor([-0.2500]))
    """
    some("x", x, 0)
    same_kind("y", y, x)
    same_kind("lambdas", lambdas, x)
    if looks(lambdas) and not bool((lambdas > 0).all()):
        raise Refused(f"lambdas: must be above 0, got {lambdas.min():g}")
    x_mean, y_mean = x.mean(0), y.mean(0)
    p, q, s2 = eigenbasis(x - x_mean)
    W = y.new_empty(x.shape[1], y.shape[1])
    for part in _blocks(y.shape[1], 2 * len(x)):
        centred = y[:, part] - y[:, part].mean(0)
        W[:, part] = p @ ((q.T @ centred) / (s2[:, None] + lambdas[part]))
    return W, y_mean - W.T @ x_mean


def ridge_errors(
    x: Float[Tensor, "n p"], y: Float[Tensor, "n v"], lambdas: Float[Tensor, "l"], fold: Int[Tensor, "n"]
) -> Float[Tensor, "l v"]:
    """Mean over folds of each penalty's mean squared error on the fold's samples, fitted to all others (not centred before).

    O(Σ_folds n p k + k³ + (n + n_val l) k v) time; memory of the features once more and of a block of 4 million numbers.

    >>> x = torch.arange(6.0)[:, None]
    >>> ridge_errors(x, 2 * x, torch.tensor([1e-6, 1e6]), torch.tensor([0, 1, 0, 1, 0, 1])).round()
    tensor([[ 0.],
            [15.]])
    """
    some("lambdas", lambdas)
    same_kind("y", y, x)
    same_kind("lambdas", lambdas, x)
    errors = y.new_zeros(len(lambdas), y.shape[1])
    numbers = fold.unique()
    if len(numbers) < 2:
        raise Refused(f"fold: at least 2 folds are needed, got {len(numbers)}")
    for number in numbers:
        left = fold == number
        x_mean = x[~left].mean(0)
        p, q, s2 = eigenbasis(x[~left] - x_mean)
        shrunk = ((x[left] - x_mean) @ p) / (s2 + lambdas[:, None, None])  # A diag(1/(s² + λ)), all λ
        shrunk = shrunk.flatten(0, 1)
        for part in _blocks(y.shape[1], len(shrunk) + 2 * len(x)):
            train, rest = y[~left, part], y[left, part]
            mean = train.mean(0)
            predicted = shrunk @ (q.T @ (train - mean))
            missed = predicted.unflatten(0, (len(lambdas), -1)).sub_(rest - mean)
            errors[:, part] += torch.linalg.vector_norm(missed, dim=1).square_() / (len(rest) * len(numbers))
    return errors


def _blocks(columns: int, each: int) -> Iterator[slice]:
    """The columns in parts that need `BLOCK` numbers, if each needs `each`."""
    size = max(1, BLOCK // each)
    return (slice(start, start + size) for start in range(0, columns, size))
