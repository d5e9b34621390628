"""A run live in the browser (viser), on 127.0.0.1 only: fly through a scene, turn a shape, zoom into a photograph or a clip.

Shapes go to the browser as meshes. Scenes, photographs and clips are drawn here for the browser's camera and sent as pictures:
few pixels while it moves, four times as many each time that it rests, so that a slow field answers at once and a fast one looks
sharp. The viewer's world is the field's cube [−1, 1]³, whatever the unit of the source; a photograph stands in its plane z = 0.
"""

import contextlib
import io
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.data.cameras import Cameras, flip_yz
from neuropil.errors import Refused, optional
from neuropil.fields.radiance import render_picture
from neuropil.studio import pictures, scenes, shapes
from neuropil.studio.export import restore
from neuropil.studio.runs import Run, to_bytes

HOST = "127.0.0.1"
PATIENCE = 0.15  # seconds that the first picture of a new camera may take
FINEST = 1e6  # pixels of the last one
FOV = 0.9  # of the first camera

Paint = Callable[[Cameras], Float[Tensor, "h w 3"]]


@contextlib.contextmanager
def serve(run: Run, port: int = 8080) -> Iterator[str]:
    """Serve `run` on ``127.0.0.1:port`` (0: any free port) inside the block, which gets the address.

    Raises `Refused` if the port is taken or not allowed. Nothing listens on other interfaces, and the page's way to ask for a
    public address (viser's share tunnel) is closed.
    """
    field = restore(run)
    server = _server(port, run.folder.name)
    try:
        _facts(server, run)
        if run.recipe.kind == "shape":
            _show_shape(server, field)
        elif isinstance(field, scenes.Placed):
            _show_scene(server, field, scenes.background(run))
        else:
            _show_picture(server, field, run.recipe.arguments["sizes"])
        yield f"http://{HOST}:{server.get_port()}"
    finally:
        with _quiet():
            server.stop()


def wait(seconds: float | None = None) -> None:
    """Sleep until Ctrl-C, or for `seconds`."""
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait(seconds)


def _server(port: int, label: str) -> Any:
    viser = optional("viser", "fields")

    class Local(viser.ViserServer):  # type: ignore[misc, name-defined]
        def request_share_url(self, verbose: bool = True) -> None:
            """Refused: a run is for this machine only."""

    with socket.socket() as probe:  # viser itself would go on to the next port without a word
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise Refused(f"port: {port} cannot be used ({error.strerror}); give another --port") from None
    logging.getLogger("websockets.server").setLevel(logging.CRITICAL)  # browsers open connections that they do not use
    with _quiet():
        server = Local(HOST, port, label=label, verbose=False)
    if port and server.get_port() != port:
        with _quiet():
            server.stop()
        raise Refused(f"port: {port} was taken by another program just now; give another --port")
    server.gui.configure_theme(show_logo=False, show_share_button=False)
    return server


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Viser greets and says goodbye on stdout."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _facts(server: Any, run: Run) -> None:
    recipe, done = run.recipe, run.progress
    source = Path(recipe.source).name.replace("`", "'")
    server.gui.add_markdown(
        f"**{recipe.kind}** `{source}`\n\n"
        f"field `{recipe.field}`, {done.step:,} steps in {done.seconds:.0f} s, **{done.psnr:.2f} dB**"
    )


def _show_shape(server: Any, field: nn.Module) -> None:
    corners, faces = shapes.surface(shapes.bake(field, 128))
    server.scene.set_up_direction("+y")
    place, _ = shapes.eye(0.6, 0.4, 3.0)
    _start(server, place, torch.zeros(3))
    server.scene.add_mesh_simple("/shape", corners, faces, color=(217, 158, 89), side="double")


def _show_scene(server: Any, field: scenes.Placed, background: Tensor | None) -> None:
    first = scenes.orbit(field, 8, 64, 64).c2w[0]
    centre = field.centre.cpu()
    server.scene.set_up_direction(tuple(scenes.up_of(field).tolist()))
    _start(server, (first[:, 3] - centre) / field.radius, torch.zeros(3))

    def paint(camera: Cameras) -> Tensor:
        c2w = torch.cat([camera.c2w[:, :, :3], camera.c2w[:, :, 3:] * field.radius + centre[:, None]], -1)
        moved = Cameras(c2w, camera.focal, camera.centre, camera.height, camera.width).to(field.centre.device)
        return render_picture(field, moved, 0, 0.05 * field.radius, field.far + 10 * field.radius, background).colour

    _draw_for_all(server, paint)


def _show_picture(server: Any, field: nn.Module, sizes: list[int]) -> None:
    tall = sizes[-2] / sizes[-1]  # the picture is 2 wide and 2 · tall high
    server.scene.set_up_direction("+y")
    _start(server, torch.tensor([0.0, 0.0, max(tall, 0.6) / math.tan(FOV / 2)]), torch.zeros(3))
    slider = server.gui.add_slider("time", min=0.0, max=1.0, step=0.01, initial_value=0.0) if len(sizes) == 3 else None

    @torch.no_grad()
    def paint(camera: Cameras) -> Tensor:
        rays = camera.picture_rays(0)
        far = -rays.origins[..., 2:] / rays.directions[..., 2:]
        place = (rays.origins + far * rays.directions)[..., :2] * torch.tensor([1.0, -1 / tall])
        inside = (far > 0)[..., 0] & (place.abs() <= 1).all(-1)
        points = place[inside]
        if slider is not None:
            moment = (2 * slider.value - 1) * (1 - 1 / sizes[0])  # from the first frame's to the last one's
            points = torch.cat([points, torch.full_like(points[:, :1], moment)], -1)
        seen = torch.full((*inside.shape, 3), 0.93)
        if len(points):
            device = next(field.parameters()).device
            seen[inside] = pictures.evaluate(field, points.to(device)).clamp(0, 1).cpu()
        return seen

    again = _draw_for_all(server, paint)
    if slider is not None:
        slider.on_update(lambda _: again())


def _start(server: Any, position: Float[Tensor, "3"], target: Float[Tensor, "3"]) -> None:
    server.initial_camera.position = tuple(position.tolist())
    server.initial_camera.look_at = tuple(target.tolist())
    server.initial_camera.fov = FOV


def _draw_for_all(server: Any, paint: Paint) -> Callable[[], None]:
    """A painter for each browser that comes; gives what makes all of them paint again."""
    painters: dict[int, _Painter] = {}

    @server.on_client_connect  # type: ignore[misc]
    def _(client: Any) -> None:
        painters[client.client_id] = _Painter(client, paint)
        painters[client.client_id].start()

    @server.on_client_disconnect  # type: ignore[misc]
    def _(client: Any) -> None:
        if painter := painters.pop(client.client_id, None):
            painter.close()

    def again() -> None:
        for painter in list(painters.values()):
            painter.moved.set()

    return again


class _Painter(threading.Thread):
    """Draws for one browser: coarsely when its camera has moved, then finer and finer while it rests."""

    def __init__(self, client: Any, paint: Paint) -> None:
        super().__init__(daemon=True)
        self.client, self.paint = client, paint
        self.moved, self.closed, self.speed = threading.Event(), False, 1e5  # speed in pixels a second
        self.moved.set()
        client.camera.on_update(lambda _: self.moved.set())

    def close(self) -> None:
        self.closed = True
        self.moved.set()

    def run(self) -> None:
        while self.moved.wait() and not self.closed:
            self.moved.clear()
            pixels = max(self.speed * PATIENCE, 1024.0)
            while not self.moved.is_set():
                camera = _camera(self.client.camera, pixels)
                began = time.perf_counter()
                picture = to_bytes(self.paint(camera)).numpy()
                self.speed = camera.height * camera.width / (time.perf_counter() - began)
                self.client.scene.set_background_image(picture, format="jpeg", jpeg_quality=90)
                if camera.height * camera.width < 0.8 * pixels or pixels >= FINEST:
                    break  # as many pixels as the window has, or as are worth the wait
                pixels = min(4 * pixels, FINEST)


def _camera(seen: Any, pixels: float) -> Cameras:
    """A browser's camera with about `pixels` pixels of its window's shape, and no more than the window has."""
    wide, high = max(seen.image_width, 16), max(seen.image_height, 16)
    factor = min(1.0, math.sqrt(pixels / (wide * high)))
    height, width = max(8, round(high * factor)), max(8, round(wide * factor))
    w, x, y, z = numpy.asarray(seen.wxyz, dtype=numpy.float64)
    rotation = [  # of the unit quaternion (w, x, y, z)
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    c2w = torch.cat([torch.tensor(rotation), torch.tensor(numpy.asarray(seen.position))[:, None]], 1).float()
    focal = height / 2 / math.tan(seen.fov / 2)
    return Cameras(flip_yz(c2w[None]), torch.full((1, 2), focal), torch.tensor([[width / 2, height / 2]]), height, width)
