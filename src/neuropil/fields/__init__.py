"""Fields: signals as functions of coordinates, with their encodings, samplers, renderers and losses as separate parts.

- Representations ``(… d_in) → (… d_out)``: `encodings`, `grids`, `siren`, `modulated`.
- Volume rendering: `sampling`, `rendering`, `losses`; whole radiance fields: `voxels`, `nerfacto`.
- Systems: `resfields`, `s3im`, `neural_field_classifier`, `einstein`, `nerfacto`.
"""
