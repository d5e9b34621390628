"""Run folders: stopping changes nothing, killing loses little, and what leaves a run is in the source's own coordinates."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from neuropil.data.cameras import Cameras, orbit
from neuropil.data.captures import write_capture
from neuropil.data.scenes import Scene
from neuropil.data.video import read_video, write_video
from neuropil.errors import Refused
from neuropil.fields.metrics import psnr
from neuropil.numerics.mesh_distance import signed_distance
from neuropil.studio import export, pictures, runs, scenes, shapes

trimesh = pytest.importorskip("trimesh")
CPU = torch.device("cpu")
KILLS = int(os.environ.get("NEUROPIL_TEST_KILLS", "1"))
CENTRE, SIZE = torch.tensor([30.0, -20.0, 7.0]), 12.0  # where the ball of the capture lies, and its radius


def waves(height: int, width: int, phase: float = 0.0) -> torch.Tensor:
    """A smooth picture as bytes."""
    y, x = torch.meshgrid(torch.linspace(0, 5, height), torch.linspace(0, 7, width), indexing="ij")
    return (torch.stack([(x + y + phase).sin(), (x - y).cos(), (x * y / 3 + phase).sin()], -1) * 100 + 128).to(torch.uint8)


def ball(views: int = 24, size: int = 32, distance: float = 40.0) -> Scene:
    """Pictures of a ball whose colour is its normal, with transparent surroundings: every number is known."""
    c2w = orbit(views, distance, 0.4, CENTRE)
    c2w[::2] = orbit(views, distance, -0.3, CENTRE)[::2]
    one = torch.ones(views, 2)
    cameras = Cameras(c2w, 1.3 * size * one, size / 2 * one, size, size)
    rays = [cameras.picture_rays(i) for i in range(views)]
    o = torch.stack([r.origins for r in rays]) - CENTRE
    d = torch.stack([r.directions for r in rays])
    b, c = (o * d).sum(-1), (o * o).sum(-1) - SIZE**2
    depth = -b - (b * b - c).clamp_min(0).sqrt()
    normal = (o + depth[..., None] * d) / SIZE
    hit = (b * b > c).float()[..., None]
    return Scene((torch.cat([(normal + 1) / 2 * hit, hit], -1) * 255).round().to(torch.uint8), cameras, 20.0, 60.0)


@pytest.fixture(scope="module", autouse=True)
def small_pools():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "POOL", 1 << 14)
        patch.setattr(shapes, "TEST", 1 << 11)
        yield


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    Image.fromarray(waves(48, 64).numpy()).save(folder / "photo.png")
    write_video(folder / "clip.mp4", torch.stack([waves(32, 48, t / 4) for t in range(8)]), 12.5)
    torus = trimesh.creation.torus(major_radius=30, minor_radius=12, major_sections=48, minor_sections=24)
    torus.apply_translation([100, -20, 7])
    torus.export(folder / "torus.ply")
    for layout in ("blender", "nerfstudio", "colmap-binary"):
        write_capture(ball(), folder / layout, layout)
    return folder


@pytest.fixture
def ctrl_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def image(sources):
    return pictures.image_fit(sources / "photo.png", "hash", 5000, CPU)


def scene(sources, field="voxels", parameters=30_000):
    return scenes.scene_fit(sources / "blender", field, parameters, CPU)


def stopping_at(job, step):
    """The job, with Ctrl-C while this step is under way."""
    loss = job.loss

    def interrupted(now):
        if now == step:
            signal.raise_signal(signal.SIGINT)
        return loss(now)

    job.loss = interrupted
    return job


def prepare(kind, sources):
    if kind == "image":
        return image(sources)
    if kind == "shape":
        return shapes.shape_fit(sources / "torus.ply", "hash", 6000, CPU)
    return scene(sources, kind, 30_000 if kind == "voxels" else None)


@pytest.mark.parametrize("kind", ["image", "shape", "voxels", "nerfacto"])
def test_a_stopped_fit_goes_on_bit_equal(kind, sources, tmp_path, ctrl_c):
    steps = 20 if kind == "voxels" else 8  # beyond the first update of the voxels' occupancy
    whole = runs.fit(prepare(kind, sources), tmp_path / "whole", 1.0, steps=steps).tensors()
    for stop in (2, steps - 3):
        with pytest.raises(KeyboardInterrupt):
            runs.fit(stopping_at(prepare(kind, sources), stop), tmp_path / "parts", 1.0, steps=steps)
        assert runs.read(tmp_path / "parts").progress.step == stop + 1
    parts = runs.fit(prepare(kind, sources), tmp_path / "parts", 1.0, steps=steps)
    assert parts.progress.step == steps
    assert {name: bool(torch.equal(x, whole[name])) for name, x in parts.tensors().items()} == dict.fromkeys(whole, True)


def test_a_fit_leaves_the_callers_randomness_alone_and_a_finished_one_is_left_alone(sources, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run = runs.fit(image(sources), tmp_path, 1.0, steps=3)
    assert torch.equal(torch.rand(3), expected)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    again = runs.fit(image(sources), tmp_path, 1.0, steps=3)
    assert again.progress == run.progress
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_power_cut_between_the_files_goes_on_from_the_last_whole_state(sources, tmp_path):
    kept, cut = tmp_path / "kept", tmp_path / "cut"
    runs.fit(image(sources), kept, 1.0, steps=3)
    shutil.copytree(kept, cut)
    runs.fit(image(sources), cut, 1.0, steps=6)
    shutil.copy(kept / runs.STATE, cut / runs.STATE)
    ends = [runs.fit(image(sources), folder, 1.0, steps=8) for folder in (kept, cut)]
    assert [run.progress.step for run in ends] == [8, 8]
    whole = ends[0].tensors()
    assert {name: bool(torch.equal(x, whole[name])) for name, x in ends[1].tensors().items()} == dict.fromkeys(whole, True)


def test_exploding_numbers_are_refused_and_the_good_state_stays(sources, tmp_path):
    run = runs.fit(image(sources), tmp_path, 1.0, steps=4)
    job = image(sources)
    loss = job.loss
    job.loss = lambda step: loss(step) * (torch.nan if step == 6 else 1)
    with pytest.raises(Refused, match=r"exploded at step 6.*keeps the state before"):
        runs.fit(job, tmp_path, 1.0, steps=9)
    assert runs.read(tmp_path).progress == run.progress


def test_run_json_is_plain_and_tells_all(sources, tmp_path):
    run = runs.fit(image(sources), tmp_path, 1.0, steps=3)
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["kind"] == "image" and facts["field"] == "hash" and facts["step"] == 3
    assert facts["arguments"] == {"parameters": 5000, "sizes": [48, 64]}
    assert facts["history"][-1][1:] == [3, run.progress.psnr]
    assert {p.name for p in tmp_path.iterdir()} == {"run.json", "field.safetensors", "state.safetensors", "preview.png", ".lock"}


@pytest.mark.parametrize("name", ["run.json", "field.safetensors", "state.safetensors"])
def test_truncated_files_are_refused_by_name_and_kept(name, sources, tmp_path):
    runs.fit(image(sources), tmp_path, 1.0, steps=2)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-20])
    before = file.read_bytes()
    with pytest.raises(Refused, match=name):
        runs.fit(image(sources), tmp_path, 1.0, steps=4)
    assert file.read_bytes() == before


def test_sigkill_at_random_moments_leaves_a_run_that_goes_on(sources, tmp_path):
    out, rng, step = tmp_path / "run", random.Random(0), 0
    command = [sys.executable, "-m", "neuropil", "fit", "image", str(sources / "photo.png"), "--seconds", "60"]
    for _ in range(KILLS):
        process = subprocess.Popen([*command, "--parameters", "5000", "--out", str(out)], stderr=subprocess.DEVNULL)
        began = time.monotonic()
        while not ((out / "field.safetensors").is_file() and runs.read(out).progress.step > step):
            assert process.poll() is None and time.monotonic() - began < 120
            time.sleep(0.02)
        with pytest.raises(Refused, match="is being fitted by another process"):
            runs.fit(image(sources), out, 60.0)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        step = runs.read(out).progress.step
        assert pictures.draw(export.restore(runs.read(out)), 4, 4).isfinite().all()
    assert runs.fit(image(sources), out, 60.0, steps=step + 1).progress.step == step + 1
    assert not list(out.glob(".*.tmp"))


def test_a_photograph_comes_out_as_it_went_in(sources, tmp_path):
    run = runs.fit(image(sources), tmp_path / "run", 1.0, steps=150)
    assert run.progress.psnr > 30
    export.film(run, None, 2, None, 25.0, tmp_path / "same.png")
    same = torch.from_numpy(numpy.array(Image.open(tmp_path / "same.png")))
    truth = waves(48, 64)
    assert psnr(same / 255, truth / 255) > 30
    assert psnr(same.flip(0) / 255, truth / 255) < 15  # neither mirrored nor upside down
    assert psnr(same.flip(1) / 255, truth / 255) < 15
    preview = torch.from_numpy(numpy.array(Image.open(tmp_path / "run" / "preview.png")))
    assert torch.equal(preview, same)


@pytest.mark.parametrize(("mode", "white"), [("I;16", 65535), ("L", 255), ("RGBA", 255), ("F", 1.0)])
def test_pictures_of_other_modes_are_read_to_scale(mode, white, tmp_path):
    kind = {"I;16": numpy.uint16, "F": numpy.float32}.get(mode, numpy.uint8)
    values = numpy.zeros((4, 6, 4) if mode == "RGBA" else (4, 6), kind)
    values[:2] = white
    file = tmp_path / ("x.tiff" if mode == "F" else "x.png")
    Image.fromarray(values).save(file)
    read = pictures.read_image(file)
    assert read.shape == (4, 6, 3)
    assert (read[:2] == 255).all()
    assert (read[2:] == (255 if mode == "RGBA" else 0)).all()  # what is transparent lies on white


def test_a_clip_moves_with_its_time_and_the_film_plays(sources, tmp_path):
    run = runs.fit(pictures.video_fit(sources / "clip.mp4", "hash", 20_000, CPU), tmp_path / "run", 1.0, steps=150)
    assert run.progress.psnr > 28
    export.film(run, "time", 8, None, 12.5, tmp_path / "film.mp4")
    film, truth = read_video(tmp_path / "film.mp4"), read_video(sources / "clip.mp4")
    assert film.rate == 12.5 and film.frames.shape == truth.frames.shape == (8, 32, 48, 3)
    assert psnr(film.frames / 255, truth.frames / 255) > 26
    assert psnr(film.frames.flip(0) / 255, truth.frames / 255) < 20


@pytest.fixture(scope="module")
def torus(sources, tmp_path_factory) -> runs.Run:
    return runs.fit(shapes.shape_fit(sources / "torus.ply", "hash", 40_000, CPU), tmp_path_factory.mktemp("torus"), 1.0, steps=200)


def test_a_shape_comes_out_closed_in_its_own_unit(torus, sources, tmp_path):
    truth = trimesh.load_mesh(sources / "torus.ply")
    for name in ("mesh.ply", "mesh.obj", "mesh.stl", "mesh.glb", "mesh.off"):
        export.mesh(torus, tmp_path / name, 64)
        found = trimesh.load_mesh(tmp_path / name)
        assert found.is_watertight
        assert abs(found.volume / truth.volume - 1) < 0.02  # positive: wound outward
        assert numpy.abs(found.bounds - truth.bounds).max() < 1.0
    assert found.euler_number == 0


def test_points_of_a_shape_lie_on_it(torus, sources, tmp_path):
    truth = trimesh.load_mesh(sources / "torus.ply")
    export.points(torus, tmp_path / "points.ply", 64)
    points = torch.from_numpy(numpy.array(trimesh.load(tmp_path / "points.ply").vertices)).float()[::50]
    distance = signed_distance(points, torch.from_numpy(truth.vertices.copy()), torch.from_numpy(truth.faces.copy()).long()).abs()
    assert distance.mean() < 0.3 and distance.max() < 2.0  # the torus is 84 wide
    # spread over all of it: the inner half of a torus has less area than the outer one, by (2 R/(π r) ∓ 1)
    outer = (torch.linalg.vector_norm(points[:, :2] - torch.tensor([100.0, -20.0]), dim=-1) > 30).float().mean()
    assert abs(outer - (0.5 + 12 / (torch.pi * 30))) < 0.03


def test_the_film_of_a_shape_is_what_its_frames_are(torus, tmp_path):
    export.film(torus, "orbit", 4, (64, 64), 25.0, tmp_path / "orbit.mp4")
    film = read_video(tmp_path / "orbit.mp4").frames
    frames = torch.stack([runs.to_bytes(x) for x in export._frames(torus, 4, (64, 64))])
    assert film.shape == frames.shape == (4, 64, 64, 3)
    assert psnr(film / 255, frames / 255) > 27
    assert psnr(film[[1]] / 255, frames[[0]] / 255) < psnr(film[[1]] / 255, frames[[1]] / 255) - 3


@pytest.mark.parametrize("layout", ["blender", "nerfstudio", "colmap-binary"])
def test_captures_of_all_layouts_are_fitted_where_they_are(layout, sources, tmp_path):
    job = scenes.scene_fit(sources / layout, "voxels", 30_000, CPU)
    torch.testing.assert_close(job.placed.centre, CENTRE, atol=1e-3, rtol=0)
    assert job.placed.radius == pytest.approx(40 / 2.6, rel=1e-3)  # half of what a picture shows of the plane through the centre
    assert len(job.train) == 21 and len(job.held) == 3
    assert runs.fit(job, tmp_path, 1.0, steps=2).progress.step == 2


@pytest.fixture(scope="module")
def globe(sources, tmp_path_factory) -> runs.Run:
    job = scenes.scene_fit(sources / "nerfstudio", "voxels", 150_000, CPU)
    return runs.fit(job, tmp_path_factory.mktemp("globe"), 1.0, steps=150)


def test_a_scene_is_seen_from_where_no_picture_was_taken(globe):
    assert globe.progress.psnr > 24  # on held-out pictures
    field, truth = export.restore(globe), ball(views=5)
    seen = scenes.render_picture(field, truth.cameras, 3, 20.0, 60.0, torch.ones(3))
    assert psnr(seen.colour.clamp(0, 1), truth.colours(3, torch.ones(3))) > 22
    inside = truth.pictures[3, ..., 3] > 0
    assert (seen.accumulation[inside] > 0.5).float().mean() > 0.97
    assert (seen.accumulation[~inside] < 0.5).float().mean() > 0.97
    middle = seen.depth[15:17, 15:17].mean()
    assert abs(middle - (40 - SIZE)) < 1.5  # in the capture's unit


def test_a_scene_leaves_as_points_and_a_closed_mesh_in_its_own_coordinates(globe, tmp_path):
    export.points(globe, tmp_path / "points.ply")
    cloud = trimesh.load(tmp_path / "points.ply")
    radius = torch.linalg.vector_norm(torch.from_numpy(numpy.array(cloud.vertices)).float() - CENTRE, dim=-1)
    assert abs(radius.median() / SIZE - 1) < 0.06
    assert (radius / SIZE - 1).abs().quantile(0.9) < 0.15
    normal = (torch.from_numpy(numpy.array(cloud.vertices)).float() - CENTRE) / radius[:, None]
    assert (torch.from_numpy(numpy.array(cloud.colors))[:, :3] / 255 - (normal + 1) / 2).abs().mean() < 0.1
    export.mesh(globe, tmp_path / "mesh.ply", 48)
    found = trimesh.load_mesh(tmp_path / "mesh.ply")
    assert found.is_watertight
    assert abs(found.volume / (4 / 3 * torch.pi * SIZE**3) - 1) < 0.15
    assert numpy.abs(found.bounds.mean(0) - CENTRE.numpy()).max() < 1.0


def test_the_film_of_a_scene_goes_round_it(globe, tmp_path):
    export.film(globe, None, 4, (48, 64), 10.0, tmp_path / "orbit.mp4")
    film = read_video(tmp_path / "orbit.mp4").frames / 255
    cameras = scenes.orbit(export.restore(globe), 4, 48, 64)
    for picture, c2w in zip(film, cameras.c2w, strict=True):
        towards = (c2w[:, 3] - CENTRE) / 40  # what faces the camera has the colour of this normal
        assert (picture[23:25, 31:33].mean((0, 1)) - (towards + 1) / 2).abs().max() < 0.15
    assert (film[0] - film[2]).abs().max() > 0.4


def test_two_pictures_side_by_side_get_the_cloud_as_their_region_and_a_small_orbit():
    c2w = torch.eye(3, 4).repeat(2, 1, 1)
    c2w[1, 0, 3] = 0.2
    cameras = Cameras(c2w, torch.full((2, 2), 20.0), torch.full((2, 2), 8.0), 16, 16)
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 0.0, -5.0])
    still = Scene(torch.zeros(2, 16, 16, 3, dtype=torch.uint8), cameras, 0.5, 100.0)
    centre, radius = scenes.region(scenes.replace(still, points=points))
    torch.testing.assert_close(centre, torch.tensor([0.0, 0.0, -5.0]), atol=0.3, rtol=0)
    assert 1.8 < radius < 3.2
    centre, radius = scenes.region(scenes.replace(still, near=2.0, far=8.0))  # no cloud: the middle of the depths
    torch.testing.assert_close(centre, torch.tensor([0.1, 0.0, -5.0]))
    assert radius == 3.0
    centre, radius = scenes.region(still)  # nothing known: round the cameras
    torch.testing.assert_close(centre, torch.tensor([0.1, 0.0, 0.0]))
    assert radius == pytest.approx(0.3)
    model = scenes.Placed(scenes.VoxelField(resolution=8), [0.0, 0.0, -5.0], 2.0, 0.5, 100.0, cameras)
    path = scenes.orbit(model, 6, 16, 16).c2w
    assert torch.linalg.vector_norm(path[:, :, 3] - torch.tensor([0.0, 0.0, -5.0]), dim=-1).allclose(torch.tensor(5.0), atol=0.02)
    assert path[:, :2, 3].abs().max() < 0.5  # near the pictures, not behind the wall
