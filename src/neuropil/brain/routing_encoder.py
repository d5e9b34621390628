"""Brain encoders that route: each region's learned query fetches from the tokens of a picture what its voxels are read out from.

    tokens     m_i = W x_i + b                          of a frozen network, i over a grid of h × w patches
    routing    t_r = norm(decoder(0, m; e_r, p))        e_r the region's query, p_i the code of a place: `QueryDecoderLayer`
    readout    y_v = Σ_{r ∋ v} ⟨w_v, t_r⟩ + b_v         each voxel from the token of its region

Adeli, Sun & Kriegeskorte 2025 (NeurIPS), arXiv:2505.17329. Routing by attention depends on what is in the picture. The baseline

    t_r = Σ_i softmax(a_r)_i x_i                        factorised (Klindt et al. 2017, arXiv:1711.02653), softmax as there

looks at the same places of every picture; `ridge.VoxelRidge` on all tokens side by side has a weight for each place and feature.
The authors compute every voxel from every token and mask afterwards (regions × voxels × d products); `RoiReadout` only does what
remains, with the same result. They train for a fixed number of epochs; `EncodingModel` keeps the best epoch on held-out pictures
and can choose among rates and weight decays, so that all models can be given the same care.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from neuropil.brain.estimator import Estimator, as_tensor, like
from neuropil.brain.scores import pearson, require_varying
from neuropil.errors import Refused, choose
from neuropil.nn.checks import at_least, fits, same_kind
from neuropil.nn.modes import evaluating
from neuropil.nn.positions import sine_pos_2d
from neuropil.nn.query_decoder import QueryDecoderLayer
from neuropil.nn.sites import record
from neuropil.training.fit import Report, cosine, fit, minibatches


class RoiReadout(nn.Module):
    """``y_v = Σ_{r ∋ v} ⟨w_v, t_r⟩ + b_v``: linear from a region's token to its own voxels; regions may share voxels.

    Args:
        d: width of the tokens.
        rois: True where a region (row) has a voxel.

    (d + 1) v numbers. O(b d regions · largest region) time, of which a region of n voxels needs b d n: one query a voxel is as
    cheap as one query for all. `Refused` for a region without voxels, a voxel without region, or a mask that is not boolean.

    >>> readout = RoiReadout(4, torch.tensor([[True, True, False], [False, False, True]]))
    >>> readout(torch.randn(5, 2, 4)).shape
    torch.Size([5, 3])
    """

    def __init__(self, d: int, rois: Bool[Tensor, "r v"]) -> None:
        super().__init__()
        at_least(1, d=d)
        if rois.dtype != torch.bool or rois.ndim != 2:
            raise Refused(f"rois: must be boolean, regions × voxels, got {rois.dtype} of shape {tuple(rois.shape)}")
        for axis, what in ((1, "region {} has no voxels"), (0, "voxel {} lies in no region")):
            if not bool((some := rois.any(axis)).all()):
                raise Refused(f"rois: {what.format(int(some.int().argmin()))}; leave it out")
        self.linear = nn.Linear(d, rois.shape[1])
        sizes = rois.sum(1)
        own = torch.arange(int(sizes.max()), device=rois.device) < sizes[:, None]  # r n: a region's voxels, then nothing
        self.voxel: Tensor
        self.own: Tensor
        self.register_buffer("own", own)
        self.register_buffer("voxel", torch.zeros_like(own, dtype=torch.long).masked_scatter(own, rois.nonzero()[:, 1]))

    def forward(self, tokens: Float[Tensor, "b r d"]) -> Float[Tensor, "b v"]:
        """Each voxel's answer from its region's token."""
        b, r, _ = tokens.shape
        if r != len(self.voxel):
            raise Refused(f"tokens: one for each of {len(self.voxel)} regions is needed, got {r}")
        fits("tokens", tokens, self.linear.in_features, self.linear.weight)
        weight, bias = self.linear.weight[self.voxel], self.linear.bias[self.voxel]  # r n d, r n
        answers = torch.baddbmm(bias[:, None], tokens.transpose(0, 1), weight.mT).masked_fill(~self.own[:, None], 0.0)
        out = answers.new_zeros(b, len(self.linear.bias))
        return out.index_add(1, self.voxel.flatten(), answers.transpose(0, 1).flatten(1))


class TransformerBrainEncoder(nn.Module):
    """Tokens of a picture to voxels, through one attention layer with a query for each region.

    Args:
        channels, height, width: of the tokens of the frozen network.
        rois: True where a region (row) has a voxel. One region a hemisphere, an area, or a voxel are all possible.
        d, heads, hidden: width of queries, keys and values, heads, units of the feed-forward net. Tokens of another width than d
            pass a linear layer first, as the authors do with those of a ResNet.

    O(b m d (d + regions)) time for m = height · width tokens. `Refused` for sizes that do not fit, and what `RoiReadout` refuses.

    >>> rois = torch.tensor([[True, True, False], [False, False, True]])
    >>> encoder = TransformerBrainEncoder(16, 7, 7, rois, d=32, heads=4, hidden=64)
    >>> encoder(torch.randn(5, 7, 7, 16)).shape, encoder.routing(torch.randn(5, 7, 7, 16)).shape
    (torch.Size([5, 3]), torch.Size([5, 2, 7, 7]))
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        rois: Bool[Tensor, "r v"],
        d: int = 768,
        heads: int = 16,
        hidden: int = 1024,
        dropout: float = 0.1,
        self_attention: bool = False,
    ) -> None:
        super().__init__()
        at_least(1, channels=channels, d=d)
        self.grid = (height, width, channels)
        self.project = nn.Identity() if channels == d else nn.Linear(channels, d)
        self.pos: Tensor
        self.register_buffer("pos", sine_pos_2d(height, width, d), persistent=False)
        self.query_pos = nn.Parameter(torch.randn(len(rois), d))
        self.decoder = QueryDecoderLayer(d, heads, hidden, dropout, self_attention)
        self.norm = nn.LayerNorm(d)
        self.readout = RoiReadout(d, rois)

    def route(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b r d"]:
        """The token that each region fetches."""
        if features.shape[1:] != self.grid:
            raise Refused(f"features: must be pictures × {self.grid}, got {tuple(features.shape)}")
        same_kind("features", features, self.query_pos)
        memory = self.project(features).flatten(1, 2)
        start = memory.new_zeros(len(memory), *self.query_pos.shape)
        return self.norm(self.decoder(start, memory, self.query_pos, self.pos))

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b v"]:
        """What each voxel answers."""
        return self.readout(self.route(features))

    @torch.no_grad()
    def routing(self, features: Float[Tensor, "b h w c"], by_value: bool = False) -> Float[Tensor, "b r h w"]:
        """Where each region looks: its attention, mean over heads; it sums to 1.

        With `by_value` each weight counts by the length ‖W_o v‖ of what it brings (Kobayashi et al. 2020, arXiv:2004.10102): a
        place that is looked at but brings nothing does not count.
        """
        look = self.decoder.cross_attention
        with record(self, "decoder.cross_attention.pattern", "decoder.cross_attention.v") as seen:
            self.route(features)
        weights, v = seen["decoder.cross_attention.pattern"][0], seen["decoder.cross_attention.v"][0]
        if by_value:
            brings = torch.einsum("bhmc,dhc->bhmd", v, look.out.weight.unflatten(1, (look.heads, -1)))
            weights = weights * brings.norm(dim=-1)[:, :, None]
        total = weights.sum(1)
        return (total / total.sum(-1, keepdim=True)).unflatten(-1, self.grid[:2])


class FactorisedEncoder(nn.Module):
    """The baseline: each region sees the same places of every picture, ``t_r = Σ_i softmax(a_r)_i x_i``, then `RoiReadout`.

    >>> encoder = FactorisedEncoder(16, 7, 7, torch.tensor([[True, True, False], [False, False, True]]))
    >>> encoder(torch.randn(5, 7, 7, 16)).shape
    torch.Size([5, 3])
    """

    def __init__(self, channels: int, height: int, width: int, rois: Bool[Tensor, "r v"]) -> None:
        super().__init__()
        at_least(1, channels=channels, height=height, width=width)
        self.grid = (height, width, channels)
        self.maps = nn.Parameter(torch.zeros(len(rois), height * width))
        self.readout = RoiReadout(channels, rois)

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b v"]:
        """What each voxel answers."""
        if features.shape[1:] != self.grid:
            raise Refused(f"features: must be pictures × {self.grid}, got {tuple(features.shape)}")
        same_kind("features", features, self.maps)
        return self.readout(self.maps.softmax(-1) @ features.flatten(1, 2))

    @torch.no_grad()
    def routing(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b r h w"]:
        """Where each region looks: the same for all pictures."""
        return self.maps.softmax(-1).unflatten(-1, self.grid[:2]).expand(len(features), -1, -1, -1)


def best_epoch(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    *,
    epochs: int,
    batch: int,
    lr: float,
    decay: float,
    clip: float,
    seed: int,
) -> list[float]:
    """Train by AdamW on the mean squared error; the model ends as it was after the epoch of least error on `held`. All such errors.

    >>> x = torch.randn(40, 3)
    >>> data = (x[:32], x[:32, :1]), (x[32:], x[32:, :1])
    >>> len(best_epoch(nn.Linear(3, 1), *data, epochs=3, batch=8, lr=0.01, decay=0.0, clip=1.0, seed=0))
    3
    """
    at_least(1, epochs=epochs, batch=batch)
    at_least(0, decay=decay)
    batches = minibatches(train, min(batch, len(train[0])), seed)
    each = max(1, len(train[0]) // batch)
    errors: list[float] = []
    best: dict[str, Tensor] = {}
    done = 0

    def look(what: str, fraction: float) -> None:
        nonlocal done, best
        done += 1
        if done % each == 0:
            errors.append(float(mse_loss(evaluated(model, held[0]), held[1])))
            if errors[-1] == min(errors):
                best = {name: value.detach().clone() for name, value in model.state_dict().items()}

    report: Report = look
    fit(
        model,
        lambda net, xy: mse_loss(net(xy[0]), xy[1]),
        batches,
        steps=epochs * each,
        lr=lr,
        optimizer=lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, weight_decay=decay),
        schedule=cosine(),
        clip=clip,
        device=str(train[0].device),
        report=report,
    )
    model.load_state_dict(best)
    return errors


@torch.no_grad()
def evaluated(model: nn.Module, features: Tensor, block: int = 256) -> Tensor:
    """What the model puts out in evaluation, `block` pictures at a time; the modes of its parts are as before afterwards.

    >>> evaluated(nn.Dropout(), torch.ones(3))
    tensor([1., 1., 1.])
    """
    with evaluating(model):
        return torch.cat([model(part) for part in features.split(block)])


class EncodingModel(Estimator):
    """An encoder that is fitted to recordings, in scikit-learn's manner.

    Args:
        rois: region by region a boolean mask of its voxels: a mapping from names (to the npy masks that NSD and Algonauts give) or
            an array, regions × voxels.
        routing: "attention" (`TransformerBrainEncoder`) or "factorised" (`FactorisedEncoder`).
        d, heads, hidden, dropout: of the attention layer.
        lrs, decays: learning rates and weight decays of AdamW; all pairs are tried, the least error on held-out pictures wins.
        epochs, batch, clip: epochs at most, pictures a step, the largest norm of a gradient. The rate falls by a cosine.
        held: the share of pictures, drawn by `seed`, on which epoch and pair are chosen.
        device: where to compute.

    Features (n, h, w, c) and voxels (n, v) are standardised by those of the training pictures. After `fit`: `net_`, `chosen_` (the
    learning rate and decay), `errors_` (of each pair, the held-out error by epoch). `Refused` in `fit`: what is not finite or does
    not fit, constant voxels, and what the encoder refuses.

    >>> _ = torch.manual_seed(0)
    >>> X = torch.randn(60, 3, 3, 8)
    >>> y = X[:, 1, 1, :4]
    >>> model = EncodingModel(torch.ones(1, 4, dtype=torch.bool), "factorised", lrs=(0.1,), epochs=20).fit(X, y)
    >>> model.predict(X).shape, model.voxel_scores(X, y).min() > 0.8
    (torch.Size([60, 4]), tensor(True))
    """

    def __init__(
        self,
        rois: Any,
        routing: str = "attention",
        d: int = 768,
        heads: int = 16,
        hidden: int = 1024,
        dropout: float = 0.1,
        lrs: Sequence[float] = (5e-4,),
        decays: Sequence[float] = (1e-4,),
        epochs: int = 15,
        batch: int = 16,
        clip: float = 0.1,
        held: float = 0.15,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.rois, self.routing = rois, routing
        self.d, self.heads, self.hidden, self.dropout = d, heads, hidden, dropout
        self.lrs, self.decays, self.epochs, self.batch, self.clip = lrs, decays, epochs, batch, clip
        self.held, self.seed, self.device = held, seed, device

    def fit(self, X: Any, y: Any) -> "EncodingModel":
        """Train on features (n, h, w, c) and voxels (n, v), arrays or tensors."""
        choose("routing", self.routing, ("attention", "factorised"))
        x = as_tensor("X", X, (None,) * 4).float()
        n, *grid = x.shape
        rois = region_masks(self.rois)
        target = as_tensor("y", y, (n, rois.shape[1])).float()
        require_varying(target, "y")
        if not 2 <= round(self.held * n) < n:
            raise Refused(f"held: at least 2 of {n} pictures must be held out, and some left, got {self.held}")
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
        held, train = order.tensor_split([round(self.held * n)])
        require_varying(target[train], "y of the pictures that train")
        self.scale_ = x[train].mean((0, 1, 2)), x[train].std((0, 1, 2)).clamp(min=1e-6)
        self.voxel_scale_ = target[train].mean(0), target[train].std(0)
        x, target = (x - self.scale_[0]) / self.scale_[1], (target - self.voxel_scale_[0]) / self.voxel_scale_[1]
        parts = [(x[rows].to(self.device), target[rows].to(self.device)) for rows in (train, held)]
        self.errors_: dict[tuple[float, float], list[float]] = {}
        for lr, decay in [(lr, decay) for lr in self.lrs for decay in self.decays]:
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                net = self._net(grid[2], grid[0], grid[1], rois).to(self.device)
                errors = best_epoch(
                    net, *parts, epochs=self.epochs, batch=self.batch, lr=lr, decay=decay, clip=self.clip, seed=self.seed
                )
            if all(min(errors) < min(others) for others in self.errors_.values()):
                self.net_, self.chosen_ = net.eval(), (lr, decay)
            self.errors_[lr, decay] = errors
        return self

    def _net(self, channels: int, height: int, width: int, rois: Tensor) -> nn.Module:
        if self.routing == "factorised":
            return FactorisedEncoder(channels, height, width, rois)
        return TransformerBrainEncoder(channels, height, width, rois, self.d, self.heads, self.hidden, self.dropout)

    def _features(self, X: Any) -> Tensor:
        self.fitted("net_")
        return ((as_tensor("X", X, (None,) * 4).float() - self.scale_[0]) / self.scale_[1]).to(self.device)

    def predict(self, X: Any) -> Any:
        """The voxels' answers, (n, v)."""
        predicted = evaluated(self.fitted("net_"), self._features(X))
        return like(predicted.cpu() * self.voxel_scale_[1] + self.voxel_scale_[0], X)

    def maps(self, X: Any, **options: Any) -> Any:
        """Where each region looks in each picture, (n, regions, h, w); options of the encoder's `routing`."""
        parts = [self.fitted("net_").routing(part, **options) for part in self._features(X).split(256)]
        return like(torch.cat(parts).cpu(), X)

    def voxel_scores(self, X: Any, y: Any) -> Any:
        """Pearson's r of each voxel; average repeats of y before, not after. (`score` is the mean explained variance.)"""
        predicted = as_tensor("prediction", self.predict(X), None)
        return like(pearson(predicted, as_tensor("y", y, tuple(predicted.shape)).to(predicted)), X)


def region_masks(rois: Any) -> Bool[Tensor, "r v"]:
    """Masks by name, or an array of them, as a boolean tensor, regions × voxels. `Refused` for a region without voxels.

    >>> region_masks({"V1": [1, 1, 0], "FFA": [0, 0, 1]})
    tensor([[ True,  True, False],
            [False, False,  True]])
    """
    named: Mapping[Any, Any] = rois if isinstance(rois, Mapping) else dict(enumerate(rois))
    masks = {name: as_tensor(f"rois[{name!r}]", mask, (None,)).bool() for name, mask in named.items()}
    if len({len(mask) for mask in masks.values()}) != 1:
        raise Refused(f"rois: masks over the same voxels are needed, got { ({name: len(mask) for name, mask in masks.items()}) }")
    for name, mask in masks.items():
        if not bool(mask.any()):
            raise Refused(f"rois: region {name!r} has no voxels; leave it out")
    return torch.stack(list(masks.values()))
