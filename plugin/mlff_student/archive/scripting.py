"""Compile modules to TorchScript, from any thread."""

from threading import RLock
from typing import Any

import torch
from torch import nn

# torch has one table of compiled classes, which it fills without a lock: of two threads that
# compile the same class for the first time, one raises "Can't redefine method".
_COMPILER = RLock()


def script(module: nn.Module) -> Any:
    """Return `torch.jit.script(module)`; other threads that compile wait until it is done.

    Parameters
    ----------
    module : nn.Module
        Module to compile.
    """
    with _COMPILER:
        return torch.jit.script(module)
