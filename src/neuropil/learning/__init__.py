"""Learning: rules that change weights, also such as replace the gradient. ``rule.step(net, batch, optimizer)`` trains any net.

- `rule`: the interface, backpropagation, and feed-forward nets as blocks.
- Systems: `dual_propagation` (with `finite_difference`, the same inside autograd), `forward_forward`, `hlop`.
- Shared: `relaxation` (states that settle in an energy), `oja` (subspaces), `replaced_input` (weights that learn from another
  input), `competition` (k winners), `labels` (classes written into images).
"""
