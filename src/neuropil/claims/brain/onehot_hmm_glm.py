"""What Li et al. 2024 claim of a one-hot prior on couplings: the wiring, the states and new trials, against free couplings.

A simulator by the paper's law: 20 neurons, 5 states; 10 trials of 500 bins to fit, 10 to test. All models begin with the same
fitted Gaussian model (the likeliest of six fits from random paths, by the training data) and then take the same 10 × 50 steps.

With the 30 trials of 1,000 bins of the paper's demo the data leave a prior little to say: on one network free couplings from a
random path came to 0.984 of the states and 0.947 of the wiring (best threshold). In that demo free and Gaussian couplings hardly
switch at all, because all of their states start alike.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from neuropil.brain.hmm_glm import HMMGLM
from neuropil.data.loaders import grasshopper
from neuropil.data.spike_simulators import SwitchingNetwork, switching_network, switching_spikes
from neuropil.errors import optional
from neuropil.lab import Metric, More, Outcome, Trial, claim
from neuropil.numerics.matching import match_labels

PRIORS = ("naive", "gaussian", "one-hot")
THRESHOLDS = {"naive": 0.5, "gaussian": 0.3}  # |w| above it counts as a coupling: the best of 0.2 … 0.5 on the network of seed 11
LIKELIHOOD = Metric("log-likelihood of new trials", better="higher", unit="nats a spike")


@dataclass(frozen=True)
class Study:
    """The network, the test trials, and what each model makes of them: signs, weights and paths under the true states' names."""

    network: SwitchingNetwork
    states: Tensor
    signs: dict[str, Tensor]
    wiring: dict[str, float]
    accuracy: dict[str, float]
    likelihood: dict[str, float]
    error: dict[str, float]
    paths: dict[str, Tensor]


@functools.cache
def study(seed: int, neurons: int, states: int, trials: int, length: int, restarts: int, sweeps: int, steps: int) -> Study:
    """Simulate, fit all models, score them."""
    balanced = optional("sklearn.metrics", "brain").balanced_accuracy_score
    generator = Trial(seed).generator(1)
    network = switching_network(neurons, states, generator)
    counts, z = switching_spikes(network, 2 * trials, length, generator)
    train, test, z = counts[:trials], counts[trials:], z[trials:]
    start = HMMGLM(states, "gaussian", sweeps=sweeps, steps=steps, restarts=restarts, seed=seed).fit(train)
    found = Study(network, z, {}, {}, {}, {}, {}, {})
    for prior in PRIORS:
        model = HMMGLM(states, prior, sweeps=sweeps, steps=steps, seed=seed).fit(train, start=start)
        path = model.predict(test)
        names = match_labels(z, path, states)
        weights = model.weights_[names]
        signs = weights.sign() * (weights.abs() > THRESHOLDS.get(prior, 0.0))
        path = names.argsort()[path]
        found.signs[prior], found.paths[prior] = signs, path
        found.wiring[prior] = float(balanced(network.adjacency.flatten(), signs.long().flatten()))
        found.accuracy[prior] = float(balanced(z.flatten(), path.flatten()))
        found.likelihood[prior] = model.score(test)
        found.error[prior] = float((weights - network.weights).square().mean())
    found.likelihood["one state"] = HMMGLM(1, "naive", sweeps=sweeps, steps=steps).fit(train).score(test)
    return found


def studied(trial: Trial) -> Study:
    """At the trial's budget."""
    sizes = trial.pick(smoke=(4, 2, 2, 60, 1, 1, 3), quick=(10, 3, 12, 500, 2, 10, 50), full=(20, 5, 10, 500, 6, 10, 50))
    return study(trial.seed, *sizes)


def wirings(found: Study) -> object:
    """The signs of one state's couplings, true and found."""
    import matplotlib.pyplot as plt

    named = {"true": found.network.adjacency, **found.signs}
    figure, axes = plt.subplots(2, len(named), figsize=(10, 5.2))
    for column, (name, signs) in enumerate(named.items()):
        for s in range(2):
            axes[s, column].imshow(signs[s], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            axes[s, column].set(xticks=[], yticks=[], ylabel=f"state {s + 1}: to neuron" if column == 0 else "")
        score = "" if name == "true" else f" ({found.wiring[name]:.2f})"
        axes[0, column].set_title(f"{name}{score}")
        axes[1, column].set_xlabel("from neuron")
    figure.suptitle("Excitatory (red) and inhibitory (blue) couplings; balanced accuracy of all states")
    return figure


def paths(found: Study) -> object:
    """The states of one new trial, true and found."""
    import matplotlib.pyplot as plt

    named = {"true": found.states, **found.paths}
    figure, axes = plt.subplots(len(named), 1, figsize=(8, 2.6), sharex=True)
    for axis, (name, z) in zip(axes, named.items(), strict=True):
        axis.imshow(z[:1], aspect="auto", cmap="tab10", vmin=0, vmax=9, interpolation="nearest")
        axis.set(yticks=[])
        score = "" if name == "true" else f" {found.accuracy[name]:.2f}"
        axis.set_ylabel(name + score, rotation=0, ha="right", va="center")
    axes[-1].set_xlabel("bin of a new trial")
    figure.suptitle("Which state, most probable path (balanced accuracy over all new trials)")
    return figure


@claim(
    "onehot-hmm-glm",
    metric=Metric("balanced accuracy of the couplings' signs", better="higher"),
    expect=More(by=0.05),
    method="one-hot prior, arg max",
    baseline="free couplings, |w| > 0.5",
    paper="best recovery of the adjacency of three models",
)
def one_hot_prior_finds_the_wiring(trial: Trial) -> Outcome:
    """The one-hot prior tells inhibitory, absent and excitatory couplings apart better than free couplings cut at a threshold.

    The threshold is the best on the network of another seed. The notes have the Gaussian prior, cut at its own best, and the
    squared errors of the weights. On two seeds outside those measured (11, 12) it was 0.865 and 0.870 against 0.830 and 0.830: a
    gain, but less than the margin; the cut Gaussian prior came to 0.871 and 0.867. It is the tie between the states that helps,
    whichever prior makes it. With about 1,000 bins a state a weight is known to some 0.2: smaller ones are lost to all models.
    """
    found = studied(trial)
    trial.figure("wiring", lambda: wirings(found))
    notes = {"gaussian": found.wiring["gaussian"], "weight MSE": found.error, "chance": 1 / 3}
    return Outcome(found.wiring["one-hot"], found.wiring["naive"], notes)


@claim(
    "onehot-hmm-glm",
    metric=Metric("balanced accuracy of the states", better="higher"),
    expect=More(),
    method="one-hot prior",
    baseline="free couplings",
    paper="best state accuracy of three models",
)
def one_hot_prior_finds_the_states(trial: Trial) -> Outcome:
    """On new trials the model with the one-hot prior finds the hidden states at least as well as the one with free couplings.

    Most probable paths, after the best one-to-one renaming of the states.
    """
    found = studied(trial)
    trial.figure("states", lambda: paths(found))
    return Outcome(found.accuracy["one-hot"], found.accuracy["naive"], {"gaussian": found.accuracy["gaussian"]})


@claim(
    "onehot-hmm-glm",
    metric=LIKELIHOOD,
    expect=More(),
    method="one-hot prior",
    baseline="free couplings",
    paper="best held-out log-likelihood of three models",
)
def one_hot_prior_predicts_new_trials(trial: Trial) -> Outcome:
    """New trials are at least as likely under the one-hot prior as under free couplings."""
    found = studied(trial)
    trial.figure("likelihood", lambda: points(found.likelihood, "one-hot"))
    return Outcome(found.likelihood["one-hot"], found.likelihood["naive"], found.likelihood)


@claim(
    "onehot-hmm-glm",
    metric=LIKELIHOOD,
    expect=More(),
    method="5 states, one-hot prior",
    baseline="one state (coupled Poisson GLM)",
)
def switching_predicts_new_trials(trial: Trial) -> Outcome:
    """New trials of a network that switches are likelier under the switching model than under one coupled Poisson GLM."""
    found = studied(trial)
    trial.figure("likelihood", lambda: points(found.likelihood, "one-hot"))
    return Outcome(found.likelihood["one-hot"], found.likelihood["one state"], found.likelihood)


def points(
    named: dict[str, float], ours: str, title: str = "Log-likelihood of new trials, nats a spike (right is better)"
) -> object:
    """One point a model."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 2.4))
    for row, (name, value) in enumerate(named.items()):
        axes.plot(value, row, "o", ms=9, color="C1" if name == ours else "0.5")
        axes.annotate(f"{value:.3f}", (value, row), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8)
    axes.set(yticks=range(len(named)), yticklabels=list(named), ylim=(len(named) - 0.5, -0.8), title=title)
    axes.margins(x=0.1)
    axes.grid(axis="y", alpha=0.3)
    return figure


@claim(
    "onehot-hmm-glm",
    metric=LIKELIHOOD,
    expect=More(),
    method="3 states, free couplings",
    baseline="one state (Poisson GLM on the same history)",
)
def hidden_states_predict_a_receptors_spikes(trial: Trial) -> Outcome:
    """A second recording of a grasshopper's auditory receptor is likelier under three hidden states than under one.

    Real data, one neuron: its own history is all the coupling there is, so that this is about switching, not about wiring.
    Fitted on recording 1, scored on recording 2, in trials of 1 s and bins of 2 ms; the model is not told the sound. The notes
    have the same model fitted to bins in random order, and a constant rate.
    """
    bins, sweeps, steps = 500, trial.pick(smoke=2, quick=10, full=20), trial.pick(smoke=3, quick=20, full=50)
    train, test = (receptor(number, bins)[: trial.pick(smoke=2, quick=10, full=10)] for number in (1, 2))
    shuffled = train[:, torch.randperm(bins, generator=trial.generator(1))]

    def score(states: int, counts: Tensor) -> float:
        model = HMMGLM(states, "naive", activation="softplus", bias="state", sweeps=sweeps, steps=steps, lr=0.05, seed=trial.seed)
        return model.fit(counts).score(test)

    found = {
        "3 states": score(3, train),
        "one state": score(1, train),
        "3 states, shuffled": score(3, shuffled),
        "constant rate": float((test * train.mean().log() - train.mean() - torch.lgamma(test + 1)).sum() / test.sum()),
    }
    trial.figure("likelihood", lambda: points(found, "3 states", "Log-likelihood of recording 2, nats a spike (right is better)"))
    return Outcome(found["3 states"], found["one state"], found)


def receptor(recording: int, bins: int) -> Tensor:
    """Ten trials of 1 s of the receptor's spike counts, (10, bins, 1)."""
    times = grasshopper(recording).times
    return torch.histc(times[times < 10.0].float(), 10 * bins, 0.0, 10.0).view(10, bins, 1)
