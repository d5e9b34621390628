"""What a survey of 400 activations must give: formulas that are true, rediscoveries found, and a ranking on real digits."""

import itertools
import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuropil import data
from neuropil.errors import optional
from neuropil.lab import Less, Metric, More, Outcome, Trial, claim
from neuropil.nn.activations import activation, entries, find, functional, gain, gallery
from neuropil.nn.activations.reference import evaluate
from neuropil.nn.activations.table import Entry

ELEMENTWISE = [e for e in entries().values() if e.kind == "elementwise"]
STRAIGHT_THROUGH = ("rsign",)


def worst_errors(entry: Entry, grid: Tensor, spots: Tensor) -> tuple[float, float, float]:
    """Largest error, relative above 1, of the value in float64 and float32 on `grid`, and of the slope in float64 at `spots`."""
    mp = optional("mpmath", "report").mp
    f, inside = functional(entry.name), (grid > entry.domain[0]) & (grid < entry.domain[1])
    expected, kept = [], []
    for x in grid[inside].tolist():
        try:
            expected.append(evaluate(entry, x))
            kept.append(x)
        except ZeroDivisionError:  # a hole of the formula that the code fills
            continue
    true, z = torch.tensor(expected, dtype=torch.float64), torch.tensor(kept, dtype=torch.float64)
    scale = 1 + true.abs()
    value, single = (float(((f(x).double() - true).abs() / scale).max()) for x in (z, z.float()))
    spots = spots[(spots > entry.domain[0]) & (spots < entry.domain[1])].requires_grad_()
    if entry.name in STRAIGHT_THROUGH or not len(spots):
        return value, single, 0.0
    found = torch.autograd.grad(f(spots).sum(), spots)[0]
    with mp.workdps(25):
        slopes = [float(mp.re(mp.diff(lambda x: evaluate(entry, x, mp), x))) for x in spots.tolist()]
    slope = torch.tensor(slopes, dtype=torch.float64)
    return value, single, float(((found - slope).abs() / (1 + slope.abs())).max())


@claim(
    "activations",
    metric=Metric("largest error", better="lower"),
    expect=Less(than=1e-10),
    method="float64",
    baseline="float32",
)
def every_formula_is_true(trial: Trial) -> Outcome:
    """Every activation that is a function of one number agrees with its formula's text to 1e-10, on 2,001 points in [-8, 8].

    The text is evaluated by Python's own floats, apart from torch's code; errors are relative above 1. The notes add the largest
    error of a slope, at 25 random points against mpmath's derivative of the text. A sign function with a straight-through
    gradient is tested in value only.
    """
    chosen = ELEMENTWISE[:: trial.pick(smoke=16, quick=1, full=1)]
    points, spots = trial.pick(smoke=(101, 3), quick=(2001, 5), full=(2001, 25))
    grid = torch.linspace(-8, 8, points, dtype=torch.float64)
    at = torch.rand(spots, generator=trial.generator(), dtype=torch.float64) * 16 - 8
    errors = {e.name: worst_errors(e, grid, at.clone()) for e in trial.track(chosen, "formulas")}
    trial.figure("all", lambda: gallery(limit=trial.pick(smoke=60, quick=None, full=None)))
    worst, slope = max(errors, key=lambda n: errors[n][0]), max(errors, key=lambda n: errors[n][2])
    notes = {
        "entries": len(entries()),
        "tested here": len(chosen),
        "aliases": sum(len(e.aliases) for e in entries().values()),
        "worst value": worst,
        "worst slope": {slope: errors[slope][2]},
    }
    single = max(e[1] for name, e in errors.items() if "jump" not in find(name).flags)  # rounding moves a jump
    return Outcome(errors[worst][0], single, notes)


KNOWN: tuple[tuple[str, dict[str, float], str, dict[str, float]], ...] = (
    ("dlu", {}, "signrelu", {}),
    ("fplus", {}, "polylu", {}),
    ("signrelu", {}, "polylu", {}),
    ("psgu", {"a": 1.0}, "tsrelu", {}),
    ("smu_1", {"a": 0.1, "m": 0.1**0.5}, "lreluplus", {"a": 0.1, "e": 0.1}),
    ("disrelu", {"a": 1.0}, "shifted_relu", {}),
)


def standardised(f: Tensor, weight: Tensor) -> Tensor:
    """f (… n) less its mean, over its deviation, times the root of the weight, so that a product of two is their correlation."""
    f = (f - (f * weight).sum(-1, keepdim=True)) * weight.sqrt()
    return f / f.norm(dim=-1, keepdim=True).clamp(min=1e-30)


def unlike(correlation: Tensor) -> Tensor:
    """The L2 distance after the best affine fit, in deviations of the fitted function: √(1 − ρ²); rounding leaves some 1e-8."""
    return (1 - correlation.square()).clamp(min=0).sqrt()


def families(distance: Tensor, below: float) -> list[list[int]]:
    """The groups that chains of small distances hold together, largest first."""
    left, found = set(range(len(distance))), []
    while left:
        group, edge = set(), {min(left)}
        while edge:
            group |= edge
            edge = {int(j) for i in edge for j in (distance[i] < below).nonzero()} - group
        left -= group
        found += [sorted(group)] if len(group) > 1 else []
    return sorted(found, key=len, reverse=True)


@claim(
    "activations",
    metric=Metric("distance after an affine fit", better="lower"),
    expect=Less(than=1e-6),
    method="farthest known pair",
    baseline="an entry's nearest neighbour, median",
    paper="the lack of a catalogue leads to unintentional rediscovery",
)
def rediscoveries_are_found(trial: Trial) -> Outcome:
    """Functions that were published twice are the same to 1e-6 on N(0, 1) inputs, after the best affine fit of one to the other.

    Known pairs: SignReLU = DLU = PolyLU = FPLUS, PSGU(1) = TSReLU, SMU-1 = LReLUPlus, DisReLU(1) = shifted ReLU. The same distance
    between all entries with their initial values finds more: the notes and the picture list these families. Exact integration
    on a grid, so that every seed gives the same.
    """
    n = trial.pick(smoke=501, quick=4001, full=4001)
    z = torch.linspace(-9, 9, n, dtype=torch.float64)
    weight = (-0.5 * z * z).exp()
    weight = weight / weight.sum()

    def curve(name: str, params: dict[str, float] | None = None) -> Tensor:
        return standardised(functional(name)(z, **(params or {})), weight)

    known = {f"{a} = {b}": float(unlike(curve(a, p) @ curve(b, q))) for a, p, b, q in KNOWN}
    whole = [e for e in ELEMENTWISE if math.isinf(e.domain[0]) and math.isinf(e.domain[1])]
    names = [e.name for e in whole[:: trial.pick(smoke=6, quick=1, full=1)]]
    curves = torch.stack([curve(name) for name in names])
    distance = unlike(curves @ curves.T)
    distance.fill_diagonal_(math.inf)
    groups = families(distance, 1e-6)

    def draw() -> object:
        import matplotlib.pyplot as plt

        shown, columns = groups[:24], 6
        rows = max(1, -(-len(shown) // columns))
        figure, axes = plt.subplots(rows, columns, figsize=(2.5 * columns, 2.2 * rows))
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, group in zip(axes.flat, shown, strict=False):
            for i in group:
                axis.plot(z, functional(names[i])(z), lw=1.2)
            words = [names[i] for i in group]
            title = "\n".join(", ".join(words[k : k + 3]) for k in range(0, min(len(words), 9), 3))
            axis.set_title(title + (f" … {len(words)} in all" if len(words) > 9 else ""), fontsize=6.5)
            axis.set(xlim=(-4, 4), ylim=(-4, 4))
        figure.tight_layout()
        return figure

    trial.figure("families", draw)
    notes = {
        "known pairs": known,
        "pairs below 1e-6": int((distance < 1e-6).sum()) // 2,
        "families": [[names[i] for i in group] for group in groups],
        "compared": len(names),
    }
    return Outcome(max(known.values()), statistics.median(distance.amin(1).tolist()), notes)


SWEEP = (
    "identity", "relu", "leaky_relu", "rrelu", "relu6", "elu", "selu", "celu", "softplus", "gelu", "silu", "mish", "swish",
    "prelu", "sigmoid", "tanh", "softsign", "arctan", "hard_tanh", "hard_swish", "step", "srs", "logish", "tanhexp", "serf",
    "lisht", "gcu", "sine", "gaussian", "exponential", "requ", "vrelu", "bent_identity", "symlog", "squareplus", "starrelu",
    "acon_c", "pelu", "abu", "safe_pau",
)  # fmt: skip


class Stack(nn.Module):
    """Networks of two hidden layers side by side, one for each of F activations; weights (F, fan in, fan out) times its gain."""

    def __init__(self, names: Sequence[str], inputs: int, hidden: int, classes: int, g: torch.Generator) -> None:
        super().__init__()
        sizes, gains = (inputs, hidden, hidden, classes), torch.tensor([gain(name) for name in names])
        draws = [torch.randn(1, n, m, generator=g) / n**0.5 for n, m in itertools.pairwise(sizes)]  # one draw for all
        scales = [torch.ones_like(gains), gains, gains]
        self.weights = nn.ParameterList([w * s[:, None, None] for w, s in zip(draws, scales, strict=True)])
        self.biases = nn.ParameterList([torch.zeros(len(names), 1, m) for m in sizes[1:]])
        self.layers = nn.ModuleList([nn.ModuleList([activation(name) for name in names]) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (F, batch, classes) of the rows x."""
        h = x.expand(self.weights[0].shape[0], *x.shape)
        for w, b, layer in zip(self.weights, self.biases, [*self.layers, None], strict=True):
            h = torch.baddbmm(b, h, w)
            if layer is not None:
                h = torch.stack([act(part) for act, part in zip(layer, h.unbind(0), strict=True)])
        return h


@claim(
    "activations",
    metric=Metric("test accuracy", better="higher"),
    expect=More(by=0.0),
    method="ReLU",
    baseline="identity",
    paper="no benchmark of its own",
)
def relu_beats_no_activation_on_digits(trial: Trial) -> Outcome:
    """On MNIST digits, a network with two hidden layers of ReLUs is above the same network without an activation.

    The survey gives no benchmark: this is the plan's check of sanity, and the picture ranks 40 representative functions. Digits at
    14 × 14, 3,200 train, 800 choose each function's own learning rate, 1,000 test. All networks share data, batches, the draw of
    their weights (times the function's gain) and 400 steps of Adam. Those whose numbers overflow count as they are.
    """
    names = SWEEP[: trial.pick(smoke=4, quick=14, full=None)]
    steps, rates = trial.pick(smoke=(3, (3e-3,)), quick=(200, (3e-3,)), full=(400, (1e-3, 3e-3, 1e-2)))
    known, unseen, g = data.digits("mnist", "train"), data.digits("mnist", "test"), trial.generator()
    rows, test = (F.avg_pool2d(images.pixels, 2).flatten(1) for images in (known, unseen))
    mean, deviation = rows.mean(), rows.std()
    rows, test = (rows - mean) / deviation, (test - mean) / deviation
    order = torch.randperm(len(rows), generator=g)
    choose, train = order[:800], order[800:]
    best: dict[str, tuple[float, float, float]] = {}
    for lr in trial.track(rates, "learning rates"):
        torch.manual_seed(trial.seed)
        nets = Stack(names, rows.shape[1], 64, 10, trial.generator(1))
        optimizer, batches = torch.optim.Adam(nets.parameters(), lr=lr), trial.generator(2)
        for _ in range(steps):
            batch = train[torch.randint(len(train), (64,), generator=batches)]
            logits = nets(rows[batch])
            labels = known.labels[batch].expand(len(names), -1)
            losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")  # a network's gradient is its own
            optimizer.zero_grad()
            (losses.sum() / len(batch)).backward()
            optimizer.step()
        nets.eval()
        with torch.no_grad():
            scores = [
                (nets(x).nan_to_num(-math.inf).argmax(-1) == y).float().mean(-1).tolist()
                for x, y in ((rows[choose], known.labels[choose]), (test, unseen.labels))
            ]
        for name, validation, final in zip(names, *scores, strict=True):
            best[name] = max(best.get(name, (0.0, 0.0, 0.0)), (validation, final, lr))
    ranked = sorted(names, key=lambda name: -best[name][1])

    def draw() -> object:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(6, 0.4 + 0.19 * len(ranked)))
        colors = ["C3" if name == "identity" else "C0" if name == "relu" else "0.7" for name in ranked]
        axes.barh(range(len(ranked)), [100 * best[name][1] for name in ranked], color=colors)
        for i, name in enumerate(ranked):
            axes.text(100 * best[name][1] + 0.1, i, f"{100 * best[name][1]:.1f}", va="center", fontsize=6.5)
        low = 100 * min(best[name][1] for name in names if best[name][1] > 0.5 or len(names) < 5)
        axes.set(yticks=range(len(ranked)), yticklabels=ranked, xlim=(max(0, low - 2), 100), xlabel="test accuracy, %")
        axes.tick_params(axis="y", labelsize=7)
        axes.invert_yaxis()
        axes.margins(y=0.01)
        return figure

    trial.figure("ranking", draw)
    table = {name: {"test": best[name][1], "validation": best[name][0], "learning rate": best[name][2]} for name in ranked}
    return Outcome(best["relu"][1], best["identity"][1], notes={"ranking": table})
