"""Interpretation: looking into networks and how their parts interact. Instruments take any `nn.Module` through `nn.sites`.

- `probes`, `attribution`, `heads`: what sites carry, what inputs count, what heads do
- `clamps`, `formation`: circuits held while they form
- `activation_coverage`, `detectors`, `latent_field`: what a net knows, and what is strange to it
"""
