"""What Tancik et al. 2023 claim of Nerfacto: the pieces, put together, beat plain NeRF in equal time, and each earns its place.

Pictures are rendered from a real mesh (`neuropil.data.render`, a simulator of cameras and light). Both arms of a claim get the same
pictures, the same CPU seconds of optimisation on one process (data, loss, gradient and step; one step outside the clock first, so
that compiling does not count), Adam, 256 rays a step and learning rates that fall to a tenth. Nerfacto's rates were chosen on seed
10, which is not measured, and both arms of an ablation use them. In the claims about one piece, pieces that their scene does not
need (codes where light is equal, corrections where poses are exact) are left out in both arms. The metric is the mean PSNR of
held-out pictures.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuropil.data.cameras import Cameras, flip_yz
from neuropil.data.captures import read_capture, write_capture
from neuropil.data.render import HORIZON, mesh_scene
from neuropil.data.scenes import Scene
from neuropil.fields.metrics import psnr
from neuropil.fields.nerf import NeRF
from neuropil.fields.nerfacto import Nerfacto
from neuropil.fields.poses import align, so3_exp
from neuropil.fields.radiance import RadianceModel, render_picture
from neuropil.lab import Less, Metric, More, Outcome, Trial, claim

PSNR = Metric("held-out PSNR", better="higher", unit="dB")
LAYOUTS = ("blender", "nerfstudio", "colmap-text", "colmap-binary")
RAYS = 256
WHITE, BLACK = torch.ones(3), torch.zeros(3)
Evaluate = Callable[[RadianceModel], tuple[float, Tensor]]


def seconds_of(trial: Trial) -> float:
    """CPU seconds of optimisation an arm."""
    return trial.pick(smoke=0.05, quick=5.0, full=30.0)


def pictures_of(trial: Trial, **options: Any) -> tuple[Scene, Scene]:
    """Pictures of the duck for training and for the test: 40 and 8 of 64 pixels at the full budget."""
    train, test, size, samples = trial.pick(smoke=(3, 1, 12, 1), quick=(24, 4, 32, 9), full=(40, 8, 64, 32))
    scene = mesh_scene("duck", train + test, size, seed=trial.seed, samples=samples, **options)
    return scene[:train], scene[train:]


def train(trial: Trial, model: RadianceModel, scene: Scene, background: Tensor | None, what: str) -> int:
    """Optimise for the budget's CPU seconds; the number of steps that they were enough for."""
    generator, budget = trial.generator(1), seconds_of(trial)
    torch.manual_seed(trial.seed)
    optimizer = torch.optim.Adam(model.parameter_groups(), fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    model.train()

    def gradient() -> None:
        optimizer.zero_grad()
        model.loss(*scene.batch(RAYS, generator, background), background).backward()

    gradient()
    step, spent = 0, 0.0
    while spent < budget:
        start = time.process_time()
        model.update(step)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * 0.1 ** (spent / budget)
        gradient()
        optimizer.step()
        step, spent = step + 1, spent + time.process_time() - start
        if trial.report:
            trial.report(what, min(spent / budget, 1.0))
    model.eval()
    return step


def look(model: RadianceModel, cameras: Cameras, scene: Scene, background: Tensor | None) -> Tensor:
    """The pictures that `model` shows to `cameras`."""
    shown = [render_picture(model, cameras, i, scene.near, scene.far, background).colour for i in range(len(cameras))]
    return torch.stack(shown)


def held_out(test: Scene, background: Tensor | None) -> Evaluate:
    """The plain evaluation: mean PSNR over the test pictures, and what was shown."""

    def evaluate(model: RadianceModel) -> tuple[float, Tensor]:
        shown = look(model, test.cameras, test, background)
        return mean_psnr(shown, truth_of(test, background)), shown

    return evaluate


def truth_of(scene: Scene, background: Tensor | None) -> Tensor:
    """All pictures of a scene."""
    return scene.colours(torch.arange(len(scene)), background)


def mean_psnr(shown: Tensor, truth: Tensor) -> float:
    """The mean of the pictures' PSNRs."""
    return sum(float(psnr(a, b)) for a, b in zip(shown, truth, strict=True)) / len(truth)


def compare(
    trial: Trial,
    arms: Mapping[str, Callable[[], RadianceModel]],
    fitted: Scene,
    test: Scene,
    background: Tensor | None,
    evaluate: Evaluate,
) -> Outcome:
    """Train both arms (method first) alike, evaluate them alike, and draw what they show."""
    found, shown, steps = {}, {}, {}
    for name, make in arms.items():
        torch.manual_seed(trial.seed)
        model = make()
        steps[name] = train(trial, model, fitted, background, name)
        found[name], shown[name] = evaluate(model)
    trial.figure("pictures", lambda: grid(truth_of(test, background), shown, found, seconds_of(trial)))
    method, baseline = found.values()
    return Outcome(method, baseline, notes={"steps": steps, "seconds an arm": seconds_of(trial)})


def grid(truth: Tensor, shown: dict[str, Tensor], found: dict[str, float], seconds: float) -> object:
    """Held-out pictures: the truth above, each arm below."""
    import matplotlib.pyplot as plt

    rows = {"truth": truth} | {f"{name}\n{found[name]:.1f} dB": pictures for name, pictures in shown.items()}
    columns = min(5, len(truth))
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.5 * columns, 1.6 * len(rows)), squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for cell, picture in zip(line, pictures, strict=False):
            cell.imshow(picture.clamp(0, 1))
            cell.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.suptitle(f"held-out views after {seconds:g} CPU seconds")
    return figure


@claim(
    "nerfacto",
    metric=Metric("largest difference of rays", better="lower"),
    expect=Less(than=1e-5),
    method="the four layouts, read back",
    baseline="OpenCV's axes taken for OpenGL's",
)
def the_readers_agree(trial: Trial) -> Outcome:
    """One capture written as Blender, nerfstudio, COLMAP text and COLMAP binary is read back with the same rays (within 1e-5).

    Origins and unit directions of the rays through all pixel centres of all pictures, against those of the scene that was
    written and so against one another. The baseline shows what a mix-up of the camera axes would give.
    """
    views, size = trial.pick(smoke=(2, 8), quick=(12, 32), full=(48, 64))
    scene = mesh_scene("duck", views, size, seed=trial.seed, samples=1)

    def difference(cameras: Cameras) -> float:
        errors = []
        for i in range(views):
            a, b = (c.picture_rays(i) for c in (cameras, scene.cameras))
            errors.append(max(float((a.origins - b.origins).abs().max()), float((a.directions - b.directions).abs().max())))
        return max(errors)

    found, same = {}, {}
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            write_capture(scene, Path(folder) / "capture", layout)
            again = read_capture(Path(folder) / "capture")
        order = sorted(range(views), key=lambda i: again.names[i])
        found[layout], same[layout] = difference(again.cameras[order]), bool((again.pictures[order] == scene.pictures).all())
    mixed = difference(replace(scene.cameras, c2w=flip_yz(scene.cameras.c2w)))
    trial.figure("differences", lambda: bars(found | {"axes mixed up": mixed}))
    return Outcome(max(found.values()), mixed, notes={"differences": found, "pictures are equal": same})


def bars(found: dict[str, float]) -> object:
    """The differences on a logarithmic axis, with the limit."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 2.6))
    drawn = axes.barh(list(found), [max(value, 1e-9) for value in found.values()], color=["C0"] * (len(found) - 1) + ["C3"])
    axes.bar_label(drawn, labels=[f"{value:.1g}" for value in found.values()], padding=3)
    axes.axvline(1e-5, color="0.4", ls="--", lw=1)
    axes.set(xscale="log", xlim=(1e-9, 30), xlabel="largest difference of a ray's origin or direction")
    axes.invert_yaxis()
    return figure


@claim("nerfacto", metric=PSNR, expect=More(by=3.0), method="Nerfacto", baseline="vanilla NeRF")
def beats_vanilla_nerf(trial: Trial) -> Outcome:
    """In equal time Nerfacto shows held-out views of a bounded scene at least 3 dB better than the NeRF of 2020.

    Nerfacto with all its pieces. The NeRF is a small one (see `small_nerf`): the paper's own network of 8 x 256 gets through some
    thousand rays in this time.
    """
    fitted, test = pictures_of(trial)
    arms = {"Nerfacto": lambda: Nerfacto.small(len(fitted)), "NeRF": small_nerf}
    return compare(trial, arms, fitted, test, WHITE, held_out(test, WHITE))


def small_nerf() -> RadianceModel:
    """A vanilla NeRF for half a minute on one core: 4 layers of 64 and 24 + 24 samples a ray, some 4,000 rays/s.

    In 25 CPU seconds on seed 10 its rates 2e-3, 4e-3 and 1e-2 gave 22.7, 23.5 and 26.5 dB, 3 layers of 96 at 4e-3 gave 23.5 and
    32 + 16 samples at 4e-3 gave 24.9.
    """
    return NeRF(width=64, depth=4, octaves=6, coarse=24, fine=24, lr=1e-2)


@claim("nerfacto", metric=PSNR, expect=More(by=0.5), method="with proposals", baseline="without proposals")
def proposals_earn_their_place(trial: Trial) -> Outcome:
    """Where nothing says how far the object is, proposals gain at least 0.5 dB over samples spread along the ray, in equal time.

    Rays run from 0.05 to 10; the object takes a fraction of that. The baseline spreads 64 samples evenly, the proposal its first 32
    ones. Both start with a density of 0.1, which lets light through.
    """
    fitted, test = (replace(part, near=0.05, far=10.0) for part in pictures_of(trial))
    alike: dict[str, Any] = {"poses": False, "code": 0, "first": 0.1, "spacing": "uniform"}
    arms = {
        "with proposals": lambda: Nerfacto.small(len(fitted), **alike),
        "without": lambda: Nerfacto.small(len(fitted), **alike, proposal=False, samples=64),
    }
    return compare(trial, arms, fitted, test, WHITE, held_out(test, WHITE))


@claim("nerfacto", metric=PSNR, expect=More(by=0.5), method="with contraction", baseline="without contraction")
def contraction_earns_its_place(trial: Trial) -> Outcome:
    """On a scene that reaches to a horizon 30 units away, contracted space gains at least 0.5 dB over a box that holds everything.

    The object of 1.6 units stands on a plain under a painted sky. As in nerfstudio, the cameras (4 units away) lie on the
    unit ball within which space is not contracted. The baseline's grids span the box of ±30 units, its samples are even in log
    distance. Both show the last sample's colour where light passes everything, and start with about 0.03 of density a unit.
    """
    fitted, test = pictures_of(trial, backdrop=True)
    far: dict[str, Any] = {"poses": False, "code": 0, "sky": True}
    arms = {
        "contracted": lambda: Nerfacto.small(len(fitted), radius=4.0, **far, first=0.1),
        "box": lambda: Nerfacto.small(len(fitted), radius=HORIZON, contraction=False, **far, spacing="log"),
    }
    return compare(trial, arms, fitted, test, None, held_out(test, None))


@claim("nerfacto", metric=PSNR, expect=More(by=0.5), method="with codes", baseline="without codes")
def appearance_codes_earn_their_place(trial: Trial) -> Outcome:
    """Where every picture has its own exposure, appearance codes gain at least 0.5 dB on held-out views.

    Exposures are e^ξ, ξ ~ N(0, 0.5²). A held-out picture's own exposure is unknown to both arms (one shows its mean code): for
    both, a gain and an offset a channel are fitted on the picture's left half and the PSNR is taken on the right one, as NeRF in
    the Wild does with its codes (Martin-Brualla et al. 2021, arXiv:2008.02268).
    """
    fitted, test = pictures_of(trial, exposure=0.5)
    half, truth = test.pictures.shape[2] // 2, truth_of(test, BLACK)

    def evaluate(model: RadianceModel) -> tuple[float, Tensor]:
        shown = exposed(look(model, test.cameras, test, BLACK), truth, half)
        return mean_psnr(shown[:, :, half:], truth[:, :, half:]), shown

    arms = {
        "with codes": lambda: Nerfacto.small(len(fitted), poses=False),
        "without": lambda: Nerfacto.small(len(fitted), poses=False, code=0),
    }
    return compare(trial, arms, fitted, test, BLACK, evaluate)


def exposed(shown: Tensor, truth: Tensor, half: int) -> Tensor:
    """``a · shown + b`` a picture and channel, fitted by least squares on the first `half` columns."""
    x, y = (t[:, :, :half].flatten(1, 2) for t in (shown, truth))
    mx, my = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    a = ((x - mx) * (y - my)).sum(1, keepdim=True) / (x - mx).square().sum(1, keepdim=True).clamp_min(1e-6)
    return (a[:, None] * shown + (my - a * mx)[:, None]).clamp(0, 1)


@claim("nerfacto", metric=PSNR, expect=More(by=0.5), method="poses learned", baseline="poses as given")
def pose_correction_earns_its_place(trial: Trial) -> Outcome:
    """Where the given poses are off by 1.5° and 0.03 units, learning their correction gains at least 0.5 dB on held-out views.

    Learned poses may drift together, which moves the scene's frame. So for both arms alike the similarity is found that takes the
    training cameras' true frames to those that the arm trained with (given, or learned), by least squares over points of each
    camera's frame, and the true test cameras are moved by it. Held-out pictures play no part in that.
    """
    fitted, test = pictures_of(trial)
    true = fitted.cameras.c2w
    g = trial.generator(2)
    turn = so3_exp(torch.deg2rad(torch.tensor(1.5)) * torch.randn(len(true), 3, generator=g))
    shift = 0.03 * torch.randn(len(true), 3, 1, generator=g)
    given = torch.cat([turn @ true[..., :3], true[..., 3:] + shift], -1)
    jittered = replace(fitted, cameras=replace(fitted.cameras, c2w=given))

    def evaluate(model: RadianceModel) -> tuple[float, Tensor]:
        poses = getattr(model, "poses", None)
        with torch.no_grad():
            trained = given if poses is None else poses.corrected(given)
        cameras = replace(test.cameras, c2w=moved(test.cameras.c2w, true, trained))
        shown = look(model, cameras, test, WHITE)
        return mean_psnr(shown, truth_of(test, WHITE)), shown

    arms = {
        "learned": lambda: Nerfacto.small(len(fitted), code=0),
        "as given": lambda: Nerfacto.small(len(fitted), code=0, poses=False),
    }
    return compare(trial, arms, jittered, test, WHITE, evaluate)


def moved(c2w: Tensor, true: Tensor, trained: Tensor, ahead: float = 4.0) -> Tensor:
    """Cameras taken from the true frame to the trained one: by the similarity of their places and points on their axes."""

    def points(m: Tensor) -> Tensor:
        axes = m[..., :3].mT * torch.tensor([[ahead / 4], [ahead / 4], [-ahead]])
        return torch.cat([m[..., 3], *(m[..., 3] + axes[:, k] for k in range(3))])

    s, r, t = align(points(true), points(trained))
    return torch.cat([r @ c2w[..., :3], (s * c2w[..., 3] @ r.mT + t)[..., None]], -1)
