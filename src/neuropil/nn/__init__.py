"""Shared building blocks of networks: attention, MLP, recording hooks. Import the module you want."""
