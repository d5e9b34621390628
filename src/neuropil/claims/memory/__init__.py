"""Claims of the memory wing."""
