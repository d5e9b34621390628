"""The viewer: it answers on 127.0.0.1 and nowhere else, shows what the field is, and sharpens while the camera rests."""

import contextlib
import math
import socket
import sys
import threading
import time
import urllib.request
from types import SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image

from neuropil import cli
from neuropil.data.cameras import Cameras, look_at, orbit
from neuropil.errors import Refused
from neuropil.fields.radiance import RadianceModel, Rendered
from neuropil.studio import export, pictures, runs, scenes, shapes, viewer

viser = pytest.importorskip("viser")
trimesh = pytest.importorskip("trimesh")
CPU = torch.device("cpu")
# viser's own threads and sockets outlive a stop by moments
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> runs.Run:
    """A picture 80 wide and 40 high: left red, right blue, the lower half darker."""
    folder = tmp_path_factory.mktemp("photo")
    pixels = numpy.zeros((40, 80, 3), numpy.uint8)
    pixels[:, :40, 0] = pixels[:, 40:, 2] = 255
    pixels[20:] //= 2
    Image.fromarray(pixels).save(folder / "x.png")
    job = pictures.image_fit(folder / "x.png", "hash", 5000, CPU)
    return runs.fit(job, folder / "run", 1.0, steps=100)


def listening() -> set[tuple[str, int]]:
    """(address, port) of every TCP socket of this machine that listens, by the kernel."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as lines:
            for line in list(lines)[1:]:
                _, local, _, state, *_ = line.split()
                address, port = local.split(":")
                if state == "0A":
                    found.add((address, int(port, 16)))
    return found


def test_it_answers_on_loopback_and_nowhere_else(photo):
    with viewer.serve(photo, 0) as address:
        assert address.startswith("http://127.0.0.1:")
        port = int(address.rsplit(":", 1)[1])
        with urllib.request.urlopen(address, timeout=10) as page:
            assert page.status == 200 and b"<html" in page.read().lower()
        assert [where for where, number in listening() if number == port] == ["0100007F"]  # 127.0.0.1 alone
        with pytest.raises(OSError):  # not even on another address of loopback
            socket.create_connection(("127.0.0.2", port), timeout=2)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=2)


def test_nobody_can_ask_for_a_public_address(photo, monkeypatch):
    monkeypatch.setattr("viser.ViserServer.request_share_url", lambda *given: pytest.fail("a tunnel was opened"))
    seen = []
    monkeypatch.setattr(viewer, "_facts", lambda server, run: seen.append(server))
    with viewer.serve(photo, 0):
        assert seen[0].request_share_url() is None
        assert seen[0].get_host() == "127.0.0.1"


def test_a_taken_port_is_refused(photo, monkeypatch, capsys):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Refused, match=f"port: {port} cannot be used"), viewer.serve(photo, port):
            pytest.fail("served")
        monkeypatch.setattr(sys, "argv", ["neuropil", "view", str(photo.folder), "--port", str(port)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_the_command_says_where_and_ends_quietly(photo, monkeypatch, capsys):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(sys, "argv", ["neuropil", "view", str(photo.folder), "--port", str(port), "--seconds", "0.1"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr()
    assert stop.value.code == 0 and said.out == f"{photo.folder} at http://127.0.0.1:{port} (Ctrl-C ends)\n"
    assert said.err == ""


def browser(position, target, up, wide=64, high=48, fov=0.9):
    """A stand-in for a browser whose camera stands at `position`, in viser's (OpenCV's) axes."""
    c2w = look_at(torch.tensor([position]), torch.tensor(target), torch.tensor(up))[0].double().numpy()
    rotation = c2w[:, :3] * [1, -1, -1]
    camera = SimpleNamespace(
        position=c2w[:, 3], wxyz=viser.transforms.SO3.from_matrix(rotation).wxyz, fov=fov, image_width=wide, image_height=high
    )
    calls, shown = [], []
    camera.on_update = calls.append
    scene = SimpleNamespace(set_background_image=lambda picture, **given: shown.append(picture))
    return SimpleNamespace(camera=camera, scene=scene, calls=calls, shown=shown)


def test_the_browsers_camera_is_ours():
    seen = browser([1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0], wide=60, high=40, fov=0.8).camera
    camera = viewer._camera(seen, 1e9)
    expected = look_at(torch.tensor([[1.0, -2.0, 0.5]]), torch.zeros(3))
    torch.testing.assert_close(camera.c2w, expected, atol=1e-5, rtol=0)
    assert (camera.height, camera.width) == (40, 60)
    top = camera.rays(torch.tensor(0), torch.tensor([30.0, 0.0])).directions
    assert math.acos(float(top @ -camera.c2w[0, :, 2])) == pytest.approx(0.4, abs=1e-4)  # half the angle of the height
    small = viewer._camera(seen, 600.0)
    assert (small.height, small.width) == (20, 30)


def stand_in() -> SimpleNamespace:
    """A server that keeps what is registered with it."""
    server = SimpleNamespace(connect=[], leave=[], slider=SimpleNamespace(value=0.0, moved=[]))
    server.scene = SimpleNamespace(set_up_direction=lambda up: None)
    server.on_client_connect, server.on_client_disconnect = server.connect.append, server.leave.append
    server.initial_camera, server.gui = SimpleNamespace(), SimpleNamespace(add_slider=lambda *_, **given: server.slider)
    server.slider.on_update = server.slider.moved.append
    return server


def finest(server, client):
    """What a browser gets in the end."""
    client.client_id = 1
    server.connect[0](client)
    wait_for(lambda: client.shown and len(client.shown[-1]) == client.camera.image_height)
    return client.shown[-1].astype(int)


def shown(run, client):
    server = stand_in()
    viewer._show_picture(server, export.restore(run), run.recipe.arguments["sizes"])
    picture = finest(server, client)
    server.leave[0](client)
    return picture


def wait_for(happened):
    until = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_photograph_stands_upright_in_the_plane(photo):
    picture = shown(photo, browser([0.0, 0.0, 1.5], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], wide=96, high=72))
    left, right = picture[36 - 8, 48 - 20], picture[36 - 8, 48 + 20]
    assert left[0] > 200 > 60 > left[2] and right[2] > 200 > 60 > right[0]
    assert 90 < picture[36 + 8, 48 - 20][0] < 160  # below
    assert (picture[1] == 237).all()  # nothing beyond its edge


def test_zooming_in_shows_a_part(photo):
    picture = shown(photo, browser([0.5, 0.25, 0.2], [0.5, 0.25, 0.0], [0.0, 1.0, 0.0]))
    assert (picture[..., 2] > 200).all() and (picture[..., 0] < 60).all()  # the upper right quarter alone


def test_the_slider_moves_a_clip(tmp_path):
    frames = torch.zeros(4, 16, 16, 3, dtype=torch.uint8)
    frames[:2, ..., 0], frames[2:, ..., 2] = 255, 255  # red, then blue
    job = pictures.PixelFit(runs.Recipe("video", "dense", {"parameters": 400, "sizes": [4, 16, 16]}, "", ""), frames, CPU)
    run = runs.fit(job, tmp_path, 1.0, steps=200)
    server, client = stand_in(), browser([0.0, 0.0, 0.2], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], wide=16, high=16)
    viewer._show_picture(server, export.restore(run), [4, 16, 16])
    first = finest(server, client)
    assert (first[..., 0] > 180).all() and (first[..., 2] < 80).all()
    server.slider.value = 1.0
    before = len(client.shown)
    server.slider.moved[0](None)
    wait_for(lambda: len(client.shown) > before)
    assert (client.shown[-1][..., 2] > 180).all() and (client.shown[-1][..., 0] < 80).all()
    server.leave[0](client)


class Whereabouts(RadianceModel):
    """A field whose colour is where its rays start."""

    def forward(self, rays, background=None):
        return Rendered(rays.origins + 0 * rays.directions, rays.near, rays.far)


def test_a_scenes_camera_is_taken_to_the_capture_and_back():
    cameras = Cameras(orbit(6, 300.0, 0.3, torch.tensor([900.0, 0.0, 0.0])), torch.ones(6, 2), torch.ones(6, 2), 2, 2)
    field = scenes.Placed(Whereabouts(), [900.0, 0.0, 0.0], 100.0, 1.0, 1e3, cameras)
    server, client = stand_in(), browser([0.2, 0.6, 0.4], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0], wide=16, high=16)
    viewer._show_scene(server, field, None)
    assert math.dist(server.initial_camera.position, (0, 0, 0)) == pytest.approx(3.0, abs=1e-3)  # 300 is three radii
    assert (abs(finest(server, client) - numpy.array([51, 153, 102])) <= 1).all()
    server.leave[0](client)


def test_pictures_sharpen_while_the_camera_rests_and_a_move_starts_over(monkeypatch):
    monkeypatch.setattr(viewer, "PATIENCE", 0.02)
    client = browser([0.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], wide=320, high=240)
    moves = iter([True])

    def paint(camera):  # 100,000 pixels a second, at most
        if camera.height * camera.width > 5000 and next(moves, False):
            client.calls[0](None)  # while this picture is drawn
        time.sleep(camera.height * camera.width * 1e-5)
        return torch.zeros(camera.height, camera.width, 3)

    painter = viewer._Painter(client, paint)
    painter.start()
    wait_for(lambda: client.shown and client.shown[-1].shape == (240, 320, 3))
    time.sleep(0.05)
    sizes = [picture.shape[0] for picture in client.shown]
    assert sizes[-1] == 240 and sizes.count(240) == 1  # then it waits
    falls = [i for i in range(1, len(sizes)) if sizes[i] < sizes[i - 1]]
    assert len(falls) == 1  # once, by the move
    painter.close()
    painter.join(10)
    assert not painter.is_alive()


def test_a_shape_arrives_as_a_mesh_with_its_corners_in_the_cube(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "POOL", 1 << 14)
    trimesh.creation.icosphere(subdivisions=3, radius=40).export(tmp_path / "ball.ply")
    run = runs.fit(shapes.shape_fit(tmp_path / "ball.ply", "hash", 20_000, CPU), tmp_path / "run", 1.0, steps=60)
    got = []
    server = SimpleNamespace(
        scene=SimpleNamespace(set_up_direction=got.append, add_mesh_simple=lambda name, v, f, **given: got.extend([v, f])),
        initial_camera=SimpleNamespace(),
    )
    viewer._show_shape(server, export.restore(run))
    _, corners, faces = got
    assert numpy.linalg.norm(corners, axis=1) == pytest.approx(0.8, abs=0.05)
    assert trimesh.Trimesh(corners, faces).is_watertight
    with viewer.serve(run, 0):
        assert threading.active_count() > 1
