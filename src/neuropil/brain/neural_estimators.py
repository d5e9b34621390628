"""MVCNet and LangevinFlow in scikit-learn's manner: arrays in, `fit`, `predict`, `score`, arrays out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from neuropil.brain.covariances import euclidean_align
from neuropil.brain.estimator import Estimator, as_tensor, like
from neuropil.brain.langevin_flow import LangevinFlow
from neuropil.brain.mvcnet import MVCNet
from neuropil.brain.spikes import bits_per_spike
from neuropil.errors import Refused
from neuropil.training.fit import cosine, fit, minibatches


class MVCNetClassifier(Estimator):
    """Trials of EEG (n, channels, samples) to classes, by `mvcnet.MVCNet` trained with its views and contrasts.

    Args:
        rate: Hz.
        names: electrodes in the 10–20 system; without them there is no mirrored view.
        swap: the two classes that a mirror exchanges; None: labels stay.
        epochs, batch, lr: of Adam.
        weights, tau: of the contrastive losses.
        align: whiten the trials of each recording by their own mean covariance, at fit and at prediction, without labels. All
            trials of one call count as one recording, unless `groups` says which each is of.
        seed, device: where randomness comes from, and where to compute.

    After `fit`: `classes_`, `net_`. `score` is accuracy. `Refused`: one class only, NaN, another shape than in `fit`.

    >>> x, y = torch.randn(12, 3, 40), [0, 1] * 6
    >>> model = MVCNetClassifier(rate=20.0, epochs=1).fit(x, y)
    >>> model.predict(x).shape, model.predict_proba(x).shape
    ((12,), torch.Size([12, 2]))
    """

    _estimator_type = "classifier"
    classes_: Any
    net_: MVCNet

    def __init__(
        self,
        rate: float,
        names: Sequence[str] | None = None,
        swap: tuple[int, int] | None = (0, 1),
        epochs: int = 100,
        batch: int = 64,
        lr: float = 1e-3,
        weights: tuple[float, float] = (0.1, 0.1),
        tau: float = 0.2,
        align: bool = True,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.rate, self.names, self.swap = rate, names, swap
        self.epochs, self.batch, self.lr = epochs, batch, lr
        self.weights, self.tau, self.align, self.seed, self.device = weights, tau, align, seed, device

    def fit(self, X: Any, y: Any, groups: Any = None) -> "MVCNetClassifier":
        """Train on trials and their classes (any labels); `groups`: the recording of each trial."""
        import numpy

        x = self._ready(X, groups)
        labels = numpy.asarray(y.cpu() if isinstance(y, Tensor) else y)
        if labels.shape != (len(x),):
            raise Refused(f"y: one class for each of {len(x)} trials is needed, got shape {labels.shape}")
        self.classes_, coded = numpy.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise Refused(f"y: at least two classes are needed, got only {self.classes_[0]!r}")
        if self.epochs < 1 or min(self.batch, len(x)) < 2:
            raise Refused(f"epochs, batch: at least 1 and 2 are needed, got {self.epochs} and {self.batch}")
        options = {"names": self.names, "swap": self.swap, "weights": self.weights, "tau": self.tau}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.net_ = MVCNet(x.shape[1], x.shape[2], self.rate, len(self.classes_), **options)  # type: ignore[arg-type]
            size = min(self.batch, len(x))
            batches = minibatches([x, torch.from_numpy(coded).long()], size, self.seed)
            fit(
                self.net_,
                lambda net, b: net.loss(b[0].to(self.device), b[1].to(self.device)),
                batches,
                steps=self.epochs * (len(x) // size),
                lr=self.lr,
                optimizer=torch.optim.Adam,
                device=self.device,
                report=lambda what, done: None,
            )
        self.net_.eval()
        return self

    def predict_proba(self, X: Any, groups: Any = None) -> Any:
        """The probability of each class, in the order of `classes_`."""
        net = self.fitted("net_")
        x = self._ready(X, groups)
        with torch.no_grad():
            parts = [net(part.to(self.device)).softmax(-1).cpu() for part in x.split(256)]
        return like(torch.cat(parts), X)

    def predict(self, X: Any, groups: Any = None) -> Any:
        """The likeliest class of each trial."""
        found = self.predict_proba(X, groups)
        return self.classes_[(found if isinstance(found, Tensor) else torch.from_numpy(found)).argmax(-1).numpy()]

    def score(self, X: Any, y: Any, groups: Any = None) -> float:
        """Accuracy."""
        truth = y.cpu().numpy() if isinstance(y, Tensor) else y
        return float((self.predict(X, groups) == truth).mean())

    def _ready(self, X: Any, groups: Any) -> Tensor:
        """Trials as float32, each recording aligned and scaled to about 1."""
        x = as_tensor("X", X, (None, None, None))
        if not self.align:
            return x.float()
        groups = torch.zeros(len(x)) if groups is None else torch.as_tensor(groups)
        if groups.shape != (len(x),):
            raise Refused(f"groups: the recording of each of {len(x)} trials is needed, got shape {tuple(groups.shape)}")
        out = torch.empty_like(x)
        for group in groups.unique():
            rows = groups == group
            out[rows] = euclidean_align(x[rows])
        return (out * x.shape[2] ** 0.5).float()


class LangevinRates(Estimator):
    """Spike counts (trials, bins, neurons) to rates, by `langevin_flow.LangevinFlow`: smooth, held-out and forecast rates at once.

    Args:
        seen: how many neurons, the first ones, go in; the others are held out. None: all.
        ahead: how many bins at the end are forecast and not looked at.
        hidden, gamma, dropout: of the net.
        steps, batch, lr: of Adam, with a cosine; the KL weight rises over the first quarter of the steps.
        keep: of coordinated dropout.
        samples: draws of the latents that rates are the mean of.

    `fit` takes the counts of all neurons in all bins; `predict` those of the neurons seen in the bins observed (or all: the rest is
    cut off) and gives spikes a bin for all neurons and bins. `score` is bits per spike of held-out neurons and forecast bins, or of
    everything where nothing was held out.

    >>> counts = torch.poisson(torch.ones(8, 10, 5))
    >>> model = LangevinRates(seen=4, ahead=2, hidden=8, steps=3).fit(counts)
    >>> model.predict(counts[:, :8, :4]).shape
    torch.Size([8, 10, 5])
    """

    net_: LangevinFlow

    def __init__(
        self,
        seen: int | None = None,
        ahead: int = 0,
        hidden: int = 64,
        gamma: float = 0.55,
        dropout: float = 0.05,
        steps: int = 2000,
        batch: int = 64,
        lr: float = 3e-3,
        keep: float = 0.5,
        samples: int = 10,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.seen, self.ahead, self.hidden, self.gamma, self.dropout = seen, ahead, hidden, gamma, dropout
        self.steps, self.batch, self.lr, self.keep, self.samples = steps, batch, lr, keep, samples
        self.seed, self.device = seed, device

    def fit(self, X: Any, y: None = None) -> "LangevinRates":
        """Train on counts."""
        counts = self._counts(X)
        trials, bins, neurons = counts.shape
        seen = neurons if self.seen is None else self.seen
        if not 0 <= self.ahead < bins:
            raise Refused(f"ahead: must leave one of {bins} bins to observe, got {self.ahead}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.net_ = LangevinFlow(seen, neurons, self.ahead, self.hidden, self.gamma, dropout=self.dropout)
            batches, done = minibatches([counts], min(self.batch, trials), self.seed), [0]

            def loss(net: Any, batch: Any) -> Tensor:
                [x] = (part.to(self.device) for part in batch)
                ramp = min(1.0, 4 * done[0] / self.steps)
                done[0] += 1
                return net.loss(x[:, : bins - self.ahead, :seen], x, ramp, self.keep)

            options: dict[str, Any] = {"optimizer": torch.optim.Adam, "schedule": cosine(), "clip": 200.0, "device": self.device}
            fit(self.net_, loss, batches, steps=self.steps, lr=self.lr, report=lambda what, part: None, **options)
        self.net_.eval()
        return self

    def predict(self, X: Any) -> Any:
        """Spikes a bin, of all neurons in all bins."""
        net = self.fitted("net_")
        counts = self._counts(X)
        generator = torch.Generator().manual_seed(self.seed)
        parts = [net.rates(part.to(self.device), self.samples, generator).cpu() for part in counts[..., : net.seen].split(256)]
        return like(torch.cat(parts), X)

    def score(self, X: Any, y: None = None) -> float:  # type: ignore[override]
        """Bits per spike of what was not looked at (see the class), from counts of all neurons in all bins."""
        net = self.fitted("net_")
        counts = self._counts(X)
        observed = counts.shape[1] - net.ahead
        log = torch.as_tensor(self.predict(counts[:, :observed])).clamp(min=1e-6).log()
        if net.seen == net.neurons and not net.ahead:
            return bits_per_spike(log, counts)
        hidden = torch.ones(counts.shape[1:], dtype=torch.bool)
        hidden[:observed, : net.seen] = False
        # Each neuron is compared with its own mean over those of its bins that were hidden.
        mean = (counts * hidden).sum((0, 1)) / (len(counts) * hidden.sum(0)).clamp(min=1)
        place = hidden.expand(counts.shape)
        return bits_per_spike(*(v.expand(counts.shape)[place][:, None] for v in (log, counts, mean)))

    def _counts(self, X: Any) -> Tensor:
        counts = as_tensor("X", X, (None, None, None)).float()
        if not counts.numel() or bool((counts < 0).any()):
            raise Refused(f"X: counts (trials, bins, neurons), none negative, are needed, got shape {tuple(counts.shape)}")
        return counts
