"""The command line as a value."""

import ast
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from se_lightning.cli.command import Command, key_of, quoted, unquoted, value_of

CLI = Path(__file__).parents[2] / "se_lightning" / "cli"


def test_flags_come_first_and_groups_lose_their_plus():
    given = ["+model=a,b", "-m", "+model.ratio=3", "+experiment=e", "--config-dir", "d", "++data=d"]
    command = Command.parse(given)
    assert command.flags == ("-m", "--config-dir", "d")
    assert command.overrides == ("model=a,b", "+model.ratio=3", "experiment=e", "++data=d")
    assert Command.parse(command.argv()) == command


@pytest.mark.parametrize(
    "name", ["plain", "a space", 'a "quote"', "it's", "a=b,c", "a\\b", 'a\\"b', "a\\"]
)
def test_a_quoted_path_is_read_as_hydra_reads_it(tmp_path, name):
    path = tmp_path / name
    text = f"hydra.run.dir={quoted(path)}"
    assert OverridesParser.create().parse_override(text).value() == str(path)
    assert value_of(text) == str(path)
    assert Command.parse([text]).value("hydra.run.dir") == str(path)


NAMES = (
    "epoch=000.ckpt", "a/epoch=0-step=9.ckpt", "a&b", "run (2)/best.ckpt", "50%!.ckpt", "a#b;c",
    "it's.ckpt", "a{b}", "a[0]", "a~b", "caf\u00e9/x.ckpt", "\u732b.ckpt", "a<b>", "a^`b",
)  # fmt: skip


@pytest.mark.parametrize("name", range(len(NAMES)))
@pytest.mark.parametrize("key", ["ckpt_path", "resume", "data.root", "+callbacks.mine.dirpath"])
def test_a_name_needs_no_quotes_whatever_is_in_it(key, name):
    given = f"{key}={NAMES[name]}"
    command = Command.parse([given])
    assert OverridesParser.create().parse_override(command.overrides[0]).value() == NAMES[name]
    assert command.value(key.lstrip("+")) == NAMES[name]
    assert Command.parse(command.argv()) == command


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("ckpt_path=[a/epoch=0.ckpt,b.ckpt]", ["a/epoch=0.ckpt", "b.ckpt"]),
        ("ckpt_path=[~/x.ckpt,(b).ckpt]", ["/home/me/x.ckpt", "(b).ckpt"]),
        ("model.weights='a=b'", "a=b"),
        ("+x={a: 1}", {"a": 1}),
        ("data.root=${oc.env:DATA}/a=b", "${oc.env:DATA}/a=b"),
        ("data.root=~/d", "/home/me/d"),
        ("data.root='~/my data'", "/home/me/my data"),
        ('hydra.run.dir="~/runs/${now:%Y}"', "/home/me/runs/${now:%Y}"),
        ("resume=~", "/home/me"),
        ("jobs.resume=~/multirun/x=1", "/home/me/multirun/x=1"),
        ("data.root=~nobody-of-this-name/d", "~nobody-of-this-name/d"),
        ("data.root=a~/d", "a~/d"),
    ],
)
def test_values_are_read_as_they_are_written_and_paths_may_begin_at_home(monkeypatch, given, value):
    monkeypatch.setenv("HOME", "/home/me")
    (override,) = Command.parse([given]).overrides
    assert OverridesParser.create().parse_override(override).value() == value


def test_values_of_a_sweep_are_quoted_one_by_one(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (override,) = Command.parse(["-m", "model.weights=a/epoch=1.ckpt,b.ckpt,~/c.ckpt"]).overrides
    parsed = OverridesParser.create().parse_override(override)
    assert list(parsed.sweep_string_iterator()) == [
        '"a/epoch=1.ckpt"',
        "b.ckpt",
        '"/home/me/c.ckpt"',
    ]


@pytest.mark.parametrize("given", ["+x={a: ~", "x=[1,2", "x='a", 'x="a', "x={a,b"])
def test_what_is_no_name_is_left_to_hydra(given):
    assert Command.parse([given]).overrides == (given,)


@pytest.mark.parametrize("flag", [["--config-dir=~/c"], ["--config-dir", "~/c"], ["-cd", "~/c"]])
def test_a_config_folder_may_be_at_home(monkeypatch, flag):
    monkeypatch.setenv("HOME", "/home/me")
    assert Command.parse(flag).options.config_dir == "/home/me/c"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("model.ratio=4", "model.ratio", "4"),
        ("+a=b", "a", "b"),
        ("++a='x y'", "a", "x y"),
        ("~callbacks.ema", "callbacks.ema", ""),
        ("hydra/launcher=joblib", "hydra/launcher", "joblib"),
    ],
)
def test_an_override_has_a_key_and_a_value(override, key, value):
    assert (key_of(override), value_of(override)) == (key, value)
    assert OverridesParser.create().parse_override(override).key_or_group == key


def test_only_quotes_around_the_whole_value_are_removed():
    assert unquoted("'a'b") == "'a'b"
    assert unquoted('"') == '"'


def test_all_overrides_of_a_group_are_found_and_removed():
    given = ["jobs.parallel=2", "jobsx=1", "hydra/launcher=joblib", "a=1", "a=2"]
    command = Command.parse(given)
    assert command.given("jobs") == ["jobs.parallel=2"]
    assert command.without("jobs", "hydra").overrides == ("jobsx=1", "a=1", "a=2")
    assert command.value("a") == "2"
    assert command.value("b") is None
    assert command.task_overrides == ["jobs.parallel=2", "jobsx=1", "a=1", "a=2"]


def test_a_new_value_replaces_the_old_one_but_keeps_the_key_known():
    command = Command(overrides=("data.batch_size=64", "+new=1", "seed=1"))
    changed = command.with_("data.batch_size=32", "new=2")
    assert changed.overrides == ("+new=1", "seed=1", "data.batch_size=32", "new=2")


def test_the_command_of_a_job_is_that_of_the_multirun_for_one_point(tmp_path):
    given = ["-m", "--config-dir", str(tmp_path), "jobs.parallel=2", "seed=1", "hydra.sweep.dir=s",
             "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.verbose=true"]  # fmt: skip
    job = Command.parse(given).for_job(tmp_path / "3", 3, "model.ratio=4")
    assert job.argv() == [
        "--config-name", "train", "--config-dir", str(tmp_path), "seed=1", "hydra.verbose=true",
        "model.ratio=4", f"hydra.run.dir={quoted(tmp_path / '3')}", "hydra.job.num=3",
        "hydra.mode=RUN",
    ]  # fmt: skip
    assert job.line()[:3] == [sys.executable, "-m", "se_lightning"]


def test_a_recorded_command_is_the_one_that_was_given():
    """As Hydra records it, with an interpolation that only the whole config can resolve."""
    overrides = ["model.ratio=8", "data.batch_size=${model.ratio}", "hydra.verbose=true"]
    with initialize_config_module("se_lightning.conf", version_base="1.3"):
        hydra = compose("train", overrides, return_hydra_config=True).hydra
    OmegaConf.set_struct(hydra, False)
    hydra.job.config_name = "train"
    hydra.runtime.config_sources = []
    command = Command.recorded(hydra)
    assert [o for o in command.overrides if o in overrides] == overrides
    assert command.flags == ("--config-name", "train")


def test_install_replaces_the_command_of_the_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", same := ["se_lightning", "old"])
    Command.parse(["-m", "seed=1,2"]).install()
    assert same == ["se_lightning", "-m", "seed=1,2"]  # in place: Lightning holds the list


def sources():
    for path in sorted(CLI.rglob("*.py")):
        if path.name != "command.py":
            yield path, path.read_text()


def test_only_the_command_module_writes_argv_and_parses_overrides():
    for path, text in sources():
        for node in ast.walk(ast.parse(text)):
            targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
            written = [ast.unparse(target) for target in targets if target is not None]
            assert not any(name.startswith("sys.argv") for name in written), path
        for piece in ('lstrip("+', 'partition("=")', 'split("=")', "OverridesParser", '"resume="'):
            assert piece not in text, f"{path} parses overrides: {piece}"


def test_no_decision_depends_on_the_end_of_a_name():
    for path, text in sources():
        assert '.endswith(".' not in text, path


FILES = ("result.json", "metrics.csv", "nonfinite.json", "console.txt", "hparams.yaml", ".lock",
         "wandb_id", "multirun.yaml", "hydra.yaml", "last.ckpt")  # fmt: skip


def strings(text):
    """Yield the strings of a module, without those in f-strings."""
    tree = ast.parse(text)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
             for part in node.values}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def test_only_the_run_folder_knows_the_names_of_its_files():
    for path, text in sources():
        if path.name != "folder.py":
            assert not set(strings(text)) & set(FILES), path
