"""The command line of training, and the callbacks of every run."""
