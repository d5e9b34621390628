"""Ridge regression of many voxels on the same features, each voxel with its own cross-validated penalty λ.

    w_v, b_v = argmin ‖y_v − X w − b‖² + λ_v ‖w‖²

λ_v has the least mean over folds of the squared error of the left-out samples; then w_v is fitted on all samples. How one
decomposition a fold serves all penalties and voxels is in `numerics.ridge`. (Hoerl & Kennard 1970; the encoding models of
Nunez-Elizalde, Huth & Gallant 2019 and of himalaya, Dupré la Tour et al. 2022, whose RidgeCV this equals.)
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import linear

from neuropil.brain.estimator import Estimator, as_tensor, like
from neuropil.brain.scores import require_varying
from neuropil.errors import Refused
from neuropil.numerics.ridge import ridge, ridge_errors

LAMBDAS = tuple(10 ** (k / 2) for k in range(-4, 17))  # 0.01 … 1e8


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
        W, b = ridge(x, columns, chosen)
        found = {"coef_": W.T, "intercept_": b, "lambda_": chosen}
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
