"""What He, Liu & Xu 2024 claim of MgNO: with multigrid cycles for weights a net learns solution operators better than others do.

The data are a simulator's (`data.elliptic`): Darcy flow through two phases, and waves of one frequency in a random medium. The
latter follow the paper's set (de Hoop et al. 2022): the same law of the medium, the same sides, and on this coarser grid as many
points a wave (12.6 on 33² points at ω = 320, as on 101² at ω = 1000).

All nets have about 180,000 numbers and take the same steps on the same media; a step of FNO costs as long as one of MgNO, one of
the U-Net 1.3 times as long. Each has the best rate of four, found on other media: Darcy's, and on waves the same came out best for
MgNO and FNO. FNO and U-Net are periodic: they see the domain padded with zeros to 40 points an axis, as is usual; without the
padding FNO was worse.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from neuropil.data.elliptic import darcy, helmholtz, speeds, two_phases
from neuropil.lab import Less, Metric, Outcome, Ratio, Trial, claim
from neuropil.physics.fourier import FNO
from neuropil.physics.multigrid import MgNO
from neuropil.physics.norms import relative_h1, relative_l2
from neuropil.physics.unet import UNet
from neuropil.training.fit import cosine, fit, minibatches
from neuropil.training.trained import trained

POINTS, BASE = 33, 40  # points of an axis, ends held; and what periodic nets see
OMEGA = 320.0  # speeds are about 20
H1 = Metric("relative H¹ error on test media", better="lower")
L2 = Metric("relative L² error on test media", better="lower")
NAMES = {"mgno": "MgNO", "fno": "FNO", "unet": "U-Net"}
RATES = {"mgno": 4e-3, "fno": 8e-3, "unet": 2e-3}  # the best of 1, 2, 4, 8e-3 for each on other media, 300 steps


class Padded(nn.Module):
    """A periodic net on a domain that is not: zeros beyond the border, cut off in the end."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, u: Tensor) -> Tensor:
        n = u.shape[-1]
        return self.net(pad(u, (0, BASE - n) * 2))[..., :n, :n]


@functools.cache
def media(problem: str, seed: int, train: int, test: int) -> tuple[Tensor, Tensor]:
    """Inputs and solutions of `train` + `test` media, scaled to about unit size; for Darcy the inner points (the border is 0)."""
    generator = Trial(seed).generator(1)
    if problem == "darcy":
        a = two_phases(train + test, POINTS, generator)
        x, y = ((a - 7.5) / 4.5, darcy(a))
        x, y = x[..., 1:-1, 1:-1], y[..., 1:-1, 1:-1]
    else:
        c = speeds(train + test, POINTS, generator)
        x, y = (c - 20) / 0.1, helmholtz(c, OMEGA)
    return x, y / y[:train].std()


def make(kind: str, problem: str, width: int, **rest: Any) -> nn.Module:
    """The net of a name for a problem."""
    if kind == "mgno":
        if problem == "darcy":
            return MgNO(1, 1, width, layers=4, levels=5, grid="inner")
        return MgNO(1, 1, width, layers=4, levels=5, grid="ends", padding="reflect")
    if kind == "fno":
        return Padded(FNO(1, 1, width - 4, modes=(8, 8), periodic=False))
    return Padded(UNet(1, 1, width + 4, BASE, multiples=(1, 2, 2)))


def error(problem: str, found: Tensor, true: Tensor) -> Tensor:
    """Relative H¹ for Darcy, with the border's zeros; relative L² for waves."""
    if problem == "helmholtz":
        return relative_l2(found, true)
    return relative_h1(pad(found, (1,) * 4), pad(true, (1,) * 4), 1 / (POINTS - 1), periodic=False)


def train(model: nn.Module, keep: Any, kind: str, problem: str, width: int, sizes: list[int], steps: int, seed: int) -> list[float]:
    """`steps` of Adam (one cycle, decay 1e-4, gradients clipped at 1) on the mean error of 8 media each; the losses."""
    x, y = (v[: sizes[0]] for v in media(problem, seed, *sizes))
    return fit(
        model,
        lambda net, batch: error(problem, net(batch[0]), batch[1]).mean(),
        minibatches((x, y), 8, seed),
        steps=steps,
        lr=RATES[kind],
        optimizer=functools.partial(torch.optim.AdamW, weight_decay=1e-4),
        schedule=cosine(0.3),
        clip=1.0,
        report=lambda what, fraction: None,
    ).losses


def measured(trial: Trial, problem: str, kind: str) -> dict[str, Any]:
    """Errors of a trained net on training and test media, and its forecast for one of the latter."""
    n, test, width, steps = trial.pick(smoke=(8, 8, 6, 2), quick=(64, 32, 16, 100), full=(400, 100, 16, 700))
    settings = {"kind": kind, "problem": problem, "width": width, "sizes": [n, test], "steps": steps, "seed": trial.seed}
    found = trained("mgno", make, train, seed=trial.seed, settings=settings, code=(MgNO, FNO, UNet, darcy))
    x, y = media(problem, trial.seed, n, test)
    with torch.no_grad():
        guess = torch.cat([found.model(part) for part in x.split(50)])
    errors, plain = error(problem, guess, y), relative_l2(guess, y)
    size = sum(w.numel() for w in found.model.parameters())
    means = {"train": float(errors[:n].mean()), "test": float(errors[n:].mean()), "test L²": float(plain[n:].mean())}
    return means | {"numbers": size, "seconds": round(found.seconds, 1), "guess": guess[n, 0], "true": y[n, 0], "medium": x[n, 0]}


def compared(trial: Trial, problem: str, baseline: str, metric: str = "test") -> Outcome:
    """MgNO against another net, with a picture of one test medium."""
    nets = {kind: measured(trial, problem, kind) for kind in trial.track(("mgno", baseline), "nets")}
    trial.figure("media", lambda: pictures(nets))
    shown = ("train", "test", "test L²", "numbers", "seconds")
    notes = {f"{NAMES[kind]}, {word}": net[word] for kind, net in nets.items() for word in shown}
    gap = {kind: net["test"] - net["train"] for kind, net in nets.items()}
    values = gap if metric == "gap" else {kind: net[metric] for kind, net in nets.items()}
    return Outcome(values["mgno"], values[baseline], notes)


def pictures(nets: dict[str, dict[str, Any]]) -> object:
    """The medium, the solution, and what each net is off by, all on one scale."""
    import matplotlib.pyplot as plt

    first = next(iter(nets.values()))
    figure, axes = plt.subplots(1, 2 + len(nets), figsize=(3.1 * (2 + len(nets)), 3.1), layout="constrained")
    axes[0].imshow(first["medium"], cmap="gray")
    axes[0].set_title("test medium")
    axes[1].imshow(first["true"], cmap="viridis")
    axes[1].set_title("solution")
    off = {NAMES[kind]: net["guess"] - net["true"] for kind, net in nets.items()}
    most = max(float(e.abs().max()) for e in off.values())
    for ax, (name, e) in zip(axes[2:], off.items(), strict=True):
        drawn = ax.imshow(e, cmap="RdBu_r", vmin=-most, vmax=most)
        ax.set_title(f"{name} is off by {float(e.norm() / first['true'].norm()):.1%}")
    figure.colorbar(drawn, ax=list(axes[2:]), shrink=0.8)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    return figure


@claim(
    "mgno",
    metric=H1,
    expect=Ratio(at_most=1.0),
    method="MgNO, 4 layers of 16 channels, 5 levels",
    baseline="FNO, 4 layers of 12 channels, 8 modes",
    paper="best L² and H¹ errors on rough Darcy media with few parameters",
)
def cycles_beat_fourier_layers_on_rough_media(trial: Trial) -> Outcome:
    """Pressure in media of two phases: multigrid cycles err no more in values and slopes than Fourier layers."""
    return compared(trial, "darcy", "fno")


@claim(
    "mgno",
    metric=H1,
    expect=Ratio(at_most=1.0),
    method="MgNO, 4 layers of 16 channels, 5 levels",
    baseline="U-Net, 20 to 40 channels, 3 levels",
    paper="best L² and H¹ errors on rough Darcy media with few parameters",
)
def cycles_beat_a_unet_on_rough_media(trial: Trial) -> Outcome:
    """Pressure in media of two phases: multigrid cycles err no more than a U-Net of as many numbers."""
    return compared(trial, "darcy", "unet")


@claim(
    "mgno",
    metric=Metric("test error − training error (H¹)", better="lower"),
    expect=Less(by=0.0),
    method="MgNO, 4 layers of 16 channels, 5 levels",
    baseline="FNO, 4 layers of 12 channels, 8 modes",
    paper="(the card: a smaller gap between training and test)",
)
def cycles_generalise_closer_to_what_they_learned(trial: Trial) -> Outcome:
    """From training media to new ones the error grows less with multigrid cycles than with Fourier layers."""
    return compared(trial, "darcy", "fno", "gap")


@claim(
    "mgno",
    metric=L2,
    expect=Ratio(at_most=1.0),
    method="MgNO, 4 layers of 16 channels, 5 levels, reflecting",
    baseline="FNO, 4 layers of 12 channels, 8 modes",
    paper="best L² errors on Helmholtz",
)
def cycles_beat_fourier_layers_on_waves(trial: Trial) -> Outcome:
    """Standing waves in a random medium: multigrid cycles err no more than Fourier layers of as many numbers."""
    return compared(trial, "helmholtz", "fno")
