"""Claims of the interpretation wing."""
