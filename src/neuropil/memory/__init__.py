"""Associative memories on one retrieval core, `lookup(similarity, separation)`."""
