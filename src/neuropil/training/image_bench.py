"""A bench that tells nets on small images apart: seed by seed all but the net is the same, so that differences have little noise.

    d_s = accuracy_s(net) − accuracy_s(other),      mean(d) ± t_{n−1} s_d / √n over the seeds s

Under one seed all nets get the same test images, the same batches in the same order, moved by the same shifts, the same random
numbers in training (dropout), and the same initial weights wherever name and shape of a parameter agree. A net against itself
differs by exactly 0.

    bench = image_bench({"CNN": lambda classes, shape: CNN(side=shape[0]), "ViT": …}, data.digits("sklearn"))
    bench.difference("ViT", "CNN")              mean, low, high of the paired differences
    print(bench)

The images are any `data.containers.Images`: `data.digits` (28 × 28 or 8 × 8), `data.faces`, `data.image_folder`, or the user's own.
"""

import copy
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from neuropil.data.containers import Images
from neuropil.errors import Refused, choose
from neuropil.files import sha256
from neuropil.numerics.statistics import t_interval
from neuropil.training.checkpoint import pack, randomness_kept
from neuropil.training.fit import cosine, fit, minibatches
from neuropil.training.trained import trained

Maker = Callable[[int, tuple[int, ...]], nn.Module]  # (classes, shape of an image) → a net of (b, *shape) to (b, classes)
MEASURES = ("accuracy", "loss")
CHUNK = 512  # images that are judged at once


@dataclass(frozen=True)
class Bench:
    """What every net reached on the test images of every seed: `accuracy`, and `loss`, the cross-entropy in nats.

    `weights`: how many numbers each net trains; `rates`: the learning rate of each net and seed.
    """

    seeds: tuple[int, ...]
    accuracy: Mapping[str, tuple[float, ...]]
    loss: Mapping[str, tuple[float, ...]]
    weights: Mapping[str, int]
    rates: Mapping[str, tuple[float, ...]]

    def differences(self, net: str, other: str, measure: str = "accuracy") -> tuple[float, ...]:
        """`net` minus `other`, seed by seed. `Refused` for a net that was not there, or another measure than accuracy and loss."""
        values = getattr(self, choose("measure", measure, MEASURES))
        ours, theirs = (values[choose("net", name, tuple(values))] for name in (net, other))
        return tuple(a - b for a, b in zip(ours, theirs, strict=True))

    def difference(self, net: str, other: str, measure: str = "accuracy", level: float | int = 0.95) -> tuple[float, float, float]:
        """Mean, lower and upper end of the t-interval of the paired differences; one seed has no interval, but its own value."""
        return t_interval(self.differences(net, other, measure), level)

    def __str__(self) -> str:
        """A line a net: weights, accuracy with its interval over seeds, and the paired difference to the first net."""
        first, *_ = self.accuracy
        lines = [f"{'net':24}{'weights':>9}  accuracy                  − {first}, paired"]
        for name, values in self.accuracy.items():
            line = f"{name:24}{self.weights[name]:9,}  {_told(t_interval(values))}"
            lines.append(line if name == first else f"{line}  {_told(self.difference(name, first), '+')}")
        return "\n".join(lines)


def _told(interval: tuple[float, float, float], sign: str = "") -> str:
    mean, low, high = (format(x, f"{sign}.4f") for x in interval)
    return f"{mean} ({low} … {high})"


@dataclass(frozen=True)
class Split:
    """Which images train, choose the learning rate, and test; those that train and choose come from the same images."""

    train: Int[Tensor, "n"]
    check: Int[Tensor, "k"]
    test: Int[Tensor, "m"]


def split(labels: Int[Tensor, "n"], seed: int, test: float = 0.2, check: float = 0.0) -> Split:
    """Of each class a random share `test`, and of the rest a share `check`, by seed. `Refused` where a class would lack some.

    >>> parts = split(torch.tensor([0, 0, 0, 1, 1, 1]), seed=0, test=0.4)
    >>> len(parts.train), len(parts.check), sorted((parts.test < 3).tolist())
    (4, 0, [False, True])
    """
    if not (0 < test < 1 and 0 <= check < 1):
        raise Refused(f"test, check: shares in (0, 1) and [0, 1) are needed, got {test} and {check}")
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        rows = rows[torch.from_numpy(numpy.random.default_rng([seed, label]).permutation(len(rows))).to(rows.device)]
        m = round(test * len(rows))
        k = round(check * (len(rows) - m))
        if not m or len(rows) - m - k < 1 or (check and not k):
            raise Refused(
                f"labels: class {label} has {len(rows)} images, too few for shares of {test} to test and {check} to check"
            )
        for part, some in zip(parts, (rows[m + k :], rows[m : m + k], rows[:m]), strict=True):
            part.append(some)
    return Split(*(torch.cat(part).sort().values for part in parts))


def shifted(x: Float[Tensor, "b h w *c"], most: int, generator: numpy.random.Generator) -> Float[Tensor, "b h w *c"]:
    """Each image moved by −most … most pixels down and across; dark comes in.

    >>> shifted(torch.ones(1, 3, 3), 1, numpy.random.default_rng(0))[0].tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    b, h, w = x.shape[:3]
    framed = pad(x, (0, 0) * (x.ndim - 3) + (most,) * 4)
    top, left = torch.from_numpy(generator.integers(2 * most + 1, size=(2, b))).to(x.device)
    rows = top[:, None] + torch.arange(h, device=x.device)
    columns = left[:, None] + torch.arange(w, device=x.device)
    return framed[torch.arange(b, device=x.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def batches(pixels: Tensor, labels: Tensor, size: int, seed: int, shift: int = 0) -> Callable[[int], tuple[Tensor, Tensor]]:
    """``step -> (images, labels)``, a function of seed and step alone: `minibatches`, each image `shifted`."""
    chosen = minibatches([pixels, labels], size, seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = chosen(step)
        return shifted(x, shift, numpy.random.default_rng([seed, step, shift])) if shift else x, y

    return batch


def image_bench(
    makers: Mapping[str, Maker],
    images: Images,
    *,
    seeds: Iterable[int] = range(5),
    steps: int = 300,
    batch: int = 64,
    lr: float | Sequence[float] = 3e-3,
    shift: int = 0,
    test: float = 0.2,
    same_start: bool = True,
    keep: bool = False,
    device: str = "cpu",
    report: Callable[[str, float], None] | None = None,
) -> Bench:
    """Train every net on every seed's split of the images, and test it there.

    Args:
        makers: nets by name: ``maker(classes, shape)`` gives a module of images (b, *shape) to logits (b, classes).
        images: pixels (n, h, w) or (n, h, w, 3), labels 0 … classes − 1.
        steps, batch, lr: AdamW with a warm-up over a tenth of the steps and a cosine down to 0, gradients clipped to 1. Of several
            rates each net and seed takes the one of the lowest loss on a fifth of the training images, which train no net then.
        shift: images are moved by up to so many pixels in training.
        test: share of each class that tests.
        same_start: a parameter starts from the values of an earlier net's parameter of the same name and shape. Switch it off
            where nets differ in how they are initialised.
        keep: results are kept on disk by `training.trained`. Makers must be functions or classes from files, then, without
            settings of their own (`trained` refuses others).
        report: is called with a line and the fraction done; the default is silence.

    The random generators of all devices are put back afterwards. Costs makers × seeds × rates trainings. `Refused` for no nets, no
    seeds or one seed twice, too few images of a class, a net that gives other shapes, and as `fit` does.

    >>> linear = lambda classes, shape: nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1], classes))
    >>> images = Images(torch.eye(4).reshape(4, 2, 2).repeat(10, 1, 1), torch.arange(4).repeat(10))
    >>> bench = image_bench({"one": linear, "other": linear}, images, seeds=(0, 1), steps=2, batch=8)
    >>> bench.differences("one", "other")
    (0.0, 0.0)
    """
    seeds, rates = tuple(seeds), (float(lr),) if isinstance(lr, float | int) else tuple(map(float, lr))
    if not makers or not seeds or len(set(seeds)) < len(seeds) or not rates:
        raise Refused(f"makers, seeds, lr: at least one each, no seed twice, got {list(makers)}, {list(seeds)}, {list(rates)}")
    if not 0 <= shift < min(images.pixels.shape[1:3]):
        raise Refused(f"shift: must lie between 0 and the side of the images of {tuple(images.pixels.shape[1:])}, got {shift}")
    if int(images.labels.min()) < 0:
        raise Refused(f"labels: must be 0 or more, got {int(images.labels.min())}")
    reached: dict[str, list[tuple[float, float, float]]] = {name: [] for name in makers}
    weights, done = {}, 0
    tell = report or (lambda line, fraction: None)
    with randomness_kept():
        for seed in seeds:
            task = _Task(images, split(images.labels, seed, test, 0.2 if len(rates) > 1 else 0.0), seed, steps, batch, shift)
            shared: dict[tuple[str, torch.Size], Tensor] = {}
            for name, maker in makers.items():
                start = _start(maker, task, shared if same_start else {}, device)
                weights[name] = sum(p.numel() for p in start.parameters() if p.requires_grad)
                found = []
                for rate in rates:
                    tell(f"{name}, seed {seed}, rate {rate:g}", done / (len(seeds) * len(makers) * len(rates)))
                    found.append(task.kept(name, maker, start, rate) if keep else task.learn(copy.deepcopy(start), rate))
                    done += 1
                best = min(range(len(rates)), key=lambda k: found[k]["check"])
                reached[name].append((found[best]["accuracy"], found[best]["loss"], rates[best]))
    columns = ({name: tuple(row[k] for row in rows) for name, rows in reached.items()} for k in range(3))
    accuracy, loss, chosen = columns
    return Bench(seeds, accuracy, loss, weights, chosen)


def _seed(seed: int) -> None:
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _start(maker: Maker, task: "_Task", shared: dict[tuple[str, torch.Size], Tensor], device: str) -> nn.Module:
    """The net before training: what of it an earlier one has shared is taken over, the rest is shared from now on."""
    _seed(task.seed)
    model = maker(task.classes, tuple(task.images.pixels.shape[1:])).to(device)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(shared.setdefault((name, p.shape), p.detach().clone()))
        some = task.images.pixels[:2].to(device)
        if (got := tuple(copy.deepcopy(model).eval()(some).shape)) != (len(some), task.classes):
            raise Refused(f"makers: a net must give logits of shape {(len(some), task.classes)} for 2 images, got {got}")
    return model


@dataclass(frozen=True)
class _Task:
    """One seed's images and how nets learn them."""

    images: Images
    parts: Split
    seed: int
    steps: int
    batch: int
    shift: int

    @property
    def classes(self) -> int:
        return int(self.images.labels.max()) + 1

    def learn(self, model: nn.Module, rate: float) -> dict[str, float]:
        """Train `model` in place: its accuracy and loss on the test images, and its loss on those that choose the rate."""
        _seed(self.seed)
        rows, device = self.parts.train, str(next(model.parameters()).device)
        supply = batches(self.images.pixels[rows], self.images.labels[rows], self.batch, self.seed, self.shift)
        fit(
            model,
            lambda net, some: cross_entropy(net(some[0]), some[1]),
            supply,
            steps=self.steps,
            lr=rate,
            schedule=cosine(warmup=0.1),
            clip=1.0,
            device=device,
            report=lambda line, fraction: None,
        )
        accuracy, loss = self.judge(model, self.parts.test)
        check = self.judge(model, self.parts.check)[1] if len(self.parts.check) else 0.0
        return {"accuracy": accuracy, "loss": loss, "check": check}

    @torch.no_grad()
    def judge(self, model: nn.Module, rows: Tensor) -> tuple[float, float]:
        """Accuracy and mean cross-entropy on these images."""
        device = next(model.parameters()).device
        model.eval()
        logits = torch.cat([model(self.images.pixels[some].to(device)).double().cpu() for some in rows.split(CHUNK)])
        labels = self.images.labels[rows].cpu()
        return float((logits.argmax(-1) == labels).double().mean()), float(cross_entropy(logits, labels))

    def kept(self, name: str, maker: Maker, start: nn.Module, rate: float) -> dict[str, float]:
        """What `learn` gives, from disk if images, start, settings and code are those of before."""
        images = {"pixels": self.images.pixels, "labels": self.images.labels}
        parts = {"train": self.parts.train, "check": self.parts.check, "test": self.parts.test}
        key: dict[str, float | str] = {"steps": self.steps, "batch": self.batch, "shift": self.shift, "rate": rate}
        key |= {"start": sha256(pack(start.state_dict())), "images": sha256(pack(images)), "parts": sha256(pack(parts))}
        folder = "bench-" + "".join(c if c.isalnum() else "-" for c in name)
        device = str(next(start.parameters()).device)
        work = _Kept(self, start)
        return trained(folder, work.make, work.train, seed=self.seed, settings=key, code=(maker, fit), device=device).notes


@dataclass(frozen=True)
class _Kept:
    """A training as `trained` does it: all that this holds is among the settings, as hashes."""

    task: _Task
    start: nn.Module

    def make(self, **_: Any) -> nn.Module:
        return copy.deepcopy(self.start)

    def train(self, model: nn.Module, keep: Any, rate: float, **_: Any) -> dict[str, float]:
        return self.task.learn(model, rate)
