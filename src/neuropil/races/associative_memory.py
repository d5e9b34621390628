"""Patterns of ±1 stored once, recalled from a part of them: which memory gets the hidden half right?

Data: 196 MNIST digits, averaged to 14 x 14 pixels and cut at one half, so that a matrix of all pairs of pixels and the patterns
themselves are of one size: 38,416 numbers. The cue is a stored pattern whose lower half is dark (−1). Half of the cues, at
random, choose each memory's setting among at most four of its own (β, radius, winners …), the other half test. The metric is the
share of pixels of the hidden half that are wrong.

Sizes follow from the m patterns of d units, and so `--parameters` can ask for nothing else: matrices have d² numbers by their
nature, SDM gets as many neurons as these pay for, memories that keep the patterns have m d, and cliques have 4 d², a unit for
"on" and one for "off" (codes of one unit in each cluster need at least 3.5 d² for d bits). `--data` takes patterns (.npy or .npz,
array `patterns`, m x d) or a folder of pictures.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from neuropil import data
from neuropil.data.loaders import picture
from neuropil.errors import Refused
from neuropil.lab.expect import Metric
from neuropil.lab.race import Course, Role, Score, Shown
from neuropil.memory import willshaw as sparse
from neuropil.memory.binary_hopfield import hebb, settle
from neuropil.memory.hopfield import retrieve
from neuropil.memory.lookup import WinnerTakeAll, lookup
from neuropil.memory.noisy_hebb import ConsolidatedHebb
from neuropil.memory.sdm import SDM
from neuropil.memory.sdm import sdm_attention as attention_of_sdm
from neuropil.races.own import arrays, rows

PATTERNS, SIDE = 196, 14
BETAS = (2, 10, 50, 200)  # of cosines: as much as retrieval by β/d has of inner products of ±1 vectors of length √d
Recall = Callable[[Tensor], Tensor]  # cues (b, d) of ±1 to patterns; only the signs count
Memory = tuple[int, dict[str, Recall]]  # how many numbers it keeps, and how it recalls under each of its settings


@dataclass(frozen=True)
class Stored:
    """Patterns (m, d) of ±1, their cues, which units are hidden, and which patterns choose and test."""

    patterns: Tensor
    cues: Tensor
    hidden: Tensor
    validate: Tensor
    test: Tensor
    side: tuple[int, int] | None = None


def prepare(course: Course) -> Stored:
    """Other digits, and another halving of the cues, for every seed."""
    trial = course.trial
    generator = trial.generator(1)
    side: tuple[int, int] | None = (SIDE, SIDE)
    if course.source is None:
        images = digits()
        chosen = torch.randperm(len(images), generator=generator)[: trial.pick(smoke=30, quick=PATTERNS, full=PATTERNS)]
        patterns = (adaptive_avg_pool2d(images[chosen][:, None], SIDE).flatten(1) > 0.5).float() * 2 - 1
    else:
        patterns, side = own(course.source)
    d = patterns.shape[1]
    if course.parameters not in (ROLE.parameters, d * d):
        raise Refused(
            f"parameters: sizes follow from the patterns here ({d}² = {d * d:,}), got {course.parameters:,}; leave it out"
        )
    hidden = torch.arange(d) >= d // 2
    validate, test = torch.randperm(len(patterns), generator=generator).tensor_split(2)
    return Stored(patterns, torch.where(hidden, -1.0, patterns), hidden, validate, test, side)


@functools.cache
def digits() -> Tensor:
    """All MNIST digits; reading them takes a second."""
    return data.digits("mnist").pixels


def own(source: str) -> tuple[Tensor, tuple[int, int] | None]:
    """The user's patterns, cut at the middle of their range into ±1, and the shape of a picture if they are some."""
    if Path(source).is_dir():
        files = sorted(p for p in Path(source).iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".pgm", ".tif", ".tiff"))
        if len(files) < 4:
            raise Refused(f"data: {source} needs at least 4 pictures, got {len(files)}")
        grey = [x.mean(-1) if x.ndim == 3 else x for x in map(picture, files)]
        values, side = torch.stack([adaptive_avg_pool2d(x[None], SIDE)[0].flatten() for x in grey]), (SIDE, SIDE)
        cut = values.median(1, keepdim=True).values  # each picture by its own brightness
    else:
        values = arrays(source, {"patterns": 2})["patterns"].float()
        rows(source, values, least=4)
        cut, side = (values.min() + values.max()) / 2, None  # type: ignore[assignment]
    patterns = torch.where(values > cut, 1.0, -1.0)
    if patterns.shape[1] < 4 or bool((patterns == patterns[0]).all()):
        raise Refused(f"data: {source} must hold different patterns of at least 4 units")
    return patterns, side


def measure(build: Callable[[Tensor], Memory], stored: Stored, course: Course) -> Score:
    """The error on test cues under the setting that errs least on validation cues."""
    numbers, settings = build(stored.patterns)

    def wrong(recall: Recall, which: Tensor) -> tuple[float, Tensor]:
        found = recall(stored.cues[which])
        right = (found > 0) == (stored.patterns[which] > 0)
        return float((~right[:, stored.hidden]).float().mean()), found

    validation = {name: wrong(recall, stored.validate)[0] for name, recall in settings.items()}
    best = min(validation, key=lambda name: validation[name])
    value, found = wrong(settings[best], stored.test)
    return Score(value, numbers, {"setting": best, "validation": validation}, {"recalled": found[:8]})


def modern_hopfield(patterns: Tensor) -> Memory:
    """One softmax update over the stored patterns (Ramsauer et al. 2021), of ±1 the same as SDM attention; β is chosen."""
    d = patterns.shape[1]
    return patterns.numel(), {f"β = {b}/{d}": lambda cue, b=b: retrieve(cue, patterns, b / d) for b in BETAS}  # type: ignore[misc]


def sdm_attention(patterns: Tensor) -> Memory:
    """Kanerva's memory with infinitely many neurons, as softmax of β cosines: of ±1 modern Hopfield at β/d; β is chosen."""
    return patterns.numel(), {
        f"β = {b}": lambda cue, b=b: attention_of_sdm(cue, patterns, patterns, float(b))  # type: ignore[misc]
        for b in BETAS
    }


def sparse_distributed_memory(patterns: Tensor) -> Memory:
    """Kanerva's memory with as many random neurons as d² numbers pay for, 2 d each; the share in reach is chosen."""
    d = patterns.shape[1]
    neurons = d // 2
    memory = SDM.random(neurons, d, d, torch.Generator().manual_seed(0))
    distances = ((d - patterns @ memory.addresses.T) / 2).flatten()

    def recall_within(share: float) -> Recall:
        radius = int(distances.quantile(share))
        return SDM(memory.addresses, torch.zeros(neurons, d), radius).write(patterns, patterns).recall

    return 2 * d * neurons, {f"share {share}": recall_within(share) for share in (0.02, 0.05, 0.15, 0.4)}


def willshaw_matrix(patterns: Tensor) -> Memory:
    """Binary links between units that were ever on together; the number of winners is chosen about the patterns' mean."""
    messages = (patterns > 0).float()
    W, k = sparse.willshaw(messages), float(messages.sum(1).mean())
    return W.numel(), {
        f"{round(k * f)} winners": lambda cue, f=f: 2 * sparse.recall((cue > 0).float(), W, max(1, round(k * f)), 1) - 1  # type: ignore[misc]
        for f in (0.6, 0.8, 1.0, 1.3)
    }


def consolidated_hebb(patterns: Tensor) -> Memory:
    """Links that become permanent after θ co-activities, learned under noise; θ is chosen."""
    messages = (patterns > 0).float()
    k = max(1, round(float(messages.sum(1).mean())))

    def learned(theta: float) -> Recall:
        rule = ConsolidatedHebb(theta=theta, decay=1.0)
        W = rule.learn(messages, 3, p_i=0.01, p_e=0.05, generator=torch.Generator().manual_seed(0)).W
        return lambda cue: 2 * sparse.recall((cue > 0).float(), W, k, 1) - 1

    return patterns.shape[1] ** 2, {f"θ = {theta:g}": learned(theta) for theta in (3.0, 10.0, 30.0, 100.0)}


def cliques(patterns: Tensor) -> Memory:
    """Gripon & Berrou's cliques: each unit is a cluster of "on" and "off", hidden units are clusters without a say."""
    d = patterns.shape[1]
    messages = torch.stack([patterns > 0, patterns < 0], -1).float().flatten(1)
    W = sparse.cliques(messages, d)
    known = torch.arange(2 * d) < 2 * (d // 2)

    def recall(steps: int) -> Recall:
        def run(cue: Tensor) -> Tensor:
            state = torch.stack([cue > 0, cue < 0], -1).float().flatten(1) * known
            found = sparse.recall_clique(state, W, d, steps).view(-1, d, 2)
            return found[..., 0] - found[..., 1] - 0.5 * (found[..., 0] == found[..., 1])  # undecided counts as off

        return run

    return W.numel(), {f"{steps} steps": recall(steps) for steps in (1, 2, 4)}


def binary_hopfield(patterns: Tensor) -> Memory:
    """Hebbian weights, asynchronous sign updates (Hopfield 1982); the number of sweeps is chosen."""
    W = hebb(patterns)
    return W.numel(), {f"{sweeps} sweeps": lambda cue, s=sweeps: settle(cue, W, s) for sweeps in (1, 2, 5, 10)}  # type: ignore[misc]


def nearest_neighbour(patterns: Tensor) -> Memory:
    """The stored pattern that is nearest to the cue: plain lookup."""
    return patterns.numel(), {"one": lambda cue: lookup(cue, patterns, similarity="hamming", separation=WinnerTakeAll())}


def mean_pattern(patterns: Tensor) -> Memory:
    """The mean of all patterns, whatever the cue: what knowing nothing comes to."""
    mean = patterns.mean(0)
    return len(mean), {"one": lambda cue: mean.expand_as(cue)}


def draw(stored: Stored, found: Sequence[tuple[str, float, Shown]]) -> object:
    """Test patterns, their cues, and what each memory recalls, best first."""
    import matplotlib.pyplot as plt

    which = stored.test[:8]
    lines = [("stored", stored.patterns[which]), ("cue", stored.cues[which])]
    lines += [(f"{name}: {value:.1%} wrong", shown["recalled"].clamp(-1, 1)) for name, value, shown in found]
    height, width = stored.side or (1, stored.patterns.shape[1])
    figure, axes = plt.subplots(len(lines), 1, figsize=(0.9 * len(which) + 1.5, 1.1 * len(lines)), squeeze=False)
    for cell, (title, patterns) in zip(axes[:, 0], lines, strict=True):
        framed = torch.nn.functional.pad(patterns.view(-1, height, width), (0, 1), value=torch.nan)
        cell.imshow(framed.transpose(0, 1).flatten(1), cmap="gray", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
        cell.set(xticks=[], yticks=[])
        cell.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
    return figure


ROLE = Role(
    name="associative-memory",
    metric=Metric("wrong share of hidden pixels", better="lower"),
    parameters=SIDE**4,
    wanted="patterns m x d (.npy, or .npz with `patterns`) or a folder of pictures",
    prepare=prepare,
    measure=measure,
    draw=draw,
    baselines=(binary_hopfield, nearest_neighbour, mean_pattern),
    timed=False,
)
