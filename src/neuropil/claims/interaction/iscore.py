"""What Lo & Yin 2021 claim of screening by influence: it finds groups that no single variable betrays, for a tiny net to read."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from neuropil import data
from neuropil.errors import optional
from neuropil.interaction.influence import digitise, fit_cuts, influence, null_mean
from neuropil.interaction.score_screen import ScoreScreen, pooled_activations
from neuropil.lab import Close, Metric, More, Outcome, Trial, claim
from neuropil.nn.mlp import MLP
from neuropil.training.fit import fit, minibatches

AUC = Metric("test AUC", better="higher")
RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # the grid of every net here; as the steps are fixed, also how far a net is trained
MODULES = ({0, 1}, {1, 2, 3})  # of the planted mixture
DIGITS = (4, 9)


@dataclass(frozen=True)
class Part:
    """Rows (or images) and their labels 0.0 or 1.0."""

    x: Tensor
    y: Tensor


Split = tuple[Part, Part, Part]  # training, validation, test


def changed(parts: Split, change: Callable[[Tensor], Tensor]) -> Split:
    """The same labels, other features."""
    training, validation, test = (Part(change(part.x), part.y) for part in parts)
    return training, validation, test


def auc(score: Tensor, y: Tensor) -> float:
    """Area under the ROC curve."""
    return float(optional("sklearn.metrics", "memory").roc_auc_score(y.numpy(), score.detach().numpy()))


@torch.no_grad()
def evaluate(net: nn.Module, part: Part) -> dict[str, float]:
    """Loss, AUC and accuracy."""
    logits = net(part.x).flatten()
    loss = float(binary_cross_entropy_with_logits(logits, part.y))
    right = (logits > 0) == (part.y > 0.5)
    return {"loss": loss, "auc": auc(logits, part.y), "accuracy": float(right.float().mean())}


def train(make: Callable[[], nn.Module], parts: Split, steps: int, rates: Sequence[float], size: int, seed: int) -> nn.Module:
    """The net of the learning rate with the least validation loss; `size` rows a step."""
    training, validation, _ = parts
    batches = minibatches([training.x, training.y], min(size, len(training.y)), seed)
    nets = []
    for rate in rates:
        torch.manual_seed(seed)
        net = make()
        loss = lambda f, b: binary_cross_entropy_with_logits(f(b[0]).flatten(), b[1])  # noqa: E731
        fit(net, loss, batches, steps=steps, lr=rate, report=lambda w, f: None)
        nets.append(net.eval())
    return min(nets, key=lambda net: evaluate(net, validation)["loss"])


def read_out(parts: Split, steps: int, seed: int, hidden: int = 16) -> dict[str, float]:
    """Loss, AUC and accuracy on test rows of a dense net of one hidden layer; "validation": its loss there."""
    mean, spread = parts[0].x.mean(0), parts[0].x.std(0).clamp(min=1e-6)
    parts = changed(parts, lambda x: (x - mean) / spread)
    net = train(lambda: MLP([parts[0].x.shape[1], hidden, 1], activation="relu"), parts, steps, RATES, 256, seed)
    return evaluate(net, parts[2]) | {"validation": evaluate(net, parts[1])["loss"]}


def selections(part: Part, discrete: bool, seed: int) -> dict[str, Tensor]:
    """The variables of training rows, best first, by the four usual rankings."""
    x, y = part.x.numpy(), part.y.numpy()
    information = optional("sklearn.feature_selection", "memory").mutual_info_classif
    forest = optional("sklearn.ensemble", "memory").RandomForestClassifier(random_state=seed).fit(x, y)
    lasso = optional("sklearn.linear_model", "memory").Lasso(alpha=0.02).fit((x - x.mean(0)) / (x.std(0) + 1e-6), y)
    r = part.y - part.y.mean()
    importance = {
        "correlation": (r @ (part.x - part.x.mean(0))).abs() / (part.x.std(0) + 1e-6),
        "mutual information": torch.from_numpy(information(x, y, discrete_features=discrete, random_state=seed)),
        "lasso": torch.from_numpy(abs(lasso.coef_)),
        "random forest": torch.from_numpy(forest.feature_importances_),
    }
    return {kind: value.argsort(descending=True) for kind, value in importance.items()}


def planted(n: int, g: torch.Generator) -> Part:
    """30 fair bits; the label is the parity of bits 0 and 1, or of bits 1, 2 and 3, each with chance 1/2 (a simulator)."""
    x = torch.randint(2, (n, 30), generator=g)
    y = torch.where(torch.rand(n, generator=g) < 0.5, x[:, :2].sum(1) % 2, x[:, 1:4].sum(1) % 2)
    return Part(x.float(), y.float())


def digit_pair(n: tuple[int, int, int], g: torch.Generator) -> Split:
    """Fours and nines of MNIST, drawn without repetition: images (n, 28, 28), label 1 for nine."""
    images = data.digits("mnist")
    rows = torch.isin(images.labels, torch.tensor(DIGITS)).nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=g)]
    x, y = images.pixels[rows], (images.labels[rows] == DIGITS[1]).float()
    first, second, end = n[0], n[0] + n[1], sum(n)
    return Part(x[:first], y[:first]), Part(x[first:second], y[first:second]), Part(x[second:end], y[second:end])


def has_module(found: Iterable[Iterable[int]]) -> bool:
    """Whether a true module is among these."""
    return any(set(group) in MODULES for group in found)


@claim(
    "iscore",
    metric=Metric("draws with a true module among the top 5", better="higher"),
    expect=More(than=0.9),
    method="ScoreScreen",
    baseline="best of four rankings of single variables",
    paper="the I-score of a group shows interactions without marginal effects",
)
def screening_finds_a_planted_module(trial: Trial) -> Outcome:
    """Among 30 bits and 200 rows, screening finds a module whose parity makes the label in 90 % of draws.

    Two-module mixture: y is the parity of bits {0, 1} or of {1, 2, 3}, each with chance 1/2; the other 26 bits are noise. A draw
    counts if one of the 5 groups kept is exactly a module. Rankings (correlation, mutual information, lasso, random-forest
    importance) count more kindly: if their top 5 variables contain a module. Only the forest is more than marginal (its trees split
    on bits together); it names a module in most draws, but its top 5 do not say which bits belong together.
    """
    draws = trial.pick(smoke=1, quick=10, full=40)
    hits: dict[str, list[bool]] = {}
    for draw in trial.track(range(draws), "draws"):
        part = planted(200, trial.generator(draw))
        screen = ScoreScreen(keep=5, order=3, seed=draw, shuffles=1).fit(part.x, part.y)
        groups, shuffled = screen.explanation.groups, screen.explanation.shuffled[0]
        hits.setdefault("screen", []).append(has_module(group.variables for group in groups))
        hits.setdefault("top is a module", []).append(has_module([groups[0].variables]))
        hits.setdefault("top above shuffled labels", []).append(groups[0].score > shuffled)
        for kind, order in selections(part, True, draw).items():
            top = set(order[:5].tolist())
            hits.setdefault(kind, []).append(any(module <= top for module in MODULES))
        if draw == 0:
            trial.figure("groups", functools.partial(planted_figure, screen, part))
    rate = {kind: sum(values) / draws for kind, values in hits.items()}
    best = max(rate[kind] for kind in ("correlation", "mutual information", "lasso", "random forest"))
    return Outcome(rate["screen"], best, {"rates": rate, "draws": draws})


def planted_figure(screen: ScoreScreen, part: Part) -> object:
    """I of the kept groups beside what is found on shuffled labels, and the label means of the best group's cells."""
    import matplotlib.pyplot as plt

    groups = screen.explanation.groups
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.2))
    names = ["{" + ", ".join(map(str, sorted(g.variables))) + "}" for g in groups]
    true = [set(g.variables) in MODULES for g in groups]
    left.barh(names, [g.score for g in groups], color=["C1" if t else "0.7" for t in true])
    left.axvline(max(screen.explanation.shuffled), color="C3", ls="--", label="top on shuffled labels")
    left.invert_yaxis()
    left.set(xlabel="influence score I", ylabel="bits of the group", title="Kept groups (a true module in orange)")
    left.legend(frameon=False, loc="lower right")
    best = groups[0]
    k = len(best.variables)
    cells = ["".join(str(cell >> i & 1) for i in range(k)) for cell in range(2**k)]
    right.bar(cells, best.means)
    right.axhline(float(part.y.mean()), color="0.4", ls="--", lw=1)
    right.set(xlabel=f"values of bits {best.variables}", ylabel="label mean", ylim=(0, 1), title="Cells of the best group")
    figure.tight_layout()
    return figure


@claim(
    "iscore",
    metric=Metric("test accuracy", better="higher"),
    expect=More(than=0.7),
    method="screened features (of up to 5)",
    baseline="5 bits by the best of four rankings",
)
def a_net_on_kept_features_predicts_the_mixture(trial: Trial) -> Outcome:
    """On the two-module mixture a small net on screened features is right in 70 % of new rows, where 75 % is the most possible.

    200 rows as above: 150 are screened and train, 50 choose the net's learning rate; 2,000 new rows test. Of the 5 groups kept, the
    net reads those whose I is above the top of three searches on shuffled labels (the best one at least). On all 5 ("all 5 groups"
    in the notes) it is right in about 60 %: chance groups out of hundreds fit the training labels too well. The baseline net gets 5
    raw bits, by the ranking (of four) that validates best. In the notes: all rankings, and a random forest on all 30 bits.
    """
    draws, steps = trial.pick(smoke=(1, 3), quick=(2, 100), full=(6, 100))
    found: dict[str, list[float]] = {}
    for draw in trial.track(range(draws), "draws"):
        g = trial.generator(draw)
        both, test = planted(200, g), planted(2_000, g)
        parts = Part(both.x[:150], both.y[:150]), Part(both.x[150:], both.y[150:]), test
        screen = ScoreScreen(keep=5, order=3, seed=draw).fit(parts[0].x, parts[0].y)
        above = max(1, screen.explanation.above_chance)
        scores = {"screen": read_out(changed(parts, lambda x, s=screen, k=above: s.transform(x)[:, :k]), steps, draw)}  # type: ignore[misc]
        every = read_out(changed(parts, screen.transform), steps, draw)
        found.setdefault("all 5 groups", []).append(every["accuracy"])
        for kind, order in selections(parts[0], True, draw).items():
            top = order[:5]
            scores[kind] = read_out(changed(parts, lambda x, top=top: x[:, top]), steps, draw)  # type: ignore[misc]
        best = min((kind for kind in scores if kind != "screen"), key=lambda kind: scores[kind]["validation"])
        scores["best ranking"] = scores[best]
        for kind, score in scores.items():
            found.setdefault(kind, []).append(score["accuracy"])
        forest = optional("sklearn.ensemble", "memory").RandomForestClassifier(random_state=draw)
        forest.fit(both.x.numpy(), both.y.numpy())
        found.setdefault("forest on all bits", []).append(float(forest.score(test.x.numpy(), test.y.numpy())))
    mean = {kind: sum(found[kind]) / draws for kind in ("screen", *(kind for kind in found if kind != "screen"))}
    trial.figure("accuracy", lambda: bars(mean, "test accuracy on the two-module mixture", 0.5, 0.75))
    return Outcome(mean["screen"], mean["best ranking"], {"accuracy": mean, "most possible": 0.75, "draws": draws})


def bars(values: dict[str, float], label: str, chance: float, most: float | None = None) -> object:
    """A bar for every method, from chance on."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 0.6 + 0.38 * len(values)))
    drawn = axes.barh(list(values), list(values.values()), color=["C1", *["C0"] * (len(values) - 1)])
    axes.bar_label(drawn, fmt="%.3f", padding=3)
    if min(values.values()) <= 0.9:
        axes.axvline(chance, color="0.4", lw=1)
    if most is not None:
        axes.axvline(most, color="C2", ls="--", label="most possible")
        axes.legend(frameon=False, loc="lower right")
    axes.invert_yaxis()
    low, high = min(values.values()), max(values.values())
    low = low - 0.2 * (1 - low) if low > 0.9 else min(chance, low) - 0.02  # AUCs near 1 are told apart
    axes.set(xlabel=label, xlim=(low, high + 0.15 * (high - low)))
    return figure


def convolutional(side: int = 28) -> nn.Sequential:
    """A small CNN: two strided layers of 8 and 16 channels, then a dense head of 64 hidden units (module 5 on)."""
    flat = 16 * (side // 4) ** 2
    body = [nn.Unflatten(1, (1, side)), nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(flat, 64), nn.ReLU(), nn.Linear(64, 1))


def weights(net: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def sizes(trial: Trial) -> tuple[int, int, int]:
    """Images for training, validation and test."""
    return trial.pick(smoke=(80, 40, 40), quick=(600, 150, 250), full=(600, 150, 250))


@claim(
    "iscore",
    metric=AUC,
    expect=More(by=-0.005),
    method="net on 32 screened features (545 weights)",
    baseline="the CNN's own head (50,305 weights)",
    paper="99.7 % AUC with under 20,000 weights, 98 % fewer than its peers",
)
def screened_features_replace_the_dense_head(trial: Trial) -> Outcome:
    """Four or nine: a net of 1 % of the weights on screened activations of a frozen CNN is at most 0.005 AUC below its dense head.

    600 MNIST images train, 150 choose learning rates, 250 test; a new split for each seed. The CNN is trained whole, then frozen;
    its 784 activations before the head are screened on the training images. The expectation allows 5 % of the head's weights.
    """
    parts = digit_pair(sizes(trial), trial.generator())
    steps, starts = trial.pick(smoke=(3, 50), quick=(150, 2_000), full=(300, 10_000))
    cnn = train(convolutional, parts, steps, trial.pick(smoke=RATES[1:2], quick=RATES[1:2], full=RATES[:3]), 64, trial.seed)
    assert isinstance(cnn, nn.Sequential)
    head = cnn[5:]
    activations = changed(parts, lambda x: pooled_activations(cnn, "4", x, pool="flat"))
    screen = ScoreScreen(keep=32, starts=starts, shuffles=1, seed=trial.seed).fit(activations[0].x, activations[0].y)
    small = read_out(changed(activations, screen.transform), trial.pick(smoke=3, quick=150, full=300), trial.seed)
    own = evaluate(cnn, parts[2])
    explanation = screen.explanation
    share = (32 * 16 + 16 + 16 + 1) / weights(head)
    trial.figure("saliency", lambda: saliency_figure(explanation.saliency().view(16, 7, 7).sum(0), parts[0], "activations used"))
    notes = {
        "share of the head's weights": share,
        "accuracy": {"screened": small["accuracy"], "head": own["accuracy"]},
        "top I": explanation.groups[0].score,
        "top I on shuffled labels": explanation.shuffled[0],
        "groups above it": explanation.above_chance,
    }
    return Outcome(small["auc"], own["auc"], notes)


def saliency_figure(map_: Tensor, part: Part, title: str) -> object:
    """The mean image of both classes and the saliency map."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.8))
    for label in (0, 1):
        axes[label].imshow(part.x[part.y == label].mean(0), cmap="gray")
        axes[label].set_title(f"mean {DIGITS[label]}")
    axes[2].imshow(map_, cmap="magma")
    axes[2].set_title(title)
    for cell in axes:
        cell.set(xticks=[], yticks=[])
    return figure


@claim(
    "iscore",
    metric=AUC,
    expect=More(by=0.0),
    method="16 screened features",
    baseline="as many pixels by the better of mutual information and random forest",
)
def screening_pixels_beats_rankings_on_digits(trial: Trial) -> Outcome:
    """Four or nine: a small net on 16 screened features tells them apart as well as one on as many single pixels as those use.

    The rival gets no 16 pixels but all the screen's groups use together (well over 16), grey as they are, by mutual information or
    random-forest importance, whichever validates better. Same split, net, steps and learning rates. In the notes: 16 pixels
    each, the screen's own pixels, and the top I on shuffled labels.
    """
    parts = changed(digit_pair(sizes(trial), trial.generator()), lambda x: x.flatten(1))
    steps, starts = trial.pick(smoke=(3, 50), quick=(150, 2_000), full=(300, 10_000))
    screen = ScoreScreen(keep=16, starts=starts, shuffles=1, seed=trial.seed).fit(parts[0].x, parts[0].y)
    used = torch.tensor(screen.variables)
    ranked = {k: o for k, o in selections(parts[0], False, trial.seed).items() if k in ("mutual information", "random forest")}
    scores = {"16 screened features": read_out(changed(parts, screen.transform), steps, trial.seed)}
    chosen = {f"{len(used)} pixels, {kind}": order[: len(used)] for kind, order in ranked.items()}
    chosen |= {f"16 pixels, {kind}": order[:16] for kind, order in ranked.items()} | {f"the screen's {len(used)} pixels": used}
    for name, pixels in chosen.items():
        scores[name] = read_out(changed(parts, lambda x, pixels=pixels: x[:, pixels]), steps, trial.seed)  # type: ignore[misc]
    rival = min(list(chosen)[:2], key=lambda name: scores[name]["validation"])
    found = {name: score["auc"] for name, score in scores.items()}
    images = Part(parts[0].x.view(-1, 28, 28), parts[0].y)
    trial.figure("saliency", lambda: saliency_figure(screen.explanation.saliency().view(28, 28), images, "pixels used"))
    trial.figure("auc", lambda: bars(found, "test AUC, four or nine", 0.5))
    top, shuffled = screen.explanation.groups[0].score, screen.explanation.shuffled[0]
    notes = {"AUC": found, "pixels used": len(used), "top I": top, "top I on shuffled labels": shuffled}
    return Outcome(found["16 screened features"], found[rival], notes | {"above it": screen.explanation.above_chance})


@claim(
    "iscore",
    metric=Metric("mean I over shuffled labels", better="higher"),
    expect=Close(within=0.02),
    method="measured",
    baseline="n/(n − 1) (1 − Σ p²)",
)
def shuffled_labels_have_the_exact_null_mean(trial: Trial) -> Outcome:
    """Over shuffles of the labels, the mean influence score of pixels of real digits is n/(n − 1) · (1 − Σ p_j²).

    60 groups of 1 to 6 pixels of the middle of 100 fours and nines; the mean over groups and shuffles is compared (the picture
    shows each).
    """
    [part, _, _] = digit_pair((100, 1, 1), trial.generator())
    g, shuffles = trial.generator(1), trial.pick(smoke=20, quick=500, full=2_000)
    x = part.x[:, 7:21, 7:21].flatten(1)
    codes = digitise(x, fit_cuts(x))
    groups = torch.rand(60, x.shape[1], generator=g).topk(6).indices
    groups = groups.where(torch.arange(6) < 1 + torch.arange(60)[:, None] % 6, -1)
    total = torch.zeros(60, dtype=torch.float64)
    for _ in trial.track(range(shuffles), "shuffles"):
        total += influence(codes, part.y[torch.randperm(100, generator=g)], groups)
    measured, exact = total / shuffles, null_mean(codes, groups)
    trial.figure("means", lambda: scatter(exact, measured, (groups >= 0).sum(1)))
    worst = float((measured - exact).abs().max())
    return Outcome(float(measured.mean()), float(exact.mean()), {"largest difference of a group": worst, "shuffles": shuffles})


def scatter(exact: Tensor, measured: Tensor, size: Tensor) -> object:
    """Each group's mean I over shuffles against the formula."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.6, 3.6))
    axes.axline((0.5, 0.5), slope=1, color="0.6", lw=1)
    dots = axes.scatter(exact, measured, c=size, cmap="viridis", s=22)
    figure.colorbar(dots, label="pixels in the group")
    axes.set(xlabel="n/(n − 1) · (1 − Σ p²)", ylabel="mean I over shuffled labels")
    return figure
