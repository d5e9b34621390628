"""The studio: fields on your own data, kept as run folders that can be gone on with, rendered, exported and looked at.

- `runs`: the run folder and the one fitting loop.
- `pictures` (photographs and clips), `shapes` (meshes), `scenes` (captures): what a step, a score and a preview are for each.
- `export` (meshes, point clouds, films) and `viewer` (a page in the browser, on this machine only).
"""
