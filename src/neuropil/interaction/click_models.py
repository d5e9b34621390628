"""The models that two-stream MLPs are measured against, the same number of weights for all, and how clicks are learned.

With e_f = E[i_f] (F vectors of D numbers), e their concatenation and l = b + Σ_f w[i_f] one weight for each value:

    LogisticRegression      l
    FactorizationMachine    l + Σ_{f<g} ⟨e_f, e_g⟩                                       Rendle 2010, ICDM
    PlainMLP                MLP(e)
    DeepFM                  l + Σ_{f<g} ⟨e_f, e_g⟩ + MLP(e)                              Guo et al. 2017, arXiv:1703.04247
    DCNv2                   w·[x_L, h],  h = stream(e),  x_{l+1} = e ⊙ (U_l V_lᵀ x_l + b_l) + x_l,  x_0 = e
                                                                                         Wang et al. 2021, arXiv:2008.13535
    InnerProductNet         MLP([e, ⟨e_f, e_g⟩ for f < g])                               Qu et al. 2016, arXiv:1611.00144

All take rows of ids (b, F) and give logits (b,). `matched` finds the width at which a model has as many weights beside its
embeddings as another: two towers of width w hold less than one of width 2w. `fit_clicks` is the training of the FinalMLP paper:
binary cross-entropy, Adam, decay on embeddings alone, the rate cut by 10 where the AUC on validation rows stalls, an end at the
second stall.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from neuropil.errors import Refused
from neuropil.interaction.finalmlp import Widths, stream, xavier
from neuropil.nn.bilinear import pair_products, pair_sum
from neuropil.nn.checks import at_least
from neuropil.nn.field_embedding import FieldEmbedding
from neuropil.nn.modes import evaluating
from neuropil.numerics.detection import auroc
from neuropil.training.fit import fit, minibatches


def head(sizes: Widths) -> nn.Sequential:
    """A `stream` and one linear number on top: (b, in) to (b,)."""
    return nn.Sequential(*stream(sizes), nn.Linear(sizes[-1], 1).apply(xavier), nn.Flatten(-2))


class LogisticRegression(nn.Module):
    """``l = b + Σ_f w[i_f]``: no interactions. Σ V_f + 1 numbers, O(F) a row.

    >>> LogisticRegression([5, 3])(torch.tensor([[1, 2]])).shape
    torch.Size([1])
    """

    def __init__(self, sizes: Widths) -> None:
        super().__init__()
        self.weight = FieldEmbedding(sizes, 1)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, ids: Int[Tensor, "b f"]) -> Float[Tensor, "b"]:
        """The logit of each row."""
        return self.weight(ids).sum((-2, -1)) + self.bias


class FactorizationMachine(nn.Module):
    """``l + Σ_{f<g} ⟨e_f, e_g⟩``: every pair of values by an inner product. O(F D) a row.

    E starts with a spread of 0.1 as in libFM: products of small numbers have no gradient to grow by.

    >>> FactorizationMachine([5, 3], dim=4)(torch.tensor([[1, 2]])).shape
    torch.Size([1])
    """

    def __init__(self, sizes: Widths, dim: int = 16) -> None:
        super().__init__()
        self.first, self.embed = LogisticRegression(sizes), FieldEmbedding(sizes, dim, std=0.1)

    def forward(self, ids: Int[Tensor, "b f"]) -> Float[Tensor, "b"]:
        """The logit of each row."""
        return self.first(ids) + pair_sum(self.embed(ids))


class PlainMLP(nn.Module):
    """``MLP(e)``. O(F D w) a row.

    >>> PlainMLP([5, 3], dim=4, hidden=(8, 8))(torch.tensor([[1, 2]])).shape
    torch.Size([1])
    """

    def __init__(self, sizes: Widths, dim: int = 16, hidden: Widths = (64, 64)) -> None:
        super().__init__()
        self.embed, self.mlp = FieldEmbedding(sizes, dim), head([len(sizes) * dim, *hidden])

    def forward(self, ids: Int[Tensor, "b f"]) -> Float[Tensor, "b"]:
        """The logit of each row."""
        return self.mlp(self.embed(ids).flatten(-2))


class DeepFM(nn.Module):
    """A factorisation machine and an MLP of the same embeddings, added. O(F D w) a row.

    >>> DeepFM([5, 3], dim=4, hidden=(8, 8))(torch.tensor([[1, 2]])).shape
    torch.Size([1])
    """

    def __init__(self, sizes: Widths, dim: int = 16, hidden: Widths = (64, 64)) -> None:
        super().__init__()
        self.first, self.embed = LogisticRegression(sizes), FieldEmbedding(sizes, dim)
        self.mlp = head([len(sizes) * dim, *hidden])

    def forward(self, ids: Int[Tensor, "b f"]) -> Float[Tensor, "b"]:
        """The logit of each row."""
        e = self.embed(ids)
        return self.first(ids) + pair_sum(e) + self.mlp(e.flatten(-2))


class DCNv2(nn.Module):
    """Cross layers of rank r beside an MLP: each layer multiplies by e once more. O(F D (w + L r)) a row.

    >>> DCNv2([5, 3], dim=4, hidden=(8, 8), layers=2, rank=3)(torch.tensor([[1, 2]])).shape
    torch.Size([1])
    """

    def __init__(self, sizes: Widths, dim: int = 16, hidden: Widths = (64, 64), layers: int = 2, rank: int = 16) -> None:
        super().__init__()
        at_least(1, rank=rank)
        n = len(sizes) * dim
        self.embed, self.deep = FieldEmbedding(sizes, dim), stream([n, *hidden])
        self.cross = nn.ModuleList(
            nn.Sequential(nn.Linear(n, rank, bias=False), nn.Linear(rank, n)).apply(xavier) for _ in range(layers)
        )
        self.out = nn.Linear(n + hidden[-1], 1).apply(xavier)

    def forward(self, ids: Int[Tensor, "b f"]) -> Float[Tensor, "b"]:
        """The logit of each row."""
        x = e = self.embed(ids).flatten(-2)
        for layer in self.cross:
            x = e * layer(x) + x
        return self.out(torch.cat((x, self.deep(e)), dim=-1))[..., 0]


class InnerProductNet(nn.Module):
    """An MLP that is given the products: e and ⟨e_f, e_g⟩ of every pair. O((F D + F²) w) a row.

    >>> InnerProductNet([5, 3, 4], dim=4, hidden=(8, 8))(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1])
    """

    def __init__(self, sizes: Widths, dim: int = 16, hidden: Widths = (64, 64)) -> None:
        super().__init__()
        f = len(sizes)
        self.embed, self.mlp = FieldEmbedding(sizes, dim), head([f * dim + f * (f - 1) // 2, *hidden])

    def forward(self, ids: Int[Tensor, "b f"]) -> Float[Tensor, "b"]:
        """The logit of each row."""
        e = self.embed(ids)
        return self.mlp(torch.cat((e.flatten(-2), pair_products(e)), dim=-1))


def tables(model: nn.Module) -> list[nn.Parameter]:
    """The embeddings of a model: the parameters of its `FieldEmbedding`s."""
    return [module.table for module in model.modules() if isinstance(module, FieldEmbedding)]


def network_weights(model: nn.Module) -> int:
    """How many numbers a model trains beside its embeddings.

    >>> network_weights(PlainMLP([5, 3], dim=4, hidden=(8,)))
    81
    """
    return sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in tables(model))


def matched(make: Callable[[int], nn.Module], weights: int) -> nn.Module:
    """``make(w)`` for the largest width w with at most `weights` numbers beside the embeddings (found by halving: log₂ w models).

    `Refused` where width 1 already has more.

    >>> network_weights(matched(lambda w: PlainMLP([5, 3], dim=4, hidden=(w, w)), 1000))
    963
    """

    def fits(width: int) -> bool:
        with torch.device("meta"):
            return network_weights(make(width)) <= weights

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    if not low:
        raise Refused(f"weights: too few for a width of 1, got {weights}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return make(low)


@dataclass(frozen=True)
class Score:
    """AUC and mean cross-entropy (nats) of a model on some rows. `Refused` for negative numbers or such as are not finite."""

    auc: float
    loss: float

    def __post_init__(self) -> None:
        at_least(0, auc=self.auc, loss=self.loss)


@torch.no_grad()
def score(model: nn.Module, ids: Int[Tensor, "n f"], labels: Float[Tensor, " n"]) -> Score:
    """How well the logits of a model, in eval mode here, rank and tell the labels. `Refused` where there is but one kind of label.

    >>> score(LogisticRegression([3]), torch.tensor([[1], [2]]), torch.tensor([0.0, 1.0])).loss < 0.7
    True
    """
    if not bool((labels == 1).any() & (labels == 0).any()):
        raise Refused("labels: both 0 and 1 are needed")
    with evaluating(model):
        logits = torch.cat([model(rows) for rows in ids.split(2**14)])
    if not logits.isfinite().all():
        raise Refused("model: gives logits that are not finite")
    return Score(float(auroc(logits[labels == 1], logits[labels == 0])), float(binary_cross_entropy_with_logits(logits, labels)))


class _Stalled(Exception):
    """The AUC has not grown for the second time: training is over."""


def fit_clicks(
    model: nn.Module,
    training: tuple[Int[Tensor, "n f"], Float[Tensor, " n"]],
    validation: tuple[Int[Tensor, "m f"], Float[Tensor, " m"]],
    *,
    decay: float = 0.0,
    lr: float = 1e-3,
    size: int = 1024,
    epochs: int = 50,
    every: int | None = None,
    patience: int = 2,
    clip: float | None = 10.0,
    seed: int = 0,
) -> Score:
    """Train `model` in place; it ends with the weights of the best look at the validation rows, whose score is returned.

    - `decay` λ adds λ/2 |E|² over all embeddings to the loss (through Adam, as a gradient λ E); other weights have none.
    - The validation AUC is looked at after every `every` steps (default: an epoch, for large logs; small ones want more steps).
    - `lr` is cut by 10 after a look that is not the best so far; the `patience`-th such look in a row ends the training.
    - `size` rows a batch, at most `epochs` epochs; `clip`: largest norm of the gradient; `seed` orders the rows.

    Test rows have no part in it. `Refused` for bad sizes, rates or decays, or one kind of label among the validation rows.

    >>> ids = torch.randint(4, (512, 2), generator=torch.Generator().manual_seed(0))
    >>> rows = (ids, (ids[:, 0] == ids[:, 1]).float())
    >>> fit_clicks(FactorizationMachine([4, 4], dim=4), rows, rows, lr=0.03, size=64, epochs=60).auc > 0.95
    True
    """
    if not decay >= 0 or min(epochs, patience, 1 if every is None else every) < 1:
        raise Refused(f"decay, epochs, patience, every: ≥ 0 and ≥ 1 are needed, got {decay}, {epochs}, {patience}, {every}")
    batches = minibatches(training, min(size, len(training[1])), seed)
    steps = epochs * (len(training[1]) // min(size, len(training[1])))
    every = min(every or steps // epochs, steps)
    best, kept, factor, stalls, done = Score(0.0, 0.0), {}, 1.0, 0, 0

    def look(what: str, fraction: float) -> None:
        nonlocal best, kept, factor, stalls, done
        done += 1
        if done % every:
            return
        now = score(model, *validation)
        if now.auc > best.auc:
            best, stalls, kept = now, 0, {name: x.detach().clone() for name, x in model.state_dict().items()}
            return
        stalls, factor = stalls + 1, factor / 10
        if stalls >= patience:
            raise _Stalled

    def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        embeddings = {id(p) for p in tables(model)}
        groups: Sequence[list[nn.Parameter]] = ([], [])
        for p in parameters:
            groups[id(p) in embeddings].append(p)
        both = [{"params": group, "weight_decay": wd} for group, wd in zip(groups, (0.0, decay), strict=True) if group]
        return torch.optim.Adam(both, lr=lr, fused=True)

    with contextlib.suppress(_Stalled):
        fit(
            model,
            lambda f, b: binary_cross_entropy_with_logits(f(b[0]), b[1]),
            batches,
            steps=steps,
            lr=lr,
            optimizer=adam,
            schedule=lambda _: factor,
            clip=clip,
            device=str(training[1].device),
            report=look,
        )
    model.load_state_dict(kept)
    return best
