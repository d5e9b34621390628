"""Races: the ranking, what goes on after a stop, budgets, rates, broken entries, and every role once at smoke."""

import functools
import json
import math

import pytest
import torch
from click.testing import CliRunner
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
    scores = {"1": 0.2, "2": 0.9, "3": pytest.approx(math.nan, nan_ok=True)}
    assert found.notes == {"rate": 2.0, "steps": 4, "validation at each rate": scores}
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
    assert len(starts) == 3  # the first of equals was the least, and so one beyond it was tried
    assert all(torch.equal(one, starts[0]) for one in starts) and all(torch.equal(one, batches[0]) for one in batches)


@pytest.mark.parametrize(
    ("best", "rates", "beyond", "at_end"),
    [
        (4.0, (2.0, 4.0, 8.0), [], False),
        (17.0, (2.0, 4.0, 8.0), [16.0, 32.0], False),
        (0.9, (2.0, 4.0, 8.0), [1.0, 0.5], False),
        (1e9, (2.0, 4.0, 8.0), [16.0, 32.0, 64.0], True),  # three more and not one beyond
        (1e9, (1.0, 3.0, 10.0, 100.0), [100 * (10 / 3) ** k for k in (1, 2, 3)], True),  # the median of 3, 10/3 and 10
        (1e9, (2.0,), [], False),  # one rate, as at smoke, is no choice
    ],
)
def test_the_search_goes_on_beyond_the_end_at_which_the_best_rate_is(best, rates, beyond, at_end):
    found = training.explored(lambda rate: (rate, abs(math.log(rate / best)), {}), rates, "lower")
    assert list(found.validation) == [*rates, *map(pytest.approx, beyond)]
    assert found.net == found.rate == min(found.validation, key=lambda rate: abs(math.log(rate / best)))
    assert found.notes.get("choice") == ("best at the end of the rates tried" if at_end else None)


def test_a_rate_beyond_the_end_that_explodes_ends_the_search():
    found = training.explored(lambda rate: (None, rate if rate < 10 else math.inf, {}), (2.0, 4.0, 8.0), "higher")
    assert list(found.validation) == [2.0, 4.0, 8.0, 16.0] and found.rate == 8.0 and "choice" not in found.notes


def test_given_seconds_are_for_the_given_rates_and_the_notes_say_what_was_at_the_end():
    def rates(seconds):
        scores = iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        course = Course(Trial(0), 10, seconds)
        return training.tuned(lambda: nn.Linear(1, 1), lambda *_: 1.0, lambda net: next(scores), course, (1.0, 2.0), 1, "higher")

    assert list(rates(1e-3).validation) == [1.0, 2.0] and rates(1e-3).notes["choice"] == "best at the end of the rates tried"
    assert list(rates(None).validation) == [1.0, 2.0, 4.0, 8.0, 16.0]


@pytest.mark.parametrize("budget", [11, 109, 110, 111, 5_000])
def test_the_size_is_the_largest_within_the_budget(budget):
    width = training.to_budget(lambda width: width, budget, count=lambda width: 11 * width)
    assert width == budget // 11


def test_a_budget_that_the_smallest_exceeds_is_refused():
    with pytest.raises(Refused, match="parameters: the smallest of its kind has 11, got 10"):
        training.to_budget(lambda width: nn.Linear(10, width), 10)


@pytest.mark.parametrize(("budget", "found"), [(100, 99), (83, 80), (38, 36), (5, 5)])
def test_of_shapes_the_first_with_96_percent_counts_else_the_largest(budget, found):
    """Multiples of 40, which may be too large, of 9, and of 5."""

    def multiple(k):
        return k * training.to_budget(lambda n: n, budget, lambda n: k * n)

    assert training.closest(multiple, (40, 9, 5), budget, int) == found
    with pytest.raises(Refused, match=f"the smallest of its kind has 400, got {budget}"):
        training.closest(multiple, (500, 400), budget, int)


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
    assert sized and {k: v for k, v in sized.items() if not 0.9 <= v / role.parameters <= 1} == {}
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
