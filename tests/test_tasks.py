"""Tasks without time: same or different, with objects to test on that were never there to learn from."""

import pytest
import torch

from neuropil.data import tasks
from neuropil.errors import Refused


def pairs(split="train", draw=0, batch=2000, **options):
    return tasks.same_different(batch, torch.Generator().manual_seed(draw), split, **options)


@pytest.mark.parametrize(
    "options", [{}, {"objects": 2}, {"objects": 50, "d": 7}, {"source": "sklearn"}, {"source": "sklearn", "objects": 5}]
)
def test_labels_say_whether_both_are_one(options):
    x, y = pairs(**options)
    assert x.shape == (2000, 2, {"sklearn": 64}.get(options.get("source"), options.get("d", 32)))
    assert torch.equal((x[:, 0] == x[:, 1]).all(-1), y == 1)
    assert 0.45 < y.float().mean() < 0.55


@pytest.mark.parametrize("source", ["vectors", "sklearn"])
def test_objects_to_test_on_are_new_ones(source):
    train, test = (pairs(split, source=source, objects=20)[0].flatten(0, 1).unique(dim=0) for split in ("train", "test"))
    assert len(train) == len(test) == 20
    assert torch.cdist(train, test).min() > 0.1


def test_objects_stay_and_draws_change():
    one, two = (pairs(draw=draw, objects=6)[0] for draw in (0, 1))
    assert not torch.equal(one, two)
    assert torch.equal(one.flatten(0, 1).unique(dim=0), two.flatten(0, 1).unique(dim=0))
    assert not torch.equal(one, pairs(objects=6, seed=1)[0])
    assert torch.equal(one, pairs(objects=6)[0])


def test_every_pair_of_objects_is_asked_for():
    x, _ = pairs(objects=4)
    assert len(x.flatten(1).unique(dim=0)) == 16


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch": 0}, "batch: must be at least 1"),
        ({"objects": 1}, "objects: two different ones need at least 2, got 1"),
        ({"source": "sklearn", "objects": 10**6}, "objects: sklearn has 1442 images to train, got 1000000"),
        ({"source": "letters"}, "source"),
        ({"split": "validation"}, "split"),
    ],
)
def test_same_different_refuses(options, says):
    with pytest.raises(Refused, match=says):
        pairs(**options)
