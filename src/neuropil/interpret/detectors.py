"""Detectors of inputs out of distribution that look at one value of a classifier: max-softmax, energy, k-NN, Mahalanobis, GradNorm.

    max-softmax    max_c p_c                                     Hendrycks & Gimpel 2017, arXiv:1610.02136
    energy         T log Σ_c exp(logit_c / T)                    Liu et al. 2020, arXiv:2010.03759
    k-NN           −‖f̂ − f̂_(k)‖², f̂ = f / ‖f‖                    Sun et al. 2022, arXiv:2204.06507
    Mahalanobis    −min_c (f − μ_c)ᵀ Σ⁻¹ (f − μ_c)               Lee et al. 2018, arXiv:1807.03888 (one layer, no input noise)
    GradNorm       ‖∂ KL(u ‖ p) / ∂W‖₁ = ‖f‖₁ ‖p − 1/C‖₁     Huang et al. 2021, arXiv:2110.00218; W of the last layer, f its input

All are used like `interpret.activation_coverage.ActivationCoverage`: ``fit(x, y)``, then ``score_samples(x)``, higher for known
inputs. f is the value at a site of the model, pooled to (n, d).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neuropil.errors import Refused
from neuropil.interpret.activation_coverage import over_space
from neuropil.nn.checks import finite, fits, suits
from neuropil.nn.sites import record


class Detector:
    """What they share: the model in eval mode, the site of f (the logits, if none), and passes in batches without gradients."""

    def __init__(
        self, model: nn.Module, site: str | None = None, *, pool: Callable[[Tensor], Tensor] = over_space, batch: int = 256
    ) -> None:
        self.model, self.site, self.pool, self.batch = model, site, pool, batch

    def fit(self, x: Float[Tensor, "n *i"], y: Int[Tensor, "n"] | None = None) -> "Detector":
        """Learn from known inputs, and their labels where they count. Here: nothing."""
        return self

    def score_samples(self, x: Float[Tensor, "n *i"]) -> Float[Tensor, "n"]:
        """A number for each input: the higher, the more like the known."""
        raise NotImplementedError

    def look(self, x: Float[Tensor, "n *i"]) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n d"]]:
        """Logits and f of the inputs, float32.

        `Refused` in train mode, without inputs or with such that do not suit the model, for a site that passes not one tensor.
        """
        if self.model.training:
            raise Refused("model: is in train mode; call model.eval()")
        if not len(x):
            raise Refused("x: at least one input is needed, got none")
        suits("x", x, self.model)
        parts = [self._look(some) for some in x.split(self.batch)]
        logits, f = (torch.cat(values).float() for values in zip(*parts, strict=True))
        if (logits.ndim, f.ndim) != (2, 2) or not logits.shape[1]:
            raise Refused(f"x: must give logits (n, c) and f (n, d), gave {tuple(logits.shape)} and {tuple(f.shape)}")
        return logits, f

    @torch.no_grad()
    def _look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.site is None:
            logits = self.model(x)
            return logits, logits
        with record(self.model, self.site) as seen:
            logits = self.model(x)
        found = [value for values in seen.values() for value in values]
        if len(found) != 1 or not isinstance(found[0], Tensor):
            raise Refused(f"site: {self.site!r} must pass one tensor once a call, passed {len(found)} values")
        return logits, self.pool(found[0])


class MaxSoftmax(Detector):
    """``max_c p_c``: how sure the classifier is.

    >>> MaxSoftmax(nn.Identity().eval()).score_samples(torch.tensor([[0.0, 0.0], [9.0, 0.0]])).round(decimals=2)
    tensor([0.5000, 1.0000])
    """

    def score_samples(self, x: Float[Tensor, "n *i"]) -> Float[Tensor, "n"]:
        return self.look(x)[0].softmax(1).amax(1)


class Energy(Detector):
    """``T log Σ_c exp(logit_c / T)``: the negative free energy.

    >>> Energy(nn.Identity().eval()).score_samples(torch.zeros(1, 2)).exp().round(decimals=4)
    tensor([2.])
    """

    def __init__(self, model: nn.Module, temperature: int | float = 1.0, *, batch: int = 256) -> None:
        if not temperature > 0:
            raise Refused(f"temperature: must be above 0, got {temperature}")
        super().__init__(model, batch=batch)
        self.temperature = temperature

    def score_samples(self, x: Float[Tensor, "n *i"]) -> Float[Tensor, "n"]:
        return self.temperature * (self.look(x)[0] / self.temperature).logsumexp(1)


class NearestNeighbour(Detector):
    """``−‖f̂ − f̂_(k)‖²``: the squared distance to the k-th nearest known input, on the unit sphere.

    O(n N d) time and O(batch · N) memory for N known inputs, all of whose f are kept. `Refused` for k above N. Distances are summed
    number by number, so that a score does not depend on its batch: n = N = 5,000 of 64 numbers take one thread 3 s, not 1 s.

    >>> knn = NearestNeighbour(nn.Identity().eval(), k=1).fit(torch.tensor([[2.0, 0.0]]))
    >>> knn.score_samples(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).round().tolist()
    [-0.0, -2.0]
    """

    def __init__(
        self,
        model: nn.Module,
        site: str | None = None,
        k: int = 50,
        *,
        pool: Callable[[Tensor], Tensor] = over_space,
        batch: int = 256,
    ) -> None:
        super().__init__(model, site, pool=pool, batch=batch)
        if k < 1:
            raise Refused(f"k: must be at least 1, got {k}")
        self.k = k
        self.known: Tensor | None = None

    def fit(self, x: Float[Tensor, "n *i"], y: Int[Tensor, "n"] | None = None) -> "NearestNeighbour":
        """Keep f̂ of known inputs."""
        known = _unit(self.look(x)[1])
        if len(known) < self.k:
            raise Refused(f"x: at least k = {self.k} known inputs are needed, got {len(known)}")
        self.known = known
        return self

    def score_samples(self, x: Float[Tensor, "n *i"]) -> Float[Tensor, "n"]:
        known, f_x = _given(self.known), self.look(x)[1]
        fits("f of x", f_x, known.shape[1])
        parts = _unit(f_x).split(self.batch)
        distances = (torch.cdist(f, known, compute_mode="donot_use_mm_for_euclid_dist") for f in parts)
        return -torch.cat([distance.kthvalue(self.k, dim=1).values for distance in distances]).square()


class Mahalanobis(Detector):
    """``−min_c (f − μ_c)ᵀ Σ⁻¹ (f − μ_c)``, Σ the covariance within classes; its pseudo-inverse, in double precision.

    O(n d² + d³) to fit, O(n C d + n d²) to score.

    >>> found = Mahalanobis(nn.Identity().eval()).fit(torch.tensor([[1.0], [-1.0], [9.0], [11.0]]), torch.tensor([0, 0, 1, 1]))
    >>> found.score_samples(torch.tensor([[0.0], [13.0]])).tolist()
    [-0.0, -9.0]
    """

    means: Tensor | None = None
    root: Tensor

    def fit(self, x: Float[Tensor, "n *i"], y: Int[Tensor, "n"] | None = None) -> "Mahalanobis":
        """Means of the classes and the covariance about them; labels are needed: `Refused` without."""
        if y is None or len(y) != len(x):
            raise Refused(f"y: one label for each input is needed, got {0 if y is None else len(y)} for {len(x)}")
        f = self.look(x)[1].double()
        there, of = y.to(f.device).unique(return_inverse=True)
        count = torch.bincount(of, minlength=len(there))[:, None]
        self.means = torch.zeros(len(there), f.shape[1], dtype=f.dtype, device=f.device).index_add_(0, of, f) / count
        off = f - self.means[of]
        covariance = off.T @ off / len(f)
        finite("covariance of x", covariance)
        values, vectors = torch.linalg.eigh(covariance)
        keep = values > values.amax() * 1e-10
        self.root = vectors[:, keep] * values[keep].rsqrt()  # Σ⁻¹ = root rootᵀ
        return self

    def score_samples(self, x: Float[Tensor, "n *i"]) -> Float[Tensor, "n"]:
        means, f = _given(self.means), self.look(x)[1].double()
        fits("f of x", f, means.shape[1])
        distance = torch.cdist(f @ self.root, means @ self.root, compute_mode="donot_use_mm_for_euclid_dist")
        return -distance.amin(1).square().float()


class GradNorm(Detector):
    """``‖f‖₁ ‖p − 1/C‖₁``: the norm of the gradient of KL(u ‖ p) by the last layer's weights; the site is its input, as "head:in".

    >>> model = nn.Sequential(nn.Linear(2, 2)).eval()
    >>> GradNorm(model, "0:in").score_samples(torch.zeros(1, 2))
    tensor([0.])
    """

    def __init__(self, model: nn.Module, site: str, *, batch: int = 256) -> None:
        super().__init__(model, site, batch=batch)

    def score_samples(self, x: Float[Tensor, "n *i"]) -> Float[Tensor, "n"]:
        logits, f = self.look(x)
        return f.abs().sum(1) * (logits.softmax(1) - 1 / logits.shape[1]).abs().sum(1)


def _unit(f: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays."""
    return torch.nn.functional.normalize(f, dim=1)


def _given(known: Tensor | None) -> Tensor:
    if known is None:
        raise Refused("fit: nothing is known yet; call fit first")
    return known
