"""Who belongs to whom, told by who met: which layer on sets and graphs names the class of a pupil best?

Data: 7,818 groups in which 327 pupils of a French high school stood together (Mastrandrea et al. 2015; real). A pupil's
features are the groups that they were in, 1/√(number) each, seen through a random 64-column matrix, the same for all layers.
Five pupils of each of the nine classes train, five choose the learning rate out of 1e-3, 3e-3, 1e-2 and 3e-2, the others test;
while the best rate is the least or the largest of those tried, up to three others beyond it are tried. Seeds draw pupils,
features and weights. All nets are two rounds of a layer and a ReLU, dropout of a half before each, and a linear read-out, their
width such that the budget is met, and take the same steps of Adam, the rate falling by a cosine. Graph layers see the clique
graph; attention lets a pupil look at those with whom they shared a group. `--data` takes an .npz: `node` and `edge` (p)
membership pairs, `labels` (n) classes, −1 for unknown, and perhaps `x` (n, d).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from neuropil.errors import Refused
from neuropil.fields.field import parameters_of
from neuropil.interaction.dual_attention import DualAttention, SymbolicAttention
from neuropil.interaction.graph_layers import GAT, GCN
from neuropil.interaction.hypergraph import Hypergraph
from neuropil.interaction.hypergraph_data import school
from neuropil.interaction.hypergraph_features import spectral_positions
from neuropil.interaction.hypergraph_layers import (
    EDHNN,
    HGNN,
    HNHN,
    AllDeepSets,
    AllSetTransformer,
    HGNNPlus,
    HyperGCN,
    HypergraphAttention,
    UniGAT,
    UniGCN,
    UniGIN,
    UniSAGE,
    WHATsNet,
)
from neuropil.lab.expect import Metric
from neuropil.lab.race import Course, Role, Score, Shown
from neuropil.nn.attention import MultiHead
from neuropil.races.own import arrays, rows
from neuropil.races.training import closest, descend, to_budget, tuned

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
FEATURES, A_CLASS = 64, 5
Build = Callable[[int, int, int], nn.Module]


@dataclass(frozen=True)
class Society:
    """A hypergraph, features (n, d), labels (n), which nodes train, validate and test, and two coordinates to draw them at."""

    h: Hypergraph
    x: Tensor
    labels: Tensor
    train: Tensor
    validate: Tensor
    test: Tensor
    places: Tensor
    classes: int


def prepare(course: Course) -> Society:
    """The pupils, or the user's hypergraph."""
    g = course.trial.generator(1)
    if course.source is None:
        h, labels = school(course.trial.pick(smoke=4, quick=2, full=2))
        x = None
    else:
        h, labels, x = own(course.source)
    if x is None:
        sketch = torch.randn(h.edges, FEATURES, generator=g)
        x = h.links.back(sketch) / h.counts.clamp_min(1).sqrt()[:, None]
    order = torch.randperm(h.nodes, generator=g)
    order = order[labels[order] >= 0]
    classes = int(labels.max()) + 1
    turn = (labels[order][:, None] == torch.arange(classes)).cumsum(0)[torch.arange(len(order)), labels[order]] - 1
    few = min(A_CLASS, max(1, int(labels[order].bincount(minlength=classes).min()) // 3))
    parts = order[turn < few], order[(turn >= few) & (turn < 2 * few)], order[turn >= 2 * few]
    if not all(map(len, parts)):
        raise Refused(f"data: {course.source} has too few labelled nodes; each class needs at least 3")
    places = spectral_positions(h, 3)[:, 1:] if h.nodes > 3 else torch.zeros(h.nodes, 2)
    return Society(h, x, labels, *parts, places, classes)


def own(source: str) -> tuple[Hypergraph, Tensor, Tensor | None]:
    """The user's hypergraph, labels and, if there are some, standardised features."""
    named = arrays(source, {"node": 1, "edge": 1, "labels": 1}, {"x": 2})
    rows(source, named["node"], named["edge"], least=2)
    labels = named["labels"]
    if any(named[name].is_floating_point() for name in ("node", "edge", "labels")) or int(labels.max()) < 1:
        raise Refused(f"data: node, edge and labels of {source} must be integers, labels of at least two classes 0, 1, …")
    h = Hypergraph.from_pairs(named["node"], named["edge"], nodes=len(labels))
    if "x" not in named:
        return h, labels, None
    rows(source, named["x"], labels, least=2)
    x = named["x"].float()
    return h, labels, (x - x.mean(0)) / x.std(0).clamp_min(1e-6)


def measure(make: Build, seen: Society, course: Course) -> Score:
    """Test accuracy at the rate that is best on the validation pupils."""
    trial = course.trial

    def accuracy(guess: Tensor, part: Tensor) -> float:
        return float((guess[part] == seen.labels[part]).float().mean())

    def loss(net: nn.Module, step: int) -> Tensor:
        return cross_entropy(net(seen.x, seen.h)[seen.train], seen.labels[seen.train])

    found = tuned(
        lambda: make(seen.x.shape[1], seen.classes, course.parameters),
        descend(loss),
        lambda net: accuracy(net(seen.x, seen.h).argmax(-1), seen.validate),
        course,
        trial.pick(smoke=RATES[2:3], quick=RATES, full=RATES),
        trial.pick(smoke=2, quick=100, full=400),
        "higher",
    )
    with torch.no_grad():
        guess = found.net(seen.x, seen.h).argmax(-1)
    return Score(accuracy(guess, seen.test), parameters_of(found.net), found.notes, {"guess": guess})


class Net(nn.Module):
    """Two rounds of a layer and a ReLU, then a read-out of every node; dropout of a half before each."""

    def __init__(self, layer: Callable[[int, int], nn.Module], d: int, width: int, classes: int) -> None:
        super().__init__()
        self.rounds = nn.ModuleList([layer(d, width), layer(width, width)])
        self.read = nn.Linear(width, classes)

    def forward(self, x: Tensor, h: Hypergraph) -> Tensor:
        for layer in self.rounds:
            x = layer(dropout(x, 0.5, self.training), h).relu()
        return self.read(dropout(x, 0.5, self.training))


def sized(layer: Callable[[int, int], nn.Module], d: int, classes: int, parameters: int, multiple: int = 1) -> nn.Module:
    """The net whose width meets the budget; widths of attention are multiples of its heads."""
    return to_budget(lambda width: Net(layer, d, multiple * width, classes), parameters)


def hgnn(d: int, classes: int, parameters: int) -> nn.Module:
    """Smoothing over hyperedges (Feng et al. 2019)."""
    return sized(HGNN, d, classes, parameters)


def hgnn_plus(d: int, classes: int, parameters: int) -> nn.Module:
    """The mean over edges of the means of their members (Gao et al. 2022)."""
    return sized(HGNNPlus, d, classes, parameters)


def hypergcn(d: int, classes: int, parameters: int) -> nn.Module:
    """A graph step between the two most different members of each edge (Yadati et al. 2019)."""
    return sized(HyperGCN, d, classes, parameters)


def hnhn(d: int, classes: int, parameters: int) -> nn.Module:
    """Edges are neurons with weights of their own (Dong et al. 2020)."""
    return sized(HNHN, d, classes, parameters)


def hypergraph_attention(d: int, classes: int, parameters: int) -> nn.Module:
    """The incidence is learned (Bai et al. 2021); normalised twice (as peers do): high degrees shrink signals."""
    return sized(HypergraphAttention, d, classes, parameters)


def unigcn(d: int, classes: int, parameters: int) -> nn.Module:
    """Members' mean to edges, edges to nodes by the root of degrees (Huang & Yang 2021)."""
    return sized(UniGCN, d, classes, parameters)


def unigat(d: int, classes: int, parameters: int) -> nn.Module:
    """A node attends to its edges (Huang & Yang 2021)."""
    return sized(UniGAT, d, classes, parameters)


def unisage(d: int, classes: int, parameters: int) -> nn.Module:
    """A node adds up its edges and itself (Huang & Yang 2021)."""
    return sized(UniSAGE, d, classes, parameters)


def unigin(d: int, classes: int, parameters: int) -> nn.Module:
    """As UniSAGE, with a learned weight of itself (Huang & Yang 2021)."""
    return sized(lambda i, o: UniGIN(i, o, train_eps=True), d, classes, parameters)


def alldeepsets(d: int, classes: int, parameters: int) -> nn.Module:
    """Sums of perceptrons, to edges and back (Chien et al. 2022)."""
    return sized(lambda i, o: AllDeepSets(i, o, o), d, classes, parameters)


def allsettransformer(d: int, classes: int, parameters: int) -> nn.Module:
    """Attention with learned queries, to edges and back (Chien et al. 2022)."""
    return sized(lambda i, o: AllSetTransformer(i, o), d, classes, parameters)


def edhnn(d: int, classes: int, parameters: int) -> nn.Module:
    """What an edge says depends on who listens (Wang et al. 2023)."""
    return sized(lambda i, o: EDHNN(i, o, o), d, classes, parameters)


def whatsnet(d: int, classes: int, parameters: int) -> nn.Module:
    """A node is another in every edge (Choe et al. 2023), seen by 4 to 16 inducing points."""
    return closest(lambda k: sized(lambda i, o: WHATsNet(i, o, inducing=k), d, classes, parameters), (4, 8, 16), parameters)


def dual_attention(d: int, classes: int, parameters: int) -> nn.Module:
    """A sensory head and a relational one, 16 to 24 symbols, among pupils who met (Altabaa & Lafferty 2024)."""
    return closest(lambda k: sized(lambda i, o: DualAmong(i, o, k), d, classes, parameters, 2), (16, 20, 24), parameters)


def attention(d: int, classes: int, parameters: int) -> nn.Module:
    """Ordinary attention among pupils who met."""
    return sized(Among, d, classes, parameters)


def gcn(d: int, classes: int, parameters: int) -> nn.Module:
    """A graph convolution on the clique graph (Kipf & Welling 2017)."""
    return sized(GCN, d, classes, parameters)


def gat(d: int, classes: int, parameters: int) -> nn.Module:
    """Graph attention on the clique graph (Veličković et al. 2018)."""
    return sized(GAT, d, classes, parameters)


def perceptron(d: int, classes: int, parameters: int) -> nn.Module:
    """Each pupil by themselves: what listening to others is measured against."""
    return sized(Alone, d, classes, parameters)


class Alone(nn.Linear):
    """A linear layer of each node."""

    def forward(self, x: Tensor, h: Hypergraph) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Among(nn.Module):
    """Attention among nodes that share an edge, after a linear map; the node itself is added."""

    def __init__(self, d: int, out: int) -> None:
        super().__init__()
        self.map, self.attention = nn.Linear(d, out), self.heads(out)

    def heads(self, d: int) -> nn.Module:
        """Who looks."""
        return MultiHead(d, 1)

    def forward(self, x: Tensor, h: Hypergraph) -> Tensor:
        x = self.map(x)
        return x + self.attend(x[None], met(h))[0]

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """(1, n, d) to the same, each node looking where `mask` is True."""
        return self.attention(x, mask=mask)


class DualAmong(Among):
    """The same with one of the heads relational; so many symbols are looked up by features."""

    def __init__(self, d: int, out: int, symbols: int) -> None:
        super().__init__(d, out)
        self.symbols = SymbolicAttention(out, 2, symbols)

    def heads(self, d: int) -> nn.Module:
        return DualAttention(d, 1, 1)

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.attention(x, mask=mask, symbols=self.symbols(x))


@functools.lru_cache(maxsize=1)
def met(h: Hypergraph) -> Tensor:
    """Who shares an edge with whom, (1, n, n), everybody with themselves; kept, as each layer asks at each step."""
    mask = torch.eye(h.nodes, dtype=torch.bool)
    graph = h.clique()
    mask[graph.u, graph.v] = True
    return mask[None]


def draw(seen: Society, found: Sequence[tuple[str, float, Shown]]) -> object:
    """Pupils by two spectral positions, coloured by class; crosses where the net errs. The best, the middle and the last."""
    import matplotlib.pyplot as plt

    chosen = [found[i] for i in dict.fromkeys((0, len(found) // 2, len(found) - 1))]
    figure, axes = plt.subplots(1, 1 + len(chosen), figsize=(4 * (1 + len(chosen)), 3.6), squeeze=False, layout="constrained")
    bars, *cells = axes[0]
    bars.barh(range(len(found)), [value for _, value, _ in found], color="C0")
    bars.set(yticks=range(len(found)), yticklabels=[name for name, _, _ in found], xlabel="test accuracy", xlim=(0, 1))
    bars.invert_yaxis()
    for cell, (name, value, shown) in zip(cells, chosen, strict=True):
        wrong = seen.test[shown["guess"][seen.test] != seen.labels[seen.test]]
        known = seen.labels >= 0
        cell.scatter(*seen.places[known].T, c=seen.labels[known], cmap="tab10", s=12)
        cell.scatter(*seen.places[wrong].T, c="k", marker="x", s=22, lw=0.8)
        cell.set(xticks=[], yticks=[])
        cell.set_title(f"{name}: {value:.3f} (crosses: wrong)", fontsize=10)
    return figure


ROLE = Role(
    name="set-and-graph-layer",
    metric=Metric("test accuracy", better="higher"),
    parameters=10_000,
    wanted="an .npz: node (p), edge (p), labels (n), perhaps x (n, d)",
    prepare=prepare,
    measure=measure,
    draw=draw,
    baselines=(attention, gcn, gat, perceptron),
)
