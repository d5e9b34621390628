import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from neuropil.brain.coordinated_dropout import coordinated_dropout, passing
from neuropil.brain.langevin_flow import LangevinFlow, LinePotential, gaussian_kl, langevin_step
from neuropil.data.latent_spikes import latent_spikes
from neuropil.errors import Refused
from neuropil.lab.claims import select
from neuropil.lab.run import measure

WIDE = torch.float64


def potential(seed=0):
    torch.manual_seed(seed)
    return LinePotential().double()


def test_the_force_is_the_gradient_of_the_energy():
    U, z = potential(), torch.randn(3, 2, 12, dtype=WIDE, requires_grad=True)
    (gradient,) = torch.autograd.grad(U(z).sum(), z)
    assert torch.allclose(U.force(z), gradient, atol=1e-12)
    # 2 sym(K) z: the Hessian is constant and symmetric, and U is half of z · force
    H = torch.autograd.functional.hessian(lambda x: U(x), z[0, 0].detach())
    assert torch.allclose(H, H.T)
    assert torch.allclose(U.force(z[0, 0]), H @ z[0, 0])
    assert torch.allclose(U.hessian(12), H)


def test_the_energy_is_the_authors():
    """KingJamesSong/LangevinFlow_CCN, Potential: K normalised along the line, convolved, times z of every channel, summed."""
    U, z = potential(), torch.randn(5, 12, dtype=WIDE)
    kernel = torch.nn.functional.normalize(U.K, p=2, dim=2)
    line = z.view(5, 4, -1)
    theirs = torch.nn.functional.conv1d(line, kernel, padding=1).bmm(line.transpose(1, 2)).sum((1, 2))
    assert torch.allclose(U(z), theirs, atol=1e-12)


def energy_band(dt, symplectic, steps):
    U = potential()
    with torch.no_grad():  # a potential that is bounded below: the same kernel on each channel, along the diagonal
        U.K.copy_(torch.tensor([0.0, 1.0, 0.0], dtype=WIDE).expand(4, 4, 3))
    z, v = torch.randn(8, dtype=WIDE, generator=torch.Generator().manual_seed(1)), torch.zeros(8, dtype=WIDE)
    still = torch.zeros(8, dtype=WIDE)
    energies = []
    with torch.no_grad():
        for _ in range(steps):
            z, v, _ = langevin_step(z, v, U.force, still, dt, gamma=0.0, symplectic=symplectic)
            energies.append(float(0.5 * v.square().sum() + U(z)))
    return max(energies) - min(energies), energies


def test_without_friction_and_noise_the_energy_stays_in_a_band():
    wide, _ = energy_band(0.02, True, 500)
    narrow, energies = energy_band(0.01, True, 1000)
    assert narrow < 0.6 * wide  # O(dt)
    assert abs(energies[-1] - energies[0]) <= narrow
    drifting, _ = energy_band(0.01, False, 1000)  # the released order is explicit Euler, which gains energy
    assert drifting > 10 * narrow


def test_a_step_has_the_stated_law():
    generator = torch.Generator().manual_seed(0)
    z, v = torch.zeros(100_000, dtype=WIDE), torch.ones(100_000, dtype=WIDE)
    moved, new, mean = langevin_step(z, v, None, torch.randn(100_000, generator=generator, dtype=WIDE), dt=0.01, gamma=0.55)
    assert torch.allclose(moved, torch.full_like(z, 0.01))
    assert torch.allclose(mean, torch.full_like(z, 0.45))
    assert float(new.mean()) == pytest.approx(0.45, abs=0.01)
    assert float(new.var()) == pytest.approx(1.1, abs=0.02)


def test_gaussian_kl_is_torchs():
    mean, variance = torch.randn(5), torch.rand(5) + 0.1
    expected = kl_divergence(Normal(mean, variance.sqrt()), Normal(torch.zeros(5), torch.full((5,), math.sqrt(0.1))))
    assert torch.allclose(gaussian_kl(mean, variance, 0.1), expected, atol=1e-5)


def test_the_kl_of_a_trial_by_hand():
    """With all maps at zero the starts are N(0, 1), free of cost, and each v_t costs the divergence of its own law."""
    torch.manual_seed(0)
    net = LangevinFlow(3, 4, ahead=2, hidden=8, feedforward=8, dropout=0.0, potential=False)
    for layer in (net.z_mean, net.z_log_var, net.v_mean, net.v_log_var):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    counts = torch.poisson(torch.ones(2, 5, 3))
    found = net(counts, torch.Generator().manual_seed(3))[1]
    noise = torch.randn(2 * 7, 2, 8, generator=torch.Generator().manual_seed(3))
    v, expected = noise[1], torch.zeros(2)
    for t in range(6):
        mean = 0.45 * v
        expected = expected + kl_divergence(Normal(mean, math.sqrt(1.1)), Normal(torch.zeros(8), math.sqrt(0.1))).sum(-1)
        v = mean + math.sqrt(1.1) * noise[2 + t]
    assert torch.allclose(found, expected, rtol=1e-4)
    net.released_kl = True
    assert not torch.allclose(net(counts, torch.Generator().manual_seed(3))[1], expected, rtol=1e-2)


def test_the_latents_do_not_see_the_present_bin_but_rates_do():
    torch.manual_seed(0)
    net = LangevinFlow(3, 3, hidden=8, feedforward=8, dropout=0.0)
    a = torch.poisson(torch.ones(1, 6, 3))
    b = a.clone()
    b[:, 4:] += 3
    paths = []
    for x in (a, b):
        latents, _ = net._langevin(net.encoder(x[:, 0]), x.transpose(0, 1)[:-1], torch.zeros(12, 1, 8))
        paths.append(latents[..., 16:])
    assert torch.allclose(paths[0][:5], paths[1][:5])  # bins 0 … 4: h_4 has seen bins 0 … 3
    assert not torch.allclose(paths[0][5], paths[1][5], atol=1e-4)
    rates = [net(x, torch.Generator().manual_seed(0))[0] for x in (a, b)]
    assert not torch.allclose(rates[0][:, 0], rates[1][:, 0], atol=1e-6)  # not causal, as the docstring says


@pytest.mark.parametrize("latent", ["langevin", "free"])
def test_training_lowers_the_loss(latent):
    torch.manual_seed(0)
    data = latent_spikes("oscillators", torch.Generator().manual_seed(0), conditions=4, trials=8, bins=12, neurons=6, mean=1.0)
    net = LangevinFlow(4, 6, ahead=2, hidden=8, feedforward=16, latent=latent)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = net.loss(data.counts[:, :10, :4], data.counts, ramp=0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])
    assert all(p.grad is not None for name, p in net.named_parameters() if "log_var" not in name)
    net.dropout.eval()  # frozen, and stays so
    assert net.rates(data.counts[:, :10, :4], 2).shape == data.rates.shape
    assert net.training and net.readout.training and not net.dropout.training


def test_coordinated_dropout():
    generator = torch.Generator().manual_seed(0)
    x = torch.ones(20, 50, 30)
    dropped, passes = coordinated_dropout(x, 0.7, generator)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.01)  # the expected sum is kept
    assert torch.allclose(dropped.unique(), torch.tensor([0.0, 1 / 0.7]))
    assert bool(passes[dropped == 0].all())
    assert float(passes[dropped > 0].float().mean()) == pytest.approx(0.3, abs=0.02)
    loss = torch.rand(20, 60, 35, requires_grad=True)
    kept = passing(loss, passes)
    assert torch.equal(kept, loss)
    kept.sum().backward()
    assert torch.equal(loss.grad[:, :50, :30].bool(), passes)
    assert bool((loss.grad[:, 50:] == 1).all())
    assert bool((loss.grad[..., 30:] == 1).all())


def test_state_dict_round_trip():
    torch.manual_seed(0)
    first, second = (LangevinFlow(3, 4, hidden=8, feedforward=8).eval() for _ in range(2))
    second.load_state_dict(first.state_dict())
    x = torch.ones(2, 5, 3)
    assert torch.equal(*(net(x, torch.Generator().manual_seed(0))[0] for net in (first, second)))


@pytest.mark.parametrize("system", ["lorenz", "oscillators"])
def test_populations(system):
    data = latent_spikes(system, torch.Generator().manual_seed(0), conditions=30, trials=40, bins=40, mean=0.5)
    assert float(data.rates.mean()) == pytest.approx(0.5, abs=1e-4)
    assert torch.allclose(data.latents.flatten(0, 1).std(0), torch.ones(data.latents.shape[-1]), atol=0.01)
    by_condition = data.counts.float().unflatten(0, (30, 40)).mean(1)
    rates = data.rates.unflatten(0, (30, 40))
    assert torch.equal(rates[:, 0], rates[:, -1])
    assert float((by_condition - rates[:, 0]).abs().mean()) < 0.15  # 40 trials: √(.5 / 40) ≈ .11
    spread = (data.counts.float() - data.rates).square().mean()
    assert float(spread / data.rates.mean()) == pytest.approx(1, abs=0.05)  # Poisson: variance = mean


def test_lorenz_against_a_finer_step():
    coarse, fine = (latent_spikes("lorenz", torch.Generator().manual_seed(0), conditions=3, trials=1, bins=n, pace=p).latents
                    for n, p in ((21, 0.03), (201, 0.003)))  # fmt: skip
    ratio = (coarse - coarse.mean((0, 1))) / coarse.std((0, 1))
    thin = fine[:, ::10]
    thin = (thin - thin.mean((0, 1))) / thin.std((0, 1))
    assert float((ratio - thin).abs().max()) < 0.02


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LangevinFlow(5, 4), "seen, neurons"),
        (lambda: LangevinFlow(3, 4, hidden=10), "multiple of 4"),
        (lambda: LangevinFlow(3, 4, gamma=1.5), "gamma"),
        (lambda: LangevinFlow(3, 4, latent="still"), "latent"),
        (lambda: LangevinFlow(3, 4)(torch.zeros(2, 5, 4)), r"counts: must be \(trials, bins ≥ 1, 3 neurons\)"),
        (lambda: LangevinFlow(3, 4)(torch.zeros(2, 0, 3)), "counts"),
        (lambda: LangevinFlow(3, 4).rates(torch.zeros(2, 5, 3), samples=0), "samples"),
        (lambda: LinePotential()(torch.zeros(3, 7)), "z: its width"),
        (lambda: LinePotential()(torch.zeros(3, 0)), "z: its width"),
        (lambda: LinePotential().force(torch.zeros(3, 8).double()), "^z: must be torch.float32"),
        (lambda: LinePotential().hessian(0), "^d: must be at least 1"),
        (lambda: LangevinFlow(3, 4, feedforward=0), "^feedforward: must be at least 1"),
        (lambda: langevin_step(*torch.zeros(2, 4), None, torch.zeros(4), gamma=-1.0), "^dt, gamma"),
        (lambda: langevin_step(*torch.zeros(2, 4), None, torch.zeros(4), dt=math.nan), "^dt, gamma"),
        (lambda: gaussian_kl(torch.zeros(1), torch.ones(1), 0.0), "^prior: must be above 0"),
        (lambda: coordinated_dropout(torch.zeros(1, 1, 1), 0.0), "keep"),
        (lambda: passing(torch.zeros(1, 2, 2), torch.ones(1, 3, 2, dtype=torch.bool)), "passes"),
        (lambda: latent_spikes("pendulum", torch.Generator()), "system"),
        (lambda: latent_spikes("lorenz", torch.Generator(), mean=0.0), "mean"),
        (lambda: latent_spikes("lorenz", torch.Generator(), bins=0), "bins"),
    ],
)
def test_bad_input_is_refused(make, words):
    with pytest.raises(Refused, match=words):
        make()


@pytest.mark.parametrize("claim", select("langevinflow"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert math.isfinite(row["method"])
