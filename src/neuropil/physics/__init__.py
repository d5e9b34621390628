"""Operators between functions: nets whose weights know no grid, and how far off they are.

`fourier` (Fourier layers, FNO, resampling), `function_layers` (usual layers as operations on functions), `unet` (in both forms),
`norms` (relative L² and H¹ errors that mean the same on every grid). Simulators of equations are in `neuropil.data.pde`.
"""
