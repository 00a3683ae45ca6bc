"""Fair timings: variants that take turns, the memory of a step, and the machine."""

import math
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from se_lightning.data.cores import cores

__all__ = ["interleaved", "machine", "peak_bytes", "quantile", "saved_bytes", "synchronize"]

# A shorter call is repeated for each measurement, as clocks and interrupts would blur it.
SHORTEST = 0.02


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    device: torch.device | None = None,
    shortest: float = SHORTEST,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time calls in turns, so that changes in the speed of the machine affect all alike.

    Each round runs all calls, in the opposite order of the round before. Three calls warm up.

    Args:
        calls: What to time, by name.
        rounds: Number of measurements of each.
        device: Device to wait for; None for work that ends when the call does.
        shortest: Seconds that a measurement lasts at least, by repeating the call.
        clock: Time in seconds.

    Returns:
        Seconds per call, one value per round.
    """

    def measure(call: Callable[[], Any], times: int) -> float:
        synchronize(device)
        start = clock()
        for _ in range(times):
            call()
        synchronize(device)
        return (clock() - start) / times

    counts = {}
    for name, call in calls.items():
        measure(call, 2)  # compiles, chooses algorithms, fills caches
        counts[name] = max(1, math.ceil(shortest / max(measure(call, 1), 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            times[name].append(measure(calls[name], counts[name]))
    return times


def synchronize(device: torch.device | None) -> None:
    """Wait for the work on a GPU."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def quantile(values: list[float], share: float) -> float:
    """Return the value below which a share of the values lies, interpolated linearly."""
    return torch.tensor(values, dtype=torch.float64).quantile(share).item()


def saved_bytes(network: nn.Module, forward: Callable[[], Any]) -> int:
    """Return the bytes of the activations that a forward pass saves for the backward pass.

    Tensors that share memory count once, and the network's parameters and buffers not at all.
    """
    own = {each.untyped_storage().data_ptr() for each in network.state_dict().values()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = forward()  # keeps the tensors alive, so that no address is used twice
    del kept
    return sum(seen.values())


def peak_bytes(step: Callable[[], Any], device: torch.device) -> int:
    """Return the memory that a step takes on a GPU at most, beyond what is allocated before."""
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def machine() -> dict[str, Any]:
    """Return the number of cores, the processor, the GPU if there is one, and torch's version."""
    found: dict[str, Any] = {"cores": cores(), "processor": _processor()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found | {"torch": torch.__version__}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
