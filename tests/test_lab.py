"""Verdicts, and evidence that survives anything."""

import math
import multiprocessing

import pytest

from neuropil.errors import Refused
from neuropil.lab import Close, Less, Metric, More, Outcome, Ratio, Trial, evidence
from neuropil.numerics.statistics import t_interval

ACCURACY = Metric("accuracy", "higher")
ERROR = Metric("error", "lower")


@pytest.mark.parametrize(
    ("expect", "method", "baseline", "word"),
    [
        (More(by=0.1), [0.9, 0.91, 0.92], [0.5, 0.5, 0.5], "holds"),
        (More(by=0.1), [0.5, 0.51, 0.52], [0.5, 0.5, 0.5], "fails"),
        (More(by=0.1), [0.4, 0.9, 0.7], [0.5, 0.5, 0.5], "undecided"),
        (More(than=0.97), [0.99, 0.98, 0.99], [0.0, 0.0, 0.0], "holds"),
        (Less(by=0.1), [0.1, 0.1, 0.12], [0.5, 0.5, 0.5], "holds"),
        (Less(than=0.15), [0.2, 0.2, 0.21], [0.0, 0.0, 0.0], "fails"),
        (Ratio(at_most=0.1), [1e-3, 2e-3, 1e-3], [0.5, 0.4, 0.5], "holds"),
        (Ratio(at_least=2.0), [1.0, 1.1, 1.0], [1.0, 1.0, 1.0], "fails"),
        (Close(within=0.01), [0.5, 0.501, 0.5], [0.5, 0.5, 0.502], "holds"),
        (Close(within=0.01), [0.6, 0.601, 0.6], [0.5, 0.5, 0.502], "fails"),
    ],
)
def test_verdicts(expect, method, baseline, word):
    assert expect.judge(method, baseline, ERROR).word == word


def test_one_seed_is_marked_and_has_no_interval():
    verdict = More(by=0.1).judge([0.9], [0.5], ACCURACY)
    assert verdict.one_seed
    assert verdict.interval is None


def test_ratio_of_zero_errors_rests_on_the_floor():
    verdict = Ratio(at_most=0.1).judge([0.0, 0.0], [1.0, 1.0], Metric("error", "lower", floor=1e-6))
    assert math.isclose(verdict.effect, 1e-6)


def test_t_interval_matches_scipy():
    from scipy import stats

    values = [0.3, 0.7, 0.1, 0.9, 0.4]
    low, high = stats.t.interval(0.95, 4, loc=sum(values) / 5, scale=stats.sem(values))
    assert t_interval(values) == pytest.approx((0.48, low, high))


def test_an_outcome_must_be_finite():
    with pytest.raises(ValueError, match="finite"):
        Outcome(method=float("nan"), baseline=0.0)


def test_streams_of_a_trial_differ_and_repeat():
    import torch

    draw = lambda seed, stream: torch.rand(3, generator=Trial(seed).generator(stream)).tolist()  # noqa: E731
    assert draw(1, 0) == draw(1, 0)
    assert draw(1, 0) != draw(1, 1)
    assert draw(1, 0) != draw(2, 0)


def row(seed, fingerprint="f"):
    return {"seed": seed, "method": 1.0, "baseline": 0.0, "fingerprint": fingerprint, "date": "2026-01-01", "seconds": 0.0}


def facts(rows):
    return {"system": "s", "claim": "c", "budget": "quick", "metric": {}, "expect": {}, "verdict": "holds"}


def record_some(path, first):
    for seed in range(first, first + 5):
        evidence.record(path, row(seed), {}, facts)


def test_two_processes_record_at_once_and_lose_nothing(tmp_path):
    path = tmp_path / "c.quick.json"
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=record_some, args=(path, first)) for first in (0, 100)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [r["seed"] for r in evidence.read(path).rows] == [*range(5), *range(100, 105)]
    assert {p.suffix for p in tmp_path.iterdir()} <= {".json", ".lock"}


def test_stale_rows_go_when_the_code_has_changed(tmp_path):
    path = tmp_path / "c.quick.json"
    evidence.record(path, row(0, "old"), {}, facts)
    evidence.record(path, row(1, "new"), {}, facts)
    assert [r["seed"] for r in evidence.read(path).rows] == [1]


def test_pictures_are_those_of_the_lowest_seed_and_old_ones_go(tmp_path):
    path = tmp_path / "c.quick.json"
    evidence.record(path, row(3), {"one": b"3", "two": b"3"}, facts)
    evidence.record(path, row(4), {"one": b"4"}, facts)
    assert [p.read_bytes() for p in evidence.read(path).pictures] == [b"3", b"3"]
    evidence.record(path, row(0), {"one": b"0"}, facts)
    assert [p.read_bytes() for p in evidence.read(path).pictures] == [b"0"]


@pytest.mark.parametrize("content", ["", "{", '{"rows": []}', "[]", '{"format": 1, "rows": [{}]}'])
def test_damaged_evidence_is_refused_by_name(tmp_path, content):
    path = tmp_path / "c.quick.json"
    path.write_text(content)
    with pytest.raises(Refused, match=r"c\.quick\.json"):
        evidence.read(path)
