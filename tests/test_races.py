"""Races: the ranking, what goes on after a stop, budgets, broken entries, own files, and every role once at smoke."""

import functools
import json
import math
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from neuropil import cli, report
from neuropil.errors import Refused
from neuropil.lab import race
from neuropil.lab.expect import Metric
from neuropil.lab.race import Course, Role, Score, Settings
from neuropil.lab.trial import Trial
from neuropil.races import training
from neuropil.report import docs, races

ROLES = tuple(race.roles())
SIZED_BY_DATA = {"associative-memory", "voxel-encoder"}  # but for some entries, see below
FIXED = {"mean solution"}


def row(entry, seed, value=None, error=""):
    facts = {"entry": entry, "seed": seed, "seconds": 1.0, "parameters": 10}
    return facts | ({"error": error} if error else {"value": value})


# the ranking


def test_ranking_is_paired_by_seed_with_t_intervals():
    values = {"a": (1.0, 2.0, 3.0), "b": (1.5, 2.6, 3.4), "c": (9.0, 9.0, 9.0)}
    rows = [row(name, seed, v) for name, vs in values.items() for seed, v in enumerate(vs)]
    first, second, third = race.rank(rows, Metric("error", "lower"))
    assert [first.entry, second.entry, third.entry] == ["a", "b", "c"]
    assert first.behind is None and first.mean == 2.0
    half = 4.302652729911275 / math.sqrt(3)  # t at 2 degrees of freedom, deviation 1
    assert first.interval == pytest.approx((2 - half, 2 + half))
    assert second.behind == pytest.approx(0.5)
    spread = 0.1 * 4.302652729911275 / math.sqrt(3)  # of 0.5, 0.6, 0.4: far narrower than those of the values
    assert second.behind_interval == pytest.approx((0.5 - spread, 0.5 + spread))
    assert [p.entry for p in race.rank(rows, Metric("score", "higher"))] == ["c", "b", "a"]


def test_broken_entries_come_last_and_one_seed_has_no_interval():
    rows = [row("whole", 0, 1.0), row("half", 0, 5.0), row("half", 1, error="E: no"), row("gone", 0, error="E: never")]
    whole, half, gone = race.rank(rows, Metric("score", "higher"))
    assert [whole.entry, half.entry, gone.entry] == ["whole", "half", "gone"]
    assert whole.interval is None and half.behind == 4.0 and half.errors == {1: "E: no"}
    assert gone.mean is None and gone.parameters is None


# a toy role


def toy(counts, broken=()):
    def entry(name, value):
        def build(course):
            if name in broken:
                raise RuntimeError("two\nlines")
            counts.append((name, course.trial.seed))
            return value + course.trial.seed

        build.__name__, build.__doc__ = name, "A toy."
        return build

    return Role(
        name="toy",
        metric=Metric("score", "higher"),
        parameters=10,
        wanted="nothing",
        prepare=lambda course: None,
        measure=lambda build, data, course: Score(build(course), 10, {}, {"x": torch.ones(2)}),
        draw=lambda data, found: drawn(found),
        baselines=(entry("one", 1.0), entry("two", 2.0), entry("nan", math.nan)),
    )


def drawn(found):
    import matplotlib.pyplot as plt

    return plt.figure(figsize=(1, 1))


SMOKE = Settings("smoke", 10, None, "", "")


def test_a_second_run_measures_only_what_is_missing(tmp_path, monkeypatch):
    counts = []
    role = toy(counts)
    race.run(role, SMOKE, 2, tmp_path)
    assert counts == [("one", 0), ("two", 0), ("nan", 0), ("one", 1), ("two", 1), ("nan", 1)]
    counts.clear()
    race.run(role, SMOKE, 2, tmp_path)
    assert counts == [("nan", 0), ("nan", 1)]  # errors are tried again
    (tmp_path / "results" / "one.1.json").unlink()
    (tmp_path / "results" / "two.0.json").write_text('{"entry": "two", "se')
    counts.clear()
    race.run(role, SMOKE, 3, tmp_path)
    assert [c for c in counts if c[0] != "nan"] == [("two", 0), ("one", 1), ("one", 2), ("two", 2)]
    monkeypatch.setattr(race, "role_code", lambda name: "other code")
    counts.clear()
    race.run(role, SMOKE, 1, tmp_path)
    assert ("one", 0) in counts and ("two", 0) in counts


def test_an_interrupt_keeps_what_is_finished(tmp_path):
    counts = []
    role = toy(counts)

    def report(what, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        race.run(role, SMOKE, 2, tmp_path, report)
    facts = race.read(tmp_path)
    assert [one["entry"] for one in facts["ranking"]] == ["two", "one"] and facts["waiting"] == ["nan"]


def test_a_broken_entry_stops_nobody_and_says_why(tmp_path):
    facts = race.run(toy([], broken=("two",)), SMOKE, 1, tmp_path)
    one, *broken = facts["ranking"]
    assert one["entry"] == "one" and one["mean"] == 1.0
    assert {b["entry"]: b["errors"][0] for b in broken} == {
        "two": "RuntimeError: two lines",
        "nan": "ArithmeticError: score is nan, no finite number",
    }
    assert (tmp_path / "race.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "race.json").read_text())["ranking"][0]["entry"] == "one"


def test_a_folder_holds_one_race(tmp_path):
    race.run(toy([]), SMOKE, 1, tmp_path)
    with pytest.raises(Refused, match="holds a race with parameters 10; give another --out"):
        race.run(toy([]), Settings("smoke", 11, None, "", ""), 1, tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(Refused, match="is a file"):
        race.run(toy([]), SMOKE, 1, file)


# fairness


def test_the_rate_is_chosen_by_validation_and_explosions_are_left_out():
    course = Course(Trial(0), 10)

    def make():
        return nn.Linear(1, 1)

    seen = []

    def wrapped(net, optimizer, step):
        seen.append(optimizer.param_groups[0]["lr"])
        return math.inf if seen[-1] == 3.0 else 1.0

    scores = iter([0.2, 0.9])
    found = training.tuned(make, wrapped, lambda net: next(scores), course, (1.0, 3.0, 2.0), 4, "higher")
    assert found.rate == 2.0 and found.validation == {1.0: 0.2, 2.0: 0.9} and found.steps == 4
    assert len(seen) == 4 + 1 + 4 and seen[0] == 1.0 and 0.01 < seen[3] < 0.5  # down the cosine
    with pytest.raises(ArithmeticError, match="no finite numbers"):
        training.tuned(make, lambda *_: math.nan, lambda net: 1.0, course, (1.0,), 4, "lower")


def test_all_rates_start_from_the_same_weights_and_batches():
    starts, batches = [], []

    def update(net, optimizer, step):
        starts.append(net.weight.detach().clone())
        batches.append(torch.rand(3))
        with torch.no_grad():
            net.weight.zero_()
        return 1.0

    training.tuned(lambda: nn.Linear(3, 3), update, lambda net: 1.0, Course(Trial(5), 10), (1.0, 2.0), 1, "lower")
    assert torch.equal(*starts) and torch.equal(*batches)


# the roles


@functools.cache
def raced(name):
    """Every role at smoke, once a process."""
    import tempfile
    from pathlib import Path

    role, out = race.load(name), Path(tempfile.mkdtemp())
    return role, race.run(role, race.settings(role, "smoke"), 1, out), out


@pytest.mark.parametrize("name", ROLES)
def test_every_entry_of_a_role_runs_and_meets_the_budget(name):
    role, facts, out = raced(name)
    assert not facts["waiting"] and [one["errors"] for one in facts["ranking"]] == [{}] * len(facts["ranking"])
    assert {one["entry"] for one in facts["ranking"]} == {entry.name for entry in race.entries(role)}
    assert all(math.isfinite(one["mean"]) and one["about"].endswith(".") for one in facts["ranking"])
    sized = {one["entry"]: one["parameters"] for one in facts["ranking"] if one["entry"] not in FIXED}
    if name in SIZED_BY_DATA:
        sized = {k: v for k, v in sized.items() if k in ("sparse distributed memory", "attention routing", "perceptron")}
    assert sized and {k: v for k, v in sized.items() if abs(v / role.parameters - 1) > 0.05} == {}
    assert (out / "race.png").read_bytes()[:4] == b"\x89PNG"


def test_the_catalogue_names_builders_that_exist():
    for name in ROLES:
        assert race.load(name).name == name
        for _, dotted in race.roles()[name]:
            assert dotted.startswith("neuropil.races.")


def test_the_best_is_not_chosen_on_test_data():
    """The seed's parts of an image do not overlap, and differ between seeds."""
    samples = [race.load("image-field").prepare(Course(Trial(seed), 100)) for seed in (0, 1)]
    one, other = samples
    parts = [set(part.tolist()) for part in (one.train, one.validate, one.test)]
    assert sum(map(len, parts)) == one.points.shape[1] == len(set.union(*parts))
    assert not torch.equal(one.test, other.test)


# own data


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
OWN = {
    "image-field": photo,
    "video-field": clip,
    "shape-field": solid,
    "associative-memory": pictures,
    "sequence-cell": saved(x=g.normal(size=(20, 5, 2)), y=g.integers(0, 3, (20, 5))),
    "learning-rule": saved(x=g.normal(size=(40, 3, 4)), y=np.arange(40) % 3),
    "set-and-graph-layer": saved(node=np.arange(60) % 20, edge=np.arange(60) // 4, labels=np.arange(20) % 2),
    "voxel-encoder": saved(tokens=g.normal(size=(30, 3, 3, 4)), responses=g.normal(size=(30, 5))),
    "operator": saved(x=g.normal(size=(12, 2, 10, 10)), y=g.normal(size=(12, 1, 10, 10))),
}


@pytest.mark.parametrize("name", ROLES)
def test_every_role_takes_its_own_data(name, tmp_path):
    role, source = race.load(name), str(OWN[name](tmp_path))
    assert race.settings(role, "smoke", data=source).own
    course = Course(Trial(0), 3_000, None, source)
    score = role.measure(role.baselines[0], role.prepare(course), course)
    assert math.isfinite(score.value)


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


# the command and the report


def call(*arguments):
    return CliRunner().invoke(cli.neuropil, ["race", *arguments])


def test_unknown_roles_name_the_nearest_and_bad_numbers_are_refused():
    found = call("image-feild").exception
    assert isinstance(found, Refused) and "did you mean 'image-field'" in str(found)
    for option, words in (("--parameters", "at least 1"), ("--seconds", "positive"), ("--seeds", "at least 1")):
        found = call("image-field", "--budget", "smoke", option, "0").exception
        assert isinstance(found, Refused) and words in str(found)
    found = call("associative-memory", "--budget", "smoke", "--seconds", "1").exception
    assert isinstance(found, Refused) and "not trained step by step" in str(found)
    assert "associative-memory" in call().stdout


def test_json_is_valid_the_table_has_every_entry_and_a_broken_one_is_exit_code_1(tmp_path, monkeypatch):
    monkeypatch.setattr(race, "load", lambda name: toy([]))
    arguments = ("operator", "--budget", "smoke", "--seeds", "2", "--out", str(tmp_path))
    found = call(*arguments, "--json")
    facts = json.loads(found.stdout)
    assert found.exit_code == 1 and facts["seeds"] == 2 and facts["out"] == str(tmp_path)
    assert [one["entry"] for one in facts["ranking"]] == ["two", "one", "nan"]
    assert facts["ranking"][1]["behind"] == -1.0 and len(facts["ranking"][1]["interval"]) == 2
    table = call(*arguments).stdout
    assert all(word in table for word in ("two", "one", "nan", "broke", "ArithmeticError"))


def test_seconds_take_the_place_of_steps(tmp_path):
    role = race.load("operator")
    course = Course(Trial(0), 2_000, 0.05)
    score = role.measure(role.baselines[1], role.prepare(course), course)
    assert score.notes["steps"] > 2  # of the smoke budget


def test_the_report_has_a_page_for_a_race_and_survives_a_damaged_one(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROPIL_RACES", str(tmp_path / "races"))
    monkeypatch.setenv("NEUROPIL_EVIDENCE", str(tmp_path / "evidence"))
    role, facts, out = raced("associative-memory")
    folder = race.default_folder(role, race.settings(role, "quick"))
    assert folder == tmp_path / "races" / "associative-memory.quick"
    folder.mkdir(parents=True)
    for name in ("race.json", "race.png"):
        (folder / name).write_bytes((out / name).read_bytes())
    (tmp_path / "races" / "operator.full").mkdir()
    (tmp_path / "races" / "operator.full" / "race.json").write_text("{")
    index = report.write(tmp_path / "report").read_text()
    assert 'href="races/associative-memory.html"' in index and "race.json is damaged" in index
    page = (tmp_path / "report" / "races" / "associative-memory.html").read_text()
    assert all(one["entry"] in page for one in facts["ranking"]) and "14 x 14 pixels" in page
    assert 'src="../pictures/races/associative-memory.png"' in page
    assert (tmp_path / "report" / "pictures" / "races" / "associative-memory.png").exists()

    pytest.importorskip("jinja2")
    site = docs.raced(races.views(), "")
    assert all(f"[{one['entry']}](systems/{one['system']}.md)" in site for one in facts["ranking"] if one["system"])
    assert "](pictures/races/associative-memory.png)" in site and "race.json is damaged" in site
