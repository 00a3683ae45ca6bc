"""Types of numbers in sums over maps."""

import torch

__all__ = ["wide"]


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type of sums over maps of a type: float32 for half precision."""
    return torch.float32 if dtype.itemsize < 4 else dtype
