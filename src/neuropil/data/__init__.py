"""Real data in plain frozen containers."""
