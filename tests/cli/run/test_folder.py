"""The folder of a run: its lock, and the names of its files."""

import subprocess
import sys

import pytest

from se_lightning.cli.run import folder as folders
from se_lightning.cli.run.folder import RunFolder
from se_lightning.cli.run.lock import release

CODE = "import sys; from se_lightning.cli.run.folder import RunFolder; "
CODE += "RunFolder(sys.argv[1]).claim(); print('mine', flush=True); sys.stdin.read()"


def holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "mine\n"
    return process


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path):
    folder = RunFolder(tmp_path / "run")
    process = holder(folder.path)
    with pytest.raises(ValueError, match=f"is in use by another run .process {process.pid} on"):
        folder.claim()
    process.communicate()
    assert not folder.path.exists()  # it contained only the lock
    process = holder(folder.path)
    process.kill()  # this releases the lock but leaves its file
    process.communicate()
    assert (folder.path / ".lock").exists()
    folder.claim()
    folder.claim()  # a second claim by the same process changes nothing
    release(folder.path)
    assert not folder.path.exists()


@pytest.mark.slow
def test_run_folder_knows_every_file_that_a_run_writes(cli, short, tmp_path):
    """An unknown file would survive a restart or hide that a run has started."""
    cli(*short, "hydra.run.dir=run", env={"WANDB_MODE": "offline"})
    cli("task=test", "ckpt_path=run/checkpoints/best.ckpt", "hydra.run.dir=test", *short)
    known = {name.format(job="se_lightning") for name in folders._SETUP | folders._TRAINING}
    found = {path.name for name in ("run", "test") for path in (tmp_path / name).iterdir()}
    assert found - known == set()
    assert {".hydra", "checkpoints", "wandb", "wandb_id", "result.json"} <= found


@pytest.fixture
def used(tmp_path):
    """Create the folder of a run that has not started training."""
    folder = RunFolder(tmp_path / "run")
    (folder.path / ".hydra").mkdir(parents=True)
    for name in ("se_lightning.log", "hparams.yaml", "result.json"):
        (folder.path / name).touch()
    return folder


def test_the_folder_of_a_run_that_never_started_is_removed(used):
    used.discard_unused("se_lightning")
    assert not used.path.exists()


def test_files_of_the_user_and_of_training_are_kept(used):
    (used.path / "metrics.csv").touch()
    before = sorted(used.path.iterdir())
    used.discard_unused("se_lightning")
    assert sorted(used.path.iterdir()) == before
    (used.path / "metrics.csv").unlink()
    (used.path / "notes.txt").touch()
    used.discard_unused("se_lightning")
    assert [path.name for path in used.path.iterdir()] == ["notes.txt"]


def test_a_restart_keeps_only_the_config_and_the_log(used):
    for name in ("metrics.csv", "nonfinite.json", "wandb_id"):
        (used.path / name).touch()
    used.checkpoints.mkdir()
    used.prepare_restart()
    assert sorted(path.name for path in used.path.iterdir()) == [".hydra", "se_lightning.log"]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", "\xff", "\0\0", '{"job": "1"}', '{"status": ["completed"]}',
        '{"overrides": "seed=1"}', '{"overrides": [1]}', '{"metrics": {"val/loss": "low"}}',
        '{"hidden_widths": 3}', '{"error": null}', '{"kind": 1}',
    ],
)  # fmt: skip
def test_a_damaged_result_reads_as_empty_or_is_refused(tmp_path, text):
    folder = RunFolder(tmp_path)
    assert folder.result(strict=True) == {}
    (tmp_path / "result.json").write_bytes(text.encode("latin-1"))
    assert folder.result() == {}
    with pytest.raises(ValueError, match=r"result.json is damaged"):
        folder.result(strict=True)


def listing(folder):
    return {path: path.is_file() and path.read_text() for path in folder.rglob("*")}


@pytest.mark.parametrize("name", [".hydra", "metrics.csv", "hparams.yaml", "se_lightning.log"])
@pytest.mark.parametrize("more", [["model.ratio=0"], []])
def test_files_of_another_program_are_neither_removed_nor_replaced(
    run_main, tmp_path, short, name, more, monkeypatch
):
    monkeypatch.setenv("PROJECT", "project")
    theirs = tmp_path / "project"
    theirs.mkdir()
    path = theirs / name / "config.yaml" if name == ".hydra" else theirs / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("of another program")
    (theirs / "notes.txt").touch()
    before = listing(theirs)
    code, err = run_main("hydra.run.dir='${oc.env:PROJECT}'", *short, *more,
                         more=("logger=csv", "hydra.output_subdir=null"))  # fmt: skip
    assert code == 1
    assert f"contains {name} from another program" in err
    assert listing(theirs) == before


def test_an_empty_folder_of_the_user_outlives_a_mistake(run_main, tmp_path):
    (tmp_path / "mine").mkdir()
    code, err = run_main("hydra.run.dir=mine", "model.ratio=0")
    assert code == 1
    assert "ratio" in err
    release(tmp_path / "mine")  # at exit
    assert list((tmp_path / "mine").iterdir()) == []


def test_other_files_of_the_user_outlive_a_mistake(run_main, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("read me")
    assert run_main("hydra.run.dir=mine", "model.ratio=0")[0] == 1
    release(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("kind", ["link", "text"])
def test_a_lock_file_of_another_program_is_left_alone(tmp_path, kind):
    precious = tmp_path / "precious"
    precious.write_text("of another program")
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    if kind == "link":
        (folder.path / ".lock").symlink_to(precious)
    else:
        precious.rename(folder.path / ".lock")
        precious = folder.path / ".lock"
    with pytest.raises(ValueError, match="is not the lock of a run"):
        folder.claim()
    assert precious.read_text() == "of another program"


def test_all_ways_to_a_folder_are_one_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    RunFolder(tmp_path / "run").claim()
    for way in ("a/../run", "link"):
        RunFolder(tmp_path / way).claim()  # would be refused if it were another folder
        assert RunFolder(tmp_path / way).relative(tmp_path / "run" / "x" / "y") == "x/y"
    assert (tmp_path / "run" / ".lock").read_text().startswith("process ")
    release(tmp_path / "run")


def test_a_path_outside_stays_as_it_is(tmp_path):
    assert RunFolder(tmp_path / "run").relative("/elsewhere/best.ckpt") == "/elsewhere/best.ckpt"


@pytest.mark.parametrize(
    ("text", "epochs"),
    [(None, 0), ("", 0), ("epoch,loss\n0,1\n", 0), ("epoch,loss\n0,1\n,2\n3,1\n", 3), ("\0", 0)],
)
def test_logged_epochs(tmp_path, text, epochs):
    if text is not None:
        (tmp_path / "metrics.csv").write_text(text)
    assert RunFolder(tmp_path).epochs_logged() == epochs
