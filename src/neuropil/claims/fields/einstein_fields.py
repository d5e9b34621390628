"""What Cranganore et al. 2025 claim of Einstein fields: derivatives in the loss, derivatives by autodiff, and little to store.

Black holes are analytic (`neuropil.data.spacetimes`, nothing is measured): Schwarzschild with M = 1 and Kerr with a = 0.7 M, in
Cartesian Kerr–Schild coordinates, radii 3 to 10, static. 65,536 points train (quick: 16,384), 4,096 others test. All networks have
three hidden layers of SiLUs (96 wide, 1,500 steps; quick: 48 and 300), float64; SOAP takes batches of 256 points. Every training
has its own best learning rate out of 0.03, 0.06 and 0.1 by the error of Γ on seed 100, which is not measured (out of 0.03 and
0.06 for the longest one, at equal time).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from neuropil.data.spacetimes import bound_orbit, kerr_schild, minkowski, orbit_path, schwarzschild_kerr_schild, shell
from neuropil.fields.einstein import EinsteinField, fit_metric, unpack
from neuropil.fields.field import parameters_of
from neuropil.lab import Metric, Outcome, Ratio, Trial, claim
from neuropil.numerics.curvature import Geometry, geometry
from neuropil.numerics.geodesic import geodesic

LOW, HIGH = 3.0, 10.0
NAMES = {0: "metric only", 1: "+ Jacobian", 2: "+ Hessian"}
SAME_TIME = 7  # steps on the metric alone that take as long as one with Jacobian and Hessian, rounded up
SPIN = 0.7
RATES = {  # learning rates by budget, order of derivatives, and how many times the steps
    "smoke": {(0, 1): 0.03, (1, 1): 0.03, (2, 1): 0.03, (0, SAME_TIME): 0.03},
    "quick": {(0, 1): 0.1, (1, 1): 0.1, (2, 1): 0.1, (0, SAME_TIME): 0.06},
    "full": {(0, 1): 0.06, (1, 1): 0.06, (2, 1): 0.1, (0, SAME_TIME): 0.06},
}
CONNECTION = Metric("relative error of Γ", better="lower")
CURVATURE = Metric("median relative error of K", better="lower")
PAPER = "derivatives in the loss"


def kerr(x: Tensor) -> Tensor:
    """The rotating hole."""
    return kerr_schild(x, M=1.0, a=SPIN)


HOLES = {"Schwarzschild": schwarzschild_kerr_schild, "Kerr": kerr}


@dataclass(frozen=True)
class Fit:
    """A trained field and the seconds that its training took."""

    field: EinsteinField
    seconds: float


FITS: dict[tuple[object, ...], Fit] = {}  # claims of one process share them


def trained(trial: Trial, hole: str, order: int, times: int = 1) -> Fit:
    """The field of `hole` that learned derivatives up to `order`, in `times` as many steps."""
    key = (hole, order, times, trial.seed, trial.budget)
    if key not in FITS:
        width, steps = trial.pick(smoke=(8, 4), quick=(48, 300), full=(96, 1_500))
        points = shell(trial.pick(smoke=300, quick=16_384, full=65_536), LOW, HIGH, trial.generator(1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(trial.seed)
            field = EinsteinField(width, layers=3, reads=(1, 2, 3))

        def tell(what: str, fraction: float) -> None:
            if trial.report:
                trial.report(f"{hole}, {NAMES[order]}: {what}", fraction)

        lr = RATES[trial.budget][order, times]
        history = fit_metric(field, HOLES[hole], points, order=order, steps=steps * times, lr=lr, seed=trial.seed, report=tell)
        FITS[key] = Fit(field.requires_grad_(False), history.seconds)
    return FITS[key]


def test_points(trial: Trial) -> Tensor:
    """Points that no training saw."""
    return shell(trial.pick(smoke=50, quick=4_096, full=4_096), LOW, HIGH, trial.generator(2))


def relative(found: Tensor, true: Tensor) -> float:
    """‖found − true‖ / ‖true‖ over all points and components."""
    return float((found - true).norm() / true.norm())


def errors(field: EinsteinField, true: Geometry, x: Tensor) -> dict[str, float]:
    """Relative L2 of g, Γ and Riemann, and the median relative error of K."""
    found = field.geometry(x)
    scores = {"g": relative(found.g, true.g), "Γ": relative(found.christoffel, true.christoffel)}
    scores["Riemann"] = relative(found.riemann, true.riemann)
    return scores | {"K": float((found.kretschmann / true.kretschmann - 1).abs().median())}


def compared(trial: Trial, hole: str, orders: tuple[int, ...] = (0, 1, 2)) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """The errors of each training of `hole`, and its seconds."""
    x = test_points(trial)
    true = geometry(HOLES[hole], x)
    fits = {NAMES[order]: trained(trial, hole, order) for order in orders}
    return {name: errors(fit.field, true, x) for name, fit in fits.items()}, {name: fit.seconds for name, fit in fits.items()}


@claim(
    "einstein-fields",
    metric=CONNECTION,
    expect=Ratio(at_most=1 / 3),
    method="metric, Jacobian and Hessian in the loss",
    baseline="metric only, equal steps",
    paper=PAPER,
)
def derivatives_sharpen_the_connection(trial: Trial) -> Outcome:
    """Trained on Jacobian and Hessian, too, the field has at most a third of the error of Γ after equal steps (Schwarzschild).

    The relative L2 error of all Christoffel symbols. A step with the Hessian takes about seven times as long:
    see the claim at equal time.
    """
    scores, seconds = compared(trial, "Schwarzschild")
    trial.figure("errors", lambda: bars(scores))
    return Outcome(scores["+ Hessian"]["Γ"], scores["metric only"]["Γ"], notes={"errors": scores, "seconds": seconds})


@claim(
    "einstein-fields",
    metric=CURVATURE,
    expect=Ratio(at_most=1 / 3),
    method="metric, Jacobian and Hessian in the loss",
    baseline="metric only, equal steps",
    paper=PAPER,
)
def derivatives_sharpen_the_curvature(trial: Trial) -> Outcome:
    """Trained on Jacobian and Hessian, too, the field has at most a third of the error of K after equal steps (Schwarzschild).

    The median over points of |K/K* − 1|, K* = 48 M²/r⁶. The picture: the error in the plane z = 0.
    """
    scores, seconds = compared(trial, "Schwarzschild")
    trial.figure("curvature", lambda: maps(trial, "Schwarzschild", scores))
    return Outcome(scores["+ Hessian"]["K"], scores["metric only"]["K"], notes={"errors": scores, "seconds": seconds})


@claim(
    "einstein-fields",
    metric=CURVATURE,
    expect=Ratio(at_most=1 / 3),
    method="metric, Jacobian and Hessian in the loss",
    baseline="metric only, equal steps",
    paper=PAPER,
)
def derivatives_sharpen_the_curvature_of_kerr(trial: Trial) -> Outcome:
    """About a rotating hole (a = 0.7), Jacobian and Hessian in the loss leave at most a third of the error of K (equal steps).

    As for Schwarzschild, with its learning rates.
    """
    scores, seconds = compared(trial, "Kerr", orders=(0, 2))
    trial.figure("curvature", lambda: maps(trial, "Kerr", scores))
    return Outcome(scores["+ Hessian"]["K"], scores["metric only"]["K"], notes={"errors": scores, "seconds": seconds})


@claim(
    "einstein-fields",
    metric=CONNECTION,
    expect=Ratio(at_most=1.0),
    method="metric, Jacobian and Hessian in the loss",
    baseline="metric only, equal time",
)
def derivatives_are_worth_their_time(trial: Trial) -> Outcome:
    """In the time that Jacobian and Hessian cost, training on the metric alone does not get a better Γ (Schwarzschild).

    The baseline gets seven times the steps, about as many as fit into the same time on one core (seconds and orbits in the notes).
    The margin is 1: the plan's trial found the metric alone not worse at equal time. At the quick budget that is so of g and of the
    orbits, where it is better, but not of the connection.
    """
    x = test_points(trial)
    true = geometry(schwarzschild_kerr_schild, x)
    fits = {
        "metric only, equal time": trained(trial, "Schwarzschild", 0, SAME_TIME),
        "+ Hessian": trained(trial, "Schwarzschild", 2),
    }
    scores = {name: errors(fit.field, true, x) for name, fit in fits.items()}
    drifts = {name: drift(trial, fit.field)[0] for name, fit in fits.items()}
    trial.figure("errors", lambda: bars(scores))
    notes = {"errors": scores, "seconds": {name: fit.seconds for name, fit in fits.items()}, "orbit, median position error": drifts}
    return Outcome(scores["+ Hessian"]["Γ"], scores["metric only, equal time"]["Γ"], notes)


@claim(
    "einstein-fields",
    metric=Metric("relative error of the differentiation", better="lower"),
    expect=Ratio(at_most=0.1),
    method="autodiff, float32",
    baseline="central differences, float32, best step",
    paper="derivatives up to 10⁵ times more accurate than plain finite differences, single precision",
)
def autodiff_beats_differences(trial: Trial) -> Outcome:
    """In single precision, autodiff has at most a tenth of the error of central differences on the same network (Γ, best step).

    Both differentiate the float32 network; what they are held against is the float64 derivative of the same weights, because the
    error of training is common to both (the notes have the errors against the true Γ). The step is the best of 25 on other points.
    """
    field = deepcopy(trained(trial, "Schwarzschild", 2).field).float()
    exact = deepcopy(field).double()
    steps = torch.logspace(-3, 0.4, trial.pick(smoke=3, quick=25, full=25)).tolist()
    tuning, x = (shell(trial.pick(smoke=20, quick=1_024, full=4_096), LOW, HIGH, trial.generator(s)) for s in (3, 2))
    true = {"tuning": exact.geometry(tuning), "test": exact.geometry(x)}

    def scores(found: Geometry, against: Geometry) -> dict[str, float]:
        K = float((found.kretschmann / against.kretschmann - 1).abs().median())
        return {"Γ": relative(found.christoffel, against.christoffel), "K": K}

    tuned = [scores(differences(field, tuning, h), true["tuning"]) for h in steps]
    best = {what: steps[min(range(len(steps)), key=lambda i: tuned[i][what])] for what in ("Γ", "K")}
    plain = {what: differences(field, x, best[what]) for what in best}
    auto = in_double(field, x.float())
    found = {"autodiff": scores(auto, true["test"]), "differences": {w: scores(plain[w], true["test"])[w] for w in plain}}
    hole = geometry(schwarzschild_kerr_schild, x)
    to_truth = {"autodiff": scores(auto, hole), "differences": {w: scores(plain[w], hole)[w] for w in plain}}
    trial.figure("steps", lambda: step_curves(steps, tuned, found["autodiff"]))
    notes = {"errors": found, "best step": best, "errors against the true space-time": to_truth}
    return Outcome(found["autodiff"]["Γ"], found["differences"]["Γ"], notes)


def in_double(field: EinsteinField, x: Tensor) -> Geometry:
    """The geometry whose distortion and derivatives the field computes in its own precision; all after that in float64."""
    D, dD, ddD = unpack(field.jet(x).double(), field.reads, 2)
    return Geometry(minkowski(x.double()) + D, dD, ddD)


def differences(field: EinsteinField, x: Tensor, h: float) -> Geometry:
    """The same by central differences of step h along the three axes of space; the network works in its own precision."""
    unit = h * torch.eye(4, dtype=x.dtype)[1:]

    def at(shift: Tensor) -> Tensor:
        return field.distortion((x + shift).to(field.mean.dtype)).double()

    centre, ahead, behind = at(0 * unit[0]), [at(u) for u in unit], [at(-u) for u in unit]
    channels = [centre] + [(a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)]
    for i in range(3):
        channels.append((ahead[i] - 2 * centre + behind[i]) / h**2)
        for j in range(i + 1, 3):
            u, v = unit[i], unit[j]
            channels.append((at(u + v) - at(u - v) - at(v - u) + at(-u - v)) / (4 * h**2))
    D, dD, ddD = unpack(torch.stack(channels), field.reads, 2)
    return Geometry(minkowski(x) + D, dD, ddD)


@claim(
    "einstein-fields",
    metric=Metric("stored bytes", better="lower", unit="B"),
    expect=Ratio(at_most=1 / 50),
    method="network",
    baseline="4-D grid with cubic interpolation, equal error of g",
    paper="up to 4,000 times less storage at five to seven decimals",
)
def a_network_is_smaller_than_a_grid(trial: Trial) -> Outcome:
    """The network stores at most 1/50 of the bytes of a grid whose cubic interpolation has the same error of g (Schwarzschild).

    All numbers are float64, ten a node. The grid is the coarsest one that is as exact on the test points; only nodes that the shell
    needs count, and only four times, the fewest that a cubic takes. The notes have the static 3-D grid, a quarter of it.
    """
    field, x = trained(trial, "Schwarzschild", 2).field, test_points(trial)
    true = schwarzschild_kerr_schild(x)
    wanted, most = relative(field(x), true), trial.pick(smoke=2, quick=14, full=14)
    low, high = math.log(0.02), math.log(2.0)
    for _ in range(most):
        middle = (low + high) / 2
        low, high = (middle, high) if grid_error(x, true, math.exp(middle)) <= wanted else (low, middle)
    spacing = math.exp(low)
    bytes_of = {"network": 8.0 * parameters_of(field.requires_grad_(True)), "3-D grid": 80.0 * nodes(spacing)}
    field.requires_grad_(False)
    bytes_of["4-D grid"] = 4 * bytes_of["3-D grid"]

    def draw() -> object:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(5.6, 3.6))
        sizes = [2.0 * 0.75**k for k in range(12)]
        curve = [grid_error(x, true, h) for h in sizes]
        for times, style in ((1, "o--"), (4, "o-")):
            axes.loglog(
                [80 * times * nodes(h) for h in sizes], curve, style, color="tab:gray", ms=3, label=f"{3 + (times > 1)}-D grid"
            )
        axes.loglog(bytes_of["network"], wanted, "*", color="tab:red", ms=16, label="network")
        axes.loglog([bytes_of["network"], bytes_of["4-D grid"]], [wanted, wanted], ":", color="tab:red")
        axes.set(
            xlabel="stored bytes",
            ylabel="relative error of g",
            title=f"{bytes_of['4-D grid'] / bytes_of['network']:.0f} times less to store",
        )
        axes.legend(frameon=False)
        return figure

    trial.figure("bytes", draw)
    return Outcome(
        bytes_of["network"], bytes_of["4-D grid"], notes={"error of g": wanted, "grid spacing": spacing, "bytes": bytes_of}
    )


def grid_error(x: Tensor, true: Tensor, h: float) -> float:
    """The relative error of g on a grid of spacing h, interpolated by Lagrange's cubic between the four nearest nodes an axis."""
    cell = torch.floor(x[:, 1:] / h)
    s = x[:, 1:] / h - cell
    w = torch.stack(
        [-s * (s - 1) * (s - 2) / 6, (s + 1) * (s - 1) * (s - 2) / 2, -(s + 1) * s * (s - 2) / 2, (s + 1) * s * (s - 1) / 6], 1
    )
    shift = torch.arange(-1, 3, dtype=x.dtype)
    offsets = torch.cartesian_prod(shift, shift, shift)
    at = torch.cat([x.new_zeros(len(x), 64, 1), (cell[:, None] + offsets) * h], -1)
    weight = torch.einsum("bi,bj,bk->bijk", *w.unbind(-1)).flatten(1)
    return relative(torch.einsum("bn,bnij->bij", weight, schwarzschild_kerr_schild(at)), true)


def nodes(h: float) -> int:
    """How many nodes of spacing h lie within two steps of the shell along each axis."""
    axis = h * torch.arange(math.ceil(HIGH / h) + 3, dtype=torch.float64)
    twice = torch.where(axis > 0, 2, 1)  # an octant: mirror images count
    near, far = (axis - 2 * h).clamp(min=0) ** 2, (axis + 2 * h) ** 2

    def summed(v: Tensor) -> Tensor:
        return v[:, None, None] + v[:, None] + v

    needed = (summed(near) <= HIGH**2) & (summed(far) >= LOW**2)
    return int((needed * twice[:, None, None] * twice[:, None] * twice).sum())


@claim(
    "einstein-fields",
    metric=Metric("median position error after two revolutions", better="lower", unit="M"),
    expect=Ratio(at_most=1 / 3),
    method="metric, Jacobian and Hessian in the loss",
    baseline="metric only, equal steps",
    paper=PAPER,
)
def orbits_stay_on_course(trial: Trial) -> Outcome:
    """After two revolutions, Jacobian and Hessian in the loss leave at most a third of the error of position (equal steps).

    Bound orbits of Schwarzschild between radii 6.25 and 9.4 (p = 7.5, e = 0.2), whose nearest point turns by 96° a revolution, in
    random planes; the truth is Darwin's closed form. A path that leaves the trained shell stays where it left.
    """
    found = {NAMES[order]: drift(trial, trained(trial, "Schwarzschild", order).field) for order in NAMES}
    trial.figure("orbits", lambda: orbits({name: paths for name, (_, paths) in found.items() if name != NAMES[1]}))
    return Outcome(found["+ Hessian"][0], found["metric only"][0], notes={name: value for name, (value, _) in found.items()})


P, E = 7.5, 0.2
ANGLES = torch.linspace(0, 4 * math.pi, 241, dtype=torch.float64)


def drift(trial: Trial, field: EinsteinField) -> tuple[float, Tensor]:
    """The median error of position after two revolutions, and the paths (turned back into the plane z = 0)."""
    count = trial.pick(smoke=2, quick=8, full=16)
    start, velocity = bound_orbit(P, E)
    turn = torch.linalg.qr(torch.randn(count, 3, 3, generator=trial.generator(4), dtype=torch.float64))[0]

    def turned(v: Tensor) -> Tensor:
        return torch.cat([v[:1].expand(count, 1), turn @ v[1:]], 1)

    def inside(x: Tensor) -> Tensor:
        r = x[..., 1:].norm(dim=-1)
        return (r > LOW) & (r < HIGH)

    times, radius = orbit_path(P, E, ANGLES)
    if trial.budget == "smoke":
        times, radius = times[:5], radius[:5]
    x, _ = geodesic(lambda x: field.geometry(x, order=1).christoffel, turned(start), turned(velocity), times, 1e-8, inside)
    back = torch.einsum("bij,tbi->tbj", turn, x[..., 1:])
    return float((back[-1] - true_path(radius)[-1]).norm(dim=-1).median()), back


def true_path(radius: Tensor) -> Tensor:
    """Points of the true orbit, z = 0."""
    angles = ANGLES[: len(radius)]
    return radius[:, None] * torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], -1)


@contextmanager
def panels(count: int, size: float = 2.7) -> Iterator[tuple[object, list]]:  # type: ignore[type-arg]
    """A row of square axes."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, count, figsize=(size * count, size), squeeze=False, layout="constrained")
    yield figure, list(axes[0])


def bars(scores: dict[str, dict[str, float]]) -> object:
    """The errors of g, Γ, Riemann and K, a bar for each training."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4))
    for k, (name, values) in enumerate(scores.items()):
        places = [i + 0.27 * (k - (len(scores) - 1) / 2) for i in range(len(values))]
        drawn = axes.bar(places, list(values.values()), 0.25, label=name)
        axes.bar_label(drawn, fmt="%.1g", fontsize=7, padding=1)
    axes.set(xticks=range(4), xticklabels=["g", "Γ", "Riemann", "K (median)"], yscale="log", ylabel="relative error")
    axes.margins(y=0.12)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.14))
    return figure


def maps(trial: Trial, hole: str, scores: dict[str, dict[str, float]]) -> object:
    """|K/K* − 1| in the plane z = 0, a panel for each training."""
    axis = torch.linspace(-HIGH, HIGH, trial.pick(smoke=8, quick=96, full=160), dtype=torch.float64)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    x = torch.stack([0 * u, u, v, 0 * u + 1e-3], -1)
    r = x[..., 1:].norm(dim=-1)
    rows = x[(r > LOW) & (r < HIGH)]
    true = geometry(HOLES[hole], rows).kretschmann
    with panels(len(scores)) as (figure, axes):
        for axis_, name in zip(axes, scores, strict=True):
            order = next(order for order, known in NAMES.items() if known == name)
            picture = torch.full(r.shape, math.nan, dtype=torch.float64)
            picture[(r > LOW) & (r < HIGH)] = (
                (trained(trial, hole, order).field.geometry(rows).kretschmann / true - 1).abs().log10()
            )
            image = axis_.imshow(picture, origin="lower", extent=(-HIGH, HIGH, -HIGH, HIGH), vmin=-4, vmax=0, cmap="inferno")
            axis_.set(title=f"{name}: {scores[name]['K']:.1g}", xlabel="x / M", xticks=[-10, 0, 10], yticks=[-10, 0, 10])
        axes[0].set_ylabel("y / M")
        figure.colorbar(image, ax=axes, label="log₁₀ |K/K* − 1|")  # type: ignore[attr-defined]
    return figure


def orbits(paths: dict[str, Tensor]) -> object:
    """Of each training the orbit with the median error, beside the true one."""
    import matplotlib.pyplot as plt

    with panels(len(paths), size=3.6) as (figure, axes):
        for axis, (name, path) in zip(axes, paths.items(), strict=True):
            truth = true_path(orbit_path(P, E, ANGLES)[1])
            off = (path[-1] - truth[len(path) - 1]).norm(dim=-1)
            shown = int(off.argsort()[(len(off) - 1) // 2])
            axis.add_patch(plt.Circle((0, 0), 2, color="black"))
            axis.plot(truth[:, 0], truth[:, 1], color="0.75", lw=4, label="truth")
            axis.plot(path[:, shown, 0], path[:, shown, 1], color="tab:red", lw=1.2, label=name)
            axis.plot(*truth[len(path) - 1, :2], "o", color="0.5", ms=8)
            axis.plot(*path[-1, shown, :2], "o", color="tab:red", ms=5)
            axis.set(title=f"{name}: {off[shown]:.2g} M off", aspect="equal", xlim=(-11, 11), ylim=(-11, 11), xlabel="x / M")
            axis.legend(frameon=False, loc="upper right", fontsize=8)
        axes[0].set_ylabel("y / M")
    return figure


def step_curves(steps: list[float], tuned: list[dict[str, float]], auto: dict[str, float]) -> object:
    """The error of differences over their step, and that of autodiff, which has none."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.6, 3.6))
    for what, colour in {"Γ": "tab:blue", "K": "tab:orange"}.items():
        axes.loglog(steps, [score[what] for score in tuned], "o-", ms=3, color=colour, label=f"{what}, differences")
        axes.axhline(auto[what], ls="--", color=colour, label=f"{what}, autodiff")
    axes.set(xlabel="step h / M", ylabel="relative error, float32", ylim=(min(auto.values()) / 3, 3))
    axes.legend(frameon=False, fontsize=8)
    return figure
