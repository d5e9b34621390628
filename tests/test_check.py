"""`neuropil check`: killed at any moment it loses nothing, one broken claim stops no other, and a Ray cluster gives the same."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from neuropil.files import locked
from neuropil.lab import evidence
from neuropil.lab.check import Done, Job, check, on_pool, on_ray, plan
from neuropil.lab.claims import select

DENSITY = "noisy-hebbian-memories/the-density-of-cliques-follows-its-formula"
CLAIMS = (DENSITY, "modern-hopfield/one-update-recalls-random-patterns")
KILLS = int(os.environ.get("NEUROPIL_TEST_KILLS", "3"))


def command(folder, seeds):
    return subprocess.Popen(
        [sys.executable, "-m", "neuropil", "check", *CLAIMS, "--budget", "smoke", "--seeds", str(seeds), "--workers", "2"],
        env=os.environ | {"NEUROPIL_EVIDENCE": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def finished(folder):
    """(claim, seed) -> row of every result on disk; every file must be whole."""
    files = [path for path in folder.rglob("*.json") if not path.name.startswith(".")]
    return {(path.name, row["seed"]): row for path in files for row in json.loads(path.read_text())["rows"]}


def test_sigkill_at_random_moments_loses_no_finished_result(tmp_path):
    seeds, before, rng = 2000, {}, random.Random(0)
    for _ in range(KILLS):
        process = command(tmp_path, seeds)
        while len(finished(tmp_path)) <= len(before) and process.poll() is None:  # starting takes seconds, more on a busy machine
            time.sleep(0.1)
        time.sleep(rng.uniform(0.0, 1.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        after = finished(tmp_path)
        assert before.items() < after.items()
        before = after
    assert len(before) < 2 * seeds, "all was done before the last kill: nothing was tested"
    last = max(seed for _, seed in before) + 1
    assert command(tmp_path, last).wait(timeout=300) == 0
    after = finished(tmp_path)
    assert before.items() <= after.items()
    assert len(after) >= 2 * last
    assert not list(tmp_path.rglob("*.tmp"))


def test_finished_seeds_are_not_measured_again(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROPIL_EVIDENCE", str(tmp_path))
    claims = select(DENSITY)
    jobs, have = plan(claims, "smoke", [0, 1], "cpu")
    assert (len(jobs), have) == (2, 0)
    assert not check(jobs, on_pool(jobs, 1), lambda done: None)
    assert plan(claims, "smoke", [0, 1, 2], "cpu") == ([Job(*claims_of(DENSITY), 2, "smoke", "cpu", False)], 2)


def test_orphans_of_a_killed_process_are_swept_also_where_nothing_is_left_to_measure(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROPIL_EVIDENCE", str(tmp_path))
    claims = select(DENSITY)
    jobs, _ = plan(claims, "smoke", [0], "cpu")
    assert not check(jobs, on_pool(jobs, 1), lambda done: None)
    path = evidence.path_of(*claims_of(DENSITY), "smoke")
    before = path.read_bytes()
    orphans = [path.with_name(f".{name}.1a2b3c4d.tmp") for name in (path.name, path.name.replace(".json", ".recall.png"))]
    other = path.with_name(f".{path.name.replace('smoke', 'quick')}.1a2b3c4d.tmp")  # its own budget's plan sweeps it
    for file in (*orphans, other):
        file.write_text("{")
    assert plan(claims, "smoke", [0], "cpu") == ([], 1)
    assert not any(file.exists() for file in orphans)
    assert other.exists() and path.read_bytes() == before


def test_a_sweep_waits_for_whoever_writes(tmp_path):
    path = tmp_path / "claim.smoke.json"
    orphan = path.with_name(".claim.smoke.json.1a2b3c4d.tmp")
    orphan.write_text("{")
    with locked(path):
        sweeper = threading.Thread(target=evidence.sweep, args=(path,))
        sweeper.start()
        sweeper.join(0.2)
        assert orphan.exists()
    sweeper.join()
    assert not orphan.exists()


def claims_of(target):
    return target.split("/")


def test_a_broken_claim_is_a_failure_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROPIL_EVIDENCE", str(tmp_path))
    jobs, _ = plan(select(DENSITY), "smoke", [0, 1], "cpu")
    broken = Done(jobs[0], error="ValueError: no")
    failures = check(jobs, iter([broken, *on_pool(jobs[1:], 1)]), lambda done: None)
    assert failures == [broken]
    assert [seed for _, seed in finished(tmp_path)] == [1]


@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_measures_the_same(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("NEUROPIL_EVIDENCE", str(tmp_path))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    jobs, _ = plan(select(DENSITY), "smoke", [3], "cpu")
    (there,) = on_ray(jobs, "local")
    (here,) = on_pool(jobs, 1)
    assert (there.row["method"], there.row["baseline"]) == (here.row["method"], here.row["baseline"])
    assert not check(jobs, iter([there]), lambda done: None)
    assert evidence.read(evidence.path_of(*claims_of(DENSITY), "smoke")).rows
