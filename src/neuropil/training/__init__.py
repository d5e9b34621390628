"""Training: one `fit` loop (`fit`) with checkpoints that resume bit-equal (`checkpoint`). Import the module you want."""
