"""From a laboratory's file to a score with a control: can a linear decoder tell the kinds of events apart, beyond chance?

1. Features of each event. EEG, MEG: log power of each channel in the classical bands, or log covariance (log-Euclidean: Arsigny et
   al. 2006; Barachant et al. 2012). Spikes: count of each unit. BOLD: mean of each voxel, 4 to 8 s after the onset by default, for
   the haemodynamic response comes that late.
2. scikit-learn: standardise → logistic regression (L2, C = 1, classes weighted equally), fitted on the other folds only. Where
   there are more features than events, the standardised training events are rotated onto their own principal axes, all of them:
   that changes no prediction (the L2 penalty keeps w in the span of the events) and is faster.
3. Balanced accuracy of all held-out predictions together (chance 1/k), against the same with labels shuffled (within groups, if
   given).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.brain.covariances import covariances, tangent_space
from neuropil.brain.scores import Control, group_splits, permutation_control
from neuropil.data.bids import read_events
from neuropil.data.recordings import Events, Recording, Spikes, Volume, classes_of, read_recording
from neuropil.data.volumes import read_mask
from neuropil.errors import Refused, choose, optional

BANDS = {"delta": (1.0, 4.0), "theta": (4.0, 8.0), "alpha": (8.0, 13.0), "beta": (13.0, 30.0), "gamma": (30.0, 45.0)}  # Hz
WINDOWS = {Recording: (-0.2, 0.8), Spikes: (0.0, 0.5), Volume: (4.0, 8.0)}  # s after the onset
_SENSORS = ("eeg", "mag", "grad", "seeg", "ecog", "dbs")
_TRIALS = 64  # as many epochs are in memory at once


@dataclass(frozen=True)
class Decoding:
    """What came out: `control` has the score, its p and the scores of shuffled labels; `notes` say what was left out or assumed."""

    file: str
    features: str
    window: tuple[float, float]
    classes: dict[str, int]
    width: int
    folds: int
    groups: str | None
    control: Control
    notes: tuple[str, ...]

    @property
    def chance(self) -> float:
        """Balanced accuracy of guessing."""
        return 1 / len(self.classes)


def decode_file(
    file: str | Path,
    events: str | Path | None = None,
    *,
    label: str | None = None,
    classes: tuple[str, ...] = (),
    window: tuple[float, float] | None = None,
    features: str = "power",
    channels: tuple[str, ...] = (),
    mask: str | Path | None = None,
    groups: str | None = None,
    folds: int | None = None,
    times: int = 200,
    generator: torch.Generator | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Decoding:
    """Decode the names of events from an EDF, BDF, FIF, NWB or NIfTI file, cross-validated, against shuffled labels.

    Args:
        events: a BIDS events.tsv; None: the file's own annotations, triggers or trials.
        label: the column that names the events (default: trial_type); `classes`: only these of its words.
        window: seconds after the onset, from and to; None: `WINDOWS`. Events whose window leaves the recording are left out.
        features: of EEG and MEG: ``power`` or ``covariance``; `channels`: only these.
        mask: a NIfTI mask of voxels; None: all that vary.
        groups: a column of the events, say ``run``: no group is both trained on and tested, labels are shuffled within groups.
            Without it folds are stretches of the file and p takes events as independent of their neighbours in time.
        folds: None: 5, or as many as there are groups if that is less.
        times: how many shuffles; `advance` is called after each fit of all folds, times + 1 times.

    `Refused`, naming file and field, for whatever cannot be decoded: one class, too few events, events outside, NaN, flat channels.
    """
    own: dict[str, Any] = {"channels": list(channels)} if channels else {}
    if label is not None and events is None:
        own["label"] = label  # of an NWB file's trials
    source = read_recording(file, **own)
    if not isinstance(source, Recording | Spikes | Volume):
        raise Refused(f"decode: {file} gives {type(source).__name__}; a recording, spikes or a volume over time is needed")
    found = _events_of(source, events, label)
    what = label or "the events' names"
    keep = torch.tensor([name != "n/a" and (not classes or name in classes) for name in found.names], dtype=torch.bool)
    for name in classes:
        found.named(name)
    notes = list(source.notes) if isinstance(source, Recording) else []
    if not classes and not bool(keep.all()):
        notes.append(f"left out {int((~keep).sum())} of {len(keep)} events: no name (n/a)")
    found = found.pick(keep)
    start, stop = window or next(default for kind, default in WINDOWS.items() if isinstance(source, kind))
    if not start < stop:
        raise Refused(f"window: must rise, got {start:g} to {stop:g} s")
    found = _inside(source, found, start, stop, notes)
    counts = Counter(found.names)
    if len(counts) < 2:
        only = f"one class only ({next(iter(counts))!r})" if counts else "no class"
        raise Refused(f"{file}: {what}: {only} in {len(found)} events; at least two are needed")
    if isinstance(source, Recording):
        x, words = _sensor_features(source, found, start, stop, features, notes)
    elif isinstance(source, Spikes):
        x, words = _spike_features(source, found, start, stop, notes)
    else:
        x, words = _voxel_features(source, found, start, stop, mask, notes)
    group = None
    if groups is not None:
        group, there = classes_of(found.column(groups))
        folds = min(5, len(there)) if folds is None else folds
    else:
        folds = 5 if folds is None else folds
        notes.append("no groups: neighbours in time may share a fold's border; give a run or session column if there is one")
    control = decode(x, found.labels()[0], group, folds, times, generator, advance)
    in_order = {name: counts[name] for name in sorted(counts)}
    return Decoding(str(file), words, (start, stop), in_order, x.shape[1], folds, groups, control, tuple(notes))


def decode(
    x: Float[Tensor, "n d"],
    labels: Int[Tensor, " m"],
    groups: Int[Tensor, " k"] | None = None,
    folds: int = 5,
    times: int = 200,
    generator: torch.Generator | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Control:
    """Balanced accuracy of cross-validated logistic regression, and of the same with shuffled labels (see the module).

    (times + 1) · folds fits of at most min(n, d) weights a class. `Refused` for one class, values not finite, or a fold whose
    training part has one class only.

    >>> x = torch.randn(40, 5)
    >>> labels = torch.arange(40) % 2
    >>> x[:, 0] += 6.0 * labels
    >>> control = decode(x, labels, times=19)
    >>> control.score > 0.9, control.p
    (True, 0.05)
    """
    linear, metrics = optional("sklearn.linear_model", "brain"), optional("sklearn.metrics", "brain")
    if len(x) != len(labels):
        raise Refused(f"labels: one for each of {len(x)} events, got {len(labels)}")
    if len(labels.unique()) < 2:
        raise Refused(f"labels: one class only in {len(labels)} events; at least two are needed")
    bad = ~x.isfinite().all(1)
    if bool(bad.any()):
        raise Refused(
            f"x: {int(bad.sum())} of {len(x)} events have features that are not finite (the first: {int(bad.nonzero()[0])})"
        )
    splits = group_splits(labels, groups, folds)
    for number, (train, _) in enumerate(splits):
        if len(labels[train].unique()) < 2:
            raise Refused(f"groups: fold {number} trains on one class only; fewer folds, or groups with all classes, are needed")
    if groups is not None and all(len(labels[groups == group].unique()) == 1 for group in groups.unique()):
        raise Refused("groups: each has one class only, so labels cannot be shuffled within groups; the control needs mixed ones")
    parts = [(train.numpy(), test.numpy(), *_rotated(x, train, test)) for train, test in splits]

    def score(y: Tensor) -> float:
        truth = y.numpy()
        guess = truth.copy()
        for train, test, z_train, z_test in parts:
            if (truth[train] == truth[train][0]).all():  # a shuffle can do that to few events
                guess[test] = truth[train][0]
                continue
            model = linear.LogisticRegression(C=1.0, class_weight="balanced", max_iter=2000)
            guess[test] = model.fit(z_train, truth[train]).predict(z_test)
        advance()
        return float(metrics.balanced_accuracy_score(truth, guess))

    return permutation_control(score, labels.cpu(), times, generator, None if groups is None else groups.cpu())


def _rotated(x: Tensor, train: Tensor, test: Tensor) -> tuple[Any, Any]:
    """Both parts standardised by the training part, on its principal axes if there are fewer events than features."""
    data = x.double().cpu().numpy()
    scaler = optional("sklearn.preprocessing", "brain").StandardScaler().fit(data[train.numpy()])
    z_train, z_test = scaler.transform(data[train.numpy()]), scaler.transform(data[test.numpy()])
    if z_train.shape[1] <= z_train.shape[0]:
        return z_train, z_test
    axes = optional("sklearn.decomposition", "brain").PCA(svd_solver="full").fit(z_train)
    return axes.transform(z_train), axes.transform(z_test)


def log_band_power(signals: Float[Tensor, "n c t"], rate: float) -> tuple[Float[Tensor, "n f"], tuple[str, ...]]:
    """Log of the mean power (Hann window, mean removed) in each of `BANDS`, and the bands that the window can resolve.

    f = c · bands. A band without a frequency at this rate and length is left out; `Refused` if that leaves none.

    >>> t = torch.arange(200) / 100
    >>> power, bands = log_band_power(torch.sin(2 * torch.pi * 10 * t).view(1, 1, -1), 100.0)
    >>> bands[int(power.argmax())]
    'alpha'
    """
    x = signals.double()  # MEG is of the order of 1e-13 T, too little to square in float32
    window = torch.hann_window(x.shape[-1], dtype=x.dtype, device=x.device)
    power = torch.fft.rfft((x - x.mean(-1, keepdim=True)) * window).abs().square()
    hz = torch.fft.rfftfreq(signals.shape[-1], 1 / rate)  # on the CPU: looking at it below waits for no device
    inside = {band: (hz >= low) & (hz < high) for band, (low, high) in BANDS.items()}
    bands = tuple(band for band, at in inside.items() if bool(at.any()))
    if not bands:
        raise Refused(f"window: {signals.shape[-1] / rate:g} s at {rate:g} Hz resolve none of the bands {', '.join(BANDS)}")
    return torch.stack([power[..., inside[band]].mean(-1) for band in bands], dim=-1).log().flatten(1).float(), bands


def log_covariance(signals: Float[Tensor, "n c t"], shrinkage: float = 0.1) -> Float[Tensor, "n pairs"]:
    """Matrix logarithm of each trial's covariance: its coordinates in the tangent space at the identity.

    C ← (1 − shrinkage) C + shrinkage · tr(C)/c · I first, which makes the logarithm exist for short trials. O(n c³).
    """
    centred = (signals - signals.mean(-1, keepdim=True)).double()
    C = covariances(centred) / signals.shape[-1]
    identity = torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
    mean = C.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    return tangent_space((1 - shrinkage) * C + shrinkage * mean * identity, identity).float()


def _sensor_features(
    recording: Recording, events: Events, start: float, stop: float, features: str, notes: list[str]
) -> tuple[Float[Tensor, "n d"], str]:
    """Features of EEG or MEG epochs in words and numbers, `_TRIALS` epochs in memory at a time; bad channels are left out."""
    choose("features", features, ("power", "covariance"))
    kinds = Counter(
        k for k, name in zip(recording.kinds, recording.channels, strict=True) if k in _SENSORS and name not in recording.bad
    )
    if not kinds:
        raise Refused(
            f"{recording.name}: no channel of kind {', '.join(_SENSORS)} (there are {', '.join(sorted(set(recording.kinds)))})"
        )
    kind = kinds.most_common(1)[0][0]
    chosen = [n for n, k in zip(recording.channels, recording.kinds, strict=True) if k == kind and n not in recording.bad]
    if len(chosen) < len(recording.channels):
        notes.append(f"used {len(chosen)} of {len(recording.channels)} channels: good ones of kind {kind}")
    read = log_covariance if features == "covariance" else lambda signals: log_band_power(signals, recording.rate)[0]
    picked, found = recording.pick(chosen), []
    for rows in torch.arange(len(events)).split(_TRIALS):
        signals = picked.epochs(events.pick(rows), -start, stop).signals
        flat = (signals == signals[..., :1]).all(-1)
        if bool(flat.any()):
            trial, channel = flat.nonzero()[0].tolist()
            raise Refused(
                f"{recording.name}: {int(flat.any(0).sum())} of {len(chosen)} channels are constant in a trial (the first: "
                f"{chosen[channel]}, event at {float(events.onset[rows[trial]]):g} s); choose channels without them"
            )
        found.append(read(signals))
    if features == "covariance":
        return torch.cat(found), "log covariance"
    return torch.cat(found), f"log power in {', '.join(log_band_power(signals[:1], recording.rate)[1])}"


def _spike_features(spikes: Spikes, events: Events, start: float, stop: float, notes: list[str]) -> tuple[Tensor, str]:
    counts = spikes.counts(stop - start, start, stop, events.onset)[:, 0]
    varying = (counts != counts[:1]).any(0)
    if not bool(varying.any()):
        raise Refused(f"{spikes.name}: all {len(spikes.units)} units have the same count in all {len(events)} windows")
    if not bool(varying.all()):
        first = spikes.units[int((~varying).nonzero()[0])]
        notes.append(
            f"left out {int((~varying).sum())} of {len(varying)} units whose count is the same in all windows (the first: {first})"
        )
    return counts[:, varying].float(), "spike counts"


def _voxel_features(
    volume: Volume, events: Events, start: float, stop: float, mask: str | Path | None, notes: list[str]
) -> tuple[Tensor, str]:
    chosen = volume.varying() if mask is None else read_mask(mask, like=volume)
    if mask is None:
        if not bool(chosen.any()):
            raise Refused(f"{volume.name}: all {chosen.numel()} voxels are constant or not finite")
        notes.append(f"no mask: used the {int(chosen.sum())} of {chosen.numel()} voxels that vary")
    notes.append("signals as in the file: remove drifts and motion before")
    at = torch.arange(volume.times) * _tr(volume)
    inside = ((at >= events.onset[:, None] + start) & (at < events.onset[:, None] + stop)).float()
    if not bool(inside.any(1).all()):
        row = int((~inside.any(1)).nonzero()[0])
        raise Refused(
            f"window: no sample of {volume.name} (TR {_tr(volume):g} s) lies {start:g} to {stop:g} s after the event at "
            f"{float(events.onset[row]):g} s; widen it"
        )
    means = inside / inside.sum(1, keepdim=True)
    return means @ volume.voxels(chosen), "mean of each voxel in the window"


def _tr(volume: Volume) -> float:
    if volume.tr is None or volume.times < 2:
        raise Refused(f"{volume.name}: field pixdim[4] (TR) is missing or the image has no time axis")
    return volume.tr


def _events_of(source: Recording | Spikes | Volume, events: str | Path | None, label: str | None) -> Events:
    if events is not None:
        seconds = source.seconds if isinstance(source, Recording) else None
        if isinstance(source, Volume):
            seconds = source.times * _tr(source)
        return read_events(events, seconds, label)
    own = source.events if isinstance(source, Recording) else source.trials if isinstance(source, Spikes) else None
    if own is None or not len(own):
        raise Refused(f"events: {source.name} has none of its own; give an events.tsv")
    return own


def _inside(source: Recording | Spikes | Volume, events: Events, start: float, stop: float, notes: list[str]) -> Events:
    """The events whose window lies in the recording; the others are noted. The end of a spike recording is not known."""
    if isinstance(source, Recording):
        first, length = source.windows(events.onset, -start, stop)
        good = (first >= 0) & (first + length <= source.samples)
    elif isinstance(source, Volume):
        good = (events.onset + start >= 0) & (events.onset + stop <= source.times * _tr(source))
    else:
        good = torch.ones(len(events), dtype=torch.bool)
    if not bool(good.all()):
        lost = events.onset[~good]
        notes.append(
            f"left out {len(lost)} of {len(events)} events: their window leaves the recording (the first: at {float(lost[0]):g} s)"
        )
    return events.pick(good)


def picture(result: Decoding) -> Any:
    """A matplotlib figure: the scores of shuffled labels, chance, and the score."""
    figure = optional("matplotlib.figure", "report").Figure(figsize=(6, 3.2), layout="constrained")
    axes, control = figure.subplots(), result.control
    axes.hist(control.null.numpy(), bins=20, color="0.7", label=f"{len(control.null)} shuffles of the labels")
    axes.axvline(result.chance, color="0.3", linestyle="--", label=f"chance {result.chance:.2f}")
    axes.axvline(control.score, color="tab:red", label=f"score {control.score:.2f}, p = {control.p:.3g}")
    axes.set(xlabel="balanced accuracy of held-out events", ylabel="shuffles", title=Path(result.file).name)
    axes.legend(frameon=False, fontsize="small", loc="upper left")
    return figure
