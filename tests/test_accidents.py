"""The quick form of `python -m accidents`, a process a kind: no fault that nobody knew, and no known one that is gone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mne"), pytest.importorskip("pynwb"), pytest.importorskip("nibabel")


@pytest.mark.parametrize("kind", ["kills", "disk", "corrupt", "races", "inputs"])
def test_accidents_do_no_harm_that_is_not_known(kind):
    done = subprocess.run(
        [sys.executable, "-m", "accidents", "--quick", "--json", kind],
        cwd=Path(__file__).parent,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MNE_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("{"), done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tries"] > 0
    assert not found["new"], "faults that are not in accidents/known.toml: mend them"
    assert not found["gone"], "faults of accidents/known.toml that no longer happen: take them out of the list"
