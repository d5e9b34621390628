"""Training: one `fit` loop with checkpoints that resume bit-equal."""
