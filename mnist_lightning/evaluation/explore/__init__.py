"""Exploration of data sets."""
