"""Seconds until a field of each kind is a photograph at 30 dB, against 10 s.

The astronaut of scikit-image, 512², by the studio's own fit and default budget (262,144 numbers) at constant rates; the PSNR is
the studio's, of 16,384 fixed pixels, and looking at it does not count. A kind that has not got there after the most seconds says
how far it came, and its ratio is what it would be at best. Rounds differ in the pixels that are drawn; the first weights are the
studio's own, the same in each.
"""

import time
from collections.abc import Iterator

import torch
from rounds import Ratio, main
from skimage.data import astronaut

from neuropil.fields.field import NAMES
from neuropil.studio.pictures import PixelFit, budget
from neuropil.studio.runs import Recipe

GOAL, LIMIT, LOOK = 30.0, 10.0, 0.5


def race(name: str, pixels: torch.Tensor, device: torch.device, seed: int, most: float) -> tuple[float, float]:
    """Seconds until the goal, at most `most`, and the dB there."""
    arguments = {"parameters": budget(pixels.shape[0] * pixels.shape[1]), "sizes": list(pixels.shape[:-1])}
    job = PixelFit(Recipe("image", name, arguments, "astronaut", ""), pixels, device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    job.loss(0).backward()  # what is loaded or compiled once is not the field's time
    used, looked, step, quality = 0.0, 0.0, 0, 0.0
    while used < most and quality < GOAL:
        start = time.perf_counter()
        torch.manual_seed(1000 * seed + step)
        loss = job.loss(step)
        job.optimizer.zero_grad()
        loss.backward()
        job.optimizer.step()
        wait()
        used, step = used + time.perf_counter() - start, step + 1
        if used - looked >= LOOK or used >= most:
            looked = used
            with torch.no_grad():
                quality = job.score()
    return used, quality


def compare(quick: bool) -> Iterator[Ratio]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels, most = torch.from_numpy(astronaut().copy()), LIMIT if quick else 3 * LIMIT
    for name in NAMES:
        seconds, quality = zip(*(race(name, pixels, device, seed, most) for seed in range(1 if quick else 3)), strict=True)
        there = min(quality) >= GOAL
        note = "" if there else f"not there after {most:.0f} s: {min(quality):.1f} dB"
        limits = [LIMIT] * len(seconds)
        yield Ratio(f"photograph of 512² to 30 dB, {name}", "a limit of 10 s", list(seconds), limits, at_least=1, note=note)


if __name__ == "__main__":
    main(compare)
