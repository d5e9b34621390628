"""The simulated cortex does what it says: objects, places, ceilings, and answers that depend on nothing else."""

import pytest
import torch

from neuropil.brain.scores import noise_ceiling, pearson
from neuropil.data import visual_cortex
from neuropil.data.visual_cortex import CATEGORIES, KINDS, visual_cortex_simulator
from neuropil.errors import Refused


@pytest.fixture(scope="module")
def cortex():
    return visual_cortex_simulator(300, voxels=20, generator=torch.Generator().manual_seed(5))


def test_pictures_have_one_to_three_objects_of_different_kinds_that_do_not_touch(cortex):
    shown = cortex.objects.flatten(2).any(-1).sum(1)
    assert shown.min() == 1 and shown.max() == 3 and cortex.objects.shape[1] == len(KINDS) == 6
    assert int(cortex.objects.sum(1).max()) == 1
    area = cortex.objects.float().mean((2, 3))[cortex.objects.flatten(2).any(-1)]
    assert area.min() > 0.06 and area.max() < 0.12
    edge = torch.ones(48, 48, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    assert cortex.objects[..., edge].float().mean() < 0.01


def test_objects_stand_out_in_their_own_orientations():
    """The surface of kind (0°, 90°) has its energy in those channels; its tokens show it where the object lies."""
    cortex = visual_cortex_simulator(200, voxels=1, generator=torch.Generator().manual_seed(2))
    kind = KINDS.index((0, 2))
    inside = torch.nn.functional.avg_pool2d(cortex.objects[:, kind].float(), 6) > 0.99
    energy = cortex.tokens[inside].unflatten(-1, (2, 8)).mean((0, 1))
    assert set(energy.topk(2).indices.tolist()) == {0, 4}


def test_ceiling_is_what_the_true_signal_reaches(cortex):
    r2 = pearson(cortex.signal, cortex.responses.mean(0)).square()
    assert (r2 - cortex.ceiling).abs().mean() < 0.04 and abs(float((r2 - cortex.ceiling).mean())) < 0.01
    assert (noise_ceiling(cortex.responses) - cortex.ceiling).abs().mean() < 0.05
    assert torch.allclose(cortex.signal.std(0), torch.ones(160), atol=1e-5)
    once = visual_cortex_simulator(300, repeats=1, voxels=20, generator=torch.Generator().manual_seed(5))
    sigma2 = 1 / once.ceiling - 1
    assert torch.allclose(1 / (1 + sigma2 / 3), cortex.ceiling, atol=1e-5)  # same noise, averaged over three


def test_category_regions_answer_to_their_kind_only(cortex):
    """Without an object of its kind, all voxels of a category region stay at one value; retinotopic ones never do."""
    there = cortex.objects[:, :CATEGORIES].flatten(2).any(-1)
    for kind in range(CATEGORIES):
        silent = cortex.signal[~there[:, kind]][:, cortex.rois[4 + kind]]
        seen = cortex.signal[there[:, kind]][:, cortex.rois[4 + kind]]
        assert silent.std(0).max() < 1e-5 and seen.std(0).min() > 0.1
    assert cortex.signal[:, cortex.rois[:4].any(0)].std(0).min() > 0.5


def test_an_object_that_moves_moves_no_category_answer(cortex):
    """Amplitudes averaged on the object are the same wherever a picture is shifted to (by whole pixels, away from the edge)."""
    image = torch.zeros(2, 48, 48)
    ripple = torch.cos(torch.arange(48) * 1.1)[None] * torch.ones(48, 1)
    objects = torch.zeros(2, 6, 48, 48, dtype=torch.bool)
    image[0, 10:20, 10:20] = ripple[10:20, 10:20]
    image[1] = image[0].roll((15, 9), (0, 1))
    objects[0, 0, 10:20, 10:20] = True
    objects[1, 0] = objects[0, 0].roll((15, 9), (0, 1))
    tokens, places, things = visual_cortex._seen(image, objects)
    assert torch.allclose(things[0, 0], things[1, 0], atol=1e-6)
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-2) and not torch.allclose(places[0], places[1], atol=1e-2)
    assert bool((things[:, 1:] == 0).all())


def test_no_answer_to_even_light():
    tokens, _, _ = visual_cortex._seen(torch.full((1, 48, 48), 3.0), torch.zeros(1, 6, 48, 48, dtype=torch.bool))
    assert tokens[:, 2:-2, 2:-2].max() < 2e-3


def test_seeds_and_rows(cortex):
    again = visual_cortex_simulator(300, voxels=20, generator=torch.Generator().manual_seed(5))
    assert torch.equal(again.responses, cortex.responses) and len(cortex.rows(slice(10, 30))) == 20
    part = cortex.rows(slice(10, 30))
    assert torch.equal(part.responses, cortex.responses[:, 10:30]) and torch.equal(part.signal, cortex.signal[10:30])
    assert torch.equal(cortex.rois.sum(0), torch.ones(160, dtype=torch.long))


def test_bad_sizes_are_refused():
    with pytest.raises(Refused, match="count, repeats, voxels"):
        visual_cortex_simulator(1)
    with pytest.raises(Refused, match="count, repeats, voxels"):
        visual_cortex_simulator(10, repeats=0)
    with pytest.raises(Refused, match="do not show each of the 4 kinds"):
        visual_cortex_simulator(2, generator=torch.Generator().manual_seed(1))
