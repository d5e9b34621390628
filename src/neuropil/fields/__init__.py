"""Fields: signals as functions of coordinates, with their encodings, samplers, renderers and losses as separate parts.

- Representations ``(… d_in) → (… d_out)``: `encodings`, `grids`, `siren`, `modulated`; `field` builds one from a budget.
- Volume rendering: `sampling`, `occupancy`, `rendering`, `losses`, `poses`; `metrics`.
- Whole radiance fields (`radiance` says what they share): `voxels`, `nerf`, `nerfacto`. The same in the plane: `flatland`.
- Systems: `resfields`, `s3im`, `neural_field_classifier`, `einstein`, `nerfacto`; `aether`, `aether_sequence`: a force field
  found from how bodies move.
"""
