"""Dynamics: networks whose time matters. Cells are pure steps ``(input, state) → (output, state)``; `nn.scan` runs them.

- Systems: `akorn` (on `kuramoto`), `assemblies` (RNNs of RNNs), `continuous_thought`, `wave_rnn`.
"""
