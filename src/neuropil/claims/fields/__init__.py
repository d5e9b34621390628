"""Claims of the fields wing."""
