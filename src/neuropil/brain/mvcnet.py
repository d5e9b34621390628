"""MVCNet: a convolutional net and a transformer see four views of each EEG trial and must agree.

(Wang et al. 2025, arXiv:2502.17482.)

f = CNN(x),  z = tanh(W ReLU(LN(W' flat(Transformer(x)))))        tokens of the transformer are channels, their features samples
views      raw, time (flip, or scale and noise), frequency (shift), space (reflected, with left and right labels exchanged)
L_v        mean over the three views of NT-Xent([f_raw; z_raw], [f_view; z_view])
L_m        NT-Xent(all f, all z)
loss       Σ_views cross entropy(head(f)) + λ_v L_v + λ_m L_m         τ = .2, λ = .1

Only CNN and head are needed to classify, as in the released scripts (the abstract speaks of fused representations: `fused=True`
gives the head [f, z]). Align each recording first: `covariances.euclidean_align`. Rhythms have no sign, so that a flip leaves their
meaning; slow potentials have one: ``time="noise"`` for them.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.brain import eeg_views
from neuropil.brain.eeg_nets import IFNet
from neuropil.errors import Refused, choose
from neuropil.nn.checks import at_least, same_kind
from neuropil.nn.contrastive import nt_xent


class ChannelTransformer(nn.Module):
    """z of a trial: one layer of attention among channels, flattened, and a projector to `features`. Numbers in ±1.

    O(channels samples² + (channels samples) features) time. `heads` must divide `samples`: the last samples are left out if not.
    `Refused` for sizes below 1, fewer samples than heads, and trials of other channels or fewer samples.

    >>> ChannelTransformer(8, samples=101, features=6)(torch.randn(2, 8, 101)).shape
    torch.Size([2, 6])
    """

    def __init__(self, channels: int, samples: int, features: int, heads: int = 2, layers: int = 1) -> None:
        super().__init__()
        at_least(1, channels=channels, features=features, heads=heads, layers=layers)
        at_least(heads, samples=samples)
        self.channels, self.samples = channels, samples - samples % heads
        layer = nn.TransformerEncoderLayer(self.samples, heads, max(2 * self.samples, 128), dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.project = nn.Sequential(
            nn.Linear(channels * self.samples, 4 * features),
            nn.LayerNorm(4 * features),
            nn.ReLU(),
            nn.Linear(4 * features, features),
            nn.Tanh(),
        )

    def forward(self, x: Float[Tensor, "n c t"]) -> Float[Tensor, "n f"]:
        """z."""
        if x.shape[1] != self.channels or x.shape[2] < self.samples:
            raise Refused(f"x: must be (n, {self.channels} channels, at least {self.samples} samples), got {tuple(x.shape)}")
        same_kind("x", x, self.encoder.layers[0].linear1.weight)  # type: ignore[union-attr, arg-type]
        return self.project(self.encoder(x[..., : self.samples]).flatten(1))


class MVCNet(nn.Module):
    """Logits of a trial (n, classes), and the loss of training.

    Args:
        channels, samples: of a trial; `rate` in Hz.
        classes: how many; `swap` are the two that a mirror exchanges (None: labels stay).
        names: electrodes in the 10–20 system, for the mirror; None: no reflected view.
        cnn: any module (n, c, t) → (n, features) with `features`; default: IFNet with kernel .25 s and pool .5 s.
        weights: (λ_v, λ_m); (0, 0) leaves classification of all views, without the transformer.
        fused: the head sees [f, z]; then the transformer is needed to classify, too.
        shift: Hz by which the view of frequency moves every trial, as in the released scripts.
        time: the view of time: "flip", or "noise" (scale and noise).

    >>> net = MVCNet(3, 100, rate=50.0, names=["C3", "Cz", "C4"])
    >>> x, y = torch.randn(4, 3, 100), torch.tensor([0, 1, 0, 1])
    >>> net(x).shape, net.loss(x, y).shape
    (torch.Size([4, 2]), torch.Size([]))
    """

    mirror: Tensor | None

    def __init__(
        self,
        channels: int,
        samples: int,
        rate: float,
        classes: int = 2,
        names: Sequence[str] | None = None,
        cnn: nn.Module | None = None,
        weights: tuple[float, float] = (0.1, 0.1),
        tau: float = 0.2,
        fused: bool = False,
        swap: tuple[int, int] | None = (0, 1),
        shift: float = 0.1,
        time: str = "flip",
    ) -> None:
        super().__init__()
        if names is not None and len(names) != channels:
            raise Refused(f"names: one for each of {channels} channels is needed, got {len(names)}")
        if not 0 < rate < math.inf:
            raise Refused(f"rate: must be above 0 Hz and finite, got {rate}")
        if min(weights) < 0:
            raise Refused(f"weights: must not be negative, got {weights}")
        self.rate, self.weights, self.tau, self.fused, self.swap, self.shift = rate, weights, tau, fused, swap, shift
        self.time = choose("time", time, ("flip", "noise"))
        kernel = max(3, round(rate / 4) // 2 * 2 + 1)
        self.cnn = IFNet(channels, samples, kernel=kernel, pool=max(1, round(rate / 2))) if cnn is None else cnn
        features = int(self.cnn.features)  # type: ignore[arg-type]
        self.transformer = ChannelTransformer(channels, samples, features) if fused or any(weights) else None
        self.head = nn.Linear(features * (1 + fused), classes)
        self.register_buffer("mirror", None if names is None else eeg_views.reflection(names))

    def forward(self, x: Float[Tensor, "n c t"]) -> Float[Tensor, "n k"]:
        """Logits."""
        return self.head(self._seen(self.cnn(x), x))

    def _seen(self, f: Tensor, x: Tensor) -> Tensor:
        return torch.cat([f, self.transformer(x)], -1) if self.fused and self.transformer is not None else f

    def views(
        self, x: Float[Tensor, "n c t"], y: Int[Tensor, " n"], generator: torch.Generator | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Raw, time, frequency and (with `names`) space, each with its labels."""
        moved = eeg_views.flip(x) if self.time == "flip" else eeg_views.scale_and_noise(x, generator=generator)
        shifted = eeg_views.frequency_shift(x, self.rate, shift=x.new_full((len(x),), self.shift))
        found = [(x, y), (moved, y), (shifted, y)]
        return found if self.mirror is None else [*found, eeg_views.reflect(x, y, self.mirror, self.swap)]

    def loss(self, x: Float[Tensor, "n c t"], y: Int[Tensor, " n"], generator: torch.Generator | None = None) -> Float[Tensor, ""]:
        """The objective on a batch of two trials or more (batch norm needs them)."""
        views = self.views(x, y, generator)
        f = [self.cnn(view) for view, _ in views]
        total = sum(
            (cross_entropy(self.head(self._seen(a, v)), label) for a, (v, label) in zip(f, views, strict=True)), x.new_zeros(())
        )
        if self.transformer is None or not any(self.weights):
            return total
        z = list(self.transformer(torch.cat([view for view, _ in views])).split(len(x)))
        both = [torch.cat(pair) for pair in zip(f, z, strict=True)]
        across_views = torch.stack([nt_xent(both[0], other, self.tau) for other in both[1:]]).mean()
        across_models = nt_xent(torch.cat(f), torch.cat(z), self.tau)
        return total + self.weights[0] * across_views + self.weights[1] * across_models
