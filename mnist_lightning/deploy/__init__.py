"""Uses trained models outside of training."""
