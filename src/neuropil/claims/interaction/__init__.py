"""Claims of the interaction wing."""
