"""What Song et al. 2025 claim of LangevinFlow: damped oscillators as latents recover firing rates, and forecast them.

Ground truth comes from simulators (`data.latent_spikes`): 65 starting points of the Lorenz system or of a ring of oscillators, 20
trials each, 30 neurons; 22 are seen, 8 held out; 60 bins are observed, 10 lie ahead. Of a condition's trials 14 train, 2 validate
and 4 test. Real data, of which only scores of prediction are claimed, are the packaged grasshopper's receptor. Populations of the
Neural Latents Benchmark are not packaged: `data.read_latents_benchmark` reads them.

All nets have the same encoder, decoder and steps, Adam with a cosine after a warm-up (without one, and with 64 trials a step, some
stayed at the mean rates), and the ramp over the first quarter of the steps, as published. At the published δ = .01 and γ = .55 the
potential is nearly inert: in 70 bins random kernels change z by .03 and the strongest by .08, where z has a standard deviation
of 1.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from neuropil import data as recorded
from neuropil.brain.langevin_flow import LangevinFlow
from neuropil.brain.ridge import VoxelRidge
from neuropil.brain.scores import explained_variance
from neuropil.brain.spikes import bits_per_spike, poisson_nll
from neuropil.data.latent_spikes import latent_spikes
from neuropil.errors import optional
from neuropil.lab import Metric, More, Outcome, Trial, claim
from neuropil.training.fit import cosine, fit, minibatches
from neuropil.training.trained import trained

SEEN, AHEAD = 22, 10
NETS: dict[str, dict[str, Any]] = {
    "langevin": {},
    "free": {"latent": "free"},
    "friction 1": {"gamma": 1.0},
    "no potential": {"potential": False},
}
# The best on validation trials of another population, for LangevinFlow and free latents alike, after 250 steps: of rates 1e-3 and
# 3e-3 at the published weight of the divergence, .1; then of .1 and the evidence bound's weight (of a sum beside a mean) at 3e-3
RATE, WEIGHT = 3e-3, 1 / (30 * 70)
SIGMAS = (1.0, 2.0, 3.0, 5.0, 8.0)  # bins; chosen on validation trials
R2 = Metric("R² of true rates, mean over neurons", better="higher")
HELD_OUT = Metric("co-smoothing, bits per spike of held-out neurons", better="higher")
FORWARD = Metric("forward prediction, bits per spike of later bins", better="higher")


@functools.cache
def population(system: str, seed: int, conditions: int, trials: int, bins: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Counts and true rates of each part of the trials."""
    drawn = latent_spikes(system, Trial(seed).generator(1), conditions=conditions, trials=trials, bins=bins)
    place = torch.arange(len(drawn)) % trials
    first, second = round(0.7 * trials), round(0.8 * trials)
    rows = {"train": place < first, "validate": (place >= first) & (place < second), "test": place >= second}
    return {part: (drawn.counts[row], drawn.rates[row]) for part, row in rows.items()}


def make(net: str, hidden: int, **rest: Any) -> nn.Module:
    """A net of 30 neurons by its name."""
    return LangevinFlow(SEEN, 30, AHEAD, hidden, feedforward=4 * hidden, **NETS[net])


def train(model: nn.Module, keep: Any, net: str, hidden: int, system: str, size: list[int], steps: int, seed: int) -> list[float]:
    """`steps` of Adam on 32 trials each; the losses."""
    counts = population(system, seed, *size)["train"][0]

    def loss(net: LangevinFlow, batch: Any) -> Tensor:
        x, y, ramp = batch
        return net.loss(x, y, ramp=ramp, weight=WEIGHT)

    return optimised(model, loss, counts[:, :-AHEAD, :SEEN], counts, steps, seed)


def optimised(model: nn.Module, loss: Any, x: Tensor, y: Tensor, steps: int, seed: int) -> list[float]:
    """Adam with a cosine after a warm-up, the gradient's norm clipped at 200 (as in the benchmark's nets); the losses.

    ``loss(model, (inputs, targets, ramp))``: the ramp of the divergence takes the first quarter of the steps.
    """
    rows = minibatches((x, y), min(32, len(x)), seed)
    return fit(
        model,
        loss,
        lambda step: (*rows(step), min(1.0, 4 * step / steps)),
        steps=steps,
        lr=RATE,
        optimizer=torch.optim.Adam,
        schedule=cosine(0.1),
        clip=200.0,
        report=lambda what, fraction: None,
    ).losses


def sizes(trial: Trial) -> tuple[list[int], int, int]:
    """Conditions, trials and bins; width; steps."""
    return trial.pick(smoke=([6, 10, 24], 8, 2), quick=([15, 20, 70], 32, 120), full=([65, 20, 70], 64, 500))


def forecast(trial: Trial, system: str, net: str) -> dict[str, Any]:
    """The test trials' rates by a trained net, and its scores."""
    size, hidden, steps = sizes(trial)
    settings = {"net": net, "hidden": hidden, "system": system, "size": size, "steps": steps, "seed": trial.seed}
    found = trained("langevinflow", make, train, seed=trial.seed, settings=settings, code=(LangevinFlow, latent_spikes))
    assert isinstance(found.model, LangevinFlow)
    counts = population(system, trial.seed, *size)["test"][0]
    rates = found.model.rates(counts[:, :-AHEAD, :SEEN], generator=trial.generator(2))
    return scored(trial, system, rates) | {"seconds": round(found.seconds, 1)}


def scored(trial: Trial, system: str, rates: Tensor) -> dict[str, Any]:
    """R² of the true rates, bits per spike of held-out neurons, and of later bins where rates go on to them."""
    counts, true = population(system, trial.seed, *sizes(trial)[0])["test"]
    log, seen = rates.clamp(min=1e-4).log(), slice(0, counts.shape[1] - AHEAD)
    scores = {
        "R2": float(explained_variance(rates[:, seen].flatten(0, 1), true[:, seen].flatten(0, 1)).mean()),
        "held out": bits_per_spike(log[:, seen, SEEN:].contiguous(), counts[:, seen, SEEN:]),
        "rates": rates,
    }
    if rates.shape[1] == counts.shape[1]:
        scores["forward"] = bits_per_spike(log[:, -AHEAD:].contiguous(), counts[:, -AHEAD:])
    return scores


def smoothed(counts: Tensor, sigma: float, present: bool = True) -> Tensor:
    """Counts under a Gaussian of `sigma` bins, normalised at the ends: (b, t, n). Unless `present`, a bin's own count is out."""
    lag = torch.arange(counts.shape[1], dtype=torch.float32)
    kernel = torch.exp(-0.5 * ((lag[:, None] - lag) / sigma) ** 2)
    if not present:
        kernel.fill_diagonal_(0)
    return (kernel / kernel.sum(1, keepdim=True)) @ counts.float()


def smoothing(trial: Trial) -> dict[str, Any]:
    """Rates of all neurons by ridge from smoothed counts, the kernel by the likelihood of validation trials.

    The present bin's own count is left out of what predicts it: it is the target, and a regression would copy its noise.
    """
    parts = {part: counts[:, :-AHEAD] for part, (counts, _) in population("lorenz", trial.seed, *sizes(trial)[0]).items()}
    found = []
    for sigma in SIGMAS:
        whole, rest = ({part: smoothed(x[..., :SEEN], sigma, own) for part, x in parts.items()} for own in (True, False))
        rates: dict[str, list[Tensor]] = {"validate": [], "test": []}
        for neuron in range(30):
            own = torch.arange(SEEN) == neuron
            x = {part: torch.where(own, rest[part], whole[part]).flatten(0, 1) for part in parts}
            ridge = VoxelRidge(lambdas=(1.0, 10.0, 100.0)).fit(x["train"], parts["train"][..., neuron].flatten().float())
            for part, predicted in rates.items():
                predicted.append(ridge.predict(x[part]).clamp(min=1e-3).view(parts[part].shape[:2]))
        error = poisson_nll(torch.stack(rates["validate"], -1).log(), parts["validate"]).mean()
        found.append((float(error), sigma, torch.stack(rates["test"], -1)))
    _, sigma, best = min(found, key=lambda one: one[0])
    return scored(trial, "lorenz", best) | {"sigma": sigma}


def factors(trial: Trial) -> dict[str, Any]:
    """Three factors of the smoothed counts (scikit-learn's factor analysis), then ridge to the counts of all neurons."""
    parts = {part: counts[:, :-AHEAD] for part, (counts, _) in population("lorenz", trial.seed, *sizes(trial)[0]).items()}
    found = []
    for sigma in SIGMAS:
        rows = {part: smoothed(x[..., :SEEN], sigma).flatten(0, 1).numpy() for part, x in parts.items()}
        analysis = optional("sklearn.decomposition", "brain").FactorAnalysis(3, random_state=0).fit(rows["train"])
        z = {part: torch.from_numpy(analysis.transform(x)).float() for part, x in rows.items()}
        ridge = VoxelRidge(lambdas=(1.0, 10.0, 100.0)).fit(z["train"], parts["train"].flatten(0, 1).float())
        rates = {part: ridge.predict(z[part]).clamp(min=1e-3).view(parts[part].shape) for part in ("validate", "test")}
        found.append((float(poisson_nll(rates["validate"].log(), parts["validate"]).mean()), rates["test"]))
    return scored(trial, "lorenz", min(found, key=lambda one: one[0])[1])


def traces(trial: Trial, system: str, named: dict[str, dict[str, Any]], title: str) -> object:
    """Three neurons (one held out) over a test trial: spikes, the true rate, and each method's."""
    import matplotlib.pyplot as plt

    counts, true = population(system, trial.seed, *sizes(trial)[0])["test"]
    figure, axes = plt.subplots(1, 3, figsize=(12, 2.8), layout="constrained")
    for ax, neuron in zip(axes, (0, 5, SEEN + 2), strict=True):
        ax.plot(true[0, :, neuron], color="0.6", lw=5, label="true rate")
        for name, found in named.items():
            ax.plot(found["rates"][0, :, neuron], label=name)
        when = counts[0, :, neuron].nonzero()[:, 0]
        ax.plot(when, torch.zeros(len(when)), "k|", ms=9)
        ax.axvspan(true.shape[1] - AHEAD - 0.5, true.shape[1] - 1, color="0.93", zorder=0)
        ax.set(title=f"neuron {neuron}" + (", held out" if neuron >= SEEN else ", seen"), xlabel="bin")
    axes[0].set_ylabel("spikes a bin")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{title}; grey: bins ahead")
    return figure


def against(trial: Trial, system: str, baseline: str, score: str, more: tuple[str, ...] = ()) -> Outcome:
    """LangevinFlow against another net, all scores in the notes."""
    nets = {net: forecast(trial, system, net) for net in trial.track(("langevin", baseline, *more), "nets")}
    trial.figure("rates", lambda: traces(trial, system, nets, f"One test trial of the {system} population"))
    notes = {f"{net}, {word}": found[word] for net, found in nets.items() for word in ("R2", "held out", "forward", "seconds")}
    return Outcome(nets["langevin"][score], nets[baseline][score], notes)


def beside_smoothing(trial: Trial, score: str) -> Outcome:
    """LangevinFlow against smoothed counts with ridge; factor analysis in the notes."""
    found = {"LangevinFlow": forecast(trial, "lorenz", "langevin"), "smoothing": smoothing(trial)}
    others = found | {"3 factors": factors(trial)}
    trial.figure("rates", lambda: traces(trial, "lorenz", found, "One test trial of the Lorenz population"))
    notes = {f"{name}, {word}": scores[word] for name, scores in others.items() for word in ("R2", "held out")}
    notes["smoothing, bins of σ"] = found["smoothing"]["sigma"]
    return Outcome(found["LangevinFlow"][score], found["smoothing"][score], notes)


@claim("langevinflow", metric=R2, expect=More(by=0.1), method="LangevinFlow", baseline="Gaussian smoothing and ridge")
def rates_of_a_lorenz_population_are_recovered(trial: Trial) -> Outcome:
    """The true rates behind single trials of a Lorenz-driven population are explained better, by .1 of R², than by smoothing."""
    return beside_smoothing(trial, "R2")


@claim("langevinflow", metric=HELD_OUT, expect=More(by=0.0), method="LangevinFlow", baseline="Gaussian smoothing and ridge")
def neurons_left_out_are_predicted(trial: Trial) -> Outcome:
    """Spikes of eight neurons that no encoder saw are told better than by smoothing those that were seen."""
    return beside_smoothing(trial, "held out")


@claim("langevinflow", metric=R2, expect=More(by=-0.01), method="LangevinFlow", baseline="the same net, latents drawn from h_t")
def no_worse_than_latents_without_dynamics(trial: Trial) -> Outcome:
    """The true rates are explained as well as by the same encoder and decoder without Langevin dynamics."""
    return against(trial, "lorenz", "free", "R2")


@claim(
    "langevinflow", metric=FORWARD, expect=More(by=-0.005), method="LangevinFlow", baseline="the same net, latents drawn from h_t"
)
def bins_ahead_are_forecast_as_well(trial: Trial) -> Outcome:
    """Ten bins after the last one observed, rates are told as well as by the same net without Langevin dynamics."""
    return against(trial, "lorenz", "free", "forward")


@claim("langevinflow", metric=FORWARD, expect=More(by=0.0), method="LangevinFlow", baseline="no potential: z drifts, v is noise")
def the_potential_helps_where_oscillators_drive(trial: Trial) -> Outcome:
    """On a population that coupled oscillators drive, taking the potential away makes forecasts worse."""
    return against(trial, "oscillators", "no potential", "forward", ("friction 1",))


@functools.cache
def receptor(bin_ms: int = 5, length: int = 40) -> tuple[Tensor, Tensor]:
    """Both recordings in segments of .2 s: the stimulus' level in each ms (dB over its median, standardised), spikes a bin."""
    levels, counts = [], []
    for number in (1, 2):
        train = recorded.grasshopper(number)
        per = round(train.rate / 1000)
        power = train.stimulus.unflatten(0, (-1, per)).square().mean(1)
        level = (power + 1e-3 * power.median()).log()
        level = ((level - level.mean()) / level.std()).unflatten(0, (-1, bin_ms))
        edges = torch.arange(len(level) + 1, dtype=torch.float64) * bin_ms / 1000
        levels.append(level.unflatten(0, (-1, length)))
        counts.append(torch.histogram(train.times.double(), edges)[0].long().unflatten(0, (-1, length)))
    return torch.cat(levels), torch.cat(counts)[..., None]


@claim(
    "langevinflow",
    metric=Metric("bits per spike on later seconds", better="higher", unit="bit"),
    expect=More(by=0.0),
    method="LangevinFlow from the sound's level",
    baseline="Poisson regression on 50 ms of the sound's level",
)
def a_receptors_spikes_are_told_from_sound(trial: Trial) -> Outcome:
    """Spikes of a grasshopper's auditory receptor are told from the sound better than by a linear model."""
    level, counts = receptor()
    late = torch.arange(len(level)) % 50 >= 35  # of each 10 s the last 3 test
    found = {}
    for name, x in (("sound", level), ("shuffled", level[torch.randperm(len(level), generator=trial.generator(1))])):
        torch.manual_seed(trial.seed)
        model = LangevinFlow(5, 5 + 1, 0, hidden=16, feedforward=64)
        y = torch.cat([torch.zeros_like(x).long(), counts], -1)  # the inputs are no counts: their outputs are not scored
        optimised(model, last_neuron, x[~late], y[~late], trial.pick(smoke=2, quick=150, full=400), trial.seed)
        rates = model.rates(x[late], 20, trial.generator(2))[..., 5:]
        found[name] = (bits_per_spike(rates.log(), counts[late]), rates)
    lagged = torch.nn.functional.pad(level.flatten(0, 1), (0, 0, 9, 0)).unfold(0, 10, 1).flatten(1).unflatten(0, level.shape[:2])
    glm = optional("sklearn.linear_model", "brain").PoissonRegressor(alpha=1e-2, max_iter=500)
    glm.fit(lagged[~late].flatten(0, 1).numpy(), counts[~late].flatten().numpy())
    linear = torch.from_numpy(glm.predict(lagged[late].flatten(0, 1).numpy())).float().view(-1, counts.shape[1], 1)
    base = bits_per_spike(linear.log(), counts[late])
    trial.figure("receptor", lambda: heard(level[late], counts[late], found["sound"][1], linear))
    return Outcome(found["sound"][0], base, {"shuffled sound": found["shuffled"][0], "spikes tested": int(counts[late].sum())})


def last_neuron(net: LangevinFlow, batch: Any) -> Tensor:
    """Only the last neuron's likelihood counts, and nothing is dropped: the input is no part of the output."""
    x, y, ramp = batch
    log_rates, kl = net(x)
    return poisson_nll(log_rates[..., -1], y[..., -1]).mean() + 0.1 * ramp * kl.mean()


def heard(level: Tensor, counts: Tensor, rates: Tensor, linear: Tensor) -> object:
    """One second of sound, spikes, and both forecasts."""
    import matplotlib.pyplot as plt

    second = slice(0, 5)
    time = torch.arange(counts[second].numel()) * 5e-3
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 4), sharex=True, layout="constrained")
    above.plot(time, level[second].mean(-1).flatten(), color="0.4")
    above.set(ylabel="sound level", title="a grasshopper's receptor, seconds that no model was fitted to")
    below.bar(time, counts[second].flatten(), width=5e-3, color="0.85", label="spikes")
    below.plot(time, linear[second].flatten(), label="Poisson regression")
    below.plot(time, rates[second].flatten(), label="LangevinFlow")
    below.set(xlabel="time (s)", ylabel="spikes in 5 ms")
    below.legend(frameon=False)
    return figure
