"""Claims of the physics wing."""
