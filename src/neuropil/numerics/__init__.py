"""Numerics that more than one system needs: integrators, paired statistics. Import the module you want."""
