"""Interaction-based convolution: no learned filters; each window becomes the label mean of the cell its pixels fall in.

    S_w = argmax_{S ⊆ window w} I(S)      all 2^(w·w) − 1 subsets for small windows, else backward dropping
    out_w(x) = f_{S_w}(x)                 the training label mean of the cell of x's cut pixels (`Dagger`)

Layers stack: the map is cut again, and so on; a small dense net reads the last map. Every number in the net has a plain meaning.

Lo & Yin 2021, arXiv:2106.06911 (Algorithms 14:337). Differs: a side of W gives ⌊(W − s0 − w)/stride⌋ + 1 windows, those that fit.
The paper's form (eq. 18), ⌊(W − s0 − w + 1)/stride + 1⌋, gives the same 58 for 128 pixels, but can count one window that overruns
the image.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.errors import Refused, choose
from neuropil.interaction.influence import CUTS, Dagger, Labels, backward_dropping, best_subsets, digitise, fit_cuts
from neuropil.nn.checks import finite, numbers, some
from neuropil.nn.mlp import MLP


class InteractionConv(nn.Module):
    """Images (n, h, w) to maps of label means (n, h', w'), h' = ⌊(h − start − window)/stride⌋ + 1; `fit` before use.

    Args:
        shape: (h, w) of the images.
        window, stride, start: side of the window, step between windows, first row and column.
        cut: how a pixel is cut in two, "median" or "2-means" (see `influence.fit_cuts`).

    No parameters; buffers: the cuts and, for each of P = h' w' windows, its subset and 2^(window²) means and counts. `scores`
    (P,): I of each window's subset. O(P (n + 2^window²) window²) to fit, O(P n window²) to apply. `Refused` for sizes that do not
    fit or windows above 4 × 4.

    >>> x = torch.randint(2, (500, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    >>> layer = InteractionConv((4, 4)).fit(x, (x[:, 0, 2] != x[:, 1, 3]).float())
    >>> layer.scores.argmax(), layer.dagger.subsets[1].tolist(), layer(x).shape
    (tensor(1), [2, 7, -1, -1], torch.Size([500, 2, 2]))
    """

    cuts: Tensor
    scores: Tensor
    windows: Tensor

    def __init__(self, shape: tuple[int, int], window: int = 2, stride: int = 2, start: int = 0, cut: str = "median") -> None:
        super().__init__()
        if not 1 <= window <= 4 or stride < 1 or start < 0:
            raise Refused(f"window, stride, start: 1 … 4, at least 1 and at least 0, got {window}, {stride} and {start}")
        if min(shape) < start + window:
            raise Refused(f"shape: no window of {window} from {start} on fits into {shape[0]} × {shape[1]}")
        self.shape, self.cut = shape, choose("cut", cut, CUTS)
        pixels = torch.arange(shape[0] * shape[1]).view(shape)
        windows = pixels[start:, start:].unfold(0, window, stride).unfold(1, window, stride)
        self.out_shape = (windows.shape[0], windows.shape[1])
        self.register_buffer("windows", windows.reshape(-1, window**2), persistent=False)
        self.register_buffer("cuts", torch.full((pixels.numel(),), torch.inf))
        self.register_buffer("scores", torch.zeros(len(self.windows), dtype=torch.float64))
        self.dagger = Dagger(len(self.windows), window**2)

    def fit(self, images: Float[Tensor, "n h w"], y: Labels) -> "InteractionConv":
        """Cuts, subsets and means from the training images. `Refused` for another shape, or labels that are constant."""
        flat = self._flat(images)
        finite("images", images)
        if len(images) < 2:
            raise Refused(f"images: at least two are needed, got {len(images)}")
        self.cuts.copy_(fit_cuts(flat, self.cut))
        codes = digitise(flat, self.cuts)
        search = best_subsets if self.windows.shape[1] <= 4 else backward_dropping
        subsets, scores = search(codes, y, self.windows)
        self.scores.copy_(scores)
        self.dagger.fit(codes, y, subsets)
        return self

    def forward(self, images: Float[Tensor, "n h w"]) -> Float[Tensor, "n h1 w1"]:
        """The label mean of each window's cell."""
        numbers("images", images)
        some("images", images, 0)
        return self.dagger(digitise(self._flat(images), self.cuts)).unflatten(1, self.out_shape)

    def _flat(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.shape:
            raise Refused(f"images: must be of shape (n, {self.shape[0]}, {self.shape[1]}), got {tuple(images.shape)}")
        return images.flatten(1)


class InteractionNet(nn.Module):
    """Interaction layers, one after another, and a dense net of one hidden layer that gives one logit an image.

    Args:
        shape: (h, w) of the images.
        windows, stride, start: side of each layer's windows; step and first pixel as in `InteractionConv` (first layer only).
        hidden: width of the dense net, the only part with parameters: d hidden + 2 hidden + 1 for d windows in the last layer.

    `fit_layers` first, on training images; then train `head` on `features` of the same images, and choose it on others.

    >>> x = torch.randint(2, (300, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    >>> net = InteractionNet((8, 8)).fit_layers(x, (x[:, 0, 2] != x[:, 1, 3]).float())
    >>> net.features(x).shape, net(x).shape, sum(p.numel() for p in net.parameters())
    (torch.Size([300, 4]), torch.Size([300]), 97)
    """

    def __init__(
        self,
        shape: tuple[int, int],
        windows: Sequence[int] = (2, 2),
        stride: int = 2,
        start: int = 0,
        hidden: int = 16,
        cut: str = "median",
    ) -> None:
        super().__init__()
        if not windows or hidden < 1:
            raise Refused(f"windows, hidden: at least one layer and one unit are needed, got {list(windows)} and {hidden}")
        stack: list[InteractionConv] = []
        for number, window in enumerate(windows):
            layer = InteractionConv(shape, window, stride, 0 if number else start, cut)
            stack.append(layer)
            shape = layer.out_shape
        self.layers = nn.ModuleList(stack)
        self.head = MLP([shape[0] * shape[1], hidden, 1], activation="relu")

    @property
    def stack(self) -> list[InteractionConv]:
        """The layers, first one first."""
        return [layer for layer in self.layers if isinstance(layer, InteractionConv)]

    def fit_layers(self, images: Float[Tensor, "n h w"], y: Labels) -> "InteractionNet":
        """Fit each layer on what the one before gives for the training images."""
        for layer in self.stack:
            images = layer.fit(images, y)(images)
        return self

    def features(self, images: Float[Tensor, "n h w"]) -> Float[Tensor, "n d"]:
        """The last layer's map, flat."""
        for layer in self.layers:
            images = layer(images)
        return images.flatten(1)

    def forward(self, images: Float[Tensor, "n h w"]) -> Float[Tensor, "n"]:
        """Logits of label 1."""
        return self.head(self.features(images))[:, 0]

    def trace(self, number: int) -> list[list[int]]:
        """The pixels of the *input* that each feature of layer `number` reads, in order of windows."""
        reads: list[list[int]] = [[i] for i in range(len(self.stack[0].cuts))]
        for layer in self.stack[: number + 1]:
            subsets = layer.dagger.subsets.tolist()
            reads = [sorted({pixel for v in subset if v >= 0 for pixel in reads[v]}) for subset in subsets]
        return reads
