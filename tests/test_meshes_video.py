"""Meshes and clips: packaged ones and the user's files, what is written is what is read, and one clear line for what cannot be."""

import numpy as np
import pytest
import torch
import trimesh

from neuropil import data
from neuropil.errors import Refused


@pytest.mark.parametrize(
    ("name", "corners", "faces"), [("duck", 2277, 4212), ("bunny", 453, 902), ("teddy", 1246, 2432), ("soccerball", 6141, 9048)]
)
def test_the_packaged_meshes_are_closed(name, corners, faces):
    mesh = data.load_mesh(name)
    assert mesh.vertices.shape == (corners, 3) and mesh.faces.shape == (faces, 3)
    assert trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy()).is_watertight
    assert (mesh.colours is not None) == (name in ("duck", "soccerball"))


def test_a_texture_becomes_the_corners_colours():
    colours = data.load_mesh("duck").colours
    assert colours.dtype == torch.float32 and colours.min() >= 0 and colours.max() <= 1
    assert colours.median(0).values.tolist() == pytest.approx([1.0, 0.85, 0.0], abs=0.1)  # yellow
    assert int((colours.sum(1) < 0.3).sum()) > 5  # and black eyes


@pytest.mark.parametrize("kind", ["obj", "ply", "stl", "off", "glb"])
def test_files_of_each_kind_are_read(tmp_path, kind):
    box = trimesh.creation.box((1.0, 2.0, 3.0))
    box.export(tmp_path / f"box.{kind}")
    mesh = data.load_mesh(str(tmp_path / f"box.{kind}"))
    assert len(mesh.faces) == 12 and mesh.faces.dtype == torch.int64
    torch.testing.assert_close(mesh.vertices.amax(0), torch.tensor([0.5, 1.0, 1.5]))
    corners = mesh.vertices[mesh.faces]
    assert float((corners[:, 0] * torch.linalg.cross(corners[:, 1], corners[:, 2])).sum() / 6) == pytest.approx(6.0)  # outward


def test_vertex_colours_are_kept(tmp_path):
    box = trimesh.creation.box()
    box.visual.vertex_colors = np.tile([255, 0, 51, 255], (8, 1))
    box.export(tmp_path / "box.ply")
    torch.testing.assert_close(data.load_mesh(tmp_path / "box.ply").colours, torch.tensor([[1.0, 0.0, 0.2]]).repeat(8, 1))


OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.obj", None, "no file"),
        ("a.txt", "x", "unknown .*allowed: bunny"),
        ("a.ply", "not a ply", "cannot read"),
        ("a.obj", OBJ, "no faces|cannot read"),
        ("a.obj", OBJ.replace("1 0 0", "nan 0 0") + "f 1 2 3\n", "corner 1 .* is not finite"),
        ("a.obj", "", "cannot read|no faces"),
        ("a.glb", "glTF", "cannot read"),
        ("a.obj", OBJ + "f 1 2 9\n", "do not exist|cannot read"),
    ],
)
def test_broken_meshes_are_refused_in_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(Refused, match=message) as refused:
        data.load_mesh(tmp_path / name)
    assert "\n" not in str(refused.value)
    assert name in str(refused.value)


def test_a_misspelt_mesh_gets_the_nearest_name():
    with pytest.raises(Refused, match="did you mean 'bunny'"):
        data.load_mesh("buny")


def test_a_missing_texture_is_no_reason_to_stop(tmp_path):
    (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd nowhere.png\n")
    (tmp_path / "a.obj").write_text("mtllib a.mtl\n" + OBJ + "vt 0 0\nvt 1 0\nvt 0 1\nusemtl m\nf 1/1 2/2 3/3\n")
    assert data.load_mesh(tmp_path / "a.obj").colours is None


# ---------------------------------------------------------------- video


def test_the_packaged_clips():
    bikes = data.read_video("bikes", frames=3, height=68)
    assert bikes.frames.shape == (3, 68, 160, 3) and bikes.frames.dtype == torch.uint8 and bikes.rate == 25 and len(bikes) == 3
    assert len(data.read_video("carphone")) == 120


def test_shrunk_frames_are_means():
    whole, small = data.read_video("carphone", frames=1), data.read_video("carphone", frames=1, height=36)
    means = whole.frames.float().reshape(1, 36, 4, 44, 4, 3).mean((2, 4))
    assert (small.frames.float() - means).abs().mean() < 4 and small.frames.shape == (1, 36, 44, 3)
    assert (small.frames.float() - whole.frames[:, ::4, ::4].float()).abs().mean() > 10  # it is not one pixel of sixteen


@pytest.mark.parametrize("rate", [25.0, 30000 / 1001, 12.5])
def test_what_is_written_is_read_back(tmp_path, rate):
    frames = data.read_video("carphone", frames=8).frames
    data.write_video(tmp_path / "new" / "a.mp4", frames, rate)
    back = data.read_video(tmp_path / "new" / "a.mp4")
    assert back.frames.shape == frames.shape and back.rate == pytest.approx(rate, rel=1e-6)
    assert (back.frames.float() - frames.float()).abs().mean() < 4
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.mp4"]


def test_odd_sizes_lose_a_row_and_a_column(tmp_path):
    data.write_video(tmp_path / "a.mp4", torch.full((2, 35, 49, 3), 128, dtype=torch.uint8), 10.0)
    assert data.read_video(tmp_path / "a.mp4").frames.shape == (2, 34, 48, 3)


def test_a_failed_film_leaves_the_old_one(tmp_path, monkeypatch):
    import av

    (tmp_path / "a.mp4").write_bytes(b"old")

    def broken(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", broken, raising=False)
    with pytest.raises(KeyboardInterrupt):
        data.write_video(tmp_path / "a.mp4", torch.zeros(2, 32, 32, 3, dtype=torch.uint8), 10.0)
    assert (tmp_path / "a.mp4").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def wave(path):
    """A file with sound and no pictures."""
    import wave as waves

    with waves.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
        file.writeframes(bytes(1600))


def test_unreadable_clips_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "empty.mp4").write_bytes(b"")
    whole = (data.path("clips") / "bikes.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:5000])
    wave(tmp_path / "sound.wav")
    for name, message in (
        ("text.mp4", "cannot read"),
        ("empty.mp4", "cannot read"),
        ("cut.mp4", "cannot read"),
        ("sound.wav", "no pictures"),
        ("none.mp4", "no file"),
    ):
        with pytest.raises(Refused, match=message) as refused:
            data.read_video(tmp_path / name)
        assert name in str(refused.value) and "\n" not in str(refused.value)


def test_bad_arguments_of_clips_are_refused(tmp_path):
    frames = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    for call, message in (
        (lambda: data.read_video("bikes", frames=0), "frames: at least 1"),
        (lambda: data.read_video("bikes", height=0), "height: at least 1"),
        (lambda: data.write_video(tmp_path / "a.avi", frames, 10.0), "must end in .mp4"),
        (lambda: data.write_video(tmp_path / "a.mp4", frames[:0], 10.0), "nothing to write"),
        (lambda: data.write_video(tmp_path / "a.mp4", frames[:, :1], 10.0), "nothing to write"),
        (lambda: data.write_video(tmp_path / "a.mp4", frames, 0.0), "rate"),
    ):
        with pytest.raises(Refused, match=message):
            call()
    assert not list(tmp_path.iterdir())
