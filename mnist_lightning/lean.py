"""Speed: everything that is taken out of Lightning's training step.

Gains are shares of a training step of the default MLP with batches of 128 in a plain `lightning.Trainer` on a CPU,
measured by `benchmarks/lean.py`.
"""

import os
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn

_GPU_SEARCH = "PYTORCH_NVML_BASED_CUDA_CHECK"


class LeanModule(nn.Module):
    """Base class of models that skip work in a step, with the command line's Trainer and with yours."""

    _gpu_search: str | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning stores the running hook's name 42 times a step, and torch checks whether it is a parameter.
        # Gain: 5 %.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def on_fit_start(self) -> None:
        """Stops the optimizer's search for a GPU in every step, if there is none. Gain: 12 %.

        Lightning sets a variable with which a CUDA build of torch loads NVIDIA's driver library in every step of Adam.
        """
        self._gpu_search = os.environ.get(_GPU_SEARCH)
        if self._gpu_search and not torch.cuda.is_available():
            os.environ[_GPU_SEARCH] = "0"

    def on_fit_end(self) -> None:
        """Restores the variable."""
        if self._gpu_search:
            os.environ[_GPU_SEARCH] = self._gpu_search


class IdleInSteps(Callback):
    """A callback without hooks inside a step: Lightning skips hooks that are None.

    Gain with the command line's five callbacks: 7 %.
    """

    on_train_batch_start = None  # type: ignore[assignment]
    on_train_batch_end = None  # type: ignore[assignment]
    on_before_zero_grad = None  # type: ignore[assignment]
    on_before_backward = None  # type: ignore[assignment]
    on_after_backward = None  # type: ignore[assignment]
    on_before_optimizer_step = None  # type: ignore[assignment]
