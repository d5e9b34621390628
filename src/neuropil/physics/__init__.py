"""Operators between functions: nets whose weights know no grid, and how far off they are."""
