"""Speed and memory of a network, of its twin without gates, and of timm's network of that name."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from se_lightning.arguments import one_of, positive_integer
from se_lightning.atomic import write_json, write_text
from se_lightning.models.layers.head import class_logits
from se_lightning.tables import csv_table
from se_lightning.tasks.report.speed import Speed, draw_speed, speed_table
from se_lightning.tasks.timing import (
    interleaved,
    machine,
    peak_bytes,
    quantile,
    saved_bytes,
    synchronize,
)

__all__ = ["benchmark"]

log = logging.getLogger(__name__)

MODES = ("eager", "compiled")
PEERS = ("plain", "timm")
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}

Batch = tuple[Tensor, Tensor]
Context = Callable[[], AbstractContextManager]
Call = Callable[[], Any]


def benchmark(
    build: Callable[..., nn.Module],
    *,
    name: str,
    folder: str,
    device: torch.device | None = None,
    batch_size: int = 16,
    image_size: int | None = None,
    num_classes: int = 1000,
    modes: Sequence[str] = ("eager",),
    steps: Sequence[str] = ("train", "inference", "latency"),
    peers: Sequence[str] = PEERS,
    precision: str = "32-true",
    rounds: int = 15,
) -> dict[str, float]:
    """Time a network in turns with its twin without gates, and with timm's network of that name.

    A training step is forward pass, cross-entropy, backward pass and SGD with momentum, on random
    images in the channels-last format. Writes ``benchmark.csv``, ``benchmark.md``,
    ``benchmark.png``, and ``benchmark.json``, which also describes the machine.

    Args:
        build: Function that builds the network, and takes changes to its options.
        name: Name of the network, by which timm's is found.
        folder: Output folder.
        device: Where to run; None for the CPU.
        batch_size: Images per step.
        image_size: Side of the images in pixels; None for the size the network was designed for.
        num_classes: Number of classes.
        modes: Any of ``"eager"`` and ``"compiled"``.
        steps: Any of ``"train"``, ``"inference"`` and ``"latency"``, which is inference with a
            single image, measured ten times as often.
        peers: Any of ``"plain"`` and ``"timm"``, which is left out if timm is not installed or has
            no such network.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        rounds: Number of measurements of each network.

    Returns:
        ``train_eager/over_plain`` and so on, the time as a multiple of the plain twin's, and
        ``train_eager/timm_over_this``, timm's time as a multiple of the network's.

    Raises:
        ValueError: If a name is unknown or a number not positive.
    """
    chosen = {"modes": (modes, MODES), "steps": (steps, tuple(_STEPS)), "peers": (peers, PEERS)}
    for argument, (values, known) in chosen.items():
        for value in values:
            one_of(argument, value, known)
    one_of("precision", precision, PRECISIONS)
    positive_integer("batch_size", batch_size)
    positive_integer("rounds", rounds)
    device = device or torch.device("cpu")
    networks = _networks(build, name, num_classes, peers)
    batch = _batch(networks[name], batch_size, image_size, num_classes, device)
    cast = PRECISIONS[precision]
    context = partial(torch.autocast, device.type, cast, enabled=cast is not None)
    rows: list[Speed] = []
    torch.backends.cudnn.benchmark = device.type == "cuda"
    for mode in modes:
        torch.compiler.reset()  # what earlier networks compiled counts against a limit
        ready = {key: _ready(network, device, mode) for key, network in networks.items()}
        for step in steps:
            calls, memory = _prepare(ready, step, batch, context, device)
            count = 10 * rounds if step == "latency" else rounds
            times = interleaved(calls, count, device=device)
            images = 1 if step == "latency" else batch_size
            rows += _rows(networks, times, memory, images, name, mode=mode, step=step)
    settings = {"batch size": batch_size, "image size": batch[0].shape[-1], "precision": precision}
    _write(rows, {"model": name, **settings, "device": str(device), **machine()}, Path(folder))
    return _ratios(rows, name)


def _networks(
    build: Callable[..., nn.Module], name: str, num_classes: int, peers: Sequence[str]
) -> dict[str, nn.Module]:
    found = {name: build(num_classes=num_classes)}
    if "plain" in peers:
        found[_plain(name)] = build(num_classes=num_classes, gate="none")
    if "timm" in peers:
        found |= _timms(name, num_classes)
    return found


def _plain(name: str) -> str:
    return f"{name}, gate=none"


def _timms(name: str, num_classes: int) -> dict[str, nn.Module]:
    """Return timm's network of a name, if there is one."""
    try:
        import timm
    except ImportError:
        log.info("timm is not installed, so there is no comparison with it.")
        return {}
    theirs = name.replace("se_", "se", 1)
    if theirs not in timm.list_models():
        log.info("timm has no network of this name, so there is no comparison with it.")
        return {}
    return {f"timm's {theirs}": timm.create_model(theirs, num_classes=num_classes)}


def _batch(
    network: nn.Module, size: int, side: int | None, num_classes: int, device: torch.device
) -> Batch:
    if side is None:
        side = int(getattr(network, "native_size", 224))
    images = torch.randn(size, getattr(network, "in_channels", 3), side, side, device=device)
    labels = torch.randint(num_classes, (size,), device=device)
    return images.contiguous(memory_format=torch.channels_last), labels


def _ready(network: nn.Module, device: torch.device, mode: str) -> nn.Module:
    network.to(device)
    return torch.compile(network) if mode == "compiled" else network  # type: ignore[return-value]


def _prepare(
    networks: Mapping[str, nn.Module],
    step: str,
    batch: Batch,
    context: Context,
    device: torch.device,
) -> tuple[dict[str, Call], dict[str, float]]:
    """Return a call per network that makes a step, and the memory of each, in 10^6 bytes."""
    calls = {key: _STEPS[step](network, batch, context) for key, network in networks.items()}
    if step != "train":
        return calls, {}
    memory = {}
    for key, network in networks.items():
        if device.type == "cuda":
            calls[key]()
            memory[key] = peak_bytes(calls[key], device) / 1e6
        else:
            memory[key] = saved_bytes(network, partial(_loss, network, batch, context)) / 1e6
    return calls, memory


def _loss(network: nn.Module, batch: Batch, context: Context) -> Tensor:
    images, labels = batch
    with context():
        output = network(images)
        outputs = output if isinstance(output, tuple) else (output,)  # auxiliary classifiers
        return torch.stack([F.cross_entropy(class_logits(each), labels) for each in outputs]).sum()


def _training(network: nn.Module, batch: Batch, context: Context) -> Call:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    network.train()

    def step() -> None:
        optimizer.zero_grad()
        _loss(network, batch, context).backward()
        optimizer.step()

    return step


def _inference(network: nn.Module, batch: Batch, context: Context) -> Call:
    network.eval()

    def step() -> None:
        with torch.inference_mode(), context():
            network(batch[0])

    return step


def _latency(network: nn.Module, batch: Batch, context: Context) -> Call:
    call = _inference(network, (batch[0][:1], batch[1][:1]), context)

    def step() -> None:
        call()
        synchronize(batch[0].device)  # the next image waits for this one's result

    return step


_STEPS: dict[str, Callable[[nn.Module, Batch, Context], Call]] = {
    "train": _training,
    "inference": _inference,
    "latency": _latency,
}


def _rows(
    networks: Mapping[str, nn.Module],
    times: Mapping[str, list[float]],
    memory: Mapping[str, float],
    images: int,
    name: str,
    **kind: str,
) -> list[Speed]:
    rows = []
    for key, seconds in times.items():
        over_plain = _multiples(seconds, times.get(_plain(name)))
        rows.append(
            Speed(
                network=key,
                **kind,
                images_per_s=images / median(seconds),
                p50_s=median(seconds),
                p95_s=quantile(seconds, 0.95),
                p99_s=quantile(seconds, 0.99),
                over_plain=median(over_plain) if over_plain else None,
                quartiles=tuple(quantile(over_plain, share) for share in (0.25, 0.75))
                if over_plain
                else None,
                over_this=median(_multiples(seconds, times[name])),
                memory_mb=memory.get(key),
                parameters=sum(p.numel() for p in networks[key].parameters()),
            )
        )
    return rows


def _multiples(seconds: Sequence[float], reference: Sequence[float] | None) -> list[float]:
    """Return the times as multiples of another network's in the same rounds."""
    return [a / b for a, b in zip(seconds, reference, strict=True)] if reference else []


def _ratios(rows: Sequence[Speed], name: str) -> dict[str, float]:
    found = {}
    for row in rows:
        key = f"{row.step}_{row.mode}"
        if row.network == name:
            found[f"{key}/images_per_s"] = row.images_per_s
            if row.over_plain is not None:
                found[f"{key}/over_plain"] = row.over_plain
        elif row.network != _plain(name):
            found[f"{key}/timm_over_this"] = row.over_this
    return found


def _write(rows: Sequence[Speed], settings: Mapping[str, Any], folder: Path) -> None:
    title = ", ".join(f"{key} {value}" for key, value in settings.items())
    columns = [column.name for column in fields(Speed)]
    cells = [[getattr(row, column) for column in columns] for row in rows]
    write_text(folder / "benchmark.csv", csv_table(columns, cells))
    table = speed_table(rows, title)
    write_text(folder / "benchmark.md", table)
    write_json(folder / "benchmark.json", {**settings, "results": [asdict(row) for row in rows]})
    draw_speed(rows, str(settings["model"])).savefig(folder / "benchmark.png", dpi=120)
    log.info("%s", table)
    log.info("benchmark      %s", folder / "benchmark.png")
