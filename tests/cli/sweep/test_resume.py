"""Resuming an interrupted multirun."""

import csv
import errno
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from se_lightning.cli.command import Command, quoted, unquoted
from se_lightning.cli.run.folder import RunFolder
from se_lightning.cli.sweep.multirun import Multirun
from se_lightning.cli.sweep.pool import Job
from se_lightning.cli.sweep.resume import discard_damaged, refuse_used, remaining, resumed
from se_lightning.cli.sweep.sweep import Sweep

NUMBER = "${hydra.job.num}"  # must stay unresolved: there is no job number yet


def test_the_command_of_a_multirun_is_rebuilt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "started here").mkdir()
    recorded = {
        "overrides": {
            "task": ["model.ratio=4,8", "jobs.parallel=4", "jobs.allow_equal=true"],
            "hydra": [
                "hydra.mode=MULTIRUN",
                "hydra.sweep.dir=x",
                "hydra.sweep.subdir=${hydra.job.num}",
            ],
        },
        "job": {"config_name": "mine"},
        "runtime": {
            "cwd": str(tmp_path / "started here"),
            "choices": {"model": "se_resnet20"},
            "config_sources": [
                {"provider": "main", "path": "se_lightning.conf", "schema": "pkg"},
                {"provider": "command-line", "path": "/b"},
            ],
        },
    }
    (tmp_path / "s").mkdir()
    OmegaConf.save(OmegaConf.create({"hydra": recorded}), tmp_path / "s" / "multirun.yaml")
    command = resumed(Command.parse(["jobs.resume=s", "jobs.parallel=2"]))
    assert command.argv() == [
        "-m", "--config-name", "mine", "--config-dir", "/b",
        "model.ratio=4,8", "jobs.allow_equal=true", f"hydra.sweep.subdir={NUMBER}",
        "jobs.parallel=2", "trust=false", f'hydra.sweep.dir="{tmp_path}/s"',
    ]  # fmt: skip
    assert os.getcwd() == str(tmp_path / "started here")
    assert resumed(command) is command


@pytest.mark.parametrize(
    ("status", "checkpoint", "left"),
    [
        ("completed", True, None),
        ("failed", True, "resume"),
        (None, True, "resume"),
        ("failed", False, "whole"),
        (None, False, "whole"),
    ],
)
def test_a_job_is_skipped_resumed_or_repeated(tmp_path, status, checkpoint, left):
    if status:
        (tmp_path / "result.json").write_text(json.dumps({"status": status}))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ("last.ckpt" if checkpoint else ".torn")).touch()
    job = Job(7, RunFolder(tmp_path), ["whole"])
    rest = remaining(job)
    if left is None:
        assert rest is None
        return
    assert not (tmp_path / "result.json").exists()
    assert (tmp_path / "checkpoints").exists() == checkpoint
    resumed = [sys.executable, "-m", "se_lightning", f'resume="{tmp_path}"', "hydra.job.num=7"]
    assert rest.command == (resumed if left == "resume" else ["whole"])


# Writes the result of a job at once; each job adds a line to the file `ran`.
JOB = """
import json, pathlib, sys
given = dict(o.split("=", 1) for o in sys.argv[1:] if "=" in o)
folder = pathlib.Path(json.loads(given["hydra.run.dir"]))
number = int(folder.name)
with open(folder.parent / "ran", "a") as file:
    print(number, file=file)
result = {"status": "completed", "job": number, "overrides": ["seed=" + given["seed"]]}
(folder / "result.json").write_text(json.dumps(result | {"metrics": {"val/loss": number}}))
"""


@pytest.fixture
def sweep(run_main, tmp_path, monkeypatch):
    """A multirun of three jobs that has completed, and a function that resumes it."""
    monkeypatch.setattr(Command, "line", lambda self: [sys.executable, "-c", JOB, *self.overrides])
    code, error = run_main("-m", "seed=0,1,2", "hydra.sweep.dir=s")
    assert code == 0, error
    folder = tmp_path / "s"

    def resume(*arguments):
        if not arguments:
            (folder / "ran").unlink(missing_ok=True)
        code, error = run_main("-m", *(arguments or ["jobs.resume=s"]), more=())
        ran = Path(unquoted(arguments[0].partition("=")[2]) if arguments else "s") / "ran"
        return code, error, ran.read_text().split() if ran.exists() else []

    return folder, resume


def test_jobs_with_damaged_results_are_run_again(sweep):
    folder, resume = sweep
    table = (folder / "summary.csv").read_text()
    (folder / "1" / "result.json").write_text('{"job": 1, "status": "comp')
    (folder / "2" / "result.json").write_text('{"job": 2, "status": "completed", "metrics": 3}')
    assert resume() == (0, "", ["1", "2"])
    assert (folder / "summary.csv").read_text() == table
    assert resume() == (0, "", [])


def test_the_damaged_result_is_named_before_any_job_is_run(sweep, capfd):
    folder, _ = sweep
    (folder / "1" / "result.json").write_text("{")
    discard_damaged(folder)
    assert capfd.readouterr().out == (f"{folder}/1/result.json is damaged. The job is run again.\n")


@pytest.mark.parametrize("kind", ["forbidden", "folder"])
def test_an_unreadable_result_ends_a_multirun_before_any_job(sweep, monkeypatch, kind):
    folder, resume = sweep
    (folder / "0" / "result.json").unlink()
    path = folder / "1" / "result.json"
    path.unlink()
    path.mkdir()
    if kind == "forbidden":
        path.rmdir()
        path.write_text("{}")
        read = Path.read_bytes

        def refuse(self):  # root may read files of any mode
            if self == path:
                raise PermissionError(errno.EACCES, "Permission denied", str(self))
            return read(self)

        monkeypatch.setattr(Path, "read_bytes", refuse)
    what = "Permission denied" if kind == "forbidden" else "Is a directory"
    said = f"se_lightning: error: {path} cannot be read ({what}). Make it readable, or remove it"
    code, error, ran = resume()
    assert (code, ran) == (1, [])
    assert error == f"{said} to run its job again.\n"


def test_a_multirun_yaml_cut_anywhere_is_refused_or_complete(sweep, tmp_path):
    folder, _ = sweep
    text = (folder / "multirun.yaml").read_bytes()
    whole = resumed(Command.parse(["-m", f"jobs.resume={folder}"]))
    cut = tmp_path / "cut"
    cut.mkdir()
    refused = 0
    for length in range(0, len(text), 97):
        (cut / "multirun.yaml").write_bytes(text[:length])
        try:
            command = resumed(Command.parse(["-m", f"jobs.resume={cut}"]))
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{cut}/multirun.yaml is damaged")  # noqa: PT017
        else:
            assert command.without("hydra.sweep.dir") == whole.without("hydra.sweep.dir")
    assert refused > 20


@pytest.mark.parametrize("text", [None, "", "[1]", "hydra: 3", "hydra: {overrides: {task: [1]}}"])
def test_a_folder_without_a_valid_multirun_yaml_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "multirun.yaml").write_text(text)
    what = "has no multirun.yaml" if text is None else "multirun.yaml is damaged"
    with pytest.raises(ValueError, match=what) as raised:
        resumed(Command.parse(["-m", f"jobs.resume={tmp_path}"]))
    assert str(tmp_path) in str(raised.value)


def test_a_multirun_yaml_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "multirun.yaml").touch()

    def refuse(path):  # root may read files of any mode
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(OmegaConf, "load", refuse)
    with pytest.raises(ValueError, match=r"multirun.yaml cannot be read \(Permission denied\)"):
        resumed(Command.parse(["-m", f"jobs.resume={tmp_path}"]))


def test_a_folder_with_special_characters_can_be_pasted_into_a_shell(
    sweep, tmp_path, monkeypatch, capfd
):
    """A backslash, for example, would be lost without quotes."""
    folder, _ = sweep
    odd = r"a\b, $HOME 'and' \\"
    folder.rename(tmp_path / odd)
    (tmp_path / odd / "1" / "result.json").write_text('{"status": "failed", "job": 1}')
    report = Sweep(Multirun.composed(Command.parse(["-m", "seed=0,1", "hydra.sweep.dir=x"])))
    report.shown, report.dir = Path(odd), tmp_path / odd
    report.report()
    last = capfd.readouterr().out.splitlines()[-1]
    shell = shlex.split(last)
    assert shell[:6] == ["To", "continue:", "python", "-m", "se_lightning", "-m"]
    command = resumed(Command.parse(shell[5:]))
    assert Path(command.value("hydra.sweep.dir")) == tmp_path / odd
    with pytest.raises(ValueError, match="already holds a run") as refused:
        refuse_used(tmp_path / odd)
    assert f"jobs.resume={shlex.quote(str(tmp_path / odd))}." in str(refused.value)


def listing(folder):
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("original", ["gone", "changed"])
def test_a_moved_or_copied_multirun_resumes_in_the_new_place(sweep, tmp_path, original):
    folder, resume = sweep
    copy = tmp_path / "elsewhere" / 'a "copy"'
    shutil.copytree(folder, copy)
    (copy / "ran").unlink()
    shutil.rmtree(copy / "2")
    (copy / "1" / "result.json").unlink()
    if original == "gone":
        shutil.rmtree(folder)
    else:  # whatever is read from here would end the multirun, or change its table
        for path in folder.rglob("*.*"):
            if path.is_file():
                path.write_text("poison")
    before = listing(folder)
    code, error, ran = resume(f"jobs.resume={quoted(copy)}")
    assert (code, error, ran) == (0, "", ["1", "2"])
    assert listing(folder) == before
    with (copy / "summary.csv").open() as file:
        assert [(row["job"], row["status"]) for row in csv.DictReader(file)] == [
            (number, "completed") for number in "012"
        ]


@pytest.mark.parametrize("name", ["multirun.yaml", "summary.csv", "summary.md", "0/notes.txt"])
def test_files_of_another_program_are_not_overwritten(tmp_path, name):
    (tmp_path / "notes.txt").touch()
    refuse_used(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("of another program")
    with pytest.raises(ValueError, match=f"contains {name.partition('/')[0]} from another"):
        refuse_used(tmp_path)


def test_the_folder_of_a_multirun_without_results_is_used_again(tmp_path):
    source = {"provider": "main", "path": "se_lightning.conf"}
    recorded = {"hydra": {"runtime": {"config_sources": [source]}}}
    OmegaConf.save(OmegaConf.create(recorded), tmp_path / "multirun.yaml")
    (tmp_path / "0").mkdir()
    refuse_used(tmp_path)
