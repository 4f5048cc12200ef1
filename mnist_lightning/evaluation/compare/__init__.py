"""Comparison of trained models."""
