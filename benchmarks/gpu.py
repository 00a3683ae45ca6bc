"""The parts of ``benchmarks/gpu.sh``, which says how to call it.

Needs only the standard library, as it installs the rest.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LIMIT = 480.0  # seconds for all parts; those for which no time is left do not run
NO_TIME = "not run: no time left"
CARRIED = ROOT / ".gpu"
INTERPRETED = {"TRITON_INTERPRET": "1"}
IMPORTS = """
import hydra, matplotlib, omegaconf, pytest, simplejpeg, sklearn, timm, torchmetrics, triton, wandb
import se_lightning.cli.main
from se_lightning.tasks.timing import machine
print(machine())
"""


@dataclass
class Part:
    """A command, its time limit in seconds, and what it measures."""

    what: str
    limit: int
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def parts(work: Path, rehearse: bool = False) -> dict[str, Part]:
    """Return all parts by name, the most important first.

    The limits of those before ``resnext_eager`` add up to :data:`LIMIT`; the others run in what is
    left of it, or in a call of their own.
    """

    def command(task: str, name: str, *options: str) -> list[str]:
        device = "cpu" if rehearse else "gpu"
        precision = f"{'task' if task == 'benchmark' else 'trainer'}.precision=bf16-mixed"
        common = [f"task={task}", f"trainer.accelerator={device}", precision]
        folder = f"hydra.run.dir={work / name}"
        return [sys.executable, "-m", "se_lightning", *common, *options, folder]

    def speed(limit: int, name: str, model: str, batch: int, mode: str, *steps: str) -> Part:
        side, rounds = 224, 15
        if rehearse:  # a CPU compiles slowly
            model, batch, side, rounds, limit = "simple", 2, 28, 1, 3 * limit
        options = [f"task.modes=[{mode}]", f"task.steps=[{','.join(steps)}]"]
        options += [f"task.batch_size={batch}", f"task.image_size={side}", f"task.rounds={rounds}"]
        what = f"{model}, batch {batch}, {mode}, {' and '.join(steps)}"
        return Part(what, limit, command("benchmark", name, f"model=se_{model}", *options))

    def script(name: str) -> list[str]:
        path = ROOT / "benchmarks" / f"{name}.py"
        return [sys.executable, str(path), str(work / name), *(["--rehearse"] if rehearse else [])]

    interpreted = INTERPRETED if rehearse else {}
    both, fifty, fifty_x = ("train", "inference"), "resnet50", "resnext50_32x4d"
    fit = command("fit", "training", *training(rehearse))
    return {
        "install": Part("packages that were carried along", 45, installation(work / "packages")),
        "tests": Part("tests that need a GPU", 80, tests(rehearse), interpreted),
        "kernels": Part("kernels against bandwidth", 40, script("kernels"), interpreted),
        "waits": Part("no step waits for the GPU", 25, script("waits")),
        "eager": speed(60, "eager", fifty, 128, "eager", *both),
        "training": Part("Fashion-MNIST with taps", 60, fit),
        "compiled": speed(170, "compiled", fifty, 128, "compiled", "train"),
        "resnext_eager": speed(60, "resnext_eager", fifty_x, 128, "eager", *both),
        "eager_256": speed(60, "eager_256", fifty, 256, "eager", *both),
        "resnext_eager_256": speed(60, "resnext_eager_256", fifty_x, 256, "eager", *both),
        "resnext_compiled": speed(170, "resnext_compiled", fifty_x, 128, "compiled", "train"),
        "compiled_256": speed(170, "compiled_256", fifty, 256, "compiled", "train"),
        "compiled_inference": speed(
            170, "compiled_inference", fifty, 128, "compiled", "inference", "latency"
        ),
    }


def training(rehearse: bool) -> list[str]:
    """Return the options of a short training whose gates are recorded."""
    options = ["+experiment=fashion_mnist_quick", "logger=csv", "trainer.devices=1"]
    if rehearse:
        return [*options, "data=digits", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    carried = CARRIED / "fashion-mnist"
    root = carried if carried.is_dir() else "/usr/share/datasets/fashion-mnist"
    return [*options, "trainer.max_epochs=4", f"data.root={root}"]


def tests(rehearse: bool) -> list[str]:
    """Return the command for the tests that need a GPU.

    Other files are left out, because they may import packages that the machine lacks.
    """
    run = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=--import-mode=importlib"]
    run += ["-o", "filterwarnings=default", "-p", "no:cacheprovider"]
    if rehearse:
        return [*run, "-k", "nan or elements", "tests/models/layers/fused/test_gpu.py"]
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    files = [str(path) for path in paths if "mark.gpu" in path.read_text()]
    return [*run, "-m", "gpu", "--continue-on-collection-errors", "--timeout=60", *files]


def missing(wheels: Path) -> list[str]:
    """Return the wheels whose packages this machine lacks."""
    found = []
    for path in sorted(wheels.glob("*.whl")):
        try:
            metadata.version(path.name.partition("-")[0])
        except metadata.PackageNotFoundError:
            found.append(str(path))
    return found


def installation(folder: Path) -> list[str]:
    """Return the command that installs what is missing into a folder, and shows that it imports.

    A virtual environment would not see the packages of another one, in which torch may be.
    """
    wheels = missing(CARRIED / "wheels")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
    steps = [[*pip, "--target", str(folder), *wheels]] if wheels else []
    steps.append([sys.executable, "-c", IMPORTS])
    code = f"import subprocess\nfor step in {steps!r}: subprocess.run(step, check=True)"
    return [sys.executable, "-c", code]


def run(part: Part, limit: float, log: Path) -> str:
    """Run a part; return "passed", or what happened."""
    with log.open("a") as output:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env={**os.environ, **part.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            with contextlib.suppress(ProcessLookupError):  # its own processes, too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"stopped after {limit:.0f} s"
    return "passed" if code == 0 else f"exit code {code}"


def results(folder: Path) -> dict[str, Any]:
    """Return the content of the JSON files in a part's folder."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def main() -> int:
    """Run the parts that are named, or all."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh")
    parser.add_argument("part", nargs="*")
    parser.add_argument("--list", action="store_true", help="show the parts")
    options = parser.parse_args()
    out = Path(os.environ.get("OUT") or "outputs/gpu").absolute()
    rehearse = bool(os.environ.get("REHEARSE"))
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        known = parts(work, rehearse)
        if unknown := set(options.part) - known.keys():
            parser.error(
                f"no part named {', '.join(sorted(unknown))}; there are {', '.join(known)}"
            )
        if options.list:
            for name, part in known.items():
                print(f"{name:20}{part.limit:4} s  {part.what}")
            return 0
        paths = [str(ROOT), str(work / "packages"), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        chosen = {"install", *(options.part or known)}
        limit = float(os.environ.get("LIMIT") or LIMIT)
        return run_all({name: known[name] for name in known if name in chosen}, work, out, limit)


def run_all(chosen: dict[str, Part], work: Path, out: Path, limit: float = LIMIT) -> int:
    """Run parts until the time is over, write gpu.json after each, and show a summary."""
    out.mkdir(parents=True, exist_ok=True)
    log, end = out / "gpu.log", time.monotonic() + limit
    log.write_text("")
    report: dict[str, Any] = {}
    for name, part in chosen.items():
        start, size = time.monotonic(), log.stat().st_size
        with log.open("a") as file:
            print(f"\n=== {name}: {part.what}\n{part.command}", file=file)
        left = min(part.limit, end - start)
        state = run(part, left, log) if left > 0 else NO_TIME
        found = results(work / name)
        seconds = round(time.monotonic() - start, 1)
        report[name] = {"what": part.what, "state": state, "seconds": seconds, **found}
        (out / "gpu.json").write_text(json.dumps(report, indent=1))
        if state not in ("passed", NO_TIME):
            print(f"=== {name}: {state}\n{log.read_text()[size:][-3000:]}", flush=True)
    for name, entry in report.items():
        print(f"{name:20}{entry['seconds']:6} s  {entry['state']:24}{entry['what']}")
        for key, value in entry.get("result", entry).get("metrics", {}).items():
            print(f"{'':29}{key} {value:.4g}")
    print(f"results            {out / 'gpu.json'}")
    return int(any(entry["state"] != "passed" for entry in report.values()))


if __name__ == "__main__":
    sys.exit(main())
