"""Activation coverage: its exact invariants, the authors' numbers on a fixed net, bad input; the detectors against scikit-learn."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from neuropil.data import shifts
from neuropil.errors import Refused
from neuropil.interpret.activation_coverage import (
    ActivationCoverage,
    Influence,
    Layer,
    coverage,
    covered,
    influence,
    middle_edges,
    state,
)
from neuropil.interpret.detectors import Energy, GradNorm, Mahalanobis, MaxSoftmax, NearestNeighbour
from neuropil.lab.claims import select
from neuropil.lab.run import measure
from neuropil.nn.sites import downstream
from neuropil.numerics.streaming import Histogram, uniform_edges


def wave(*shape: int, scale: float = 1.0, phase: float = 0.0) -> Tensor:
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return scale * torch.sin(steps * 1.7 + phase).reshape(shape).float()


def fixed() -> nn.Sequential:
    """The net of the authors' numbers: its weights are a sine."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 5)).eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(wave(*p.shape, scale=0.6, phase=i))
    return model


KNOWN, NEW = wave(40, 1, 6, 6, scale=1.5, phase=0.3), wave(6, 1, 6, 6, scale=2.0, phase=0.9)
# The code has M edges and sums over the 16 and 9 places of the maps: M = 20, α = 0.5 and M = 12, α = 3 there.
LAYERS = {"1": Layer(0.5 * 16**2, 18, 4), "3": Layer(3.0 * 9**2, 10, 10)}


def test_states_counts_scores_and_coverage_of_the_authors_code():
    """Frozen from BierOne/ood_coverage, openood/postprocessors/nac, on the fixed net and inputs."""
    found = influence(fixed(), NEW, ["1", "3"])
    z, g = found.z["1"][:2] * 16, found.g["1"][:2] * 16
    assert torch.allclose(z, torch.tensor([[19.577664, 15.656807, 10.357448], [18.820866, 16.419912, 10.380504]]))
    assert torch.allclose(g, torch.tensor([[0.0488647, 0.0252352, -0.0049860], [-0.0028376, -0.0080747, -0.0112027]]), atol=1e-6)
    nac = ActivationCoverage(fixed(), LAYERS).fit(KNOWN)
    counts = [[0, 3, 3, 0, 1, 1, 0, 0, 2, 30], [6, 0, 1, 0, 0, 1, 0, 0, 1, 31], [12, 9, 2, 6, 2, 2, 3, 2, 2, 0]]
    assert nac.histograms["3"].counts.tolist() == [*counts, [15, 4, 2, 1, 3, 0, 1, 1, 3, 10]]
    scores = torch.tensor([0.63333333, 0.725, 0.90416667, 0.73333333, 0.66666667, 0.7375]).double()
    assert torch.allclose(nac.score_samples(NEW), scores, atol=1e-6)
    # There sums over the bins are divided by M, two more than there are bins to reach.
    theirs = {"1": 0.425, "3": 0.23333333}
    for site, layer in LAYERS.items():
        assert coverage(nac.histograms[site], layer.r) * layer.bins / (layer.bins + 2) == pytest.approx(theirs[site], abs=1e-7)


def test_edges_of_the_authors_code():
    theirs = [0.0, 0.28425258766775247, 0.3740622422717944, 0.42907060246644263, 0.468836628580743, 0.5, 0.531163371419257]
    edges = middle_edges(10)
    assert torch.allclose(edges[:7], torch.tensor(theirs, dtype=torch.float64), atol=1e-12)
    assert edges[-1] == 1
    assert torch.allclose(edges, 1 - edges.flip(0), atol=1e-15)
    assert (middle_edges(500).diff() > 0).all()


def test_gradient_is_p_minus_uniform_pulled_back():
    model = fixed()
    found = influence(model, NEW, ["3", "5"])
    p = found.logits.softmax(1)
    assert torch.allclose(found.g["5"], p - 1 / 5, atol=1e-7)
    z, f = downstream(model, "3", NEW)
    _, pulled = torch.func.vjp(f, z)
    assert torch.allclose(found.g["3"], pulled(p - 1 / 5)[0].mean((2, 3)), atol=1e-6)


def test_coverage_lies_between_0_and_1_and_known_states_are_covered_at_r_1():
    nac = ActivationCoverage(fixed(), {s: Layer(x.alpha, x.bins, 1) for s, x in LAYERS.items()})
    found = influence(fixed(), KNOWN, ["1", "3"])
    assert (nac.fit(found).score_samples(found) == 1).all()
    new = nac.score_samples(NEW)
    assert ((new >= 0) & (new <= 1)).all() and (new < 1).any()
    assert 0 < nac.coverage() < 1


def test_more_known_data_never_lowers_a_score():
    found = influence(fixed(), KNOWN, ["1", "3"])
    nac, previous = ActivationCoverage(fixed(), LAYERS), torch.zeros(6)
    for part in (found[:10], found[10:25], found[25:]):
        scores = nac.partial_fit(part).score_samples(NEW)
        assert (scores >= previous).all()
        previous = scores
    assert (previous > 0).any()
    whole = ActivationCoverage(fixed(), LAYERS).fit(found)  # merged parts are the whole, exactly
    assert all(torch.equal(nac.histograms[s].counts, whole.histograms[s].counts) for s in LAYERS)
    assert torch.equal(nac.fit(found[:10]).histograms["1"].counts.sum(1), torch.full((3,), 10))  # fit starts from nothing


def test_size_of_batches_changes_nothing_and_the_model_is_as_before():
    model = fixed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    a, b = (influence(model, NEW, ["1", "3"], batch=batch) for batch in (1, 4))
    for site in ("1", "3"):
        assert torch.allclose(a.z[site], b.z[site], atol=1e-6) and torch.allclose(a.g[site], b.g[site], atol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():  # and it needs no gradient mode, nor parameters that ask for gradients
        assert torch.equal(influence(model.requires_grad_(False), NEW, ["1"], batch=4).g["1"], b.g["1"])


def test_states_without_value_or_gradient():
    z, g = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 3.0]])
    assert torch.equal(state(z, g, 2.0), torch.sigmoid(2 * z * g))
    assert torch.equal(state(z, g, 2.0, "z"), torch.sigmoid(2 * z))
    assert torch.equal(state(z, g, 2.0, "g"), torch.sigmoid(2 * g))


def test_only_rightly_classified_inputs_count_where_there_are_labels():
    found = influence(fixed(), KNOWN, ["3"])
    y = found.logits.argmax(1)
    y[:15] = (y[:15] + 1) % 5
    nac = ActivationCoverage(fixed(), {"3": LAYERS["3"]}).fit(found, y)
    assert nac.histograms["3"].counts.sum(1).tolist() == [25] * 4


def test_a_state_of_exactly_1_lies_in_the_last_bin():
    for layer in (Layer(bins=10, grid="uniform"), Layer(bins=10)):
        known = Histogram.of(torch.ones(3, 1), layer.edges)
        assert covered(known, torch.tensor([[1.0], [0.0]]), 3).flatten().tolist() == [1.0, 0.0]


def test_tokens_take_their_own_pool_and_half_precision_gives_float_states():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(x).tanh().mean(1))

    model, x = Tokens().eval(), torch.randn(7, 5, 4)
    assert influence(model, x, ["mix"], pool=lambda v: v.mean(1)).z["mix"].shape == (7, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = influence(model, x, ["mix"], pool=lambda v: v.mean(1))
    assert found.z["mix"].dtype == found.g["mix"].dtype == torch.float32


def test_bad_input_is_refused():
    model = fixed()
    with pytest.raises(Refused, match=r"model: is in train mode.*model.eval"):
        influence(fixed().train(), NEW, ["1"])
    with pytest.raises(Refused, match=r"^x: must be torch.float32"):
        influence(model, NEW.double(), ["1"])
    with pytest.raises(Refused, match=r"^x: must be finite"):
        ActivationCoverage(model, ["1"]).fit(torch.full_like(NEW, torch.inf))
    with pytest.raises(Refused, match=r"^x: must be torch.float32"):
        GradNorm(model, "1").score_samples(NEW.double())
    with pytest.raises(Refused, match="no submodule 'layer'"):
        influence(model, NEW, ["layer"])
    twice = nn.ReLU()
    with pytest.raises(Refused, match="'0' must pass one tensor once"):
        influence(nn.Sequential(twice, nn.Linear(2, 2), twice).eval(), torch.ones(1, 2), ["0"])
    with pytest.raises(Refused, match=r"logits \(6, classes\), got \(6, 3, 4, 4\)"):
        influence(model[:2].eval(), NEW, ["1"])
    with pytest.raises(Refused, match="pool: must give"):
        influence(model, NEW, ["1"], pool=lambda v: v)
    with pytest.raises(Refused, match="call fit first"):
        ActivationCoverage(model, ["1"]).score_samples(NEW)
    with pytest.raises(Refused, match="kind: unknown 'gz'"):
        ActivationCoverage(model, ["1"], "gz")
    with pytest.raises(Refused, match="y: one label"):
        ActivationCoverage(model, ["1"]).fit(influence(model, NEW, ["1"]), torch.zeros(3, dtype=torch.long))
    with pytest.raises(Refused, match="lacks the sites 3"):
        ActivationCoverage(model, ["3"]).fit(influence(model, NEW, ["1"]))
    for settings, name in (({"alpha": 0.0}, "alpha"), ({"bins": 1}, "bins"), ({"r": 0}, "r:"), ({"grid": "log"}, "grid")):
        with pytest.raises(Refused, match=name):
            Layer(**settings)
    with pytest.raises(Refused, match="even number"):
        ActivationCoverage(model, {"1": Layer(bins=7)}).fit(NEW)
    with pytest.raises(Refused, match="temperature"):
        Energy(model, 0.0)
    with pytest.raises(Refused, match="at least k = 50 known"):
        NearestNeighbour(model, "3").fit(NEW)
    with pytest.raises(Refused, match="call fit first"):
        NearestNeighbour(model, "3").score_samples(NEW)
    with pytest.raises(Refused, match="one label"):
        Mahalanobis(model, "3").fit(NEW)


def test_neighbours_and_mahalanobis_as_scikit_learn_has_them():
    neighbors, covariance = pytest.importorskip("sklearn.neighbors"), pytest.importorskip("sklearn.covariance")
    model = nn.Sequential(nn.Linear(6, 4), nn.Identity(), nn.Linear(4, 3)).eval()
    known, new, y = torch.randn(60, 6), torch.randn(9, 6), torch.arange(60) % 3
    f, h = model[0](known).detach().double(), model[0](new).detach().double()
    tree = neighbors.NearestNeighbors(n_neighbors=5).fit((f / f.norm(dim=1, keepdim=True)).numpy())
    distance = torch.from_numpy(tree.kneighbors((h / h.norm(dim=1, keepdim=True)).numpy())[0][:, -1])
    assert torch.allclose(NearestNeighbour(model, "1", 5).fit(known).score_samples(new).double(), -distance.square(), atol=1e-5)
    means = torch.stack([f[y == c].mean(0) for c in range(3)])
    fitted = covariance.EmpiricalCovariance(assume_centered=True).fit((f - means[y]).numpy())
    each = torch.stack([torch.from_numpy(fitted.mahalanobis((h - mean).numpy())) for mean in means])
    assert torch.allclose(Mahalanobis(model, "1").fit(known, y).score_samples(new).double(), -each.amin(0), rtol=1e-4)


def test_gradnorm_is_the_norm_of_the_gradient():
    model, x = fixed(), NEW[:1]
    f = model[:5](x).detach()
    weight = model[5].weight.detach().requires_grad_()
    uniform = torch.full((1, 5), 1 / 5)
    [gradient] = torch.autograd.grad(cross_entropy(linear(f, weight, model[5].bias), uniform), weight)
    assert torch.allclose(GradNorm(model, "5:in").score_samples(x), gradient.abs().sum().detach()[None], rtol=1e-5)


def test_confidence_and_energy_in_batches():
    model = fixed()
    logits = model(NEW).detach()
    assert torch.allclose(MaxSoftmax(model, batch=4).score_samples(NEW), logits.softmax(1).amax(1))
    assert torch.allclose(Energy(model, 2.0, batch=4).score_samples(NEW), 2 * (logits / 2).logsumexp(1))


def test_rows_of_an_influence():
    whole = influence(fixed(), NEW, ["3"])
    part = whole[whole.logits[:, 0] > -math.inf]
    assert isinstance(part, Influence) and torch.equal(part.z["3"], whole.z["3"])
    assert len(whole[2:5]) == 3


def test_shifts():
    x = torch.rand(3, 28, 28)
    assert torch.allclose(shifts.turned(x, 90), x.rot90(1, (1, 2)), atol=1e-4)
    assert torch.equal(shifts.inverted(shifts.inverted(x.double())), x.double())
    noisy = shifts.noisy(x, 0.5, torch.Generator().manual_seed(0))
    assert noisy.min() == 0 and noisy.max() == 1
    cut = [shifts.patches(["brick", "page", "coffee"], 6, 28, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(cut[0], cut[1]) and not torch.equal(cut[0], cut[2])
    assert all(c.min() >= 0 and c.max() <= 1 and c.std() > 0.02 for c in cut[0])
    assert torch.equal(shifts.resized(torch.eye(4)[None], 2), torch.tensor([[[0.5, 0.0], [0.0, 0.5]]]))
    with pytest.raises(Refused, match="names"):
        shifts.patches([], 1, 28)


def test_a_model_uses_the_range_that_its_states_fill():
    """NAC-ME of states spread over all bins is 1; of one state it is one bin of them."""
    edges = uniform_edges(0, 1, 10)
    assert coverage(Histogram.of(torch.linspace(0, 1, 1000)[:, None], edges), 90) == 1
    assert coverage(Histogram.of(torch.full((1000, 1), 0.5), edges), 90) == pytest.approx(0.1)


@pytest.mark.parametrize("claim", select("nac"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert all(-1 <= row[side] <= 1 for side in ("method", "baseline"))
