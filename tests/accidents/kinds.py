"""The kinds of files that the library reads: how one is made, and what a reader gives, as something that can be compared."""

import os
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from accidents import writes
from neuropil import catalog, data
from neuropil.lab import evidence, race
from neuropil.races import own
from neuropil.studio import pictures, runs
from neuropil.training import checkpoint, trained

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import test_brain_files as brain

ALL, CUT, NONE = "every change", "a cut", "nothing"


@dataclass(frozen=True)
class Kind:
    """`make(folder)` gives a whole file in a new folder, `read(file)` what its reader makes of it; `tells` what it can tell."""

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    tells: str = CUT


def plain(value: Any) -> Any:
    """Tensors and what holds them as bytes and tuples, to be compared; names of files and functions do not count."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), str(value.dtype), zlib.crc32(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    if isinstance(value, dict):
        return tuple((str(key), plain(one)) for key, one in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    if hasattr(value, "__dataclass_fields__"):
        return tuple((name, plain(getattr(value, name))) for name in value.__dataclass_fields__)
    return None if callable(value) or isinstance(value, Path) else value


def _named(name: str, write: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder.mkdir(parents=True)
        write(folder / name)
        return folder / name

    return make


def _after(write: Callable[[Path, int], None], where: str) -> Callable[[Path], Path]:
    """The file below a folder that an action of `writes` made."""

    def make(folder: Path) -> Path:
        write(folder, 1)
        return next(iter(sorted(folder.glob(where))))

    return make


def _goes_on(file: Path) -> Any:
    """A fit that has had its steps reads all of its files and changes nothing."""
    before = file.read_bytes()
    try:
        writes._fit_image(file.parents[1], 1)
        return runs.read(file.parent).progress.step
    finally:
        if file.read_bytes() != before:
            raise RuntimeError("a damaged file was written over")


def _recording(file: Path) -> Any:
    found = data.read_recording(file)
    return plain((found, found.read() if hasattr(found, "fetch") else None))


def _latents(file: Path) -> Any:
    found = data.read_recording(file)
    return {key: plain(found.read(key)) for key in found.shapes if key.endswith("heldin")}


def _h5(file: Path) -> None:
    with brain.h5py.File(file, "w") as handle:
        handle["train_spikes_heldin"] = np.random.default_rng(0).poisson(1, (10, 20, 5))


def _gifti(file: Path) -> None:
    gifti = brain.nibabel.gifti
    points = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    faces = np.arange(18, dtype=np.int32).reshape(6, 3)
    arrays = [gifti.GiftiDataArray(x, intent=f"NIFTI_INTENT_{of}") for x, of in ((points, "POINTSET"), (faces, "TRIANGLE"))]
    brain.nibabel.save(gifti.GiftiImage(darrays=arrays), file)


def _mesh(file: Path) -> None:
    import trimesh

    trimesh.creation.icosphere(subdivisions=1).export(file)


def _picture(file: Path) -> None:
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 20, 3), dtype=np.uint8)).save(file)


def _video(file: Path) -> None:
    data.write_video(file, torch.randint(256, (6, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), 25.0)


def _colmap(layout: str, name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        data.write_capture(writes._scene(), folder, layout)
        return next(iter(sorted(folder.rglob(name))))

    return make


def _capture(file: Path) -> Any:
    folder = next(parent for parent in file.parents if parent.name == "x")
    return plain(data.read_capture(folder))


def _fetched(file: Path) -> Any:
    with writes.made_source(file.parents[1]):
        return writes.sources.path("made", "a.txt").read_bytes()


def _own(file: Path) -> Any:
    return plain(own.arrays(str(file), {"x": 2}))


def _trained_again(file: Path) -> Any:
    root = file.parents[2]
    with mock.patch.dict(os.environ, NEUROPIL_DATA=str(root)):
        return plain(dict(trained.trained("net", writes._make, writes._train, seed=1, settings={"d": 50}).model.state_dict()))


def _catalogue(file: Path) -> Any:
    with mock.patch.object(catalog.resources, "files", lambda package: file.parent):
        catalog.systems.cache_clear()
        try:
            return catalog.systems()
        finally:
            catalog.systems.cache_clear()


SYSTEMS = """[[system]]
number = 163
slug = "modern-hopfield"
title = "Hopfield Networks is All You Need"
short = "Hopfield"
wing = "memory"
kind = "method"
year = 2021
paper = "ICLR, arXiv:2008.02217"
parts = ["neuropil.memory.hopfield.retrieve"]

[[system]]
number = 1
slug = "another"
title = "Another"
short = "Another"
wing = "brain"
kind = "theory"
year = 2020
paper = "none"
"""


def _systems(file: Path) -> None:
    file.write_text(SYSTEMS, encoding="utf-8")


def _events(file: Path) -> None:
    brain.table(file, [f"{k}.5\t1\tface\t1" for k in range(9)])


def _idx(file: Path) -> None:
    file.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 5, 0, 0, 0, 4, *range(20)]))


def kinds() -> list[Kind]:
    """All of them."""
    noise = brain.noise
    volume = noise(4, 5, 6, 8).astype(np.float32)
    found = [
        Kind("run.json", _after(writes._fit_image, "run/run.json"), lambda f: plain(runs.read(f.parent)), CUT),
        Kind(
            "field.safetensors",
            _after(writes._fit_image, "run/field.safetensors"),
            lambda f: plain(runs.read(f.parent).tensors()),
            ALL,
        ),
        Kind("state.safetensors", _after(writes._fit_image, "run/state.safetensors"), _goes_on, ALL),
        Kind("evidence", _after(writes._evidence, "slug/*.json"), lambda f: plain(evidence.read(f)), CUT),
        Kind("race.json", _after(writes._race, "race/race.json"), lambda f: plain(race.read(f.parent)), CUT),
        Kind("own arrays (npz)", _named("a.npz", lambda f: np.savez(f, x=noise(6, 5))), _own, CUT),
        Kind("own arrays (npz, packed)", _named("a.npz", lambda f: np.savez_compressed(f, x=noise(6, 5))), _own, CUT),
        Kind("own arrays (npy)", _named("a.npy", lambda f: np.save(f, noise(6, 5))), _own, CUT),
        Kind("checkpoint", _after(writes._checkpoint, "step-00000003/model.safetensors"), lambda f: plain(_only(f)), ALL),
        Kind("checkpoint's state", _after(writes._checkpoint, "step-00000003/state.json"), lambda f: plain(_only(f)), CUT),
        Kind("trained net", _after(writes._trained, "trained/net/*.safetensors"), _trained_again, ALL),
        Kind("fetched data", _after(writes._fetch, "made/a.txt"), _fetched, ALL),
        Kind("systems.toml", _named("systems.toml", _systems), _catalogue, NONE),
        Kind("photograph (PNG)", _named("a.png", _picture), lambda f: plain(pictures.read_image(f)), ALL),
        Kind("photograph (JPEG)", _named("a.jpg", _picture), lambda f: plain(pictures.read_image(f)), NONE),
        Kind("photograph (TIFF)", _named("a.tiff", _picture), lambda f: plain(pictures.read_image(f)), CUT),
        Kind("video", _named("a.mp4", _video), lambda f: plain(data.read_video(f)), CUT),
        Kind("idx", _named("a.idx", _idx), lambda f: plain(data.idx(f)), CUT),
        Kind("events.tsv", _named("a_events.tsv", _events), lambda f: plain(data.read_events(f)), NONE),
        Kind("EDF", _named("a.edf", lambda f: brain.write_edf(f, noise(2, 500), [100, 100], ["Fz", "Cz"])), _recording),
        Kind("BDF", _named("a.bdf", lambda f: brain.write_edf(f, noise(2, 500), [100, 100], ["Fz", "Cz"])), _recording),
        Kind("FIF", _named("a_raw.fif", brain.write_fif), _recording),
        Kind("NWB", _named("a.nwb", brain.write_nwb), _recording),
        Kind("HDF5 of the Neural Latents Benchmark", _named("a.h5", _h5), _latents),
        Kind("NIfTI", _named("a.nii", lambda f: brain.write_nifti(f, volume)), _recording),
        Kind("NIfTI, packed", _named("a.nii.gz", lambda f: brain.write_nifti(f, volume)), _recording),
        Kind("GIFTI", _named("a.surf.gii", _gifti), _recording),
    ]
    found += [
        Kind(
            f"mesh ({end})",
            _named(f"a.{end}", _mesh),
            lambda f: plain(data.load_mesh(f)),
            CUT if end in ("ply", "stl", "glb") else NONE,
        )
        for end in ("ply", "stl", "glb", "obj", "off")
    ]
    found += [
        Kind(f"COLMAP, {part}", _colmap("colmap-binary", f"{part}.bin"), _capture) for part in ("cameras", "images", "points3D")
    ]
    found += [
        Kind(f"COLMAP in text, {part}", _colmap("colmap-text", f"{part}.txt"), _capture, NONE)
        for part in ("cameras", "images", "points3D")
    ]
    found += [
        Kind("transforms.json", _colmap("nerfstudio", "transforms.json"), _capture, CUT),
        Kind("a photograph of a capture", _colmap("nerfstudio", "003.png"), _capture, ALL),
    ]
    return found


def _only(file: Path) -> Any:
    """The checkpoint of this file, without the ones to go back to."""
    import shutil

    for other in file.parents[1].glob("step-*"):
        if other != file.parent:
            shutil.rmtree(other)
    return checkpoint.load(file.parents[1])
