"""Claims of the dynamics wing."""
