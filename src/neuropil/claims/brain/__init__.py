"""Claims of the brain wing."""
