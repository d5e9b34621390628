"""Seconds until a field of each kind is a photograph at 30 dB: `python benchmarks/image_fit.py [NAME …]`.

The astronaut of scikit-image, 512², by the studio's own fit and default budget (262,144 numbers) at constant rates; the PSNR is
the studio's, of 16,384 fixed pixels, and looking at it does not count. Seconds are the clock's and, where the machine is shared,
the better measure: the processor's, of all threads together. A kind that has not got there after 30 s of the clock says how far
it came.
"""

import json
import os
import platform
import sys
import time

import torch
from skimage.data import astronaut

from neuropil.fields.field import NAMES, parameters_of
from neuropil.studio.pictures import PixelFit, budget
from neuropil.studio.runs import Recipe

GOAL, MOST, LOOK = 30.0, 30.0, 1.0


def race(name: str, pixels: torch.Tensor, device: torch.device) -> dict[str, float | int]:
    arguments = {"parameters": budget(pixels.shape[0] * pixels.shape[1]), "sizes": list(pixels.shape[:-1])}
    job = PixelFit(Recipe("image", name, arguments, "astronaut", ""), pixels, device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    job.loss(0).backward()  # what is loaded or compiled once is not the field's time
    used, worked, looked, step, quality, reached = 0.0, 0.0, 0.0, 0, 0.0, False
    while used < MOST and not reached:
        start, busy = time.perf_counter(), time.process_time()
        torch.manual_seed(step)
        loss = job.loss(step)
        job.optimizer.zero_grad()
        loss.backward()
        job.optimizer.step()
        wait()
        used += time.perf_counter() - start
        worked += time.process_time() - busy
        step += 1
        if used - looked >= LOOK:
            looked = used
            with torch.no_grad():
                quality = job.score()
            reached = quality >= GOAL
    facts = {"dB": round(quality, 2), "parameters": parameters_of(job.model), "steps": step}
    return {"there": reached, "seconds": round(used, 1), "processor seconds": round(worked, 1), **facts}


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels = torch.from_numpy(astronaut().copy())
    found = {name: race(name, pixels, device) for name in sys.argv[1:] or NAMES}
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps({**facts, **found}, indent=1))
