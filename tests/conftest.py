import gzip
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # Set before torch is imported: workers that each use all cores slow each other down.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image

from se_lightning.cli import main as command_line

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background jobs ignore SIGINT, and processes that tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
# A run of a few seconds that passes through every stage.
SHORT = (
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "trainer.accelerator=cpu",
)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if "gpu" in item.keywords and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide accounts, runs and ranks of the environment in which the tests were started."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "PL_", "SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.setenv("WANDB_CONFIG_DIR", "/nonexistent")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test an empty cache."""
    monkeypatch.setenv("SE_LIGHTNING_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _closed_logs() -> Iterator[None]:
    """Close the log files that Hydra opens for a command run in this process."""
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.setLevel(level)
    for handler in set(logging.root.handlers) - set(handlers):
        handler.close()
    logging.root.handlers[:] = handlers


@pytest.fixture
def short() -> tuple[str, ...]:
    return SHORT


@pytest.fixture
def cli(tmp_path: Path):
    """Run ``python -m se_lightning`` in the test's temporary folder."""

    def run(*arguments: str, check: bool = True, **options) -> subprocess.CompletedProcess:
        done = subprocess.run(
            options.pop("command", [sys.executable, "-m", "se_lightning"]) + list(arguments),
            cwd=options.pop("cwd", tmp_path),
            env={**os.environ, **options.pop("env", {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert not options
        if check:
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    return run


@pytest.fixture
def run_main(tmp_path, monkeypatch, capfd):
    """Run main() in this process, without importing torch again; return exit code and stderr."""

    def run(*arguments, more=("logger=csv",)):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["se_lightning", *arguments, *more])
        code = 0
        with warnings.catch_warnings():
            try:
                command_line.main()
            except SystemExit as raised:
                code = raised.code
        return code, capfd.readouterr().err

    return run


@pytest.fixture
def result():
    """Read the only result.json under a folder."""

    def read(folder: Path) -> dict:
        (path,) = folder.rglob("result.json")
        return json.loads(path.read_text())

    return read


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def write_idx():
    return _write_idx


@pytest.fixture
def idx_root(tmp_path: Path) -> Path:
    """Create a flat folder with MNIST's four files: 120 training and 101 test images."""
    generator = np.random.default_rng(0)
    root = tmp_path / "idx"
    for split, size in (("train", 120), ("t10k", 101)):
        images = generator.integers(0, 256, (size, 28, 28))
        _write_idx(root / f"{split}-images-idx3-ubyte.gz", images)
        _write_idx(root / f"{split}-labels-idx1-ubyte", np.arange(size) % 10)
    return root


@pytest.fixture
def cifar_root(tmp_path: Path) -> Path:
    """Create the binary files of CIFAR-10: 60 training and 20 test images."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name, size in (*((f"data_batch_{i}", 12) for i in range(1, 6)), ("test_batch", 20)):
        pixels = np.random.default_rng(size).integers(0, 256, (size, 3072))
        rows = np.column_stack([np.arange(size) % 10, pixels])
        (folder / f"{name}.bin").write_bytes(rows.astype(np.uint8).tobytes())
    return tmp_path


def _write_jpeg(path: Path, seed: int, size: tuple[int, int] = (60, 45)) -> None:
    """Write a smooth image, which JPEG preserves; `size` is (width, height)."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, "JPEG", quality=90)


@pytest.fixture
def write_jpeg() -> Callable[..., None]:
    return _write_jpeg


@pytest.fixture
def image_root(tmp_path) -> Path:
    """Create root/{train,val}/{cat,dog,eel}/*.jpg: 24 and 9 images of several sizes."""
    root = tmp_path / "images"
    for split, count in (("train", 24), ("val", 9)):
        for number in range(count):
            label = ("cat", "dog", "eel")[number % 3]
            size = (60 + number, 45 + 2 * number)
            _write_jpeg(root / split / label / f"{number:02}.jpg", number, size)
    return root


def wandb_records(folder: Path) -> list:
    """Read the records of the one .wandb file in a folder, to the run's exit.

    W&B's service writes the file, and may do so shortly after `finish` has returned.
    """
    (run_file,) = folder.rglob("run-*.wandb")
    end = time.monotonic() + 30
    while True:
        records = list(parse_wandb(run_file.read_bytes()))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        assert time.monotonic() < end, f"{run_file} has no exit record"
        time.sleep(0.1)


def parse_wandb(data: bytes) -> Iterator:
    """Yield the whole records of a .wandb file: LevelDB's log framing around protobuf messages."""
    from wandb.proto import wandb_internal_pb2

    assert data[:4] == b":W&B"
    position, message = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        checksum, size, kind = struct.unpack_from("<IHB", data, position)
        position += 7
        if kind == 0 and size == 0:
            return
        chunk = data[position : position + size]
        if len(chunk) < size:
            return
        position += size
        assert zlib.crc32(bytes([kind]) + chunk) & 0xFFFFFFFF == checksum
        message = chunk if kind in (1, 2) else message + chunk
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            yield record


@pytest.fixture
def wandb_history():
    """Read the rows of an offline W&B run, with nested keys joined by dots."""

    def read(folder: Path) -> list[dict]:
        return [
            {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            for record in wandb_records(folder)
            if record.WhichOneof("record_type") == "history"
        ]

    return read


@pytest.fixture
def wandb_values():
    """Read the last values of the config or the summary of an offline W&B run."""

    def read(folder: Path, kind: str) -> dict:
        found = {}
        for record in wandb_records(folder):
            if record.WhichOneof("record_type") == kind:
                for item in getattr(record, kind).update:
                    found[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        return found

    return read


@pytest.fixture
def wandb_run():
    """Read the name and the group of an offline W&B run, or other fields."""

    def read(folder: Path, field: str | None = None):
        run = next(r.run for r in wandb_records(folder) if r.WhichOneof("record_type") == "run")
        return (run.display_name, run.run_group) if field is None else list(getattr(run, field))

    return read
