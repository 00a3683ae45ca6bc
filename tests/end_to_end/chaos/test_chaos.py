"""Runs killed at random moments and resumed, also elsewhere, end like uninterrupted ones."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

HERE = Path(__file__).parent
DATA = "data=fake data.size=240 data.image_size=16 data.flip=true"
COMMON = (
    "trainer.max_epochs=3 logger=csv "
    "model.depth=[1,1,1] model.widths=[8,16,16] model.stem=cifar trainer.log_every_n_steps=1 "
    "trainer.accelerator=cpu logger.csv.flush_logs_every_n_steps=1 checkpoint.every_n_steps=2 "
    "callbacks.gate_doctor=null callbacks.excitation_curves=null callbacks.class_selectivity=null "
    "+callbacks.kill_in_save._target_=kill_in_save.KillInSave"
)
CONFIGURATIONS = {
    "1 rank": "",
    "1 rank, 2 workers": "data.num_workers=2 data.mixup=0.3 data.rand_augment=9",
    "1 rank, accumulated": (
        "trainer.accumulate_grad_batches=3 trainer.precision=bf16-mixed trainer.gradient_clip_val=1"
    ),
    "1 rank, averaged": "callbacks=ema trainer.val_check_interval=7",
    "2 ranks": "trainer.devices=2",
    "2 ranks, 2 workers": "trainer.devices=2 data.num_workers=2 data.cutmix=1 data.repeats=2",
}
_SCHEDULE = "+callbacks.x._target_=pytorch_lightning.callbacks.GradientAccumulationScheduler"
MOVED = {
    "digits": "data=digits trainer.limit_train_batches=12",
    "double precision": "trainer.precision=64-true",
    "overfitting": "trainer.overfit_batches=8",
    "scheduled accumulation": f"{_SCHEDULE} +callbacks.x.scheduling={{0:1,1:2}}",
    "random callback": "+callbacks.x._target_=random_callback.Noise",
    "top k": "checkpoint.top_k=2",
    "adamw": "optimizer=adamw lr_scheduler=multi_step",
    "image folder": "data=image_folder data.root={images} data.image_size=16 data.eval_resize=16",
    "observed": (
        "+callbacks.doctor._target_=se_lightning.GateDoctor "
        "+callbacks.selectivity._target_=se_lightning.ClassSelectivity"
    ),
    "2 ranks, averaged": "trainer.devices=2 callbacks=ema",
    "steps": "trainer.max_epochs=-1 trainer.max_steps=37 model.dropout=0.3",
    "validated every other epoch": "trainer.check_val_every_n_epoch=2 trainer.max_epochs=4",
}


class Run:
    """A run in a directory, started as a user would."""

    def __init__(self, folder: Path, options: str) -> None:
        self.folder = folder
        given = options.split()
        data = [] if any(word.startswith("data=") for word in given) else DATA.split()
        arguments = [*data, *COMMON.split(), *given, f"hydra.run.dir={folder}"]
        self.start_command = [sys.executable, "-m", "se_lightning", *arguments]

    @property
    def resume_command(self) -> list[str]:
        return [sys.executable, "-m", "se_lightning", f"resume={self.folder}"]

    @property
    def has_started(self) -> bool:
        return (self.folder / ".hydra" / "overrides.yaml").exists()

    def start(self, save: str = "") -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            self.resume_command if self.has_started else self.start_command,
            env=environment | ({"CHAOS_SAVE": save} if save else {}),
            cwd=self.folder.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def is_complete(self) -> bool:
        try:
            return json.loads((self.folder / "result.json").read_text())["status"] == "completed"
        except FileNotFoundError:
            return False

    def finish(self) -> None:
        if self.is_complete():
            return
        process = self.start()
        _, error = process.communicate(timeout=280)
        assert process.returncode == 0, error[-2000:]

    def rows(self) -> int:
        try:
            return (self.folder / "metrics.csv").read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def outcome(self) -> dict:
        last = torch.load(self.folder / "checkpoints" / "last.ckpt", weights_only=True)
        best = torch.load(self.folder / "checkpoints" / "best.ckpt", weights_only=True)
        result = json.loads((self.folder / "result.json").read_text())
        return {
            "last": [last["state_dict"], last.get("current_model_state"), last["optimizer_states"]],
            "best": best["state_dict"],
            "curves": (self.folder / "metrics.csv").read_bytes(),
            "result": [result[key] for key in ("status", "metrics", "score", "checkpoint")],
        }


def same(left, right) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def children(pid: int) -> list[int]:
    try:
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def survivors(marker: str) -> list[str]:
    """Return the command lines of other processes that contain the marker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if marker in command and int(path.parent.name) != os.getpid():
            found.append(command)
    return found


def kill(run: Run, way: str, dice: random.Random, length: int) -> bool:
    """Start or resume a run and kill it in this way; return False if it finished first."""
    save = f"{dice.randint(1, 9)}:{way.removeprefix('save ')}" if "save" in way else ""
    process = run.start(save)
    try:
        if way == "start":
            time.sleep(dice.uniform(0.2, 9))
        elif not save:
            rows = dice.randint(run.rows(), length)
            while process.poll() is None and run.rows() < rows:
                time.sleep(0.002)
            time.sleep(dice.uniform(0, 0.05))
        if not save and process.poll() is None:
            further = children(process.pid)
            target = dice.choice(further) if way == "rank 1" and further else process.pid
            os.kill(target, signal.SIGTERM if way == "term" else signal.SIGKILL)
        process.communicate(timeout=120)
    finally:
        process.kill()
    deadline = time.monotonic() + 30
    while survivors(str(run.folder)):
        assert time.monotonic() < deadline, survivors(str(run.folder))
        time.sleep(0.1)
    return process.returncode != 0 and not run.is_complete()


WAYS = ("any", "save writing", "any", "term", "save written", "rank 1", "start", "save replaced")


def chaos(
    tmp_path: Path,
    name: str,
    options: str,
    kills: int,
    after_kill: Callable[[Run, random.Random], str] = lambda run, dice: "",
) -> list[str]:
    """Kill runs this many times, in ways that `name` determines; return a log."""
    dice = random.Random(name)
    tmp_path.mkdir(exist_ok=True)
    whole = Run(tmp_path / "whole", options)
    whole.finish()
    expected, length = whole.outcome(), whole.rows()
    log, done = [], 0
    while done < kills:
        run = Run(tmp_path / f"broken{len(log)}", options)
        broken = []
        for _ in range(min(dice.randint(1, 3), kills - done)):
            way = WAYS[done % len(WAYS)]
            if kill(run, way, dice, length):
                broken.append(f"{way} at row {run.rows()}{after_kill(run, dice)}")
                done += 1
        run.finish()
        log.append(f"{name}: killed {', '.join(broken)} of {length}")
        outcome = run.outcome()
        differing = [key for key in expected if not same(expected[key], outcome[key])]
        assert not differing, (log, differing)
    return log


def test_a_run_killed_during_a_save_ends_like_an_uninterrupted_one(tmp_path):
    """The fast version: killed once, with half a checkpoint written."""
    whole, broken = (Run(tmp_path / name, "trainer.max_epochs=2") for name in ("whole", "broken"))
    whole.finish()
    assert kill(broken, "save writing", random.Random(1), 0)
    assert list(broken.folder.glob("checkpoints/.*.tmp")), "the run was not killed during a save"
    broken.finish()
    assert not list(broken.folder.glob("checkpoints/.*.tmp"))
    assert same(broken.outcome(), whole.outcome())


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_runs_killed_at_random_end_like_an_uninterrupted_one(name, tmp_path):
    """54 kills: at any time, of rank 1, before training, in each stage of a save, by SIGTERM."""
    print("\n".join(chaos(tmp_path, name, CONFIGURATIONS[name], kills=9)))


def make_images(root: Path) -> Path:
    draw = np.random.default_rng(0)
    for label in "abc":
        (root / label).mkdir(parents=True)
        for number in range(60):
            pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number:02}.png")
    return root


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


class Mover:
    """Moves or copies runs between a kill and the resume; spoils the originals of copies."""

    def __init__(self, places: Path) -> None:
        self.places = places
        self.kills = 0
        self.originals: dict[Path, dict[Path, tuple[bytes, int]]] = {}

    def __call__(self, run: Run, dice: random.Random) -> str:
        self.kills += 1
        if self.kills % 2 == 0 or not run.has_started:
            return ""
        place = self.places / f"{self.kills}" / "a run"
        place.parent.mkdir(parents=True)
        if self.kills % 4 == 1:
            run.folder.rename(place)
        else:
            shutil.copytree(run.folder, place)
            for path in run.folder.rglob("*.ckpt"):
                path.write_bytes(b"of another run")
            self.originals[run.folder] = contents(run.folder)
        run.folder = place
        return ", moved" if self.kills % 4 == 1 else ", copied"


@pytest.mark.slow
@pytest.mark.parametrize("name", MOVED)
def test_runs_killed_and_moved_end_like_an_uninterrupted_one(name, tmp_path):
    """60 kills, the first, third and fifth of each five followed by a move or a copy."""
    options = MOVED[name].replace("{images}", str(make_images(tmp_path / "images")))
    mover = Mover(tmp_path / "places")
    print("\n".join(chaos(tmp_path / "runs", name, options, kills=5, after_kill=mover)))
    assert mover.originals
    for folder, before in mover.originals.items():
        assert contents(folder) == before
