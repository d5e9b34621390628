"""Every test starts from the same state of torch's generator: a failure can be seen again."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
