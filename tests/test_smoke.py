"""Every claim at its smallest: it runs, draws, and gives the same numbers in another process."""

import importlib
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from neuropil import catalog
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


def train_anew(folder):
    """In this process: trained nets are kept apart from the cache's, for a net trained by other threads has other last bits."""
    importlib.import_module("neuropil.training.trained").cache = lambda: folder


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Nets that this process has trained itself."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("here")
        patch.setattr("neuropil.training.trained.cache", lambda: folder)
        yield


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Another process, with the same data and nets of its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with ProcessPoolExecutor(1, get_context("spawn"), train_anew, (folder,)) as pool:
        yield pool


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: f"{c.system}/{c.name}")
def test_smoke(claim, here, elsewhere):
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
    """To the bit; what is not a number equals itself."""
    return json.dumps(one) == json.dumps(other)
