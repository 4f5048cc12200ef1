"""Studies: many trainings by one call, on this machine or on a Ray cluster, and search for settings."""

from typing import Literal

import lazy_loader

# Here because the command line reads the verb's annotations before torch is imported.
Metric = Literal["val/acc", "val/loss"]

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"driver": ["study"], "searching": ["search"]}
)
