"""Nerfacto here beside nerfstudio's own ``nerfacto`` (its torch implementation): same pictures, rays, processor seconds.

nerfstudio is no dependency: ``pip install nerfstudio`` brings 220 packages, so install it in an environment of its own. Its LPIPS
metric downloads weights when it is made, so a stand-in takes its place; torchvision without its compiled operators is made
importable. Both get one thread, the sizes of `Nerfacto.small`, Adam and a rate that falls to a tenth; poses are exact, so that
neither corrects them. nerfstudio shows white where a ray passes everything, as we do. They
are not the same function: the dB stand in the note.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator

import torch
from rounds import Missing, Ratio, main

from neuropil.data.cameras import Rays
from neuropil.data.render import mesh_scene
from neuropil.data.scenes import Scene
from neuropil.fields.metrics import psnr
from neuropil.fields.nerfacto import Nerfacto
from neuropil.fields.radiance import RadianceModel, Rendered, render_picture

WHITE = torch.ones(3)


class Peer(RadianceModel):
    """nerfstudio's model behind the contract of this library."""

    def __init__(self, ours: Nerfacto, pictures: int, near: float, far: float, lr: float, first: float) -> None:
        super().__init__()
        from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
        from nerfstudio.data.scene_box import SceneBox
        from nerfstudio.models.nerfacto import NerfactoModelConfig

        grid, proposal = ours.field.encoding, ours.proposals[0].encoding
        config = NerfactoModelConfig(
            implementation="torch",
            near_plane=near,
            far_plane=far,
            background_color="white",
            num_levels=len(grid.resolutions),
            base_res=grid.resolutions[0],
            max_res=grid.resolutions[-1],
            log2_hashmap_size=15,
            hidden_dim=32,
            hidden_dim_color=32,
            num_proposal_iterations=1,
            num_proposal_samples_per_ray=(32,),
            num_nerf_samples_per_ray=16,
            proposal_net_args_list=[
                {"hidden_dim": 16, "log2_hashmap_size": 13, "num_levels": 3, "base_res": 8, "max_res": proposal.resolutions[-1]}
            ],
            appearance_embed_dim=8,
            proposal_weights_anneal_max_num_iters=200,
            proposal_warmup=1000,
            average_init_density=first,
            camera_optimizer=CameraOptimizerConfig(mode="off"),
        )
        self.lr = lr
        self.model = config.setup(scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=pictures)

    def forward(self, rays: Rays, background: torch.Tensor | None = None) -> Rendered:
        out = self._outputs(rays)
        return Rendered(out["rgb"], out["depth"][..., 0], out["accumulation"][..., 0])

    def loss(self, rays: Rays, target: torch.Tensor, background: torch.Tensor | None = None) -> torch.Tensor:
        out, batch = self._outputs(rays), {"image": target}
        metrics = {"distortion": _distortion(out)}
        return sum(self.model.get_loss_dict(out, batch, metrics).values())

    def update(self, step: int) -> None:
        """What its training callbacks do."""
        x = min(step / 200, 1.0)
        self.model.proposal_sampler.set_anneal(10 * x / (9 * x + 1))
        self.model.proposal_sampler.step_cb(step)

    def parameter_groups(self) -> list[dict[str, object]]:
        return [{"params": list(self.model.parameters()), "lr": self.lr, "eps": 1e-15}]

    def _outputs(self, rays: Rays) -> dict[str, torch.Tensor]:
        from nerfstudio.cameras.rays import RayBundle

        area = torch.ones_like(rays.near)[..., None]
        near, far, camera = rays.near[..., None], rays.far[..., None], rays.camera[..., None]
        bundle = RayBundle(rays.origins, rays.directions, area, camera, nears=near, fars=far)
        return self.model.get_outputs(bundle)


def _distortion(out: dict[str, torch.Tensor]) -> torch.Tensor:
    from nerfstudio.model_components.losses import distortion_loss

    return distortion_loss(out["weights_list"], out["ray_samples_list"])


def prepare() -> None:
    """Make nerfstudio importable and constructible without a network."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    prepare.keeps = library  # type: ignore[attr-defined]  # freed, it would forget them
    import torchmetrics.image.lpip as lpip

    lpip.LearnedPerceptualImagePatchSimilarity = lambda **options: torch.nn.Identity()


def train(model: RadianceModel, scene: Scene, seconds: float) -> int:
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameter_groups(), fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    model.train()
    model.loss(*scene.batch(256, generator, WHITE), WHITE).backward()  # compile outside the clock
    step, spent = 0, 0.0
    while spent < seconds:
        start = time.process_time()
        model.update(step)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * 0.1 ** (spent / seconds)
        optimizer.zero_grad()
        model.loss(*scene.batch(256, generator, WHITE), WHITE).backward()
        optimizer.step()
        step, spent = step + 1, spent + time.process_time() - start
    model.eval()
    return step


def trained(make: Callable[[], RadianceModel], scene: Scene, seconds: float) -> tuple[float, float]:
    """Seconds of training a ray, and the mean PSNR of the eight held-out pictures."""
    torch.manual_seed(0)
    fitted, test = scene[:40], scene[40:]
    model = make()
    steps = train(model, fitted, seconds)
    with torch.no_grad():
        shown = [render_picture(model, test.cameras, i, test.near, test.far, WHITE).colour for i in range(len(test))]
    error = sum(float(psnr(picture, test.colours(i, WHITE))) for i, picture in enumerate(shown)) / len(test)
    return seconds / (steps * 256), error


def compare(quick: bool) -> Iterator[Ratio]:
    if importlib.util.find_spec("nerfstudio") is None:
        raise Missing("nerfstudio", "not installed: pip install nerfstudio, in an environment of its own")
    prepare()
    torch.set_num_threads(1)
    scene = mesh_scene("duck", 48, 64, seed=10)
    rounds, seconds = (1, 5.0) if quick else (3, 30.0)

    def ours() -> Nerfacto:
        return Nerfacto.small(40, poses=False)

    for lr, first in ((1e-2, 0.01), (4e-2, 1.0)):  # their own values, and those of `Nerfacto.small`
        theirs = lambda lr=lr, first=first: Peer(ours(), 40, scene.near, scene.far, lr, first)  # noqa: E731
        runs = [[trained(make, scene, seconds) for make in (ours, theirs)] for _ in range(rounds)]
        sides = [[run[side][0] for run in runs] for side in (0, 1)]
        what = f"nerfacto, training, a ray, processor, 1 thread (their lr {lr:g}, first density {first:g})"
        note = f"{runs[-1][0][1]:.1f} dB against {runs[-1][1][1]:.1f} dB after {seconds:.0f} s"
        yield Ratio(what, "nerfstudio", *sides, package="nerfstudio", note=note)


if __name__ == "__main__":
    main(compare)
