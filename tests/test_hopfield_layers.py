"""The Hopfield layers against the authors' (live if installed, and frozen numbers), torch's attention, and their own rules."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from neuropil.errors import Refused
from neuropil.memory.hopfield import mass_count, retrieve
from neuropil.memory.hopfield_layers import Hopfield, HopfieldLayer, HopfieldPooling


def wave(*shape, phase=0.0):
    """Numbers that need no generator: sin(1 + 1.7 i + phase)."""
    return torch.sin(1 + phase + 1.7 * torch.arange(math.prod(shape), dtype=torch.float64)).reshape(shape)


def waved(layer):
    with torch.no_grad():
        for i, p in enumerate(p for n, p in sorted(layer.named_parameters()) if not n.endswith("beta")):
            p.copy_(wave(*p.shape, phase=float(i)))
    return layer


# What hflayers (ml-jku/hopfield-layers) gives for the weights and inputs of `waved` and `wave`, float64; first row of the output.
FROZEN = {
    1: [-2.129221353269, 1.050336101733, -0.491285405337, -0.542415897215, 2.436177212912, -3.045347942981],
    3: [-2.164790557611, 1.126346864735, -0.564299955389, -0.514123089817, 2.468774601916, -3.120207141002],
}


@pytest.mark.parametrize("steps", FROZEN)
def test_equal_to_the_authors_layer_on_frozen_numbers(steps):
    layer = waved(Hopfield(6, d_stored=4, hidden=3, heads=2, steps=steps).double())
    read = layer(wave(2, 3, 6), wave(2, 5, 4, phase=2.0), mask=torch.tensor([[True] * 5, [True] * 4 + [False]]))
    assert read[1, 0].tolist() == pytest.approx(FROZEN[steps], abs=1e-6)  # β is kept in float32


@pytest.mark.parametrize("steps", [1, 3])
def test_equal_to_the_installed_authors_layer(steps):
    authors = pytest.importorskip("hflayers")
    layer = waved(Hopfield(6, d_stored=4, hidden=3, heads=2, steps=steps).double())
    theirs = as_authors(authors, layer, steps)
    R, Y, mask = wave(2, 3, 6), wave(2, 5, 4, phase=2.0), torch.tensor([[True] * 5, [True] * 4 + [False]])
    read = layer(R, Y, mask=mask)
    torch.testing.assert_close(theirs((Y, R, Y), stored_pattern_padding_mask=~mask), read, atol=1e-5, rtol=0)


def as_authors(authors, layer, steps):
    """The authors' module with our weights."""
    sizes = {"stored_pattern_size": 4, "pattern_projection_size": 4, "hidden_size": 3, "output_size": 6, "num_heads": 2}
    theirs = authors.Hopfield(input_size=6, update_steps_max=steps - 1, update_steps_eps=1e-12, **sizes).double()
    core, three = theirs.association_core, (layer.query, layer.key, layer.value)
    with torch.no_grad():
        for weight, linear in zip((core.q_proj_weight, core.k_proj_weight, core.v_proj_weight), three, strict=True):
            weight.copy_(linear.weight)
        core.in_proj_bias.copy_(torch.cat([linear.bias for linear in three]))
    core.out_proj.load_state_dict(layer.out.state_dict())
    theirs.norm_state_pattern.load_state_dict(layer.norm_state.state_dict())
    theirs.norm_stored_pattern.load_state_dict(layer.norm_stored.state_dict())
    theirs.norm_pattern_projection.load_state_dict(layer.norm_value.state_dict())
    return theirs


def test_without_sizes_it_is_the_formula():
    R, Y = wave(2, 3, 8), wave(2, 5, 8, phase=1.0)
    layer = Hopfield(beta=0.7, steps=2).double()
    expected = torch.stack([retrieve(r, y, beta=0.7, steps=2) for r, y in zip(R, Y, strict=True)])
    torch.testing.assert_close(layer(R, Y), expected, atol=1e-7, rtol=0)  # β is kept in float32


def test_one_step_is_torch_attention_on_the_projections():
    layer = waved(Hopfield(6, heads=2, normalize=False).double())
    R, Y = wave(2, 3, 6), wave(2, 5, 6, phase=1.0)
    q, k, v = (w(x).unflatten(-1, (2, 3)).transpose(1, 2) for w, x in ((layer.query, R), (layer.key, Y), (layer.value, Y)))
    attention = scaled_dot_product_attention(q, k, v)  # scales by 1/√hidden itself
    torch.testing.assert_close(layer(R, Y), layer.out(attention.transpose(1, 2).flatten(2)), atol=1e-6, rtol=0)


def test_iteration_is_in_key_space_and_values_are_read_once():
    """Two steps from the state are one step from what one step called up, and values never enter the iteration."""
    R, Y, V = wave(1, 2, 4), wave(1, 5, 4, phase=1.0), wave(1, 5, 3, phase=2.0)
    once, twice = Hopfield(beta=1.5).double(), Hopfield(beta=1.5, steps=2).double()
    torch.testing.assert_close(twice(R, Y, V), once(once(R, Y), Y, V))


def test_order_of_stored_patterns_and_absent_ones_change_nothing():
    layer = waved(HopfieldPooling(4, quantity=2, heads=2).double())
    bag, order = wave(2, 5, 4), torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(layer(bag), layer(bag[:, order]))
    padded = torch.cat([bag, 100 * torch.ones(2, 3, 4, dtype=torch.float64)], dim=1)
    mask = torch.arange(8).expand(2, 8) < 5
    torch.testing.assert_close(layer(padded, mask=mask), layer(bag))


def test_a_query_stops_by_itself_whoever_is_beside_it():
    layer = Hopfield(beta=4.0, steps=50, tol=1e-3).double()
    R, Y = wave(1, 6, 8), wave(1, 9, 8, phase=1.0)
    together = layer(R, Y)
    alone = torch.cat([layer(R[:, i : i + 1], Y) for i in range(6)], dim=1)
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together, Hopfield(beta=4.0, steps=200).double()(R, Y), atol=1e-2, rtol=0)


def test_associations_and_how_many_patterns_carry_them():
    Y = 5 * torch.eye(8).expand(1, -1, -1)
    sharp, flat = Hopfield(beta=2.0).associations(Y, Y), Hopfield(beta=1e-4).associations(Y, Y)
    torch.testing.assert_close(sharp.sum(-1), torch.ones(1, 1, 8))
    assert mass_count(sharp).eq(1).all()
    assert mass_count(flat).eq(8).all()


def test_connected_values_are_read_from_the_keys():
    layer = waved(Hopfield(6, d_stored=4, hidden=3, connected=True, normalize=False).double())
    R, Y = wave(1, 2, 6), wave(1, 5, 4, phase=1.0)
    k = layer.key(Y)
    torch.testing.assert_close(layer(R, Y), layer.out(layer.associations(R, Y)[:, 0] @ layer.value(k)))
    with pytest.raises(Refused, match="values"):
        layer(R, Y, Y)


def test_layers_learn_what_they_are_for():
    """A lookup layer's gradient reaches its stored patterns, values and β."""
    layer = HopfieldLayer(4, quantity=7, d_value=3, learn_beta=True)
    layer(torch.randn(2, 3, 4)).square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
    assert not Hopfield(4).beta.requires_grad


def test_runs_under_autocast_and_keeps_its_state():
    layer, R, Y = Hopfield(8, heads=2, steps=2), torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(R, Y).dtype == torch.bfloat16
    again = Hopfield(8, heads=2, steps=2)
    again.load_state_dict(layer.state_dict())
    torch.testing.assert_close(again(R, Y), layer(R, Y))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Hopfield(6, heads=4), "heads"),
        (lambda: Hopfield(steps=0), "steps"),
        (lambda: Hopfield(beta=-1.0), "beta"),
        (lambda: Hopfield(heads=2), "d_state"),
        (lambda: HopfieldLayer(4, quantity=0), "quantity"),
        (lambda: Hopfield()(torch.ones(1, 2, 3), torch.ones(1, 2, 4)), "state, stored"),
        (lambda: Hopfield()(torch.ones(1, 2, 3), torch.ones(1, 2, 3), mask=torch.zeros(1, 2, dtype=torch.bool)), "mask"),
    ],
)
def test_bad_input_names_the_argument(make, name):
    with pytest.raises(Refused, match=name):
        make()
