"""`neuropil fit|render|export|view`: what they do for good input, and one clear line, nothing lost, for bad."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from neuropil import cli, data
from neuropil.cli import style
from neuropil.data.cameras import Cameras, orbit
from neuropil.data.captures import write_capture
from neuropil.data.scenes import Scene
from neuropil.data.video import read_video, write_video
from neuropil.lab import check as lab_check
from neuropil.lab import race
from neuropil.lab import run as lab_run
from neuropil.report import bar
from neuropil.studio import runs, scenes, shapes

trimesh = pytest.importorskip("trimesh")


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (6, 16, 24, 3), dtype=torch.uint8, generator=generator)
    Image.fromarray(pixels[0].numpy()).save(folder / "photo.png")
    Image.fromarray(pixels[1].numpy()).save(folder / "other.png")
    Image.fromarray(numpy.full((1, 1), 30_000, numpy.uint16)).save(folder / "dot.png")
    write_video(folder / "clip.mp4", pixels, 10.0)
    write_video(folder / "still.mp4", pixels[:1], 10.0)
    sphere = trimesh.creation.icosphere(subdivisions=2)
    sphere.export(folder / "sphere.ply")
    holed = sphere.copy()
    holed.update_faces(numpy.arange(len(sphere.faces)) > 2)
    holed.export(folder / "holed.ply")
    turned = trimesh.Trimesh(sphere.vertices, numpy.concatenate([sphere.faces[:9, ::-1], sphere.faces[9:]]), process=False)
    turned.export(folder / "turned.ply")
    trimesh.Trimesh([[3.0, 4, 5]] * 3, [[0, 1, 2]], process=False).export(folder / "point.ply")
    trimesh.PointCloud(sphere.vertices).export(folder / "cloud.ply")
    (folder / "text.png").write_text("no picture")
    (folder / "text.mp4").write_text("no clip")
    (folder / "text.obj").write_text("no mesh")
    count = 6
    cameras = Cameras(orbit(count, 4.0), torch.full((count, 2), 20.0), torch.full((count, 2), 8.0), 16, 16)
    write_capture(Scene(torch.full((count, 16, 16, 3), 90, dtype=torch.uint8), cameras), folder / "capture", "nerfstudio")
    return folder


@pytest.fixture
def call(monkeypatch, capsys, sources, tmp_path):
    """Run a command line in `tmp_path`, with {s} for the sources: (exit code, stdout, stderr)."""

    def run(line: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["neuropil", *line.format(s=sources).split()])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def refuse(call):
    """Run a command line that must end in one line and exit code 2; gives the line."""

    def run(line: str) -> str:
        code, out, err = call(line)
        assert (code, out) == (2, "")
        lines = [line for line in err.splitlines() if line.strip() and not line.startswith("\x1b")]
        assert len(lines) == 1 and lines[0].startswith("neuropil: ") and len(lines[0]) < 500
        return lines[0]

    return run


def test_a_photograph_from_fit_to_picture(call, tmp_path):
    code, out, _ = call("fit image {s}/photo.png --seconds 0.2 --out run --json")
    facts = json.loads(out)
    assert code == 0 and facts["kind"] == "image" and facts["seconds"] >= 0.2 and facts["psnr"] == facts["history"][-1][2]
    code, out, _ = call("fit image {s}/photo.png --seconds 0.3 --out run")
    assert code == 0 and "run: hash" in out and "dB" in out
    assert runs.read(tmp_path / "run").progress.seconds >= 0.3
    assert call("render run --size 48x32 --out large.png")[0] == 0
    with Image.open(tmp_path / "large.png") as picture:
        assert picture.size == (48, 32)


def test_a_clip_and_a_shape_from_fit_to_film_and_mesh(call, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "POOL", 1 << 14)
    assert call("fit video {s}/clip.mp4 --field dense --parameters 5000 --seconds 0.2 --out clip")[0] == 0
    assert call("render clip --path time --frames 3 --out clip.mp4")[0] == 0
    assert read_video(tmp_path / "clip.mp4").frames.shape == (3, 16, 24, 3)
    assert call("fit shape {s}/sphere.ply --seconds 3 --parameters 9000 --out shape")[0] == 0
    code, out, _ = call("export shape --mesh shape.obj --points points.ply --resolution 32")
    assert code == 0 and "faces" in out and "points" in out
    assert trimesh.load_mesh(tmp_path / "shape.obj").is_watertight


@pytest.mark.parametrize("field", list(scenes.FIELDS))
def test_a_capture_from_fit_to_film(field, call, tmp_path):
    assert call(f"fit scene {{s}}/capture --field {field} --parameters 60000 --seconds 0.2 --out run")[0] == 0
    assert call("render run --path orbit --frames 2 --size 16x16 --out run.mp4")[0] == 0
    assert len(read_video(tmp_path / "run.mp4")) == 2
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["field"] == field and facts["arguments"]["held_out"] == 1
    assert scenes.parameters_of(scenes.restore(runs.read(tmp_path / "run"))) <= 60000


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fit image {s}/photo.png --seconds 0", "seconds: must be positive and finite, got 0"),
        ("fit image {s}/photo.png --seconds nan", "seconds"),
        ("fit image {s}/photo.png --seconds inf", "seconds"),
        ("fit image {s}/photo.png --field hahs", "did you mean 'hash'"),
        ("fit image {s}/photo.png --parameters 0", "parameters"),
        ("fit image {s}/photo.png --parameters 10", "parameters: the smallest 'hash' field"),
        ("fit image {s}/photo.png --device tpu9", "device: unknown 'tpu9'"),
        ("fit image {s}/photo.png --device meta", "device: unknown 'meta'"),
        ("fit image {s}/photo.png --device cuda:77", "device: 'cuda:77'"),
        ("fit image {s}/none.png", "no file"),
        ("fit image {s}/text.png", "cannot read"),
        ("fit image {s}", "cannot read"),
        ("fit image {s}/dot.png", "is 1x1 pixels"),
        ("fit video {s}/still.mp4", "one frame"),
        ("fit video {s}/text.mp4", "cannot read"),
        ("fit video {s}/none.mp4", "no file"),
        ("fit shape {s}/holed.ply", "holes: 9 edges belong to one face only"),
        ("fit shape {s}/turned.ply", "turned inconsistently"),
        ("fit shape {s}/cloud.ply", "no faces"),
        ("fit shape {s}/point.ply", "one point"),
        ("fit shape {s}/text.obj", "mesh"),
        ("fit shape {s}/none.obj", "no file"),
        ("fit scene {s}/none", "no folder"),
        ("fit scene {s}/photo.png", "no folder"),
        ("fit scene {s}/capture --field vovels", "did you mean 'voxels'"),
        ("fit scene {s}/capture --parameters 5", "parameters: the smallest 'voxels' scene"),
        ("fit scene {s}/capture --downscale 0", "downscale"),
        ("render none --out x.mp4", "no folder"),
        ("export none --mesh x.ply", "no folder"),
        ("view none", "no folder"),
        ("view none --port 0", "port"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(line, words, refuse, tmp_path):
    assert words in refuse(line + (" --out run" if line.startswith("fit") else ""))
    assert not list(tmp_path.iterdir())


def spoil(capture: Path, **first) -> None:
    """Change the first frame, or with a `_` in front the whole table, of a capture."""
    file = capture / "transforms.json"
    table = json.loads(file.read_text())
    for name, value in first.items():
        if name.startswith("_"):
            table[name[1:]] = value
        else:
            table["frames"][0][name] = value
    file.write_text(json.dumps(table))


def unreadable(capture):
    sorted((capture / "images").iterdir())[2].write_bytes(b"\x89PNG no more")


def mixed(capture):
    Image.new("RGB", (17, 16)).save(sorted((capture / "images").iterdir())[2])


NAN = [[float("nan")] * 4] * 3 + [[0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: (c / "transforms.json").unlink(), "no camera poses"),
        (lambda c: (shutil.rmtree(c), c.mkdir()), "is empty"),
        (lambda c: sorted((c / "images").iterdir())[2].unlink(), "no file"),
        (unreadable, "images/00002.png"),
        (mixed, "17x16"),
        (lambda c: spoil(c, transform_matrix=NAN), "finite"),
        (lambda c: spoil(c, transform_matrix=[[0] * 4] * 4), "rotation"),
        (lambda c: spoil(c, _fl_x=0.0, fl_x=0.0), "the focal length must be positive, got 0"),
        (lambda c: spoil(c, _frames=[]), "capture"),
        (lambda c: (c / "transforms.json").write_text("{"), "corrupt"),
    ],
    ids=[
        "no poses",
        "empty",
        "missing",
        "unreadable",
        "mixed sizes",
        "NaN",
        "no rotation",
        "no focal length",
        "no frames",
        "broken",
    ],
)
def test_bad_captures_are_one_line_that_names_the_fault(change, words, refuse, sources, tmp_path):
    shutil.copytree(sources / "capture", tmp_path / "capture")
    change(tmp_path / "capture")
    assert words in refuse("fit scene capture --seconds 1 --out run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def run(call, tmp_path) -> Path:
    assert call("fit image {s}/photo.png --parameters 5000 --seconds 0.05 --out run")[0] == 0
    return tmp_path / "run"


def another_version(run):
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"format": 99}))


def garbled(run):
    facts = json.loads((run / "run.json").read_text())
    del facts["arguments"]["sizes"]
    (run / "run.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (another_version, "has format 99"),
        (lambda r: (r / "field.safetensors").unlink(), "is half-deleted: it has no field.safetensors"),
        (lambda r: (r / "run.json").unlink(), "is half-deleted: it has no run.json"),
        (lambda r: (r / "run.json").write_text("[]"), "has format None"),
        (lambda r: (r / "run.json").write_text('{"format"'), "corrupt or truncated"),
        (lambda r: (r / "field.safetensors").write_bytes(b"1234567890"), "corrupt or truncated"),
        (garbled, "arguments"),
    ],
    ids=["version", "no field", "no facts", "no table", "half facts", "half field", "garbled"],
)
def test_broken_runs_are_refused_by_all_commands_and_kept(change, words, run, refuse):
    change(run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert words in refuse("render run --out x.png")
    assert words in refuse("view run --seconds 1")
    assert " run" in refuse("fit image {s}/photo.png --parameters 5000 --seconds 1 --out run")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fit image {s}/other.png --parameters 5000 --out run", "with other data; give another --out"),
        ("fit image {s}/photo.png --parameters 6000 --out run", "with another parameters"),
        ("fit image {s}/photo.png --field siren --parameters 5000 --out run", "field 'hash' where 'siren' was asked for"),
        ("fit video {s}/clip.mp4 --out run", "kind 'image' where 'video'"),
        ("fit image {s}/photo.png --out {s}/photo.png", "is a file"),
        ("fit image {s}/photo.png --out {s}", "is no run folder"),
        ("export run --mesh x.ply", "only shapes and scenes have a mesh"),
        ("export run --points x.ply", "only shapes and scenes have points"),
        ("export run", "give --mesh FILE or --points FILE"),
        ("export run --mesh x.ply --resolution 4", "resolution"),
        ("render run --out x.mp4", "must end in .png"),
        ("render run --path orbit --out x.png", "path: a photograph has none"),
        ("render run --size 3x3 --out x.png", "size: must be WxH"),
        ("render run --frames 1 --out x.png", "frames"),
        ("render run --rate 0 --out x.png", "rate"),
    ],
)
def test_what_does_not_fit_the_run_is_one_line_and_loses_nothing(line, words, run, refuse, tmp_path):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert words in refuse(line)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fit image {s}/photo.png --parameters 5000 --seconds 0.05 --out file/x", "file/x: Not a directory"),
        ("render run --out file/x.png", "file: File exists"),
        ("render run --out folder.png", "folder.png: Is a directory"),
        (f"render run --out {'a' * 300}.png", "a.png: File name too long"),
    ],
    ids=["below a file", "in a file", "a folder", "too long"],
)
def test_a_path_that_cannot_be_used_is_one_line_and_loses_nothing(line, words, run, refuse, tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder.png").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert refuse(line).removeprefix("neuropil: ").startswith("cannot read or write ")
    assert refuse(line).endswith(words)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def fails_with(error: BaseException):
    """A function that does nothing else."""

    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (errno.EACCES, "neuropil: cannot read or write mine.npz: Permission denied"),  # of what was only read
        (errno.ENOENT, "neuropil: cannot read or write mine.npz: No such file or directory"),
        (errno.ENOSPC, "neuropil: cannot write mine.npz: No space left on device; nothing was half-written"),
    ],
    ids=errno.errorcode.get,
)
def test_an_error_of_reading_is_not_told_as_one_of_writing(code, line, refuse, monkeypatch):
    monkeypatch.setattr(race, "settings", fails_with(OSError(code, os.strerror(code), "mine.npz")))
    assert refuse("race operator --data mine.npz") == line


@pytest.mark.parametrize("name", [None, cli.__file__], ids=["no file", "a file of the package"])
def test_a_fault_that_is_not_the_users_keeps_its_traceback(name, monkeypatch):
    monkeypatch.setattr(race, "settings", fails_with(OSError(errno.ENOENT, "gone", name)))
    monkeypatch.setattr(sys, "argv", ["neuropil", "race", "operator"])
    with pytest.raises(OSError, match="gone"):
        cli.main()


GOES_ON = "neuropil: interrupted; everything finished so far is kept, run the same command again to go on"


@pytest.mark.parametrize(
    ("line", "module", "name", "words"),
    [
        ("fit image {s}/photo.png --out new", runs, "fit", GOES_ON),
        ("race operator --budget smoke --out new", race, "run", GOES_ON),
        ("check hopfield", lab_check, "plan", GOES_ON),
        ("data path photographs", data, "path", GOES_ON),
        ("render run --out x.png", runs, "read", "neuropil: interrupted"),
        ("run hopfield --budget smoke", lab_run, "measure", "neuropil: interrupted"),
    ],
    ids=["fit", "race", "check", "data", "render", "run"],
)
def test_an_interrupt_promises_to_go_on_only_where_that_is_so(line, module, name, words, call, monkeypatch):
    monkeypatch.setattr(module, name, fails_with(KeyboardInterrupt()))
    code, _, err = call(line)
    assert code == 2 and err.strip().splitlines()[-1] == words


def test_numbers_look_the_same_on_a_terminal_and_in_the_report():
    facts = {"effect": -0.0123, "interval": [-0.02, -0.0], "expect": {"words": "less"}}
    assert style.effect_words(facts) == "effect −0.0123 [−0.02, 0], expected less"
    assert bar.interval(facts["interval"]) == "[−0.02, 0]" and bar.interval(None) == style.interval(None) == ""


def test_the_real_process_ends_in_one_line_too(sources, tmp_path):
    command = [sys.executable, "-m", "neuropil", "fit", "shape", str(sources / "holed.ply"), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("neuropil: mesh: ") and done.stderr.count("\n") == 1
