"""Learning: rules that change weights, also such as replace the gradient. ``rule.step(net, batch, optimizer)`` trains any net.

- `rule`: the interface, backpropagation, and feed-forward nets as blocks.
"""
