"""Claims of the learning wing."""
