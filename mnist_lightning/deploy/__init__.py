"""Trained models, put to use outside of training."""
