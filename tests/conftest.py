"""Every test starts from the same state of torch's generator and rounds as the command line does: a failure can be seen again."""

import os

import pytest
import torch

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # MKL reads it at its first product


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
