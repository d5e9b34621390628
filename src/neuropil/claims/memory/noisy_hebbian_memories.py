"""What "Robust Associative Memories … Under Noise" (2017) claims: permanent links after repeated evidence give Willshaw's
memory."""

import torch
from torch import Tensor

from neuropil import data
from neuropil.lab import Close, Metric, More, Outcome, Ratio, Trial, claim
from neuropil.memory.binary_hopfield import hebb, settle
from neuropil.memory.noisy_hebb import ConsolidatedHebb, agreement, theta_bound
from neuropil.memory.willshaw import (
    active,
    cliques,
    clustered_messages,
    density,
    erase_clusters,
    insert_erase,
    recall,
    recall_clique,
    sparse_messages,
    willshaw,
)

UNITS, ACTIVE, MESSAGES, EPOCHS = 400, 8, 150, 12
P_I, P_E = 0.01, 0.1
PRECISION = Metric("precision of links", better="higher")
RULES = {"consolidated": ConsolidatedHebb(), "plain": ConsolidatedHebb(theta=1.0)}


def random_messages(trial: Trial) -> Tensor:
    """150 random messages of 8 active units among 400 (a simulator)."""
    return sparse_messages(trial.pick(smoke=40, quick=MESSAGES, full=MESSAGES), UNITS, ACTIVE, trial.generator())


def digit_codes(trial: Trial) -> Tensor:
    """150 MNIST digits as sparse codes: of 400 random projections of the centred pixels, the 8 largest are active."""
    pixels = data.digits("mnist").pixels.flatten(1)
    chosen = torch.randperm(len(pixels), generator=trial.generator())[: trial.pick(smoke=40, quick=MESSAGES, full=MESSAGES)]
    drive = (pixels[chosen] - pixels.mean(0)) @ torch.randn(784, UNITS, generator=trial.generator(1))
    return active(drive - drive.min() + 1, ACTIVE)


def learned(trial: Trial, messages: Tensor, rule: ConsolidatedHebb, epochs: int = EPOCHS) -> Tensor:
    """W after 12 epochs of noisy presentations; every rule sees the same noise."""
    return rule.learn(messages, trial.pick(smoke=2, quick=epochs, full=epochs), P_I, P_E, generator=trial.generator(2)).W


def retrieval(trial: Trial, messages: Tensor, W: Tensor) -> float:
    """The share of messages that come back exactly from a noisy cue; the cue is not held."""
    noisy = insert_erase(messages, P_I, P_E, generator=trial.generator(3))
    return float((recall(noisy, W, ACTIVE) == messages).all(1).float().mean())


def emergence(trial: Trial, messages: Tensor, quantity: int) -> Outcome:
    """Precision (0), recall (1) or retrieval (2) of both rules, and all three of them over a sweep of θ."""
    target = willshaw(messages)

    def measure(rule: ConsolidatedHebb) -> list[float]:
        W = learned(trial, messages, rule)
        return [*agreement(W, target), retrieval(trial, messages, W)]

    thetas = trial.pick(smoke=(1, 4), quick=(1, 2, 3, 4, 5, 6, 8), full=(1, 2, 3, 4, 5, 6, 7, 8))
    sweep = {theta: measure(ConsolidatedHebb(theta=float(theta))) for theta in trial.track(thetas, "θ")}

    def draw() -> object:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(5.5, 3.4))
        for i, (name, style) in enumerate({"precision of links": "o-", "recall of links": "s--", "retrieval": "^-."}.items()):
            axes.plot(list(sweep), [values[i] for values in sweep.values()], style, label=name)
        axes.axvline(4, color="0.6", lw=1, ls=":")
        axes.set(xlabel="co-activities θ that make a link (plain: 1; claimed: 4)", ylim=(-0.04, 1.04))
        axes.legend(frameon=False)
        return figure

    trial.figure("theta", draw)
    names = ("precision", "recall", "retrieval")
    notes = {f"θ = {theta}": dict(zip(names, values, strict=True)) for theta, values in sweep.items()}
    notes["retrieval by Willshaw's own matrix"] = {"": retrieval(trial, messages, target)}
    bound = theta_bound(EPOCHS * len(messages), P_I, ACTIVE, UNITS)
    return Outcome(sweep[4][quantity], sweep[1][quantity], {**notes, "θ by a binomial bound on the noise": bound})


@claim(
    "noisy-hebbian-memories",
    metric=PRECISION,
    expect=More(than=0.97),
    method="consolidated rule",
    baseline="plain Hebb",
)
def the_links_are_those_of_willshaw(trial: Trial) -> Outcome:
    """Under noise, the consolidated rule makes hardly any link that Willshaw's matrix of the clean messages has not; plain Hebb
    does.

    Precision of the links after 12 epochs of 150 random messages (8 of 400 units, 10 % erased, 1 % inserted; a simulator), θ = 4.
    The plan wants plain Hebb below 0.15. The picture sweeps θ.
    """
    return emergence(trial, random_messages(trial), 0)


@claim(
    "noisy-hebbian-memories",
    metric=Metric("recall of links", better="higher"),
    expect=More(than=0.95),
    method="consolidated rule",
    baseline="plain Hebb",
)
def the_links_of_willshaw_are_found(trial: Trial) -> Outcome:
    """Under noise, the consolidated rule makes nearly all links of Willshaw's matrix of the clean messages.

    Recall of the links, measured as their precision.
    """
    return emergence(trial, random_messages(trial), 1)


@claim(
    "noisy-hebbian-memories",
    metric=Metric("messages retrieved", better="higher"),
    expect=More(by=0.85),
    method="consolidated rule",
    baseline="plain Hebb",
)
def noisy_messages_are_retrieved(trial: Trial) -> Outcome:
    """The net of the consolidated rule retrieves noisy messages (0.95 and more), that of plain Hebb does not (0.1 and less).

    Exact retrieval of all 150 messages from cues with the noise of learning; four steps, the cue is not held. The margin is the
    difference of the plan's two thresholds.
    """
    return emergence(trial, random_messages(trial), 2)


@claim(
    "noisy-hebbian-memories",
    metric=PRECISION,
    expect=More(than=0.97),
    method="consolidated rule",
    baseline="plain Hebb",
)
def digits_make_the_links_of_willshaw(trial: Trial) -> Outcome:
    """The links are Willshaw's also for real data: sparse codes of MNIST digits, which overlap more than random messages.

    150 digits, each coded by the 8 largest of 400 random projections; else as for random messages.
    """
    return emergence(trial, digit_codes(trial), 0)


def limits(trial: Trial, messages: Tensor) -> dict[str, list[list[float]]]:
    """Precision and recall of links over the epochs, without a limit on activity and with several."""
    target = willshaw(messages)
    curves: dict[str, list[list[float]]] = {}
    stops = trial.pick(smoke=(1, 2), quick=(4, 8, 12), full=(2, 4, 6, 8, 10, 12, 16, 20, 24))
    rules = {"no limit": ConsolidatedHebb()} | {f"E = {e}": ConsolidatedHebb(energy=e, steps=1) for e in (6, ACTIVE, 10, 12)}
    for name, rule in trial.track(rules.items(), "limits", total=len(rules)):
        generator, state, done = trial.generator(2), None, 0
        curves[name] = []
        for stop in stops:
            state = rule.learn(messages, stop - done, P_I, P_E, generator=generator, start=state)
            done = stop
            curves[name].append([float(stop), *agreement(state.W, target)])
    return curves


@claim(
    "noisy-hebbian-memories",
    metric=PRECISION,
    expect=More(by=0.0),
    method="energy limit E = 8",
    baseline="no limit",
)
def an_energy_limit_makes_links_purer(trial: Trial) -> Outcome:
    """With a limit on activity the links are purer, but are found more slowly.

    Precision after 12 epochs, when only the 8 units with the largest drive may be active, against the same rule without a limit;
    one recurrent update of gain 10. The picture shows precision and recall over the epochs for several limits.
    """
    curves = limits(trial, random_messages(trial))

    def draw() -> object:
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(1, 2, figsize=(8, 3.2), sharex=True)
        for i, (axes, name) in enumerate(zip(panels, ("precision of links", "recall of links"), strict=True), 1):
            for label, points in curves.items():
                axes.plot([p[0] for p in points], [p[i] for p in points], "o-", ms=3, label=label)
            axes.set(xlabel="epochs", title=name, ylim=(-0.04, 1.04))
        panels[0].legend(frameon=False, fontsize=8)
        return figure

    trial.figure("limits", draw)

    def at(name: str) -> list[float]:
        return next((p for p in curves[name] if p[0] == EPOCHS), curves[name][-1])

    notes = {name: {"epochs": at(name)[0], "precision": at(name)[1], "recall": at(name)[2]} for name in curves}
    return Outcome(at(f"E = {ACTIVE}")[1], at("no limit")[1], notes)


@claim(
    "noisy-hebbian-memories",
    metric=Metric("active units at the end", better="lower"),
    expect=Ratio(at_least=10.0),
    method="recurrent net without a limit",
    baseline="the same with E = 8",
)
def without_a_limit_activity_grows(trial: Trial) -> Outcome:
    """A recurrent net that learns without a limit on activity ends up with nearly all units active; the limit prevents it.

    Mean number of active units in the last of 12 epochs; one recurrent update in each presentation.
    """
    messages, epochs = random_messages(trial), trial.pick(smoke=5, quick=EPOCHS, full=EPOCHS)
    rules = {"no limit": ConsolidatedHebb(steps=1), f"E = {ACTIVE}": ConsolidatedHebb(steps=1, energy=ACTIVE)}
    activity = {name: r.learn(messages, epochs, P_I, P_E, generator=trial.generator(2)).activity for name, r in rules.items()}

    def draw() -> object:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(5, 3.2))
        for name, values in activity.items():
            axes.semilogy(range(1, epochs + 1), values, "o-", label=name)
        axes.axhline(ACTIVE, color="0.6", ls=":", lw=1, label="active in a message")
        axes.set(xlabel="epoch", ylabel="active units of 400", ylim=(4, 500))
        axes.legend(frameon=False)
        return figure

    trial.figure("activity", draw)
    return Outcome(activity["no limit"][-1], activity[f"E = {ACTIVE}"][-1], dict(activity))


CLUSTERS, SIZE, ERASED = 8, 64, 3
REFERENCE = {100: 1.0, 500: 0.99, 1000: 0.98, 2000: 0.67, 4000: 0.0}


def clique_recall(trial: Trial, m: int) -> float:
    """The share of messages (of at most 1,000 cues) that cliques complete exactly when 3 of 8 clusters are erased."""
    messages = clustered_messages(m, CLUSTERS, SIZE, trial.generator(m))
    cues = erase_clusters(messages[:1000], CLUSTERS, ERASED, trial.generator(m + 1))
    return float((recall_clique(cues, cliques(messages, CLUSTERS), CLUSTERS) == messages[:1000]).all(1).float().mean())


def hopfield_recall(trial: Trial, m: int) -> tuple[float, int]:
    """The same of a Hopfield net with as many bits of storage, and its number of units n.

    The cliques store a bit for each of the C(8, 2) · 64² possible links, the net n (n − 1) / 2 weights of log₂(2 m + 1) bits.
    """
    bits = CLUSTERS * (CLUSTERS - 1) / 2 * SIZE**2
    n = int((2 * bits / torch.tensor(2.0 * m + 1).log2()).sqrt())
    patterns = torch.randint(2, (m, n), generator=trial.generator(m)) * 2.0 - 1
    true = patterns[:1000]
    hidden = torch.rand(true.shape, generator=trial.generator(m + 1)) < ERASED / CLUSTERS
    read = settle(torch.where(hidden, 0.0, true), hebb(patterns), sweeps=10)
    return float((read == true).all(1).float().mean()), n


@claim(
    "noisy-hebbian-memories",
    metric=Metric("messages completed", better="higher"),
    expect=More(by=0.9),
    method="clique memory of 8 × 64 units",
    baseline="Hopfield net with as many bits",
    paper="cliques are the state of the art of binary sparse memories",
)
def cliques_complete_a_thousand_messages(trial: Trial) -> Outcome:
    """A clique memory completes 1,000 messages of which 3 of 8 clusters are erased; a Hopfield net with as many bits does not.

    8 clusters of 64 units, random messages (a simulator), four steps of sum-of-max and winner-take-all with ties kept, exact
    completion. The picture and notes give 100 to 4,000 messages beside the plan's reference.
    """
    counts = trial.pick(smoke=(100,), quick=tuple(REFERENCE), full=tuple(REFERENCE))
    clique = {m: clique_recall(trial, m) for m in trial.track(counts, "cliques")}
    net = {m: hopfield_recall(trial, m) for m in trial.track(counts, "Hopfield")}

    def draw() -> object:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(5.5, 3.2))
        axes.semilogx(list(REFERENCE), list(REFERENCE.values()), "x", color="k", ms=9, label="reference")
        axes.semilogx(list(clique), list(clique.values()), "o-", label="cliques, 512 units")
        axes.semilogx(list(net), [share for share, _ in net.values()], "s--", label="Hopfield, as many bits")
        axes.set(xlabel="stored messages", ylabel="completed exactly", ylim=(-0.04, 1.04))
        axes.legend(frameon=False)
        return figure

    trial.figure("capacity", draw)
    most = 1000 if 1000 in counts else counts[-1]
    notes = {f"M = {m}": {"cliques": clique[m], "Hopfield": net[m][0], "Hopfield units": net[m][1]} for m in counts}
    return Outcome(clique[most], net[most][0], notes)


@claim(
    "noisy-hebbian-memories",
    metric=Metric("density of links", better="lower"),
    expect=Close(within=0.01),
    method="measured",
    baseline="1 − (1 − 1/l²)^M",
)
def the_density_of_cliques_follows_its_formula(trial: Trial) -> Outcome:
    """After M random messages a clique memory has made the share 1 − (1 − 1/l²)^M of its possible links.

    M = 2,000 messages, 8 clusters of 64 units; a simulator.
    """
    m = trial.pick(smoke=200, quick=2_000, full=2_000)
    W = cliques(clustered_messages(m, CLUSTERS, SIZE, trial.generator()), CLUSTERS)
    possible = CLUSTERS * (CLUSTERS - 1) * SIZE**2

    def draw() -> object:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(4, 4))
        axes.imshow(W[: 4 * SIZE, : 4 * SIZE], cmap="gray_r", interpolation="nearest")
        axes.set(title=f"Links of the first 4 clusters, {m:,} messages", xticks=range(0, 257, 64), yticks=range(0, 257, 64))
        return figure

    trial.figure("links", draw)
    return Outcome(float(W.sum()) / possible, density(m, SIZE), {"messages": m})
