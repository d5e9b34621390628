"""Every claim at its smallest: it runs, draws, and gives the same numbers in another process."""

import json
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from neuropil import catalog
from neuropil.data.sources import cache
from neuropil.lab.check import Job, work
from neuropil.lab.claims import load
from neuropil.lab.run import measure

# What these measure is time, or what is learned in a given time: no two runs agree to the bit.
BY_THE_CLOCK = {
    "dual-propagation/a-step-costs-at-most-twice-backprops",
    "resfields/residuals-cost-less-than-width",
    "s3im/random-patches-cost-little",
    *(f"nerfacto/{claim}" for claim in catalog.find("nerfacto").claims if claim != "the-readers-agree"),
}
CLAIMS = [c for s in catalog.systems() if s.claims for c in load(s).values()]


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory):
    """Another process. It shares the data but not the trained nets, so that what it finds it has trained itself."""
    folder = tmp_path_factory.mktemp("cache")
    cache().mkdir(parents=True, exist_ok=True)
    for entry in cache().iterdir():
        if entry.name != "trained" and entry.suffix != ".lock":
            (folder / entry.name).symlink_to(entry)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NEUROPIL_DATA", str(folder))
            pool.submit(int).result()  # the process starts, with the environment of now
        yield pool


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: f"{c.system}/{c.name}")
def test_smoke(claim, elsewhere):
    again = elsewhere.submit(work, Job(claim.system, claim.name, seed=7, budget="smoke"))
    row, pictures = measure(claim, seed=7, budget="smoke", draw=True)
    json.dumps(row, allow_nan=False)
    assert pictures, "a claim needs a picture"
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    other, _ = again.result()
    if f"{claim.system}/{claim.name}" not in BY_THE_CLOCK:
        assert same(numbers(other), numbers(row)), (numbers(other), numbers(row))


def numbers(row):
    """Method, baseline and notes of a row, but for notes of seconds."""
    return [without_seconds(row[key]) for key in ("method", "baseline", "notes")]


def without_seconds(value):
    if isinstance(value, dict):
        return {key: without_seconds(one) for key, one in value.items() if "second" not in key}
    return value


def same(one, other):
    """To the bit, but for the last digits that a matrix product rounds by where its memory happens to lie."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-6)
    return one == other
