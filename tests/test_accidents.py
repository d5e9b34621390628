"""The quick form of `python -m accidents`: no fault that nobody knew, and no known one that is gone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mne"), pytest.importorskip("pynwb"), pytest.importorskip("nibabel")


@pytest.mark.parametrize("kinds", ["inputs", "kills disk corrupt races"])  # what is dear, imports and first calls, once a line
def test_accidents_do_no_harm_that_is_not_known(kinds):
    done = subprocess.run(
        [sys.executable, "-m", "accidents", "--quick", "--json", *kinds.split()],
        cwd=Path(__file__).parent,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MNE_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(kinds.split()) and all(one["tries"] > 0 for one in found), done.stderr[-2000:]
    new, gone = ([key for one in found for key in one[which]] for which in ("new", "gone"))
    assert not new, "faults that are not in accidents/known.toml: mend them"
    assert not gone, "faults of accidents/known.toml that no longer happen: take them out of the list"
