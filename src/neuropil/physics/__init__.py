"""Operators between functions: nets whose weights know no grid, and how far off they are.

- `norms`: relative errors that mean the same on every grid
- `fourier`, `function_layers`, `unet`: layers as quadratures of operations on functions; FNO
- `multigrid`: V-cycles as weights, MgNO
"""
