"""Races on the user's own files, damaged ones among them, and what single roles promise of their data and entries."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from neuropil.brain.routing_encoder import EncodingModel
from neuropil.errors import Refused
from neuropil.lab import race
from neuropil.lab.race import Course
from neuropil.lab.trial import Trial
from neuropil.races import own, voxel_encoder

ROLES = tuple(race.roles())


def photo(folder):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(folder / "photo.png")
    return folder / "photo.png"


def pictures(folder):
    (folder / "faces").mkdir()
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (20, 20), dtype=np.uint8)).save(folder / "faces" / f"{i}.png")
    return folder / "faces"


def solid(folder):
    trimesh = pytest.importorskip("trimesh")
    trimesh.creation.icosphere(1).export(folder / "ball.ply")
    return folder / "ball.ply"


def clip(folder):
    pytest.importorskip("av")
    from neuropil.data.video import write_video

    write_video(folder / "clip.mp4", torch.randint(255, (4, 16, 16, 3), dtype=torch.uint8), 10.0)
    return folder / "clip.mp4"


def saved(**named):
    def make(folder):
        np.savez(folder / "own.npz", **named)
        return folder / "own.npz"

    return make


g = np.random.default_rng(0)
OWN = [
    ("image-field", "photograph", photo),
    ("video-field", "clip", clip),
    ("shape-field", "mesh", solid),
    ("associative-memory", "pictures", pictures),
    ("associative-memory", "booleans", saved(patterns=g.random((9, 15)) < 0.5)),
    ("sequence-cell", "class a step", saved(x=g.normal(size=(20, 5, 2)), y=g.integers(0, 3, (20, 5)))),
    ("sequence-cell", "booleans", saved(x=g.random((20, 5, 2)) < 0.5, y=np.arange(20) % 2 == 0)),
    ("sequence-cell", "numbers", saved(x=g.normal(size=(20, 5, 2)), y=1e4 + 1e3 * g.normal(size=20))),
    ("learning-rule", "classes", saved(x=g.normal(size=(40, 3, 4)), y=np.arange(40) % 3)),
    ("learning-rule", "booleans", saved(x=g.random((40, 6)) < 0.5, y=np.arange(40) % 2 == 0)),
    ("set-and-graph-layer", "classes", saved(node=np.arange(60) % 20, edge=np.arange(60) // 4, labels=np.arange(20) % 2)),
    ("set-and-graph-layer", "booleans", saved(node=np.arange(60) % 20, edge=np.arange(60) // 4, labels=np.arange(20) % 2 == 0)),
    ("voxel-encoder", "floats", saved(tokens=g.normal(size=(30, 3, 3, 4)), responses=g.normal(size=(30, 5)))),
    ("voxel-encoder", "regions", saved(tokens=g.normal(size=(30, 3, 3, 4)), responses=g.normal(size=(30, 5)), rois=np.eye(5) > 0)),
    ("operator", "floats", saved(x=g.normal(size=(12, 2, 10, 10)), y=g.normal(size=(12, 1, 10, 10)))),
    ("operator", "booleans", saved(x=g.random((12, 2, 10, 10)) < 0.5, y=g.normal(size=(12, 1, 10, 10)))),
]


def course_on(name, source):
    return Course(Trial(0), race.load(name).parameters, None, str(source))


@pytest.mark.parametrize(("name", "make"), [(name, make) for name, _, make in OWN], ids=[f"{name} {what}" for name, what, _ in OWN])
def test_every_role_takes_its_own_data(name, make, tmp_path):
    role, source = race.load(name), make(tmp_path)
    assert race.settings(role, "smoke", data=str(source)).own
    course = course_on(name, source)
    data = role.prepare(course)
    for entry in (race.entries(role)[0], race.entries(role)[-1]):  # a system's and a baseline
        score = role.measure(entry.build, data, course)
        assert math.isfinite(score.value), entry.name


def test_all_roles_are_tried_on_their_own_data():
    assert {name for name, *_ in OWN} == set(ROLES)


@pytest.mark.parametrize("name", ROLES)
def test_a_bad_file_gets_one_clear_line(name, tmp_path):
    role, bad = race.load(name), tmp_path / "bad.npz"
    bad.write_text("no data at all")
    with pytest.raises(Refused) as refused:
        role.prepare(Course(Trial(0), 100, None, str(bad)))
    assert "\n" not in str(refused.value) and "bad.npz" in str(refused.value)
    with pytest.raises(Refused, match=re.escape(f"({name} takes")):
        race.settings(role, "smoke", data=str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("name", "named", "words"),
    [
        ("sequence-cell", {"x": g.normal(size=(20, 5, 2))}, "has no array y"),
        ("sequence-cell", {"x": np.full((20, 5, 2), np.nan), "y": np.zeros(20, int)}, "x of .* must be finite"),
        ("sequence-cell", {"x": g.normal(size=(20, 5)), "y": np.zeros(20, int)}, "must have 3 axes"),
        ("learning-rule", {"x": g.normal(size=(20, 5)), "y": g.normal(size=20)}, "must be classes"),
        ("learning-rule", {"x": g.normal(size=(20, 5)), "y": np.zeros(9, int)}, "one length"),
        ("voxel-encoder", {"tokens": g.normal(size=(30, 2, 2, 3)), "responses": np.ones((30, 4))}, "never changes"),
        ("operator", {"x": g.normal(size=(12, 1, 8, 9)), "y": g.normal(size=(12, 1, 9, 9))}, "square grid"),
        (
            "operator",
            {"x": g.normal(size=(12, 1, 8, 8)), "y": np.arange(12.0)[::-1, None, None, None].repeat(8, 2).repeat(8, 3)},
            "y of .*own.npz is zero in row 11",
        ),
        ("sequence-cell", {"x": g.normal(size=(20, 5, 2)), "y": np.full(20, 7.0)}, "y of .*own.npz never changes"),
        ("associative-memory", {"patterns": np.ones((9, 8))}, "different patterns"),
        ("associative-memory", {"patterns": np.array([[object()]])}, "allow_pickle"),
        ("set-and-graph-layer", {"node": [0, 1], "edge": [0, 0], "labels": [0, 1]}, "too few labelled"),
    ],
    ids=lambda value: value if isinstance(value, str) else "arrays",
)
def test_arrays_that_do_not_fit_are_refused(name, named, words, tmp_path):
    source = str(saved(**named)(tmp_path))
    with pytest.raises(Refused, match=words):
        race.load(name).prepare(Course(Trial(0), 100, None, source))


def damaged_npz(change):
    def make(folder):
        np.savez_compressed(folder / "own.npz", x=g.normal(size=(20, 5, 2)), y=np.arange(20))
        raw = bytearray((folder / "own.npz").read_bytes())
        change(raw)
        (folder / "own.npz").write_bytes(raw)
        return folder / "own.npz"

    return make


def other_bytes(raw):
    raw[100:140] = b"\xff" * 40  # of the first array's deflated data


def other_method(raw):
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):  # the compression method in both headers
        at = -1
        while (at := raw.find(mark, at + 1)) >= 0:
            raw[at + offset] = 97


def half(raw):
    del raw[len(raw) // 2 :]


def cut_header(folder):
    text = b"{'descr': ('<f8',"
    (folder / "own.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    return folder / "own.npy"


def too_large(folder):
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000, 1000)}"
    (folder / "own.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    return folder / "own.npy"


@pytest.mark.parametrize(
    "make",
    [damaged_npz(other_bytes), damaged_npz(other_method), damaged_npz(half), cut_header, too_large],
    ids=["other bytes", "other method", "half", "cut header", "too large"],
)
def test_a_damaged_file_is_refused_in_one_line(make, tmp_path):
    source = make(tmp_path)
    with pytest.raises(Refused, match=f"data: cannot read {re.escape(str(source))} ") as refused:
        own.arrays(str(source), {"x": 3})
    assert "\n" not in str(refused.value)


def test_of_a_file_only_what_is_wanted_is_read(tmp_path):
    source = saved(x=np.ones((2, 3)) > 0, y=[True, False], note=np.array([object()]))(tmp_path)
    found = own.arrays(str(source), {"x": 2}, {"y": 1, "z": 1})
    assert found.keys() == {"x", "y"} and {one.dtype for one in found.values()} == {torch.int64}
    with pytest.raises(Refused, match=r"has no array z \(z \(1 axes\) are needed, got x, y, note\)"):
        own.arrays(str(source), {"z": 1})


def test_numbers_that_float32_cannot_hold_are_refused(tmp_path):
    with pytest.raises(Refused, match=r"x of .* must be finite as float32"):  # and no RuntimeWarning
        own.arrays(str(saved(x=[1.0, 1e300])(tmp_path)), {"x": 1})


# what each role promises


def test_one_way_of_training_for_all_nets_that_predict_voxels(monkeypatch):
    role, asked = race.load("voxel-encoder"), {}
    course = Course(Trial(0), role.parameters)
    seen = role.prepare(course)
    fit = EncodingModel.fit

    def watched(model, X, y):
        asked[name] = [getattr(model, what) for what in ("lrs", "decays", "epochs", "batch", "clip", "held", "seed")]
        return fit(model, X, y)

    monkeypatch.setattr(EncodingModel, "fit", watched)
    for entry in race.entries(role):
        name = entry.name
        score = role.measure(entry.build, seen, course)
        assert ("epoch" in score.notes) == (name in asked)
    assert asked.keys() == {"attention routing", "factorised", "perceptron"}
    assert all(options == asked["perceptron"] for options in asked.values())


def test_a_rate_at_which_an_encoder_explodes_is_out():
    class Diverging(EncodingModel):
        def fit(self, X, y):
            if self.lrs[0] > 4e-3:
                raise Refused("loss: nan at step 3; lower lr")
            return super().fit(X, y)

    course = Course(Trial(0, "quick"), 60_000)
    seen = race.load("voxel-encoder").prepare(Course(Trial(0), 60_000))
    _, _, notes = voxel_encoder._fitted(
        lambda rate: Diverging(seen.rois, "factorised", epochs=1, lrs=(rate,), decays=(1e-2,)), seen, course
    )
    assert notes["rate"] <= 1e-3 and math.isnan(notes["validation at each rate"]["0.02"])


def test_memories_have_the_sizes_that_their_patterns_give_them(tmp_path):
    role = race.load("associative-memory")
    source = saved(patterns=g.normal(size=(9, 15)))(tmp_path)
    stored = role.prepare(course_on("associative-memory", source))
    course = Course(Trial(0), 15 * 15, None, str(source))
    assert torch.equal(role.prepare(course).patterns, stored.patterns)
    sizes = {entry.name: role.measure(entry.build, stored, course).parameters for entry in race.entries(role)}
    assert {name for name, size in sizes.items() if size == 225} == {"willshaw matrix", "consolidated hebb", "binary hopfield"}
    assert sizes["sparse distributed memory"] == 210  # 7 neurons of 2 · 15 numbers
    assert sizes["modern hopfield"] == sizes["nearest neighbour"] == 9 * 15 and sizes["cliques"] == 900
    with pytest.raises(Refused, match=r"parameters: sizes follow from the patterns here \(15² = 225\), got 1,000; leave it out"):
        role.prepare(Course(Trial(0), 1_000, None, str(source)))


def test_of_signs_modern_hopfield_and_sdm_attention_are_one(tmp_path):
    builds = {entry.name: entry.build for entry in race.entries(race.load("associative-memory"))}
    patterns = torch.randn(9, 15, generator=torch.Generator().manual_seed(0)).sign()
    (_, one), (_, other) = builds["modern hopfield"](patterns), builds["sdm attention"](patterns)
    assert len(one) == 4 and [name.partition("/")[0] for name in one] == list(other)
    for a, b in zip(one.values(), other.values(), strict=True):
        torch.testing.assert_close(a(-patterns[:4]), b(-patterns[:4]), atol=1e-5, rtol=0)


def test_own_numbers_are_answered_on_their_own_scale(tmp_path):
    role, (x, y) = race.load("sequence-cell"), (g.normal(size=(20, 5, 2)), g.normal(size=20))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    plain, scaled = (
        role.prepare(course_on("sequence-cell", saved(x=x, y=values)(tmp_path / name)))
        for name, values in (("a", y), ("b", 1e4 - 1e3 * y))
    )
    assert abs(float(plain.train[1].mean())) < 1e-5 and float(plain.train[1].std()) == pytest.approx(1)
    torch.testing.assert_close(plain.test[1], -scaled.test[1], atol=1e-3, rtol=0)
    adding = role.prepare(Course(Trial(0), 6_000, None, "adding"))
    assert (plain.close, adding.close) == (0.25, 0.1) and float(adding.train[1].min()) > 0  # the sums themselves

    def answer(d, outputs, parameters):  # 0.2 deviations off for what is 0: right among own numbers
        return Constantly(0.2)

    own_zeros, sums_zero = (
        dataclasses.replace(
            seen,
            **{
                part: (x, torch.zeros_like(y))
                for part, (x, y) in (("train", seen.train), ("validate", seen.validate), ("test", seen.test))
            },
        )
        for seen in (plain, adding)
    )
    assert [role.measure(answer, seen, Course(Trial(0), 1)).value for seen in (own_zeros, sums_zero)] == [1.0, 0.0]


class Constantly(nn.Module):
    """One number after each step; what training changes is not looked at."""

    def __init__(self, number):
        super().__init__()
        self.number, self.unused = number, nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return (self.number + 0 * self.unused).expand(*x.shape[:2], 1)


def test_an_operators_inputs_are_scaled_by_the_training_part_alone(tmp_path):
    role, x, y = race.load("operator"), g.normal(size=(12, 1, 8, 8)), g.normal(size=(12, 1, 8, 8))
    before = role.prepare(course_on("operator", saved(x=x, y=y)(tmp_path)))
    order = torch.randperm(12, generator=Trial(0).generator(1))
    x[order[-1]] *= 1e3  # a test row
    after = role.prepare(course_on("operator", saved(x=x, y=y)(tmp_path)))
    assert torch.equal(before.train[0], after.train[0]) and float(after.test[0].abs().max()) > 100
    assert float(after.train[0].mean()) == pytest.approx(0, abs=1e-5) and float(after.train[0].std()) == pytest.approx(1, abs=1e-3)
