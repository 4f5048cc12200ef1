"""From a named source to batches."""
