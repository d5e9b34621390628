"""What Wang et al. 2025 claim of MVCNet: views of a trial and two branches that must agree make motor imagery easier to decode.

Ground truth comes from a simulator (`data.motor_imagery`): six subjects, 72 trials each, 22 electrodes. LOSO trains on five of them
and tests on the sixth (three folds a seed); "chronological" trains on the first 80 % of a subject's trials and tests on the rest.
Each recording is aligned by its own trials, without labels. All nets take the same epochs (20) of the same batches at the paper's
rate; none is chosen by test accuracy. Real data: finger movements of the BCI Competition II (one subject, split as published), of
which only scores of prediction are claimed.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from neuropil import data as recorded
from neuropil.brain import covariances as cov
from neuropil.brain.eeg_nets import EEGNet
from neuropil.brain.mvcnet import MVCNet
from neuropil.data.motor_imagery import ELECTRODES, FEW, imagery
from neuropil.errors import optional
from neuropil.lab import Metric, More, Outcome, Trial, claim
from neuropil.training.trained import trained

RATE = 64.0
NETS: dict[str, dict[str, Any]] = {
    "MVCNet": {},
    "views, no contrast": {"weights": (0.0, 0.0)},
    "no loss across views": {"weights": (0.0, 0.1)},
    "no loss across models": {"weights": (0.1, 0.0)},
    "mirrored, labels kept": {"weights": (0.0, 0.0), "swap": None},
}
ACCURACY = Metric("accuracy on a subject never seen", better="higher", unit="%")
# BCI Competition II, set IV: the order of its 28 electrodes.
FINGERS = [
    "F3", "F1", "Fz", "F2", "F4", "FC5", "FC3", "FC1", "FCz", "FC2", "FC4", "FC6",
    "C5", "C3", "C1", "Cz", "C2", "C4", "C6", "CP5", "CP3", "CP1", "CPz", "CP2", "CP4", "CP6", "O1", "O2",
]  # fmt: skip


@functools.cache
def recordings(seed: int, subjects: int, trials: int, names: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Aligned trials of 2 s from half a second on, scaled to about 1; labels; subjects."""
    drawn = imagery(Trial(seed).generator(1), subjects=subjects, trials=trials, seconds=2.5, rate=RATE, names=names)
    x = drawn.trials.signals[..., round(RATE / 2) :]
    aligned = torch.cat([cov.euclidean_align(x[drawn.subject == s]) for s in range(subjects)])
    return aligned * x.shape[-1] ** 0.5, drawn.trials.labels, drawn.subject


def split(protocol: str, subject: int, subjects: Tensor) -> tuple[Tensor, Tensor]:
    """Which trials train and which test."""
    own = subjects == subject
    if protocol == "LOSO":
        return ~own, own
    place = own.cumsum(0) - 1
    early = place < round(0.8 * int(own.sum()))
    return own & early, own & ~early


def make(net: str, names: list[str], **rest: Any) -> nn.Module:
    """A net of 2 s of these electrodes by its name."""
    return MVCNet(len(names), round(2 * RATE), RATE, names=names, **NETS[net])


def train(
    model: nn.Module, keep: Any, net: str, names: list[str], size: list[int], protocol: str, subject: int, epochs: int, seed: int
) -> list[float]:
    """Epochs of Adam at 1e-3 in batches of 64; the losses."""
    assert isinstance(model, MVCNet)
    x, y, subjects = recordings(seed, size[0], size[1], tuple(names))
    rows, _ = split(protocol, subject, subjects)
    return optimised(model, x[rows], y[rows], epochs)


def optimised(model: MVCNet, x: Tensor, y: Tensor, epochs: int) -> list[float]:
    """Epochs of Adam at 1e-3 in batches of 64; a last batch of one is left out (batch norm)."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            if len(rows) < 2:
                continue
            loss = model.loss(x[rows], y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def sizes(trial: Trial) -> tuple[list[int], tuple[str, ...], int, int]:
    """Subjects and trials; electrodes; epochs; folds."""
    every = tuple(ELECTRODES)
    return trial.pick(smoke=([2, 10], FEW, 1, 1), quick=([2, 40], FEW, 10, 1), full=([6, 72], every, 20, 3))


def accuracies(trial: Trial, net: str, protocol: str = "LOSO") -> list[float]:
    """Of each fold, in per cent."""
    size, names, epochs, folds = sizes(trial)
    x, y, subjects = recordings(trial.seed, *size, names)
    found = []
    for subject in range(folds if protocol == "LOSO" else size[0]):
        settings = {"net": net, "names": list(names), "size": size, "protocol": protocol, "subject": subject, "epochs": epochs}
        model = trained(
            "mvcnet", make, train, seed=trial.seed, settings=settings | {"seed": trial.seed}, code=(MVCNet, imagery)
        ).model
        _, test = split(protocol, subject, subjects)
        with torch.no_grad():
            found.append(100 * float((model(x[test]).argmax(1) == y[test]).float().mean()))
    return found


def classical(trial: Trial, features: str) -> list[float]:
    """LDA on CSP of 7–30 Hz (6 filters), or logistic regression in the tangent space: accuracy of each LOSO fold in per cent."""
    size, names, _, folds = sizes(trial)
    x, y, subjects = recordings(trial.seed, *size, names)
    x = passed(x)
    found = []
    for subject in range(folds):
        train_, test = split("LOSO", subject, subjects)
        if features == "CSP":
            W = cov.csp(x[train_], y[train_], 6)
            columns, model = cov.csp_features(x, W), optional("sklearn.discriminant_analysis", "brain").LinearDiscriminantAnalysis()
        else:
            C = cov.covariances(x) / x.shape[-1]
            columns = cov.tangent_space(C, C[train_].mean(0))
            model = optional("sklearn.linear_model", "brain").LogisticRegression(C=0.1, max_iter=1000)
        model.fit(columns[train_].numpy(), y[train_].numpy())
        found.append(100 * float(model.score(columns[test].numpy(), y[test].numpy())))
    return found


def passed(x: Tensor, low: float = 7.0, high: float = 30.0, rate: float = RATE) -> Tensor:
    """What of x lies between two frequencies."""
    frequency = torch.fft.rfftfreq(x.shape[-1], 1 / rate)
    return torch.fft.irfft(torch.fft.rfft(x) * ((frequency >= low) & (frequency <= high)), n=x.shape[-1])


def bars(named: dict[str, list[float]], title: str) -> object:
    """One bar a method, one dot a fold."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(1.5 + 1.3 * len(named), 3.4), layout="constrained")
    for i, values in enumerate(named.values()):
        ax.bar(i, sum(values) / len(values), color=f"C{i}", alpha=0.5)
        ax.plot([i] * len(values), values, "k.", ms=6)
    ax.axhline(50, color="0.5", ls="--", lw=1)
    ax.set(title=title, ylabel="accuracy (%)", ylim=(40, 100))
    ax.set_xticks(range(len(named)), [name.replace(", ", ",\n") for name in named], fontsize=8)
    return figure


def compared(trial: Trial, method: dict[str, list[float]], baseline: str, title: str) -> Outcome:
    """Means over folds, all of them in the notes and in a picture."""
    trial.figure("accuracies", lambda: bars(method, title))
    means = {name: sum(values) / len(values) for name, values in method.items()}
    return Outcome(next(iter(means.values())), means[baseline], {f"{name} (%)": values for name, values in method.items()})


@claim("mvcnet", metric=ACCURACY, expect=More(by=1.0), method="MVCNet", baseline="the same net and views, no contrast")
def contrast_helps_across_subjects(trial: Trial) -> Outcome:
    """Trained on five subjects, tested on a sixth: both contrastive losses add a point to the same net on the same views."""
    found = {net: accuracies(trial, net) for net in trial.track(("MVCNet", "views, no contrast"), "nets")}
    return compared(trial, found, "views, no contrast", "simulated subjects that were left out")


@claim(
    "mvcnet",
    metric=Metric("accuracy on a subject's later trials", better="higher", unit="%"),
    expect=More(by=-0.5),
    method="MVCNet",
    baseline="the same net and views, no contrast",
)
def contrast_does_not_hurt_within_subjects(trial: Trial) -> Outcome:
    """Trained on a subject's first trials, tested on the last fifth: contrast costs no more than half a point."""
    found = {net: accuracies(trial, net, "chronological") for net in trial.track(("MVCNet", "views, no contrast"), "nets")}
    return compared(trial, found, "views, no contrast", "later trials of the same simulated subjects")


@claim("mvcnet", metric=ACCURACY, expect=More(by=0.0), method="MVCNet", baseline="the better of CSP + LDA and tangent space")
def better_than_spatial_filters(trial: Trial) -> Outcome:
    """Across subjects MVCNet is no worse than common spatial patterns and than logistic regression in the tangent space."""
    found = {
        "MVCNet": accuracies(trial, "MVCNet"),
        "CSP + LDA": classical(trial, "CSP"),
        "tangent space": classical(trial, "tangent"),
    }
    best = max(("CSP + LDA", "tangent space"), key=lambda name: sum(found[name]))
    return compared(trial, found, best, "simulated subjects that were left out")


@claim("mvcnet", metric=ACCURACY, expect=More(by=-0.5), method="MVCNet", baseline="the better of MVCNet without either loss")
def each_loss_helps_or_ties(trial: Trial) -> Outcome:
    """Leaving out the loss across views, or that across models, gains no more than half a point."""
    nets = ("MVCNet", "no loss across views", "no loss across models")
    found = {net: accuracies(trial, net) for net in trial.track(nets, "nets")}
    return compared(trial, found, max(nets[1:], key=lambda name: sum(found[name])), "simulated subjects that were left out")


@claim("mvcnet", metric=ACCURACY, expect=More(by=0.0), method="mirror, labels exchanged", baseline="mirror, labels kept")
def a_mirror_must_exchange_the_hands(trial: Trial) -> Outcome:
    """Swapping left and right electrodes without exchanging the labels left and right hurts."""
    nets = ("views, no contrast", "mirrored, labels kept")
    found = {net: accuracies(trial, net) for net in trial.track(nets, "nets")}
    return compared(trial, found, nets[1], "simulated subjects that were left out")


@claim(
    "mvcnet",
    metric=Metric("accuracy on 100 later trials", better="higher", unit="%"),
    expect=More(by=0.0),
    method="MVCNet",
    baseline="the best of logistic regression, CSP + LDA and EEGNet",
)
def real_fingers_are_told_apart(trial: Trial) -> Outcome:
    """Which hand will press a key, half a second before it does: no worse than the best of three usual ways."""
    parts = [recorded.trials("FingerMovements", part) for part in ("train", "test")]
    (x, y), (x_test, y_test) = ((part.signals, part.labels) for part in parts)
    if trial.budget == "smoke":
        x, y = x[:40], y[:40]
    mean, std = x.mean((0, 2), keepdim=True), x.std((0, 2), keepdim=True)
    x, x_test = (x - mean) / std, (x_test - mean) / std
    epochs, rate = trial.pick(smoke=1, quick=20, full=60), parts[0].rate
    found: dict[str, list[float]] = {}
    for name, weights in (("MVCNet", (0.1, 0.1)), ("EEGNet", (0.0, 0.0))):
        torch.manual_seed(trial.seed)
        cnn = EEGNet(28, 50, rate) if name == "EEGNet" else None
        net = MVCNet(28, 50, rate, names=FINGERS, cnn=cnn, weights=weights)
        if name == "EEGNet":
            net.views = lambda x, y, generator=None: [(x, y)]  # type: ignore[method-assign]
        optimised(net, x, y, epochs)
        with torch.no_grad():
            found[name] = [100 * float((net.eval()(x_test).argmax(1) == y_test).float().mean())]
    W = cov.csp(x, y, 6)
    lda = optional("sklearn.discriminant_analysis", "brain").LinearDiscriminantAnalysis()
    regression = optional("sklearn.linear_model", "brain").LogisticRegression(max_iter=500)
    logistic = optional("sklearn.model_selection", "brain").GridSearchCV(regression, {"C": [10.0**k for k in range(-5, 1)]})
    rows = {
        "CSP + LDA": (lda, cov.csp_features(x, W), cov.csp_features(x_test, W)),
        "logistic regression": (logistic, averaged(x), averaged(x_test)),
    }
    for name, (model, before, after) in rows.items():
        found[name] = [100 * float(model.fit(before.numpy(), y.numpy()).score(after.numpy(), y_test.numpy()))]
    order = torch.randperm(len(y), generator=trial.generator(3))
    shuffled = 100 * float(logistic.fit(averaged(x).numpy(), y[order].numpy()).score(averaged(x_test).numpy(), y_test.numpy()))
    best = max(("CSP + LDA", "logistic regression", "EEGNet"), key=lambda name: found[name][0])
    outcome = compared(trial, found, best, "BCI Competition II, set IV: which hand comes next")
    return Outcome(outcome.method, outcome.baseline, outcome.notes | {"baseline taken": best, "shuffled labels (%)": shuffled})


def averaged(x: Tensor) -> Tensor:
    """Means of 50 ms of each channel, flat."""
    return x.unflatten(-1, (-1, 5)).mean(-1).flatten(1)
