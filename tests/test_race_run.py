"""Races as runs: which results count, whose data they are, what is left when a picture fails."""

import json

import pytest
import torch

from neuropil.errors import Refused
from neuropil.lab import race
from neuropil.lab.expect import Metric
from neuropil.lab.race import Role, Score, Settings
from neuropil.report import races


def role(name="toy", draw=lambda data, found: 1 / 0):
    def constant(course):
        """Always one."""
        for _ in course.trial.track(range(4), "steps"):
            pass
        return 1.0

    return Role(
        name=name,
        metric=Metric("score", "higher"),
        parameters=10,
        wanted="nothing",
        prepare=lambda course: None,
        measure=lambda build, data, course: Score(build(course), 10, {}, {"x": torch.ones(2)}),
        draw=draw,
        baselines=(constant,),
        named=("a", "b"),
    )


def test_a_folder_of_one_named_data_set_is_not_taken_for_another(tmp_path):
    toy = role()
    race.run(toy, race.settings(toy, "smoke", data="a"), 1, tmp_path)
    for other in ("b", None):
        with pytest.raises(Refused, match="data a; give another --out"):
            race.run(toy, race.settings(toy, "smoke", data=other), 1, tmp_path)


def test_own_data_are_what_is_in_the_file_not_what_it_is_called(tmp_path):
    toy = role()
    for name in ("one", "two"):
        (tmp_path / name).write_text("the same")
        race.run(toy, race.settings(toy, "smoke", data=str(tmp_path / name)), 1, tmp_path / "out")
    (tmp_path / "two").write_text("something else")
    with pytest.raises(Refused, match="other data"):
        race.run(toy, race.settings(toy, "smoke", data=str(tmp_path / "two")), 1, tmp_path / "out")


def test_a_race_whose_picture_fails_still_has_its_ranking(tmp_path):
    facts = race.run(role(), Settings("smoke", 10, None, "", ""), 1, tmp_path)
    assert facts["ranking"][0]["mean"] == 1.0 and facts["unseen"].startswith("no picture: division by zero")
    assert race.read(tmp_path)["ranking"][0]["mean"] == 1.0 and not (tmp_path / "race.png").exists()


def test_progress_moves_inside_an_entry(tmp_path):
    seen = []
    race.run(role(), Settings("smoke", 10, None, "", ""), 2, tmp_path, lambda what, done, total: seen.append((what, done, total)))
    assert ("constant, seed 1: steps", 1.5, 2) in seen


def test_a_page_is_stale_when_any_part_or_what_the_role_imports_has_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROPIL_RACES", str(tmp_path))
    name = "associative-memory"
    facts = race.summary(role(name), Settings("quick", 10, None, "", ""), [], {}, 1, race.fingerprints(name))
    (tmp_path / f"{name}.quick").mkdir()
    file = tmp_path / f"{name}.quick" / "race.json"
    file.write_text(json.dumps(facts))
    (view,) = races.views()
    assert not view.stale
    slug = next(slug for slug in facts["code"] if slug)
    file.write_text(json.dumps(facts | {"code": facts["code"] | {slug: "another"}}))
    (view,) = races.views()
    assert view.stale


def test_what_a_race_takes_from_the_wings_counts_as_its_code(monkeypatch):
    files = []
    monkeypatch.setattr(race, "code_hash", lambda found: files.extend(found) or "")
    race.role_code.__wrapped__("set-and-graph-layer")
    names = {f"{file.parent.name}/{file.name}" for file in files}
    assert {"interaction/hypergraph_layers.py", "races/set_and_graph_layer.py", "races/training.py"} <= names
    assert not {"races/operator.py", "nn/attention.py"} & names
