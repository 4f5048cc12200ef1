"""Speed: all that is taken out of Lightning's training step, in this file only.

Gains are shares of a training step of the default MLP with batches of 128 in a plain `lightning.Trainer` on a CPU,
measured by `benchmarks/lean.py`.
"""

import os
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn


class LeanModule(nn.Module):
    """Skips torch's search for parameters where Lightning stores the name of the running hook.

    Lightning stores it 42 times a step. Gain: GAIN_SETATTR.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)


class IdleInSteps(Callback):
    """A callback without hooks inside a step: Lightning skips hooks that are None.

    Gain with the command line's five callbacks: GAIN_IDLE.
    """

    on_train_batch_start = None  # type: ignore[assignment]
    on_train_batch_end = None  # type: ignore[assignment]
    on_before_zero_grad = None  # type: ignore[assignment]
    on_before_backward = None  # type: ignore[assignment]
    on_after_backward = None  # type: ignore[assignment]
    on_before_optimizer_step = None  # type: ignore[assignment]


def skip_gpu_search() -> None:
    """Stops the optimizer's search for a GPU in every step, where there is none.

    Lightning sets this variable, and a CUDA build of torch then loads NVIDIA's driver library in every step of Adam.
    Gain: GAIN_GPU.
    """
    if not torch.cuda.is_available():
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
