"""Captures: three layouts of one scene give the same rays, COLMAP's own numbers are met, bad folders are refused."""

import json
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import grid_sample

from neuropil import data
from neuropil.data.cameras import Cameras, look_at
from neuropil.data.colmap import read_model
from neuropil.data.scenes import Scene
from neuropil.errors import Refused

LAYOUTS = ("blender", "nerfstudio", "colmap-text", "colmap-binary")


def scene(n=9, height=12, width=16, channels=4, **more):
    """A made scene with one lens, the axis in the middle."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (n, height, width, channels), generator=generator, dtype=torch.uint8)
    places = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1) * 4
    centre = torch.tensor([[width / 2, height / 2]]).repeat(n, 1)
    cameras = Cameras(look_at(places, torch.zeros(3)), torch.full((n, 2), 20.3), centre, height, width)
    points = torch.rand(50, 3, generator=generator) - 0.5
    return replace(Scene(pictures, cameras, 2.0, 6.5, tuple(f"{i:03d}.png" for i in range(n)), points), **more)


def difference(one, other):
    """The greatest difference of the origins and directions of all pixels' rays."""
    pairs = [(one.cameras.picture_rays(i), other.cameras.picture_rays(i)) for i in range(len(one))]
    return max(float((getattr(a, k) - getattr(b, k)).abs().max()) for a, b in pairs for k in ("origins", "directions"))


def written(scene, folder, layout="nerfstudio", **more):
    data.write_capture(scene, folder, layout, **more)
    return folder


@pytest.fixture
def capture(tmp_path):
    return written(scene(), tmp_path / "capture")


def edit(file, change):
    table = json.loads(file.read_text())
    change(table)
    file.write_text(json.dumps(table))


# ---------------------------------------------------------------- the claim: one capture, three layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pictures_and_rays(tmp_path, layout):
    made = scene()
    back = data.read_capture(written(made, tmp_path / "a", layout))
    assert torch.equal(back.pictures, made.pictures) and [name[-7:] for name in back.names] == list(made.names)
    assert difference(made, back) < 1e-5
    if layout.startswith("colmap"):
        torch.testing.assert_close(back.points, made.points, atol=0, rtol=0)
    else:
        assert (back.near, back.far) == (made.near, made.far)


def test_colmaps_text_and_binary_agree_exactly(tmp_path):
    made = scene(4)
    lens = torch.tensor([0.1, -0.05, 0.01, -0.02])
    made = replace(
        made, cameras=replace(made.cameras, focal=made.cameras.focal + torch.arange(4)[:, None], distortion=lens.repeat(4, 1))
    )
    text, binary = (data.read_capture(written(made, tmp_path / kind, f"colmap-{kind}")) for kind in ("text", "binary"))
    assert torch.equal(text.cameras.c2w, binary.cameras.c2w) and torch.equal(text.points, binary.points)
    assert torch.equal(text.cameras.focal, made.cameras.focal) and torch.equal(binary.cameras.distortion, made.cameras.distortion)
    assert (text.near, text.far) == (binary.near, binary.far)
    models = [read_model(tmp_path / kind / "sparse/0") for kind in ("text", "binary")]
    assert models[0].lenses == models[1].lenses and models[0].shots == models[1].shots
    assert len(models[0].lenses) == 4 and difference(made, text) < 1e-5


def test_nerfstudio_holds_a_lens_a_frame_and_times(tmp_path):
    made = scene(3, channels=3)
    lens = torch.arange(12).reshape(3, 4) / 200
    cameras = replace(
        made.cameras, focal=torch.rand(3, 2) + 20, centre=torch.rand(3, 2) + 6, distortion=lens, times=torch.arange(3.0)
    )
    back = data.read_capture(written(replace(made, cameras=cameras), tmp_path / "a"))
    for key in ("c2w", "focal", "centre", "distortion", "times"):
        assert torch.equal(getattr(back.cameras, key), getattr(cameras, key)), key
    assert torch.equal(back.points, made.points)


# ---------------------------------------------------------------- COLMAP's own numbers

# Projections computed by pycolmap 4.2.1 of the point (0.25, −0.5, 0.75) with q ∝ (0.8, 0.2, −0.4, 0.4) and t = (0.3, −0.2, 2).
LENSES = {
    "SIMPLE_PINHOLE 64 48 50 31 25": None,
    "PINHOLE 64 48 50 50 31 25": None,
    "OPENCV 64 48 50 55 31 25 0.1 -0.05 0.01 -0.02": (38.976019022902285, 7.235538498493572),
    "RADIAL 64 48 50 31 25 0.1 -0.05": (39.21298591503472, 8.57402816993056),
    "SIMPLE_RADIAL 64 48 50 31 25 0.1": (39.220016523707486, 8.559966952585018),
}


@pytest.mark.parametrize("lens", LENSES)
def test_rays_pass_where_colmap_projects(tmp_path, lens):
    sparse = tmp_path / "sparse/0"
    sparse.mkdir(parents=True)
    (sparse / "cameras.txt").write_text(f"# comment\n7 {lens}\n")
    points = "1.5 2.5 3 4.5 5.5 -1"
    (sparse / "images.txt").write_text(
        f"# comment\n3 0.8 0.2 -0.4 0.4 0.3 -0.2 2 7 b/second.png\n{points}\n1 1 0 0 0 0 0 0 7 a.png\n\n"
    )
    for name in ("b/second.png", "a.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(tmp_path / "images" / name)
    got = data.read_capture(tmp_path)
    assert got.names == ("a.png", "b/second.png") and got.points is None
    torch.testing.assert_close(got.cameras.c2w[1, :, 3], torch.tensor([-1.612, 0.36, -1.184]))
    x, y, z = 0.43, -0.86, 2.65  # the point in the camera's own axes
    uv = LENSES[lens] or (31 + 50 * x / z, 25 + 50 * y / z)
    ray = got.cameras.rays(torch.tensor(1), torch.tensor(uv))
    to = torch.tensor([0.25, -0.5, 0.75]) - ray.origins
    torch.testing.assert_close(ray.directions, to / to.norm(), atol=1e-6, rtol=0)


def test_colmaps_binary_with_tracks_is_read(tmp_path):
    """Points in images and tracks of points, as COLMAP writes them, are skipped."""
    sparse = written(scene(2), tmp_path / "a", "colmap-binary") / "sparse/0"
    plain = read_model(sparse)
    image = b"".join(
        struct.pack("<I7dI", i + 1, *shot.q, *shot.t, shot.lens)
        + shot.name.encode()
        + b"\0"
        + struct.pack("<Qddqddq", 2, 1, 2, 3, 4, 5, -1)
        for i, shot in enumerate(plain.shots)
    )
    (sparse / "images.bin").write_bytes(struct.pack("<Q", 2) + image)
    cloud = b"".join(struct.pack("<Q3d3BdQIIII", i, *p, 9, 9, 9, 0.5, 2, 1, 0, 2, 1) for i, p in enumerate(plain.points))
    (sparse / "points3D.bin").write_bytes(struct.pack("<Q", len(plain.points)) + cloud)
    tracked = read_model(sparse)
    assert tracked.shots == plain.shots and np.array_equal(tracked.points, plain.points)


# ---------------------------------------------------------------- sizes, splits, ends


@pytest.mark.parametrize("layout", LAYOUTS)
def test_smaller_pictures_are_means_and_cameras_follow(tmp_path, layout):
    made = scene(3, channels=3)
    folder = written(made, tmp_path / "a", layout)
    half = data.read_capture(folder, downscale=2)
    means = made.pictures.float().reshape(3, 6, 2, 8, 2, 3).mean((2, 4))
    assert (half.pictures.float() - means).abs().max() <= 0.5
    torch.testing.assert_close(half.cameras.focal, made.cameras.focal / 2)
    torch.testing.assert_close(half.cameras.centre, made.cameras.centre / 2)
    uv = torch.tensor([[5.0, 3.0]])
    there, here = half.cameras.rays(torch.tensor([1]), uv), made.cameras.rays(torch.tensor([1]), 2 * uv)
    torch.testing.assert_close(there.directions, here.directions, atol=1e-5, rtol=0)


def test_a_size_that_does_not_divide_is_cut_not_squeezed(tmp_path):
    third = data.read_capture(written(scene(2, 13, 17), tmp_path / "a"), downscale=3)
    assert third.pictures.shape == (2, 4, 5, 4)
    torch.testing.assert_close(third.cameras.focal, torch.full((2, 2), 20.3 / 3))
    torch.testing.assert_close(third.cameras.centre[0], torch.tensor([17 / 6, 13 / 6]))


def test_transparent_colours_count_by_their_opacity(tmp_path):
    made = scene(1, 2, 2)
    made.pictures[0] = torch.tensor([[[200, 0, 0, 255], [0, 255, 0, 0]], [[100, 0, 0, 255], [0, 255, 0, 0]]], dtype=torch.uint8)
    half = data.read_capture(written(made, tmp_path / "a"), downscale=2)
    assert half.pictures[0, 0, 0].tolist() == [150, 0, 0, 128]


@pytest.mark.parametrize("layout", ["nerfstudio", "colmap-text"])
def test_ready_made_smaller_photographs_are_used(tmp_path, layout):
    folder = written(scene(3), tmp_path / "a", layout)
    for file in sorted((folder / "images").iterdir()):
        (folder / "images_2").mkdir(exist_ok=True)
        Image.new("RGB", (8, 6), (1, 2, 3)).save(folder / "images_2" / file.name)
    half = data.read_capture(folder, downscale=2)
    assert half.pictures.shape == (3, 6, 8, 3) and half.pictures[0, 0, 0].tolist() == [1, 2, 3]
    torch.testing.assert_close(half.cameras.focal, torch.full((3, 2), 10.15))


def test_photographs_smaller_than_stated_scale_the_cameras(capture):
    for file in (capture / "images").iterdir():
        Image.open(file).resize((8, 6)).save(file)
    small = data.read_capture(capture)
    torch.testing.assert_close(small.cameras.focal, torch.full((9, 2), 10.15))
    torch.testing.assert_close(small.cameras.centre[0], torch.tensor([4.0, 3.0]))


@pytest.mark.parametrize("layout", ["blender", "nerfstudio"])
def test_splits_that_were_written_are_read(tmp_path, layout):
    folder = written(scene(), tmp_path / "a", layout, test=4)
    train, test = (data.read_capture(folder, split=split) for split in ("train", "test"))
    assert [name[-7:] for name in test.names] == ["000.png", "004.png", "008.png"] and len(train) == 6
    assert len(data.read_capture(folder)) == 9
    with pytest.raises(Refused, match="no photographs in split 'val'"):
        data.read_capture(folder, split="val")


def test_without_splits_every_eighth_photograph_tests(tmp_path):
    folder = written(scene(), tmp_path / "a", "colmap-text")
    assert data.read_capture(folder, split="test").names == ("000.png", "008.png")
    assert len(data.read_capture(folder, split="train")) == 7


def test_blenders_own_style_is_read(tmp_path):
    """Names without suffix, splits in folders, an angle, matrices of 4 x 4, one table for all splits or one each."""
    made, angle = scene(4), 0.7
    for i, split in enumerate(("train", "train", "val", "test")):
        (tmp_path / split).mkdir(exist_ok=True)
        Image.fromarray(made.pictures[i].numpy()).save(tmp_path / split / f"r_{i}.png")
    matrix = [[*row] for row in made.cameras.c2w.tolist()]
    frames = [
        {"file_path": f"./{split}/r_{i}", "rotation": 0.01, "time": i / 4, "transform_matrix": [*matrix[i], [0, 0, 0, 1]]}
        for i, split in enumerate(("train", "train", "val", "test"))
    ]
    for split, some in (("train", frames[:2]), ("val", frames[2:3]), ("test", frames[3:])):
        (tmp_path / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": angle, "frames": some}))
    got = data.read_capture(tmp_path)
    assert got.names == ("train/r_0.png", "train/r_1.png", "val/r_2.png", "test/r_3.png") and got.cameras.times[3] == 0.75
    torch.testing.assert_close(got.cameras.focal, torch.full((4, 2), 8 / np.tan(0.35), dtype=torch.float32))
    torch.testing.assert_close(got.cameras.centre[0], torch.tensor([8.0, 6.0]))
    assert (round(got.near, 3), round(got.far, 3)) == (2, 6)  # half and 1.5 times the cameras' distance of 4
    assert data.read_capture(tmp_path, split="val").names == ("val/r_2.png",)
    (tmp_path / "transforms.json").write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
    for split in ("train", "val", "test"):
        (tmp_path / f"transforms_{split}.json").unlink()
    again = data.read_capture(tmp_path)
    assert torch.equal(again.cameras.c2w, got.cameras.c2w) and torch.equal(again.cameras.focal, got.cameras.focal)


def test_ends_follow_points_and_else_the_cameras(tmp_path):
    made = scene()
    cloud = data.read_capture(written(made, tmp_path / "points", "colmap-text"))
    distances = torch.cdist(made.cameras.c2w[..., 3], made.points)
    assert 0.4 * distances.min() < cloud.near < 0.6 * distances.min() and 1.8 * distances.max() < cloud.far < 2.1 * distances.max()
    bare = data.read_capture(written(replace(made, points=None), tmp_path / "bare", "colmap-text"))
    assert (round(bare.near, 3), round(bare.far, 3)) == (2, 6)
    opaque = data.read_capture(
        written(replace(made, points=None, pictures=made.pictures[..., :3]), tmp_path / "opaque", "colmap-text")
    )
    assert (round(opaque.near, 3), round(opaque.far, 3)) == (2, 400)
    ahead = torch.eye(3, 4).repeat(2, 1, 1)
    ahead[1, 0, 3] = 2.0  # two cameras side by side: no point to look at, a spread of 1
    pair = replace(made[:2], points=None, cameras=replace(made.cameras[:2], c2w=ahead))
    side = data.read_capture(written(pair, tmp_path / "pair", "colmap-text"))
    assert (side.near, side.far) == (0.01, 100)


# ---------------------------------------------------------------- a real capture


def test_the_motorcycles_depths_carry_left_onto_right():
    pair = data.motorcycle_capture()
    left, right = pair.colours(torch.tensor([0, 1])).movedim(-1, 1)

    def look(picture, camera, points):
        local = points - pair.cameras.c2w[camera, :, 3]
        uv = local[:, :2] / -local[:, 2:] * torch.tensor([1.0, -1.0]) * pair.cameras.focal[camera] + pair.cameras.centre[camera]
        grid = 2 * uv / torch.tensor([741.0, 500.0]) - 1
        return grid_sample(picture[None], grid[None, None], align_corners=False, padding_mode="border")[0, :, 0].T

    def error(points):
        return float((look(left, 0, pair.points) - look(right, 1, points)).abs().median())

    assert len(pair.points) > 5000 and bool((-pair.points[:, 2] > pair.near).all()) and bool((-pair.points[:, 2] < pair.far).all())
    true = error(pair.points)
    assert true < 4 / 255
    # one pixel of disparity too much or too little (some 2 cm of depth) is seen at once
    for step in (-1.0, 1.0):
        depth = -pair.points[:, 2:]
        shifted = 994.978 * 0.193001 / (994.978 * 0.193001 / depth + step) / depth * pair.points
        assert error(shifted) > 1.3 * true
    ray = pair.cameras.rays(torch.tensor(0), torch.tensor([0.0, 0.0]))
    assert bool((ray.directions * torch.tensor([-1.0, 1.0, -1.0]) > 0).all())


# ---------------------------------------------------------------- what is refused


def refused(folder, message, **more):
    with pytest.raises(Refused, match=message) as error:
        data.read_capture(folder, **more)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_folders_that_are_no_captures(tmp_path, capture):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    refused(tmp_path / "nowhere", "no folder")
    refused(tmp_path / "empty", "is empty; needed: transforms_train.json")
    refused(tmp_path / "other", "has no camera poses")
    refused(capture, "layout: unknown 'colmop'; did you mean 'colmap'", layout="colmop")
    refused(capture, "no file .*cameras.bin", layout="colmap")
    refused(capture, "split: unknown", split="tests")
    refused(capture, "downscale: at least 1", downscale=0)
    refused(capture, "cannot be made 13 times smaller", downscale=13)
    (capture / "transforms.json").write_text('{"frames": [')
    refused(capture, "transforms.json is corrupt or truncated")
    for table in ("[]", "{}", '{"frames": {}}'):
        (capture / "transforms.json").write_text(table)
        refused(capture, 'transforms.json has no list "frames"', layout="nerfstudio")
    (capture / "transforms.json").write_text('{"frames": []}')
    refused(capture, "has no photographs")


def matrix(value):
    return lambda table: table["frames"][2].update(transform_matrix=value)


EYE = np.eye(4).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["frames"][2].pop("transform_matrix"), r'frame 2 \(images/002.png\) has no "transform_matrix"'),
        (lambda t: t["frames"][2].pop("file_path"), 'frame 2 has no "file_path"'),
        (lambda t: t["frames"].__setitem__(2, "x"), 'frame 2 has no "file_path"'),
        (matrix("abc"), "frame 2 .*must be 4x4"),
        (matrix([[1, 2], [3]]), "frame 2 .*must be 4x4"),
        (matrix([[float("nan")] * 4] * 4), "frame 2 .*not finite"),
        (matrix((2 * np.eye(4)).tolist()), r"frame 2 .*no rotation \(det 8\)"),
        (matrix(np.zeros((4, 4)).tolist()), r"frame 2 .*no rotation \(det 0\)"),
        (matrix(np.diag([1, 1, -1, 1]).tolist()), r"frame 2 .*no rotation \(det -1\)"),
        (matrix((np.eye(4) + 1e300 * np.eye(4, k=3)).tolist()), "frame 2 .*matrix is not finite in float32"),
        (lambda t: t["frames"][2].update(cx=1e300), "frame 2 .*centre is not finite in float32"),
        (lambda t: t.update(k1=1e300), "frame 0 .*distortion is not finite in float32"),
        (lambda t: t["frames"][2].update(fl_x=1e300), "frame 2 .*focal length is not finite in float32"),
        (lambda t: t["frames"][2].update(fl_x=0), "frame 2 .*focal length must be positive, got 0"),
        (lambda t: t["frames"][2].update(fl_x="wide"), "frame 2 .*fl_x must be a number, got 'wide'"),
        (lambda t: t.pop("fl_x"), "frame 0 .*neither"),
        (lambda t: t.update(camera_model="OPENCV_FISHEYE"), "frame 0 .*unknown camera model OPENCV_FISHEYE"),
        (lambda t: t.update(k3=0.1), "frame 0 .*k3 is not 0"),
        (lambda t: t["frames"][2].update(file_path="images/none.png"), "frame 2 .*no file .*none.png"),
        (lambda t: t.update(ply_file_path="none.ply"), "no file .*none.ply"),
        (lambda t: t.update(near=5, far=1), "near < far"),
        (lambda t: t.update(w=160, h=160), "frame 0 .*16x12 pixels, but its camera takes 160x160"),
    ],
)
def test_bad_frames_are_named(capture, change, message):
    edit(capture / "transforms.json", change)
    refused(capture, message, layout="nerfstudio")


def test_bad_photographs_are_named(capture):
    file = capture / "images" / "004.png"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(capture, r"frame 4 \(images/004.png\): cannot read .*004.png")
    file.write_bytes(b"")
    refused(capture, "frame 4 .*cannot read")
    Image.new("RGB", (32, 24)).save(file)
    refused(capture, "frame 4 .*32x24 pixels, but the first photograph has 16x12")
    Image.new("I;16", (16, 12)).save(file)
    refused(capture, "frame 4 .*8 bits")


@pytest.mark.parametrize("angle", [0, -1, 4, None])
def test_bad_angles_are_refused(tmp_path, angle):
    folder = written(scene(), tmp_path / "a", "blender")
    edit(folder / "transforms_train.json", lambda table: table.update(camera_angle_x=angle))
    refused(folder, "frame 0 .*camera_angle_x")


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_truncated_binaries_are_refused(tmp_path, name):
    file = written(scene(3), tmp_path / "a", "colmap-binary") / "sparse/0" / f"{name}.bin"
    whole = file.read_bytes()
    for content in (whole[:-3], whole[: len(whole) // 2], whole[:5], b"", whole + b"x", struct.pack("<Q", 1 << 60) + whole[8:]):
        file.write_bytes(content)
        refused(tmp_path / "a", f"{name}.bin is truncated or no COLMAP file")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("cameras", "PINHOLE", "FISHEYE", "cameras.txt: unknown camera model FISHEYE"),
        ("cameras", "PINHOLE", "OPENCV", "cameras.txt: a OPENCV camera has 8 parameters, got 4"),
        ("cameras", "20.", "-20.", "images.txt: 000.png: the focal length must be positive"),
        ("cameras", "16 12", "x y", "cameras.txt is truncated"),
        ("cameras", "1 PINHOLE", "2 PINHOLE", "000.png has camera 1, which does not exist"),
        ("images", "000.png", "zzz.png", "zzz.png: no file"),
        ("images", " 1 000.png", "", "images.txt is truncated"),
        ("points3D", "128 128 128", "", None),
    ],
)
def test_bad_text_models_are_refused(tmp_path, name, old, new, message):
    folder = written(scene(2), tmp_path / "a", "colmap-text")
    file = folder / "sparse/0" / f"{name}.txt"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    if message:
        refused(folder, message)
    else:
        assert len(data.read_capture(folder)) == 2


def test_bad_poses_and_models_of_colmap_are_refused(tmp_path):
    folder = written(scene(2), tmp_path / "a", "colmap-text")
    file = folder / "sparse/0/images.txt"
    rows = file.read_text().split("\n")
    for pose in ("0 0 0 0 0 0 0", "nan 0 0 0 0 0 0", "1 0 0 0 inf 0 0"):
        file.write_text("\n".join([rows[0], f"1 {pose} 1 000.png", *rows[2:]]))
        refused(folder, "000.png: the pose is not finite, or its quaternion 0")
    shutil.copytree(written(scene(2), tmp_path / "b", "colmap-binary"), tmp_path / "c")
    cameras = tmp_path / "c/sparse/0/cameras.bin"
    cameras.write_bytes(cameras.read_bytes()[:12] + struct.pack("<i", 5) + cameras.read_bytes()[16:])
    refused(tmp_path / "c", "cameras.bin: unknown camera model 5")
    (tmp_path / "b/sparse/0/images.bin").unlink()
    refused(tmp_path / "b", "no file .*images.bin")


# ---------------------------------------------------------------- writing


def test_a_capture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    made, folder = scene(3), tmp_path / "a"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    for layout in LAYOUTS:
        with pytest.raises(Refused, match="not empty; nothing was written"):
            data.write_capture(made, folder, layout)
    assert [file.name for file in folder.iterdir()] == ["thesis.txt"] and len(list(tmp_path.iterdir())) == 1
    (folder / "thesis.txt").unlink()
    save, calls = Image.Image.save, []

    def failing(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", failing)
    with pytest.raises(KeyboardInterrupt):
        data.write_capture(made, folder, "nerfstudio")
    assert list(tmp_path.iterdir()) == [folder] and not list(folder.iterdir())
    data.write_capture(made, folder, "nerfstudio")  # an empty folder is fine
    assert len(data.read_capture(folder)) == 3 and (folder.stat().st_mode & 0o777) == 0o755


def test_scenes_that_a_layout_cannot_hold_are_refused(tmp_path):
    made = scene(3)
    with pytest.raises(Refused, match="layout: unknown 'blendr'; did you mean 'blender'"):
        data.write_capture(made, tmp_path / "a", "blendr")
    lens = replace(made.cameras, distortion=torch.full((3, 4), 0.1))
    for cameras in (lens, replace(made.cameras, centre=made.cameras.centre + 1), replace(made.cameras, focal=torch.rand(3, 2) + 1)):
        with pytest.raises(Refused, match="use nerfstudio"):
            data.write_capture(replace(made, cameras=cameras), tmp_path / "a", "blender")
    for test, message in ((3, "colmap-text holds no splits"), (-1, "0 or more")):
        with pytest.raises(Refused, match=message):
            data.write_capture(made, tmp_path / "a", "colmap-text", test=test)
    assert not list(tmp_path.iterdir())


def test_names_from_several_folders_do_not_collide(tmp_path):
    made = replace(scene(2), names=("left/a.png", "right/a.png"))
    assert [name[-9:] for name in data.read_capture(written(made, tmp_path / "a")).names] == ["00000.png", "00001.png"]
