"""Routing encoders: the authors' numbers, what attention must and must not depend on, the readout by region, bad input, claims."""

import math

import numpy
import pytest
import torch

from neuropil.brain.routing_encoder import (
    EncodingModel,
    FactorisedEncoder,
    RoiReadout,
    TransformerBrainEncoder,
    evaluated,
    region_masks,
)
from neuropil.errors import Refused
from neuropil.lab.claims import select
from neuropil.lab.run import measure
from neuropil.nn.positions import sine_pos_2d
from neuropil.nn.query_decoder import QueryDecoderLayer
from neuropil.nn.sites import record

ROIS = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 1]]).bool()
CROSS = "cross_attention.pattern"


def waves(*shape, rate=0.7, shift=0.0):
    return (torch.arange(math.prod(shape), dtype=torch.float64) * rate + shift).sin().view(shape)


def encoder(channels=8, **options):
    """A small encoder whose weights are sines."""
    model = TransformerBrainEncoder(channels, 3, 4, ROIS, d=8, heads=2, hidden=12, **options).double().eval()
    with torch.no_grad():
        for i, (_, p) in enumerate(sorted(model.named_parameters())):
            p.copy_(0.5 * waves(*p.shape, shift=i))
    return model


def test_numbers_of_the_authors():
    """Their Transformer (pre-norm, one decoder layer, no encoder), linear readout and masks, run on the same weights and tokens."""
    model, x = encoder(), waves(2, 3, 4, 8, rate=0.37)
    tokens = [[0.192189, -0.250754, -0.500001], [0.479176, -0.109962, -0.536969], [0.558423, 0.012, -0.495012]]
    answers = [[-0.754034, -0.842659, -0.533904, -0.011222, 0.487122], [-0.782754, -0.89664, -0.545016, 0.002022, 0.485266]]
    assert torch.allclose(model.route(x)[1, :, :3], torch.tensor(tokens).double(), atol=1e-6)
    assert torch.allclose(model(x), torch.tensor(answers).double(), atol=1e-6)


def test_places_of_the_authors():
    """Their sine code of the 31 × 31 patches of DINOv2, 768 features: patches 0, 100 and 960 (it adds 10⁻⁶ to n)."""
    found = sine_pos_2d(31, 31, 768)[[0, 100, 960]][:, [0, 1, 50, 383, 384, 500]]
    expected = [
        [2.0130e-01, 9.7953e-01, 6.1054e-02, 1.0, 2.0130e-01, 1.2545e-02],
        [7.2479e-01, 6.8897e-01, 2.4194e-01, 1.0, 9.9872e-01, 1.0019e-01],
        [0.0, 1.0, 9.4827e-01, 1.0, 0.0, 3.7918e-01],
    ]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-5)


def layer_inputs(self_attention=False):
    torch.manual_seed(0)
    layer = QueryDecoderLayer(8, heads=2, hidden=12, self_attention=self_attention).double().eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return (
        layer,
        torch.zeros(2, 5, 8).double(),
        torch.randn(2, 12, 8).double(),
        torch.randn(5, 8).double(),
        sine_pos_2d(3, 4, 8).double(),
    )


def test_rows_of_attention_sum_to_one_and_so_do_maps():
    model, x = encoder(), waves(2, 3, 4, 8)
    with record(model, "decoder." + CROSS) as seen:
        model(x)
    assert torch.allclose(seen["decoder." + CROSS][0].sum(-1), torch.ones(2, 2, 3).double())
    for maps in (model.routing(x), model.routing(x, by_value=True)):
        assert (
            maps.shape == (2, 3, 3, 4) and torch.allclose(maps.sum((2, 3)), torch.ones(2, 3).double()) and bool((maps >= 0).all())
        )


def test_equal_keys_give_the_mean_of_the_values():
    """Keys are equal where their weights are zero; the tokens may be anything."""
    layer, target, memory, codes, pos = layer_inputs()
    layer.cross_attention.key.weight.data.zero_()
    with record(layer, "cross_attention") as seen:
        layer(target, memory, codes, pos)
    look = layer.cross_attention
    expected = look.out(look.value(memory.mean(1, keepdim=True))).expand(2, 5, 8)
    assert torch.allclose(seen["cross_attention"][0], expected)


def test_patches_moved_with_their_places_change_nothing_and_places_matter():
    layer, target, memory, codes, pos = layer_inputs()
    order = torch.randperm(12)
    out = layer(target, memory, codes, pos)
    assert torch.allclose(out, layer(target, memory[:, order], codes, pos[order]))
    assert not torch.allclose(out, layer(target, memory[:, order], codes, pos), atol=1e-3)


def test_places_go_to_keys_and_not_to_values():
    layer, target, memory, codes, pos = layer_inputs()
    with record(layer, "cross_attention.v", "cross_attention.k") as here:
        layer(target, memory, codes, pos)
    with record(layer, "cross_attention.v", "cross_attention.k") as there:
        layer(target, memory, codes, pos + 1)
    assert torch.equal(here["cross_attention.v"][0], there["cross_attention.v"][0])
    assert not torch.allclose(here["cross_attention.k"][0], there["cross_attention.k"][0])


def test_self_attention_of_zero_targets_adds_one_vector_to_all_queries():
    """Why the authors could leave it out: in the first layer it does not depend on query or picture."""
    layer, target, memory, codes, pos = layer_inputs(self_attention=True)
    with record(layer, "self_attention") as seen:
        layer(target, memory, codes, pos)
    added = seen["self_attention"][0]
    assert torch.allclose(added, added[:1, :1].expand_as(added)) and bool(added.abs().max() > 0.01)
    later = layer(torch.randn(2, 5, 8).double(), memory, codes, pos)
    assert later.shape == (2, 5, 8)


def test_a_mask_hides_patches():
    layer, target, memory, codes, pos = layer_inputs()
    mask = (torch.arange(12) < 7).expand(1, 5, 12)
    assert torch.allclose(layer(target, memory, codes, pos, mask), layer(target, memory[:, :7], codes, pos[:7]))


@pytest.mark.parametrize("kind", ["parts", "shared", "one a voxel", "one for all"])
def test_readout_by_region_equals_the_dense_masked_readout(kind):
    rois = {
        "parts": ROIS,
        "shared": torch.rand(4, 9, generator=torch.Generator().manual_seed(0)) < 0.5,
        "one a voxel": torch.eye(6, dtype=torch.bool),
        "one for all": torch.ones(1, 7, dtype=torch.bool),
    }[kind]
    rois[0, ~rois.any(0)] = True
    readout, tokens = RoiReadout(8, rois).double(), torch.randn(3, len(rois), 8).double()
    every = readout.linear(tokens)  # each region's token to all voxels, as the authors do
    assert torch.allclose(readout(tokens), (every * rois).sum(1))
    for region in range(len(rois)):  # before the sum, a token leaves the voxels of others at 0
        moved = tokens.clone()
        moved[:, region] += 1
        assert torch.equal((readout(moved) != readout(tokens)).any(0), rois[region])


def test_uniform_attention_is_the_linear_readout_of_the_mean_token():
    x = torch.randn(5, 3, 4, 8)
    model = FactorisedEncoder(8, 3, 4, ROIS)  # starts uniform
    assert torch.allclose(model(x), model.readout.linear(x.mean((1, 2))), atol=1e-6)
    full = encoder()
    full.decoder.cross_attention.query.weight.data.zero_()
    full.decoder.cross_attention.query.bias.data.zero_()
    x = x.double()
    assert torch.allclose(full(x), full(x.mean((1, 2), keepdim=True).expand_as(x)), atol=1e-12)
    assert torch.allclose(full.routing(x), torch.full((5, 3, 3, 4), 1 / 12).double())


def test_state_dict_round_trip_and_autocast():
    torch.manual_seed(0)
    one, two = (TransformerBrainEncoder(6, 3, 4, ROIS, d=8, heads=2, hidden=12).eval() for _ in range(2))
    x = torch.randn(2, 3, 4, 6)
    assert not torch.allclose(one(x), two(x))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(x), two(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(one(x).float(), two(x).float()) and torch.allclose(one(x).float(), two.float()(x).float(), atol=0.1)


def planted(n=240):
    """Region 0 answers to the centre patch; region 1 to the patch whose first feature is high, wherever it is."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(n, 3, 3, 6, generator=g)
    where = torch.randint(9, (n,), generator=g)
    x[..., 0] = 0
    x.flatten(1, 2)[torch.arange(n), where, 0] = 3
    marked = x.flatten(1, 2)[torch.arange(n), where]
    w = torch.randn(5, 8, generator=g)
    y = torch.cat([x[:, 1, 1, 1:] @ w[:, :4], marked[:, 1:] @ w[:, 4:]], 1)
    return x, y, {"fixed": torch.arange(8) < 4, "routed": torch.arange(8) >= 4}, where


def test_planted_routing_is_found_and_the_fixed_map_cannot():
    x, y, rois, where = planted()
    options = {"epochs": 30, "batch": 34, "clip": 1.0}
    rates = {"attention": (1e-4, 2e-2), "factorised": (5e-2,)}
    nets = {
        kind: EncodingModel(rois, kind, d=16, heads=2, hidden=32, dropout=0.0, lrs=lrs, **options).fit(x[:200], y[:200])
        for kind, lrs in rates.items()
    }
    r = {kind: net.voxel_scores(x[200:], y[200:]) for kind, net in nets.items()}
    assert r["attention"].min() > 0.8 and r["factorised"][:4].min() > 0.9 and r["factorised"][4:].max() < 0.6
    maps = nets["attention"].maps(x[200:])[:, 1].flatten(1)
    assert (maps.argmax(1) == where[200:]).float().mean() > 0.9
    assert nets["factorised"].maps(x[200:])[0, 0].argmax() == 4
    assert nets["attention"].chosen_[0] == 2e-2  # the other learns too little in the same epochs
    for errors in nets["attention"].errors_.values():
        assert len(errors) == 30
    assert nets["factorised"].score(x[200:], y[200:]) < nets["attention"].score(x[200:], y[200:])


def test_fit_repeats_itself_and_leaves_the_global_generator_alone():
    x, y, rois, _ = planted(60)
    before = torch.get_rng_state()
    one, two = (EncodingModel(rois, d=8, heads=2, hidden=8, epochs=2).fit(x, y).predict(x) for _ in range(2))
    assert torch.equal(one, two) and torch.equal(before, torch.get_rng_state())


def test_arrays_in_arrays_out():
    x, y, rois, _ = planted(60)
    arrays = {name: mask.numpy() for name, mask in rois.items()}
    model = EncodingModel(arrays, "factorised", epochs=2).fit(x.numpy(), y.numpy())
    assert isinstance(model.predict(x.numpy()), numpy.ndarray) and isinstance(model.maps(x.numpy()), numpy.ndarray)
    assert model.predict(x.numpy()).shape == y.shape
    base = pytest.importorskip("sklearn.base")
    assert base.clone(EncodingModel(ROIS, epochs=7)).epochs == 7


def test_bad_input_is_refused():
    x, y, rois, _ = planted(60)
    constant, holes = y.clone(), y.clone()
    constant[:, 2], holes[4, 1] = 1.0, float("nan")
    empty = {**rois, "nowhere": torch.zeros(8, dtype=torch.bool)}
    for message, masks, arguments in [
        ("region 'nowhere' has no voxels", empty, (x, y)),
        (r"y: 1 of 8 columns is constant \(the first: 2\)", rois, (x, constant)),
        (r"y: contains NaN or inf, first at \(4, 1\)", rois, (x, holes)),
        ("y: must have shape 60 × 8", rois, (x, y[:, :7])),
        ("X: must have shape any × any × any × any", rois, (x.flatten(1), y)),
        ("masks over the same voxels", {"a": [1, 0], "b": [1]}, (x, y)),
    ]:
        with pytest.raises(Refused, match=message):
            EncodingModel(masks, epochs=1).fit(*arguments)
    with pytest.raises(Refused, match="routing: unknown 'atention'; did you mean 'attention'"):
        EncodingModel(rois, "atention").fit(x, y)
    with pytest.raises(Refused, match="held: at least 2 of 60"):
        EncodingModel(rois, held=0.001).fit(x, y)
    with pytest.raises(ValueError, match="call fit before"):
        EncodingModel(rois).predict(x)
    with pytest.raises(Refused, match="region 1 has no voxels"):
        RoiReadout(4, torch.tensor([[True, True], [False, False]]))
    with pytest.raises(Refused, match="voxel 1 lies in no region"):
        RoiReadout(4, torch.tensor([[True, False]]))
    with pytest.raises(Refused, match="one for each of 3 regions"):
        RoiReadout(4, ROIS)(torch.randn(2, 2, 4))
    with pytest.raises(Refused, match=r"features: must be pictures × \(3, 4, 8\), got \(2, 4, 3, 8\)"):
        encoder()(torch.randn(2, 4, 3, 8).double())
    with pytest.raises(Refused, match="multiple of 4"):
        sine_pos_2d(3, 3, 6)
    with pytest.raises(Refused, match="heads"):
        QueryDecoderLayer(8, heads=3, hidden=4)
    with pytest.raises(Refused, match="dropout"):
        QueryDecoderLayer(8, heads=2, hidden=4, dropout=1.0)


@pytest.mark.parametrize(("at", "name"), [(0, "target"), (2, "query_pos"), (3, "pos")])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_decoder_layer_names_what_is_not_finite(at, name, value):
    layer, *inputs = layer_inputs()
    inputs[at] = torch.full_like(inputs[at], value)
    with pytest.raises(Refused, match=f"^{name}: must be finite"):
        layer(*inputs)
    assert region_masks([[1, 0], [0, 1]]).tolist() == [[True, False], [False, True]]


def test_evaluation_leaves_frozen_parts_frozen():
    net = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(3).eval())
    x = torch.rand(5, 3)
    assert torch.allclose(evaluated(net, x, block=2), x, atol=1e-4)
    assert net.training and net[0].training and not net[1].training


@pytest.mark.parametrize("claim", select("transformer-brain-encoder"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert all(-1.5 <= row[side] <= 1.5 for side in ("method", "baseline"))
