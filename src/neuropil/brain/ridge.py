"""Ridge regression of many voxels on the same features, each voxel with its own cross-validated penalty λ.

    w_v = argmin ‖y_v − X w − b‖² + λ_v ‖w‖²  =  P diag(1 / (s² + λ_v)) Qᵀ y_v

    primal, n ≥ p:  XᵀX = V s² Vᵀ,  P = V,     Q = X V                        (X, y centred; b is not penalised)
    dual,   n < p:  XXᵀ = U s² Uᵀ,  P = XᵀU,   Q = U

One eigendecomposition a fold serves all penalties and voxels. With A = X_val P, one product [A diag(1/(s² + λ₁)); …] Qᵀy gives the
predictions of all penalties: n_val k l numbers a voxel, where forming the weights first costs p k l more. λ_v has the least mean
over folds of the squared error of the left-out samples; then w_v is fitted on all samples. (Hoerl & Kennard 1970; the encoding
models of Nunez-Elizalde, Huth & Gallant 2019 and of himalaya, Dupré la Tour et al. 2022, whose RidgeCV this equals.)
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from neuropil.brain.estimator import Estimator, as_tensor, like
from neuropil.brain.scores import require_varying
from neuropil.errors import Refused
from neuropil.nn.checks import finite, same_kind, some

LAMBDAS = tuple(10 ** (k / 2) for k in range(-4, 17))  # 0.01 … 1e8
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


def ridge(x: Float[Tensor, "n p"], y: Float[Tensor, "n v"], lambdas: Float[Tensor, "v"]) -> Float[Tensor, "p v"]:
    """The weights for centred features, each voxel with its penalty. O(n p k + k³ + k (n + p) v) time, k = min(n, p).

    >>> ridge(torch.tensor([[2.0], [-2.0]]), torch.tensor([[1.0], [-1.0]]), torch.tensor([8.0]))
    tensor([[0.2500]])
    """
    some("x", x, 0)
    same_kind("y", y, x)
    same_kind("lambdas", lambdas, x)
    p, q, s2 = eigenbasis(x)
    weights = y.new_empty(x.shape[1], y.shape[1])
    for part in _blocks(y.shape[1], 2 * len(x)):
        centred = y[:, part] - y[:, part].mean(0)
        weights[:, part] = p @ ((q.T @ centred) / (s2[:, None] + lambdas[part]))
    return weights


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


def _blocks(voxels: int, each: int) -> Iterator[slice]:
    """The voxels in parts that need `BLOCK` numbers, if each needs `each`."""
    size = max(1, BLOCK // each)
    return (slice(start, start + size) for start in range(0, voxels, size))


class VoxelRidge(Estimator):
    """Ridge regression with a penalty for each voxel, chosen by cross-validation; an estimator in scikit-learn's manner.

    Args:
        lambdas: the penalties to choose from, all positive.
        folds: how many folds of consecutive samples, or the fold of each sample, (n): with the number of its run, session or group,
            what belongs together is left out together.

    After `fit`: `coef_` (v, p), `intercept_` (v), `lambda_` (v), `errors_` (l, v) the cross-validated squared errors. A y of shape
    (n) gives `coef_` (p) and predictions (n). Features are centred, not scaled: scale them where their units differ. float32 is
    computed in float32, but for the decompositions; CUDA tensors stay on their device.

    `Refused` in `fit`: what is not finite or does not fit, constant voxels by number, penalties that are not positive, or folds
    that do not fit.

    >>> X = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    >>> noise = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    >>> y = torch.stack([X[:, 0], X @ torch.ones(30)], 1) + noise * torch.tensor([10.0, 0.1])
    >>> model = VoxelRidge(lambdas=(1e-2, 1.0, 1e2, 1e4)).fit(X[:150], y[:150])
    >>> model.lambda_, model.predict(X[150:]).shape         # a noisy voxel is shrunk, a clear one is not
    (tensor([1.0000e+04, 1.0000e-02]), torch.Size([50, 2]))
    """

    def __init__(self, lambdas: Any = LAMBDAS, folds: Any = 5) -> None:
        self.lambdas = lambdas
        self.folds = folds

    def fit(self, X: Any, y: Any) -> "VoxelRidge":
        """Choose the penalties and fit the weights: X (n, p), y (n, v) or (n), arrays or tensors."""
        x = as_tensor("X", X, (None, None))
        n, p = x.shape
        if n < 2 or p < 1:
            least = (
                f"n_samples = {n} while a minimum of 2 is required"
                if p
                else f"0 feature(s) (shape=({n}, 0)) while a minimum of 1 is required."
            )
            raise Refused(f"X: {least}")
        if y is None:
            raise Refused("y: requires y to be passed, but the target y is None")
        target = as_tensor("y", y, None).to(x)
        if target.ndim not in (1, 2) or len(target) != n:
            raise Refused(f"y: must have shape {n} × any or {n}, got {tuple(target.shape)}")
        columns = target if target.ndim > 1 else target[:, None]
        require_varying(columns, "y")
        lambdas = as_tensor("lambdas", self.lambdas, (None,)).to(x)
        if len(lambdas) < 1 or not bool((lambdas > 0).all()):
            raise Refused(f"lambdas: positive penalties are needed, got {self.lambdas}")
        self.errors_ = ridge_errors(x, columns, lambdas, self._fold(n).to(x.device))
        chosen = lambdas[self.errors_.argmin(0)]
        x_mean, y_mean = x.mean(0), columns.mean(0)
        coef = ridge(x - x_mean, columns, chosen).T
        found = {"coef_": coef, "intercept_": y_mean - coef @ x_mean, "lambda_": chosen}
        for name, value in found.items():
            setattr(self, name, like(value if target.ndim > 1 else value[0], X))
        self.errors_ = like(self.errors_, X)
        self.n_features_in_ = p
        return self

    def _fold(self, n: int) -> Int[Tensor, "n"]:
        """The fold of each sample."""
        if isinstance(self.folds, int):
            if not 2 <= self.folds <= n:
                raise Refused(f"folds: from 2 to n_samples = {n} are possible, got {self.folds}")
            return torch.cat([torch.full((len(part),), i) for i, part in enumerate(torch.arange(n).tensor_split(self.folds))])
        fold = torch.as_tensor(self.folds)
        if fold.shape != (n,) or fold.is_floating_point() or len(fold.unique()) < 2:
            raise Refused(f"folds: a number, or the whole numbers of at least 2 folds, one for each of {n} samples, are needed")
        return fold

    def predict(self, X: Any) -> Any:
        """``X wᵀ + b``, (n, v) or (n)."""
        coef, intercept = (torch.as_tensor(self.fitted(name)) for name in ("coef_", "intercept_"))
        x = as_tensor("X", X, (None, None)).to(coef)
        if x.shape[1] != self.n_features_in_:
            raise Refused(f"X has {x.shape[1]} features, but VoxelRidge is expecting {self.n_features_in_} features as input")
        return like(linear(x, coef) + intercept, X)
