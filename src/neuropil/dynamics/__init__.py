"""Dynamics: networks whose time matters. Cells are pure steps ``(input, state) → (output, state)``; `nn.scan` runs them.

- Systems: `wave_rnn`.
"""
