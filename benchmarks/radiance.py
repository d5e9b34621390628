"""Seconds until held-out views of a rendered mesh are at 25 dB: voxels against NeRF's MLP.

The duck, 40 views of 64 pixels to fit and 8 to look at, on black; rays are clipped to the cube that holds the mesh for both. The
MLP has the sizes, rays a step and rate that got there fastest of three tried: 4 layers of 64, 6 octaves, 16 + 33 intervals, 256
rays, Adam at 5e-3; the paper's own (8 of 256, 64 + 193 intervals) takes minutes. Seconds are of the processor (always one thread),
for updates only, up to the first look that finds 25 dB. A pair is a seed.
"""

import time
from collections.abc import Callable, Iterator

import torch
from rounds import Ratio, main

from neuropil.data.cameras import Rays
from neuropil.data.render import mesh_scene
from neuropil.data.scenes import Scene
from neuropil.fields.metrics import psnr
from neuropil.fields.nerf import NeRF
from neuropil.fields.radiance import RadianceModel, render_picture
from neuropil.fields.sampling import clip_to_box
from neuropil.fields.voxels import VoxelField

GOAL, TRAIN, RADIUS, LIMIT = 25.0, 40, 0.9, 10.0
Maker = Callable[[], RadianceModel]
# a model, rays a step, the most seconds, seconds between looks
WAYS: dict[str, tuple[Maker, int, float, float]] = {
    "voxels": (lambda: VoxelField(radius=RADIUS), 1024, 30.0, 0.05),
    "nerf": (lambda: NeRF(radius=RADIUS, width=64, depth=4, octaves=6, coarse=16, fine=16, lr=5e-3), 256, 60.0, 0.5),
}


def clipped(rays: Rays) -> Rays:
    return clip_to_box(rays, RADIUS)


def quality(model: RadianceModel, scene: Scene) -> float:
    """PSNR of all pixels of all pictures together."""
    model.eval()
    pictures = range(len(scene))
    seen = [render_picture(lambda r, b: model(clipped(r), b), scene.cameras, i, scene.near, scene.far).colour for i in pictures]
    model.train()
    return float(psnr(torch.stack(seen), scene.colours(torch.arange(len(scene)))))


def race(way: str, scene: Scene, seed: int) -> tuple[float, float]:
    """Seconds until the goal, and the dB there."""
    make, count, most, look = WAYS[way]
    torch.manual_seed(seed)
    model = make().train()
    optimizer = torch.optim.Adam(model.parameter_groups(), fused=True)
    generator = torch.Generator().manual_seed(seed)
    train, test = scene[:TRAIN], scene[TRAIN:]
    used, looked, step, best = 0.0, 0.0, 0, 0.0
    while used < most and best < GOAL:
        start = time.process_time()
        model.update(step)
        rays, target = train.batch(count, generator)
        loss = model.loss(clipped(rays), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        used += time.process_time() - start
        step += 1
        if used - looked >= look:
            looked, best = used, quality(model, test)
    return used, best


def warm(way: str, scene: Scene) -> None:
    """What is loaded or compiled once is not a field's time."""
    rays, target = scene.batch(64, torch.Generator().manual_seed(1))
    WAYS[way][0]().loss(clipped(rays), target).backward()


def compare(quick: bool) -> Iterator[Ratio]:
    torch.set_num_threads(1)
    scene = mesh_scene("duck", TRAIN + 8, 64)
    for way in WAYS:
        warm(way, scene)
    runs = [{way: race(way, scene, seed) for way in WAYS} for seed in range(1 if quick else 3)]
    voxels, nerf = ([run[way][0] for run in runs] for way in WAYS)
    assert all(run["voxels"][1] >= GOAL for run in runs), "voxels did not get to 25 dB"
    short = [run["nerf"][1] for run in runs if run["nerf"][1] < GOAL]
    note = f"at least: the MLP is not there after 60 s: {min(short):.1f} dB" if short else "the fastest MLP of three tried"
    what = "views of a mesh to 25 dB, voxels, processor, 1 thread"
    yield Ratio(what, "a positional-encoding MLP", voxels, nerf, at_least=10, note=note)
    yield Ratio(what, "a limit of 10 s", voxels, [LIMIT] * len(voxels), at_least=1)


if __name__ == "__main__":
    main(compare)
