"""What makes a class an estimator in scikit-learn's manner, which is not imported here: parameters, checked arrays, R².

A subclass keeps its `__init__` arguments under their names and does all else in `fit`; what was learned ends in an underscore.
Arrays in give arrays out, tensors in give tensors out.
"""

import inspect
from typing import Any

import numpy
import torch
from torch import Tensor

from neuropil.brain.scores import explained_variance
from neuropil.errors import Refused, choose, optional


class Estimator:
    """`get_params`, `set_params`, `score` and the tags by which scikit-learn knows what an estimator takes.

    >>> class Mean(Estimator):
    ...     def __init__(self, shift=0.0): self.shift = shift
    >>> Mean(shift=1.0).set_params(shift=2.0)
    Mean(shift=2.0)
    """

    _estimator_type = "regressor"

    @classmethod
    def _parameters(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of `__init__` by name."""
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **params: Any) -> "Estimator":
        """Change arguments of `__init__`; an unknown name is `Refused`."""
        for name, value in params.items():
            setattr(self, choose("set_params", name, self._parameters()), value)
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"

    def __sklearn_tags__(self) -> Any:
        """A regressor of one or many targets, on dense arrays without gaps."""
        tags = optional("sklearn.utils", "brain")
        return tags.Tags(
            estimator_type="regressor",
            target_tags=tags.TargetTags(required=True, multi_output=True),
            regressor_tags=tags.RegressorTags(),
            input_tags=tags.InputTags(),
        )

    def predict(self, X: Any) -> Any:
        """What a subclass predicts."""
        raise NotImplementedError

    def score(self, X: Any, y: Any) -> float:
        """Mean over voxels of `explained_variance`; a constant voxel, for which there is none, is `Refused`."""
        predicted = as_tensor("prediction", self.predict(X), None)
        target = as_tensor("y", y, tuple(predicted.shape)).to(predicted)
        return float(explained_variance(*(z.reshape(len(z), -1) for z in (predicted, target))).mean())

    def fitted(self, name: str) -> Any:
        """What `fit` has learned under this name; before it, scikit-learn's own error where that is installed."""
        if hasattr(self, name):
            return getattr(self, name)
        message = f"{type(self).__name__}: call fit before it is used"
        try:
            from sklearn.exceptions import NotFittedError
        except ModuleNotFoundError:
            raise Refused(message) from None
        raise NotFittedError(message)


def as_tensor(name: str, value: Any, shape: tuple[int | None, ...] | None) -> Tensor:
    """A tensor or array-like as a finite floating tensor of a shape (None is any size, or any shape); else `Refused`.

    float32 and float64 stay, other real numbers become the latter. No copy where none is needed.

    >>> as_tensor("y", [[1, 2]], (None, 2))
    tensor([[1., 2.]], dtype=torch.float64)
    """
    if hasattr(value, "toarray"):
        raise Refused(f"{name}: sparse data is not supported, give a dense array")
    if not isinstance(value, Tensor):
        array = numpy.asarray(value)
        if array.dtype == object:
            try:
                array = array.astype(float)
            except ValueError as error:
                raise Refused(f"{name}: must be numbers ({error})") from None
        if array.dtype.kind not in "fiubc":
            raise Refused(f"{name}: must be numbers, got {array.dtype}")
        array = array if array.flags.writeable and min(array.strides, default=1) >= 0 else array.copy()
        value = torch.from_numpy(array)
    if value.is_complex():
        raise Refused(f"{name}: Complex data not supported, got {value.dtype}")
    value = value if value.dtype in (torch.float32, torch.float64) else value.double()
    if shape is not None:
        wrong = value.ndim != len(shape) or any(a is not None and a != b for a, b in zip(shape, value.shape, strict=True))
        if wrong:
            wanted = " × ".join("any" if size is None else str(size) for size in shape)
            raise Refused(f"{name}: must have shape {wanted}, got {tuple(value.shape)}. Reshape your data")
    if not bool(value.isfinite().all()):
        at = tuple((~value.isfinite()).nonzero()[0].tolist())
        raise Refused(f"{name}: contains NaN or inf, first at {at}")
    return value


def like(value: Tensor, given: Any) -> Any:
    """A tensor where a tensor was given, else an array."""
    return value if isinstance(given, Tensor) else value.cpu().numpy()
