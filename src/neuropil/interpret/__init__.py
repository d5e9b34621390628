"""Interpretation: looking into networks and how their parts interact. Instruments take any `nn.Module` through `nn.sites`."""
