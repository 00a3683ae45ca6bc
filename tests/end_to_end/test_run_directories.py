"""Any sequence of starts, kills, moves, copies, resumes and tests leaves each run what it is."""

import csv
import json
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from se_lightning.cli import main as command_line

NAMES = ("a", "b", "c", "sub/d")  # few, so that a run often lies where another one was
SEEDS = (0, 1)
BATCHES, EPOCHS = 3, 3
OPTIONS = (
    "model.depth=[1,1]", "model.widths=[8,8]", "model.stem=cifar", "data=fake", "data.size=48",
    "data.image_size=8", "data.batch_size=8", f"trainer.max_epochs={EPOCHS}",
    f"trainer.limit_train_batches={BATCHES}", "trainer.accelerator=cpu", "logger=csv",
    "lr_scheduler=constant", "optimizer.lr=1", "checkpoint.every_n_steps=1",
    "callbacks.class_selectivity=null", "callbacks.excitation_curves=null",
    "callbacks.excitation_histogram=null", "callbacks.gate_doctor=null",
    "callbacks.learning_rate=null", "+callbacks.die._target_=dying.Die",
)  # fmt: skip


class Die(pl.Callback):
    """Ends the process as SIGKILL would, before the batch that the environment names."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if os.environ.get("DIE") == f"{trainer.current_epoch * BATCHES + batch_idx}":
            os._exit(137)


def command(folder: Path, *arguments: str, die: int | None = None) -> int:
    """Run a command line in a forked process, which has torch imported already."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 99
    try:
        with (folder / "output.txt").open("a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.chdir(folder)
        os.environ["DIE"] = str(die)
        sys.modules["dying"] = sys.modules[__name__]
        sys.argv = ["se_lightning", *arguments]
        torch.set_num_threads(1)
        command_line.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


class RunDirectories(RuleBasedStateMachine):
    """Runs of two seeds in a few directories."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="run-directories-"))
        self.seeds: dict[str, int] = {}  # of the run in each directory
        self.tests = 0

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def _free(self, number: int) -> str:
        free = [name for name in NAMES if name not in self.seeds]
        return free[number % len(free)]

    def _used(self, number: int) -> str:
        return sorted(self.seeds)[number % len(self.seeds)]

    def _alone(self, name: str, *arguments: str, die: int | None = None) -> int:
        """Run a command that may change one directory, and no other."""
        others = [self.root / other for other in self.seeds if other != name]
        before = {folder: contents(folder) for folder in others}
        code = command(self.root, *arguments, die=die)
        assert {folder: contents(folder) for folder in others} == before
        return code

    def _tested(self) -> list[str]:
        paths = {name: self.root / name / "checkpoints" / "best.ckpt" for name in self.seeds}
        return sorted(name for name, path in paths.items() if path.exists())

    def _result(self, name: str) -> dict:
        path = self.root / name / "result.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @precondition(lambda self: len(self.seeds) < len(NAMES))
    @rule(place=st.integers(0, 3), seed=st.sampled_from(SEEDS), die=st.integers(0, 9))
    def start(self, place, seed, die):
        name = self._free(place)
        code = self._alone(name, *OPTIONS, f"seed={seed}", f"hydra.run.dir={name}", die=die)
        assert code == (137 if die < EPOCHS * BATCHES else 0)
        self.seeds[name] = seed

    @precondition(lambda self: self.seeds)
    @rule(run=st.integers(0, 3), later=st.integers(1, 6))
    def resume(self, run, later):
        name = self._used(run)
        complete = self._result(name).get("status") == "completed"
        last = self.root / name / "checkpoints" / "last.ckpt"
        done = torch.load(last, weights_only=True)["global_step"] if last.exists() else 0
        code = self._alone(name, f"resume={name}", die=done + later)
        assert code == (1 if complete else 137 if done + later < EPOCHS * BATCHES else 0)

    @precondition(lambda self: 0 < len(self.seeds) < len(NAMES))
    @rule(run=st.integers(0, 3), place=st.integers(0, 3), copies=st.booleans())
    def move(self, run, place, copies):
        name, to = self._used(run), self._free(place)
        (self.root / to).parent.mkdir(exist_ok=True)
        if copies:
            shutil.copytree(self.root / name, self.root / to)
            self.seeds[to] = self.seeds[name]
        else:
            (self.root / name).rename(self.root / to)
            self.seeds[to] = self.seeds.pop(name)

    @precondition(lambda self: self._tested())
    @rule(run=st.integers(0, 3))
    def test(self, run):
        tested = self._tested()
        name = tested[run % len(tested)]
        best = self.root / name / "checkpoints" / "best.ckpt"
        self.tests += 1
        place = f"tests/{self.tests}"
        before = contents(self.root / name)
        assert self._alone("", "task=test", f"ckpt_path={best}", f"hydra.run.dir={place}") == 0
        assert contents(self.root / name) == before
        found = json.loads((self.root / place / "result.json").read_text())["metrics"]
        if self._result(name).get("status") == "completed":
            ours = self._result(name)["metrics"]
            assert found == {key: ours[key] for key in found}

    @invariant()
    def complete_runs_equal_the_unbroken_run(self):
        for name, seed in self.seeds.items():
            result = self._result(name)
            if result.get("status") != "completed":
                continue
            whole = unbroken(seed)
            for key in ("metrics", "score", "checkpoint", "steps", "seed"):
                assert result[key] == json.loads((whole / "result.json").read_text())[key], key
            for file in ("best.ckpt", "last.ckpt"):
                found = weights(self.root / name / "checkpoints" / file)
                wanted = weights(whole / "checkpoints" / file)
                assert all(torch.equal(found[key], wanted[key]) for key in wanted), file

    @invariant()
    def the_best_checkpoint_is_the_best(self):
        for name in self._tested():
            folder = self.root / name
            best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]
            with (folder / "metrics.csv").open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if row.get("val/loss")]
            losses = {int(row["epoch"]): float(row["val/loss"]) for row in rows}
            # Rows of the last epoch may not be written yet, or it may be the best one.
            assert best >= max(losses, default=0) or losses[best] == min(losses.values())


_unbroken: dict[int, Path] = {}


def unbroken(seed: int) -> Path:
    """Return the directory of an unbroken run, made once."""
    if seed not in _unbroken:
        root = Path(tempfile.mkdtemp(prefix="unbroken-"))
        assert command(root, *OPTIONS, f"seed={seed}", "hydra.run.dir=run") == 0, (
            root / "output.txt"
        ).read_text()
        _unbroken[seed] = root / "run"
    return _unbroken[seed]


@pytest.mark.parametrize("examples", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_any_sequence_of_operations_leaves_each_run_what_it_is(examples):
    options = settings(
        max_examples=examples,
        stateful_step_count=8,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(RunDirectories, settings=options)
