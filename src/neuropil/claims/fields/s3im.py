"""What Xie et al. 2023 claim of S3IM: a field fitted with it sees new views better, from few pictures too, at little cost."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from neuropil.data.cameras import Rays
from neuropil.data.flatland import Flatland, flatland
from neuropil.data.render import mesh_scene
from neuropil.data.scenes import Scene
from neuropil.fields.flatland import FlatField, Head, Tuned, fit, from_above, plane, rendered, tuned
from neuropil.fields.metrics import psnr
from neuropil.fields.neural_field_classifier import NeuralFieldClassifier
from neuropil.fields.radiance import RadianceModel, render_picture
from neuropil.fields.s3im import S3IM, strided_ssim
from neuropil.fields.voxels import VoxelField
from neuropil.lab import Metric, More, Outcome, Ratio, Trial, claim

PSNR = Metric("PSNR on held-out cameras", better="higher", unit="dB")
WALL = torch.tensor([51.0, 77.0, 102.0]) / 255  # behind the duck
PAPER = "test MSE −90 % for TensoRF and DVGO on eight interiors"
SIDE = 32  # rays of a step: SIDE x SIDE


def with_s3im(weight: float, repeats: int = 10) -> Callable[[Tensor, Tensor], Tensor]:
    """``MSE + λ (1 − S3IM)``."""
    similarity = S3IM(SIDE, SIDE, repeats=repeats)
    return lambda x, y: mse_loss(x, y) + weight * similarity(x, y)


def rescaled(x: Tensor, y: Tensor) -> Tensor:
    """MSE times the number that makes its gradient as long as that of MSE + 0.1 (1 − S3IM) on the same rays."""
    free = x.detach().requires_grad_()
    lengths = [torch.autograd.grad(loss(free, y), free)[0].norm() for loss in (with_s3im(0.1), mse_loss)]
    return mse_loss(x, y) * (lengths[0] / lengths[1])


def strips(pictures: int, rays: int) -> Tensor:
    """A step's rays as SIDE strips of SIDE neighbours, each from a picture and a place drawn at random."""
    start = torch.randint(pictures, (SIDE, 1)) * rays + torch.randint(rays - SIDE + 1, (SIDE, 1))
    return (start + torch.arange(SIDE)).flatten()


def with_ssim_of_strips(x: Tensor, y: Tensor) -> Tensor:
    """MSE + 0.1 (1 − SSIM) with the ordinary SSIM (Gaussian of 11 pixels, stride 1) of real 1-D pictures."""
    pair = [v.T.reshape(-1, SIDE, 1, SIDE) for v in (x, y)]
    return mse_loss(x, y) + 0.1 * (1 - strided_ssim(pair[0], pair[1], kernel=(1, 11), stride=(1, 1)).mean())


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "MSE": mse_loss,
    "S3IM, λ = 0.1": with_s3im(0.1),
    "S3IM, λ = 1": with_s3im(1.0),
    "S3IM, λ = 0.1, M = 1": with_s3im(0.1, repeats=1),
    "S3IM, λ = 0.1, M = 4": with_s3im(0.1, repeats=4),
    "L1": l1_loss,
    "MSE, gradient as long": rescaled,
    "MSE + SSIM of real strips": with_ssim_of_strips,
}


def compare(trial: Trial, views: int, names: tuple[str, ...]) -> tuple[Flatland, dict[str, Tuned]]:
    """Each loss at its own best rate on one flatland."""
    world = flatland(trial.generator(), views=views)
    rates = trial.pick(smoke=(0.2,), quick=(0.2,), full=(0.1, 0.2, 0.4))
    steps = trial.pick(smoke=3, quick=400, full=400)
    fits = {}
    for name in trial.track(names, "losses"):
        few = rates[1:2] if "M =" in name and trial.budget == "full" else rates
        draw = strips if name == "MSE + SSIM of real strips" else None
        fits[name] = tuned(world, Head(LOSSES[name]), few, trial.seed, steps, SIDE * SIDE, draw)
    return world, fits


def outcome(trial: Trial, views: int, names: tuple[str, ...]) -> Outcome:
    """S3IM with λ = 0.1 against MSE; the picture, and the other losses as notes."""
    world, fits = compare(trial, views, names)
    trial.figure("flatland", partial(draw, world, fits, ("MSE", "S3IM, λ = 0.1")))
    notes = {name: {"dB": round(t.best, 2), "learning rate": t.rate} for name, t in fits.items()}
    return Outcome(fits["S3IM, λ = 0.1"].best, fits["MSE"].best, notes={"views": views, **notes})


def draw(world: Flatland, fits: dict[str, Tuned], shown: tuple[str, ...]) -> object:
    """The plane from above and the held-out pictures, truth beside two fields; then every loss at its best rate."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(12, 6), width_ratios=[1, 1, 1, 1.3], layout="constrained")
    columns = {"truth": (truth_from_above(world), world.test.colours)}
    columns |= {name: (from_above(fits[name].field, Head()), rendered(fits[name].field, world.test, Head())) for name in shown}
    for column, (name, (above, seen)) in enumerate(columns.items()):
        axes[0, column].imshow(above, extent=(-1, 1, -1, 1))
        axes[1, column].imshow(seen.clamp(0, 1), aspect="auto", interpolation="nearest")
        axes[0, column].set_title(name if name == "truth" else f"{name}: {fits[name].best:.1f} dB")
    for row, label in enumerate(("from above", "held-out 1-D pictures, a row each")):
        axes[row, 0].set_ylabel(label)
    for ax in axes[:, :3].flat:
        ax.set(xticks=[], yticks=[])
    for ax in axes[:, 3]:
        ax.remove()
    bars = figure.add_subplot(axes[0, 3].get_subplotspec().get_gridspec()[:, 3])
    names = list(fits)[::-1]
    drawn = bars.barh(names, [fits[n].best for n in names], color=["C1" if n.startswith("S3IM") else "0.7" for n in names])
    bars.bar_label(drawn, [f"{fits[n].best:.2f} (lr {fits[n].rate:g})" for n in names], padding=2, fontsize=8)
    low, high = (f(t.best for t in fits.values()) for f in (min, max))
    bars.set(xlabel="held-out PSNR, dB, at the rate chosen on validation", xlim=(low - 1, high + 1.2))
    bars.tick_params(labelsize=8)
    return figure


def truth_from_above(world: Flatland, size: int = 192) -> Tensor:
    """The discs from above, over white."""
    points, discs = plane(size), world.discs
    inside = torch.linalg.vector_norm(points[..., None, :] - discs.centres, dim=-1) < discs.radii
    first = inside.float().argmax(-1)[..., None, None]
    colour = torch.take_along_dim(discs.texture(points), first, -2)[..., 0, :]
    return torch.where(inside.any(-1, keepdim=True), colour, 1.0)


@claim("s3im", metric=PSNR, expect=More(by=0.8), method="MSE + 0.1 (1 − S3IM)", baseline="MSE", paper=PAPER)
def random_patches_help_a_field_of_flatland(trial: Trial) -> Outcome:
    """Fitted with S3IM, a field shows held-out cameras at least 0.8 dB better than fitted with MSE alone, each at its best rate.

    Flatland (a simulator): ten textured discs, 24 cameras of 64 rays, a 96x96 grid of density and colour, 1,024 rays as 32x32,
    400 steps of Adam. The rate of each loss is chosen from 0.1, 0.2, 0.4 on 24 validation cameras (0.2 for all at the quick
    budget); PSNR is of 24 further ones. Notes: L1, MSE with a gradient as long as S3IM's, MSE with the SSIM of real strips, another
    λ, at their best rates, and M = 1 and 4 at 0.2.

    On a seed apart it fails, although the loss and its gradient equal the authors' to 1e-7: MSE reaches 31.0 dB, S3IM 29.7, which
    is not above MSE for any first density tried (s₀ = −5 … −8). On these rays the gradient of 1 − S3IM is nearly that of MSE, 14 to
    21 times as long at a cosine of 0.83 to 0.93, and Adam forgives the length, so there is little to gain; why it loses is not
    explained (MSE with a gradient as long keeps 30.9 dB). The margin was set by a trial on another flatland, where MSE had 28.5 dB.
    """
    two, more = ("MSE", "S3IM, λ = 0.1"), ("MSE, gradient as long", "MSE + SSIM of real strips")
    names = trial.pick(smoke=(*two, *more), quick=two, full=tuple(LOSSES))
    return outcome(trial, 24, names)


@claim("s3im", metric=PSNR, expect=More(by=0.4), method="MSE + 0.1 (1 − S3IM)", baseline="MSE", paper="robust to few views")
def random_patches_help_with_few_views(trial: Trial) -> Outcome:
    """With 8 cameras instead of 24, S3IM makes held-out cameras at least 0.4 dB better, each loss at its best rate.

    Else as with 24 cameras. On two seeds apart, at the rate 0.1: S3IM 18.9 and 16.0 dB, MSE 19.5 and 16.8.
    """
    few = ("MSE", "S3IM, λ = 0.1")
    return outcome(trial, 8, trial.pick(smoke=few, quick=few, full=(*few, "S3IM, λ = 1", "L1", "MSE, gradient as long")))


@claim(
    "s3im",
    metric=Metric("processor time of a fit", better="lower", unit="s"),
    expect=Ratio(at_most=1.5),
    method="MSE + 0.1 (1 − S3IM), M = 10",
    baseline="MSE",
    paper="nearly free",
)
def random_patches_cost_little(trial: Trial) -> Outcome:
    """A fit with S3IM takes at most 1.5 times the time of one with MSE.

    Processor time of this process for the same steps of the flatland fit, MSE and S3IM in turn, the least of three rounds.
    Flatland's rays are cheap; in three dimensions S3IM's share is smaller.
    """
    world = flatland(trial.generator())
    steps, rounds = trial.pick(smoke=2, quick=60, full=150), trial.pick(smoke=1, quick=3, full=3)
    seconds: dict[str, list[float]] = {"MSE": [], "S3IM, λ = 0.1": []}
    for name in [*seconds] * rounds:
        torch.manual_seed(trial.seed)
        field = FlatField()
        began = time.process_time()
        fit(field, world.train, Head(LOSSES[name]), steps, 0.2, SIDE * SIDE)
        seconds[name].append(time.process_time() - began)
    least = {name: min(times) for name, times in seconds.items()}

    def draw_bars() -> object:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(5, 1.6), layout="constrained")
        drawn = axes.barh(list(least), [1000 * t / steps for t in least.values()], color=["0.7", "C1"])
        axes.bar_label(drawn, fmt="%.1f", padding=2)
        axes.set(xlabel="processor time, ms a step of 1,024 rays", xlim=(0, 1150 * max(least.values()) / steps))
        return figure

    trial.figure("time", draw_bars)
    return Outcome(least["S3IM, λ = 0.1"], least["MSE"], notes={"steps": steps})


Arm = tuple[int, Callable[[RadianceModel, Rays, Tensor], Tensor]]  # channels of the voxels; loss(field, rays, target)


def duck(trial: Trial, arms: dict[str, Arm]) -> Outcome:
    """Test PSNR of two voxel fields of the duck, baseline first, each at the factor on its rates that validates best."""
    views, size, samples = trial.pick(smoke=(4, 12, 1), quick=(40, 32, 9), full=(40, 48, 16))
    steps, cells = trial.pick(smoke=(2, 8), quick=(80, 32), full=(300, 48))
    scene = mesh_scene("duck", views, size, seed=trial.seed, samples=samples)
    held = torch.arange(views * 3 // 5, views)
    truth = scene.colours(held, WALL)
    tries: dict[str, dict[float, tuple[float, float, Tensor]]] = {name: {} for name in arms}
    factors = trial.pick(smoke=(1.0,), quick=(0.3,), full=(0.1, 0.3, 1.0))
    for name, factor in trial.track([(n, f) for n in arms for f in factors], "ducks"):
        torch.manual_seed(trial.seed)
        channels, loss = arms[name]
        field: RadianceModel = VoxelField(resolution=cells, channels=channels)
        model = field if channels == 3 else NeuralFieldClassifier(field)
        train(model, scene[: int(held[0])], loss, factor, steps, trial.generator(1))
        seen = torch.stack([render_picture(model, scene.cameras, int(i), scene.near, scene.far, WALL).colour for i in held])
        validation, test = (float(psnr(seen[part::2], truth[part::2])) for part in (0, 1))
        tries[name][factor] = validation, test, seen
    best = {name: max(tried.values(), key=lambda t: t[0]) for name, tried in tries.items()}
    trial.figure("duck", partial(beside, {"truth": truth, **{f"{n}: {t[1]:.1f} dB": t[2] for n, t in best.items()}}))
    notes = {name: {f"test at {f:g} x the rates": round(t[1], 2) for f, t in tried.items()} for name, tried in tries.items()}
    baseline, method = best.values()
    return Outcome(method[1], baseline[1], notes=notes)


def train(
    model: RadianceModel,
    scene: Scene,
    loss: Callable[[RadianceModel, Rays, Tensor], Tensor],
    factor: float,
    steps: int,
    generator: torch.Generator,
) -> None:
    """Adam at `factor` times the model's own rates, over one wall."""
    optimizer = torch.optim.Adam([{**group, "lr": factor * group["lr"]} for group in model.parameter_groups()])
    model.train()
    for step in range(steps):
        model.update(step)
        optimizer.zero_grad()
        loss(model, *scene.batch(SIDE * SIDE, generator, WALL)).backward()
        optimizer.step()
    model.eval()


def beside(rows: dict[str, Tensor]) -> object:
    """Six of the pictures of each row."""
    import matplotlib.pyplot as plt

    shown = list(range(1, len(next(iter(rows.values()))), 2))[:6]
    size = 1.6 * len(shown), 1.75 * len(rows)
    figure, axes = plt.subplots(len(rows), len(shown), figsize=size, layout="constrained", squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for ax, i in zip(line, shown, strict=True):
            ax.imshow(pictures[i].clamp(0, 1))
            ax.set(xticks=[], yticks=[])
        line[0].set_title(name, loc="left", fontsize=9)
    return figure


def mse_and_s3im(model: RadianceModel, rays: Rays, target: Tensor) -> Tensor:
    """``MSE + 0.1 (1 − S3IM)`` of what the model renders."""
    return LOSSES["S3IM, λ = 0.1"](model(rays, WALL).colour, target)


def host_loss(model: RadianceModel, rays: Rays, target: Tensor) -> Tensor:
    """The model's own."""
    return model.loss(rays, target, WALL)


@claim("s3im", metric=PSNR, expect=More(by=0.0), method="voxels, MSE + 0.1 (1 − S3IM)", baseline="voxels, MSE", paper=PAPER)
def random_patches_help_voxels_of_a_duck(trial: Trial) -> Outcome:
    """In three dimensions, a voxel field of the duck fitted with S3IM is at least as good on held-out pictures as with MSE alone.

    24 rendered pictures of 48x48 pixels, 48³ voxels, 1,024 rays a step as 32x32, 300 steps of Adam at 0.1, 0.3 or 1 times the
    host's own rates, chosen on 8 held-out pictures and judged on 8 others (quick: 0.3, 80 steps, 32 pixels, 32³ voxels).
    """
    return duck(trial, {"MSE": (3, host_loss), "S3IM": (3, mse_and_s3im)})
