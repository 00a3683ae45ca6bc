"""Searches for the best score, with jobs that compute it from their command line."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from se_lightning.cli.command import Command
from se_lightning.cli.errors import JobError
from se_lightning.cli.sweep import search
from se_lightning.cli.sweep.multirun import Multirun
from se_lightning.cli.sweep.search import distribution
from se_lightning.cli.sweep.study import open_study
from se_lightning.cli.sweep.sweep import lead

optuna = pytest.importorskip("optuna")

# The score has its minimum at ratio 8 and lr 0.1; jobs with ratio 16 fail.
SCORE = """
import json, math, pathlib, sys
overrides = sys.argv[1:-3]
given = dict(o.split("=", 1) for o in overrides)
folder = pathlib.Path(given["hydra.run.dir"].strip('"'))
folder.mkdir(parents=True, exist_ok=True)
ratio, lr = int(given["model.ratio"]), float(given["optimizer.lr"])
result = {"status": "completed", "job": int(folder.name), "overrides": overrides[:-1]}
result["score"] = abs(math.log2(ratio) - 3) + math.log10(lr / 0.1) ** 2
if ratio == 16:
    result |= {"status": "failed", "error": "16 fails"}
(folder / "result.json").write_text(json.dumps(result))
sys.exit(ratio == 16)
"""
SPACE = ("model.ratio=choice(2,4,8,16)", "optimizer.lr=tag(log,interval(0.01,1))")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a search in a folder; return its trials, its output and its error."""

    def line(command):
        return [sys.executable, "-c", SCORE, *command.overrides, ""]

    monkeypatch.setattr(Command, "line", line)
    monkeypatch.chdir(tmp_path)

    def run(folder, *arguments, space=SPACE):
        argv = ["-m", *space, *arguments, f"hydra.sweep.dir={folder}"]
        multirun = Multirun.composed(Command.parse(argv))
        error = None
        try:
            with lead(multirun, resumed=Path(folder).exists()) as sweep:
                search.search(sweep)
        except JobError as failure:
            error = str(failure)
        found = {}
        for path in Path(folder).glob("*/result.json"):
            result = json.loads(path.read_text())
            found[result["job"]] = (result["overrides"], result["score"])
        return found, capsys.readouterr().out, error

    return run


def test_a_search_finds_the_minimum(run):
    trials, output, error = run("s", "jobs.trials=25")
    assert len(trials) == 25
    number, (overrides, score) = min(trials.items(), key=lambda item: item[1][1])
    assert "model.ratio=8" in overrides
    assert score < 0.2
    best = output.splitlines()[-1] if error is None else output.splitlines()[-2]
    assert best.startswith(f"Best: trial {number}, val/loss {score:.5g}: model.ratio=8 optimizer.")


def test_an_interrupted_search_continues_with_the_same_trials(run):
    whole, _, _ = run("whole", "jobs.trials=14")
    for trials in (5, 14):
        cut, _, _ = run("cut", f"jobs.trials={trials}")
    assert len(whole) == 14
    assert whole == cut


def test_another_seed_proposes_other_trials(run):
    first, _, _ = run("a", "jobs.trials=3")
    second, _, _ = run("b", "jobs.trials=3", "seed=1")
    assert [o[0] for o, _ in first.values()] != [
        o[0] for o, _ in second.values()
    ] or first != second
    assert {round(score, 9) for _, score in first.values()} != {
        round(score, 9) for _, score in second.values()
    }


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_trials_run_in_parallel_and_failed_ones_have_no_score(run):
    space = ("model.ratio=choice(8,16)", "optimizer.lr=interval(0.05,0.2)")
    trials, _, error = run("s", "jobs.trials=8", "jobs.parallel=2", space=space)
    assert sorted(trials) == list(range(8))
    failed = [n for n, (overrides, _) in trials.items() if "model.ratio=16" in overrides]
    assert failed
    assert f"{len(failed)} of 8 jobs failed: {min(failed)} (16 fails)" in error
    study = open_study(Path("s"), "minimize", 2)
    states = {trial.number: trial.state.name for trial in study.trials}
    assert states == {n: "FAIL" if n in failed else "COMPLETE" for n in range(8)}
    assert study.best_value == min(score for n, (_, score) in trials.items() if n not in failed)


def test_the_score_is_maximized_if_the_checkpoint_mode_is_max(run):
    trials, output, _ = run("s", "jobs.trials=5", "callbacks.checkpoint.mode=max")
    complete = {n: score for n, (o, score) in trials.items() if "model.ratio=16" not in o}
    assert f"Best: trial {max(complete, key=complete.get)}," in output


def test_fixed_overrides_reach_the_trials(run):
    trials, _, _ = run("s", "jobs.trials=1", "trainer.max_epochs=7")
    assert "trainer.max_epochs=7" in trials[0][0]
    assert not any(override.startswith("jobs.") for override in trials[0][0])


@pytest.mark.parametrize(
    ("override", "name", "expected"),
    [
        ("a=choice(4,8)", "CategoricalDistribution", {"choices": ("4", "8")}),
        ("a=4,null", "CategoricalDistribution", {"choices": ("4", "null")}),
        ("a=choice([1,2],[3])", "CategoricalDistribution", {"choices": ("[1,2]", "[3]")}),
        ("a=choice(true,false)", "CategoricalDistribution", {"choices": ("True", "False")}),
        ("a=range(2,9,3)", "IntDistribution", {"low": 2, "high": 8, "step": 3, "log": False}),
        ("a=range(3)", "IntDistribution", {"low": 0, "high": 2, "step": 1}),
        ("a=range(9,2,-3)", "IntDistribution", {"low": 3, "high": 9, "step": 3}),
        ("a=range(0,0.3,0.1)", "CategoricalDistribution", {}),
        ("a=interval(1,5)", "FloatDistribution", {"low": 1.0, "high": 5.0, "log": False}),
        ("a=int(interval(1,5))", "IntDistribution", {"low": 1, "high": 5, "step": 1}),
        ("a=tag(log,interval(0.01,1))", "FloatDistribution", {"low": 0.01, "log": True}),
        ("a=tag(log,int(interval(1,64)))", "IntDistribution", {"high": 64, "log": True}),
    ],
)
def test_hydra_sweeps_become_optuna_distributions(override, name, expected):
    made = distribution(OverridesParser.create().parse_overrides([override])[0])
    assert type(made).__name__ == name
    assert {key: getattr(made, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [("a=tag(fast,interval(0,1))", "only tag"), ("a=tag(log,choice(1,2))", "`log` is for")],
)
def test_sweeps_that_optuna_cannot_express_are_refused(override, message):
    with pytest.raises(ValueError, match=message):
        distribution(OverridesParser.create().parse_overrides([override])[0])


def test_without_optuna_the_extra_is_named(run, monkeypatch):
    monkeypatch.setattr(search.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r'pip install "se_lightning\[search\]"'):
        run("s", "jobs.trials=3")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_search_of_training_runs_can_be_resumed(cli, short, tmp_path):
    """It continues in its folder and ends with the trials of an uninterrupted search."""
    arguments = ("-m", *SPACE, "jobs.trials=4", *short, "logger=csv")
    cli(*arguments, "hydra.sweep.dir=whole", check=False)
    parent = subprocess.Popen(
        [sys.executable, "-m", "se_lightning", *arguments, "hydra.sweep.dir=cut"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in range(1200):
        if (tmp_path / "cut" / "2" / ".hydra").exists():
            break
        time.sleep(0.1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    done = cli("-m", "jobs.resume=cut", check=False)
    assert "Best: trial" in done.stdout

    def rows(folder):
        results = [
            json.loads((tmp_path / folder / str(n) / "result.json").read_text()) for n in range(4)
        ]
        return [(result["overrides"], result["score"]) for result in results]

    assert rows("cut") == rows("whole")


def test_wandbs_agent_runs_the_example_sweep(cli, short, tmp_path, monkeypatch, wandb_history):
    import wandb.wandb_agent

    path = Path(__file__).parents[3] / "examples" / "sweep.yaml"
    sweep = yaml.safe_load(path.read_text())
    args = {"model.ratio": 8, "optimizer.lr": 0.0123, "optimizer.weight_decay": 1e-05}
    assert args.keys() == sweep["parameters"].keys()
    assert sweep["metric"]["name"] == "val/loss"

    monkeypatch.setattr(wandb.wandb_agent, "AgentProcess", types.SimpleNamespace)
    monkeypatch.setenv("WANDB_RUN_ID", "agents-own")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "")
    monkeypatch.chdir(tmp_path)
    agent = object.__new__(wandb.wandb_agent.Agent)
    agent._sweep_command = sweep["command"]
    agent._in_jupyter = agent._forward_signals = False
    agent._function, agent._run_processes = None, {}
    agent._command_run(
        {
            "run_id": "agents-own",
            "program": sweep["program"],
            "args": {key: {"value": value} for key, value in args.items()},
        }
    )
    command = agent._run_processes["agents-own"].command
    assert command[:4] == ["/usr/bin/env", "python", "-m", "se_lightning"]
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cli(*short, command=command, env={"WANDB_MODE": "offline", "PATH": here})
    (run_dir,) = (tmp_path / "outputs").iterdir()
    overrides = json.loads((run_dir / "result.json").read_text())["overrides"]
    assert {"model.ratio=8", "optimizer.lr=0.0123", "optimizer.weight_decay=1e-05"} <= {*overrides}
    assert any("val/loss" in row for row in wandb_history(run_dir))
    assert [path.name for path in run_dir.rglob("*.wandb")] == ["run-agents-own.wandb"]
