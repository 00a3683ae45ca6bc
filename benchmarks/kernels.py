"""Time the kernels of a block's tail against the memory bandwidth of the card.

python benchmarks/kernels.py FOLDER [--rehearse]

For each map at the end of a stage of SE-ResNet-50 (batch 128, bfloat16, channels-last): the time of
each kernel, and of torch's own operations for comparison; the bytes that each must at least read
and write; and their quotient as a share of the bandwidth of a copy.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from se_lightning.models.layers.fused import gpu

STAGES = ((256, 56), (512, 28), (1024, 14), (2048, 7))  # channels, side
CACHE = 2**28  # bytes: several times the largest L2
LINE = (
    "{name:24}{shape:18}{us:9.1f} us{gb_per_s:9.0f} GB/s, {share:.2f} of a copy; "
    "{host_us:.0f} us until queued"
)


def timed(calls: list[Callable[[], Any]], repeats: int, device: str) -> tuple[float, float]:
    """Return the median seconds that a call takes on the device, and until it has been queued.

    Calls take turns, so that caches do not help.
    """
    times, queued = [], []
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device == "cuda" else []
    for number in range(-3, repeats):  # the first three warm up
        if events:
            # Work that is queued before it hides how long the call takes to start.
            torch.cuda._sleep(1_000_000)
            events[0].record()
        start = time.perf_counter()
        calls[number % len(calls)]()
        queued.append(time.perf_counter() - start)
        if events:
            events[1].record()
            torch.cuda.synchronize()
        times.append(events[0].elapsed_time(events[1]) / 1e3 if events else queued[-1])
    return median(times[3:]), median(queued[3:])


def bandwidth(repeats: int, device: str, size: int) -> float:
    """Return the bytes per second that a copy reads and writes."""
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / timed([lambda: target.copy_(source)], repeats, device)[0]


class Maps:
    """A set of random inputs."""

    def __init__(self, images: int, channels: int, side: int, device: str) -> None:
        shape = (images, channels, side, side)

        def normal() -> Tensor:
            values = torch.randn(shape, device=device).to(torch.bfloat16)
            return values.contiguous(memory_format=torch.channels_last)

        self.y, self.shortcut, self.grad = normal(), normal(), normal()
        self.factor, self.offset = torch.rand(2, images, channels, 1, 1, device=device)
        self.center, self.slope = torch.rand(2, channels, device=device)
        self.out = gpu.rescale(self.y, self.factor, self.offset, self.shortcut, relu=True)


def passes(m: Maps) -> dict[str, tuple[Callable[[], Any], int]]:
    """Return calls by name, and how many maps each reads and writes."""
    half = m.factor.to(m.y.dtype)
    norm = (m.center, m.slope.abs(), m.slope, m.center, True)
    return {
        "moments": (lambda: gpu.moments(m.y), 1),
        "rescale": (lambda: gpu.rescale(m.y, m.factor, m.offset, m.shortcut, relu=True), 3),
        "gradient_sums": (lambda: gpu.gradient_sums(m.grad, m.out, m.y, m.center), 4),
        "gradient_sums, no ReLU": (lambda: gpu.gradient_sums(m.grad, None, m.y, m.center), 2),
        "combine": (lambda: gpu.combine(m.grad, m.factor, m.offset, m.slope, m.y), 3),
        "torch: batch_norm": (lambda: F.batch_norm(m.y, *norm), 3),
        "torch: mean": (lambda: m.y.mean((2, 3), keepdim=True), 1),
        "torch: multiply": (lambda: m.y * half, 2),
        "torch: add": (lambda: m.y + m.shortcut, 3),
        "torch: relu": (lambda: m.y.relu(), 2),
    }


def measure(images: int, stages: Any, repeats: int, device: str, cache: int) -> dict[str, Any]:
    """Return one row for each kernel and stage."""
    peak = bandwidth(repeats, device, 4 * cache)
    rows = []
    for channels, side in stages:
        size = 2 * images * channels * side * side
        sets = [Maps(images, channels, side, device) for _ in range(max(1, cache // size))]
        calls = [passes(each) for each in sets]
        for name, (_, count) in calls[0].items():
            seconds, queued = timed([each[name][0] for each in calls], repeats, device)
            row = {
                "name": name,
                "shape": f"{images}x{channels}x{side}x{side}",
                "us": seconds * 1e6,
                "host_us": queued * 1e6,
                "bytes": count * size,
                "gb_per_s": count * size / seconds / 1e9,
                "share": count * size / seconds / peak,
            }
            rows.append(row)
            print(LINE.format(**row))
        del sets, calls
    own = [row for row in rows if "torch" not in row["name"]]
    shares = {f"{row['name']} {row['shape']}/share": row["share"] for row in own}
    print(f"a copy: {peak / 1e9:.0f} GB/s")
    return {"copy_gb_per_s": peak / 1e9, "rows": rows, "metrics": shares}


def main() -> None:
    """Write what was measured to a folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny maps")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.rehearse:
        found = measure(2, ((16, 4), (32, 2)), 1, "cpu", 2**12)
    else:
        found = measure(128, STAGES, 20, "cuda", CACHE)
        found["gpu"] = torch.cuda.get_device_name()
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "result.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
