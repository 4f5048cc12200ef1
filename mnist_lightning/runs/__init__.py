"""Training runs: their folders, checkpoints and predictions."""
