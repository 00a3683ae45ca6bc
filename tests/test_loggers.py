import csv
import gzip
import json
import os
import pickle
import shlex
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import wandb

from se_lightning.loggers import ContinuedCSVLogger, GracefulWandbLogger, finish_wandb


@pytest.fixture(autouse=True)
def _finished():
    yield
    finish_wandb(failed=True)


def test_without_an_account_wandb_is_offline_and_logs_one_message(tmp_path, caplog):
    logger = GracefulWandbLogger(save_dir=str(tmp_path / "new"), name="mine", group="team")
    with caplog.at_level("INFO"):
        run = logger.experiment
        assert logger.experiment is run
    assert (run.name, run.group, run.project) == ("mine", "team", "se_lightning")
    lines = [record.getMessage() for record in caplog.records if "W&B" in record.getMessage()]
    assert len(lines) == 1
    assert "offline (no account; run `wandb login`)" in lines[0]
    folder = lines[0].rpartition("wandb sync ")[2]
    assert folder.startswith(str(tmp_path / "new" / "wandb" / "offline-run-"))
    assert os.path.isdir(folder)
    assert "WANDB_MODE" not in os.environ  # which Lightning's offline=True would set


def test_wandb_mode_has_precedence(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with caplog.at_level("INFO"):
        run = GracefulWandbLogger(save_dir=str(tmp_path)).experiment
    assert run.disabled
    assert "W&B" not in caplog.text
    assert not (tmp_path / "wandb").exists()


SETTINGS = """
import json
import wandb
from se_lightning.loggers import GracefulWandbLogger, finish_wandb
logger = GracefulWandbLogger(**json.loads(%r))
run = logger.experiment
settings = run.settings
print(json.dumps({"project": run.project, "logger": logger.name, "name": run.name,
    "group": run.group, "tags": run.tags, "notes": run.notes, "entity": settings.entity,
    "id": run.id, "timeout": settings.init_timeout, "silent": settings.silent,
    "resume": settings.resume, "mode": settings.mode}))
finish_wandb(failed=False)
"""


def settings(cli, options, env):
    code = SETTINGS % json.dumps(options)
    env = {"WANDB_SILENT": "true"} | env
    return json.loads(cli(command=[sys.executable, "-c", code], env=env).stdout.splitlines()[-1])


def test_every_variable_of_wandb_replaces_a_default(cli):
    variables = {
        "WANDB_PROJECT": "theirs", "WANDB_NAME": "n", "WANDB_RUN_GROUP": "g", "WANDB_TAGS": "a,b",
        "WANDB_NOTES": "l", "WANDB_ENTITY": "team", "WANDB_RUN_ID": "i7", "WANDB_MODE": "offline",
        "WANDB_INIT_TIMEOUT": "7", "WANDB_SILENT": "false", "WANDB_RESUME": "must",
    }  # fmt: skip
    assert settings(cli, {}, variables) == {
        "project": "theirs", "logger": "theirs", "name": "n", "group": "g", "tags": ["a", "b"],
        "notes": "l", "entity": "team", "id": "i7", "timeout": 7, "silent": False,
        "resume": "must", "mode": "offline",
    }  # fmt: skip


def test_an_argument_has_precedence_over_variables(cli):
    options = {"project": "mine", "name": "m", "group": "h", "tags": ["c"], "init_timeout": 3}
    variables = {
        "WANDB_PROJECT": "theirs", "WANDB_NAME": "n", "WANDB_RUN_GROUP": "g", "WANDB_TAGS": "a",
        "WANDB_INIT_TIMEOUT": "7", "WANDB_MODE": "online",
    }  # fmt: skip
    found = settings(cli, options | {"offline": True, "settings": {"silent": False}}, variables)
    assert (found["project"], found["name"], found["group"]) == ("mine", "m", "h")
    assert (found["tags"], found["timeout"], found["silent"]) == (["c"], 3, False)
    assert found["mode"] == "offline"


def test_the_default_name_is_used_if_nothing_else_gives_one(tmp_path, monkeypatch):
    def name(**options):
        logger = GracefulWandbLogger(save_dir=str(tmp_path), **options)
        logger.default_name = "se_resnet20 digits"
        found = logger.experiment.name
        finish_wandb(failed=False)
        return found

    assert name() == "se_resnet20 digits"
    assert name(name="mine") == "mine"
    monkeypatch.setenv("WANDB_NAME", "theirs")
    assert name() == "theirs"


def test_settings_files_of_wandb_apply(cli, tmp_path):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nproject = filed\nmode = offline\n")
    found = settings(cli, {}, {"WANDB_API_KEY": "0" * 40})
    assert (found["project"], found["logger"], found["mode"]) == ("filed", "filed", "offline")


def test_a_resumed_run_stays_in_its_project(tmp_path, monkeypatch, caplog):
    """WANDB_PROJECT is not recorded in the run directory, and may be absent when it resumes."""
    kept = tmp_path / "wandb_id"
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    first = GracefulWandbLogger(save_dir=str(tmp_path), id_file=str(kept)).experiment.id
    finish_wandb(failed=False)
    assert kept.read_text() == f"theirs/{first}"
    monkeypatch.delenv("WANDB_PROJECT")
    time.sleep(1)  # W&B's folders are named by the second
    with caplog.at_level("INFO"):
        run = GracefulWandbLogger(save_dir=str(tmp_path), id_file=str(kept)).experiment
    assert (run.project, run.id) == ("theirs", first)
    (line,) = [each.getMessage() for each in caplog.records if "sync" in each.getMessage()]
    folders = line.rpartition("wandb sync ")[2].split()
    assert [os.path.isdir(folder) for folder in folders] == [True, True]
    assert folders == sorted(folders)  # of start time


def test_an_invalid_key_means_offline(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with caplog.at_level("INFO"):
        GracefulWandbLogger(save_dir=str(tmp_path)).experiment.log({"a": 1})
    assert "W&B: offline (" in caplog.text


def test_a_second_run_has_another_id(tmp_path):
    first = GracefulWandbLogger(save_dir=str(tmp_path)).experiment.id
    finish_wandb(failed=False)
    assert wandb.run is None
    assert GracefulWandbLogger(save_dir=str(tmp_path)).experiment.id != first


def test_further_ranks_do_not_start_a_run(tmp_path, monkeypatch):
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    GracefulWandbLogger(save_dir=str(tmp_path)).experiment.log({"a": 1})
    assert wandb.run is None


class Server(BaseHTTPRequestHandler):
    """A minimal W&B server, which stores the rows of one run where the client puts them."""

    rows: ClassVar[list[dict]] = []

    def do_POST(self):
        body = self._body()
        if self.path.endswith("file_stream"):
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl")
            if history is not None:
                self.rows[history["offset"] :] = map(json.loads, history["content"])
            return self._answer({"exitcode": None, "limits": {}})
        query = json.loads(body or b'{"query": ""}')["query"]
        entity = {"id": "e", "entity": "us", "username": "us", "flags": "{}"}
        project = {"name": "se_lightning", "entity": {"name": "us"}}
        bucket = {"id": "b", "name": "b", "displayName": "b", "config": "{}"}
        bucket |= {"historyLineCount": len(self.rows), "project": project}
        if "RunResumeStatus" in query:
            bucket |= {"eventsLineCount": 0, "logLineCount": 0, "tags": [], "wandbConfig": "{}"}
            bucket |= {"historyTail": "[]", "eventsTail": "[]", "summaryMetrics": "{}"}
            found = {**project, "id": "m", "bucket": bucket if self.rows else None}
            return self._answer({"data": {"model": found}})
        if "upsertBucket" in query:
            return self._answer({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})
        if "createRunFiles" in query:
            files = {"runID": "b", "uploadHeaders": [], "files": []}
            return self._answer({"data": {"createRunFiles": files}})
        return self._answer({"data": {"viewer": {**entity, "teams": {"edges": []}}}})

    def do_PUT(self):
        self._body()
        self._answer({})

    def do_GET(self):
        self._answer({})

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body

    def _answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Do not print requests."""


ONLINE = """
import logging, sys
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
import wandb
from se_lightning.loggers import ContinuedCSVLogger, GracefulWandbLogger, finish_wandb
logger = GracefulWandbLogger(save_dir=sys.argv[1])
histogram = wandb.Histogram(np_histogram=([1, 2], [0, 0.5, 1]))
logger.log_metrics({"val/acc1": 0.5, "excitation/a": histogram}, step=7)
finish_wandb(failed=False)
"""


@pytest.fixture
def server():
    """The environment for a server without rows."""
    Server.rows.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
        "WANDB_API_KEY": "0" * 40,
    }
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_wandb_is_online_with_a_key_and_a_server(cli, tmp_path, server):
    done = cli(str(tmp_path), command=[sys.executable, "-c", ONLINE], env=server)
    assert f"W&B: {server['WANDB_BASE_URL']}/us/se_lightning/runs/" in done.stdout
    (row,) = [row for row in Server.rows if "val/acc1" in row]
    assert (row["val/acc1"], row["trainer/global_step"]) == (0.5, 7)
    assert row["excitation/a"]["values"] == [1, 2]


OFFLINE = """
import logging, sys
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
from se_lightning.loggers import GracefulWandbLogger, finish_wandb
first, last = map(int, sys.argv[1:])
logger = GracefulWandbLogger(save_dir="run", id_file="run/wandb_id")
for step in range(first, last):
    logger.log_metrics({"val/acc1": step / 10}, step=step)
finish_wandb(failed=False)
"""


def test_the_printed_command_uploads_all_parts_of_a_resumed_offline_run(cli, tmp_path, server):
    """As docs/runs.md says: all rows, those since the last save twice."""
    for part in (("0", "5"), ("3", "8")):  # saved after step 2, killed after step 4
        command = [sys.executable, "-c", OFFLINE]
        done = cli(*part, command=command, env={"WANDB_MODE": "offline"})
    command = shlex.split(done.stdout.strip().rpartition("Upload later with: ")[2])
    assert len(command) == 4
    cli(command=[sys.executable, "-m", *command], env=server)
    steps = [row["trainer/global_step"] for row in Server.rows if "val/acc1" in row]
    assert steps == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7]


def test_a_resumed_run_continues_its_wandb_run(tmp_path):
    kept = str(tmp_path / "wandb_id")
    ids = []
    for part in ("first", "second"):
        logger = GracefulWandbLogger(save_dir=str(tmp_path / part), id_file=kept)
        ids.append(logger.experiment.id)
        assert logger._wandb_init["resume"] == "allow"  # online, W&B continues its steps
        finish_wandb(failed=False)
    assert ids[0] == ids[1] == (tmp_path / "wandb_id").read_text()
    assert GracefulWandbLogger(save_dir=str(tmp_path)).experiment.id != ids[0]


def test_the_csv_file_continues_from_a_checkpoint(tmp_path):
    def log(logger, steps):
        for step in steps:
            logger.log_metrics({"loss": step / 3} | ({"acc": 0.1 * step} if step > 2 else {}), step)
        logger.save()

    whole = ContinuedCSVLogger(tmp_path / "whole", "", "")
    log(whole, range(6))
    cut = ContinuedCSVLogger(tmp_path / "cut", "", "")
    log(cut, range(2))
    assert cut.rows == 2
    log(cut, range(2, 5))
    with (tmp_path / "cut" / "metrics.csv").open("a") as file:
        file.write("5,0.4")  # an incomplete row
    resumed = ContinuedCSVLogger(tmp_path / "cut", "", "")
    resumed.keep(2)
    assert resumed.rows == 2
    log(resumed, range(2, 6))
    files = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    resumed.keep(0)
    assert not (tmp_path / "cut" / "metrics.csv").exists()


@pytest.mark.parametrize("first", ["logged", "counted", "kept"])
def test_rows_of_several_processes_stay_under_their_names(tmp_path, first):
    """With ddp_spawn, each call of the trainer starts processes with a copy of the logger."""
    parent = ContinuedCSVLogger(tmp_path, "", "")
    if first == "logged":
        parent.log_metrics({"size": 9.0}, step=0)
        parent.save()
    elif first == "kept":
        parent.keep(0)
    assert parent.rows == (first == "logged")
    for step, names in enumerate(("b", "ca", "d", "ba")):
        child = pickle.loads(pickle.dumps(parent))
        child.log_metrics({name: float(step) for name in names}, step=step)
        child.save()
    parent.log_metrics({"aa": 7.0}, step=9)
    assert parent.rows == 5 + (first == "logged")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    assert rows[-5:] == [
        {"b": "0.0", "step": "0"},
        {"a": "1.0", "c": "1.0", "step": "1"},
        {"d": "2.0", "step": "2"},
        {"a": "3.0", "b": "3.0", "step": "3"},
        {"aa": "7.0", "step": "9"},
    ]
    parent.keep(2)
    child = pickle.loads(pickle.dumps(parent))
    assert child.rows == parent.rows == 2


def test_rows_of_another_process_are_kept(tmp_path):
    """With ddp_spawn, the processes of the fit write the file, and this one the test's metrics."""
    parent = ContinuedCSVLogger(tmp_path, "", "")
    assert parent.rows == 0
    child = ContinuedCSVLogger(tmp_path, "", "")
    child.log_metrics({"train/loss": 1.0}, step=0)
    child.save()
    parent.log_metrics({"test/loss": 2.0}, step=1)
    parent.save()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["train/loss"], row["test/loss"]) for row in rows] == [("1.0", ""), ("", "2.0")]
