"""``--help`` on one screen, and ``--version``."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from se_lightning.cli import help as helps
from se_lightning.cli.command import Command
from se_lightning.cli.help import help_text, version_text


def test_the_help_fits_on_one_screen_and_names_what_can_be_chosen():
    lines = help_text(Command()).splitlines()
    assert len(lines) <= 56
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for words in ("model (the network; default se_resnet20)", "se_resnet{18,20,32,34,50,56,101,",
                  "se_resnext{29_8x64d,50_32x4d", "cifar{10,100}", "what_if",
                  "optimizer.lr=0.1"):  # fmt: skip
        assert words in text
    assert "family" not in text
    assert "hydra/" not in text


def test_every_key_of_the_help_exists_and_has_the_value_of_the_flags(tmp_path):
    config = Command().config
    missing = object()
    for key in helps._KEYS:
        if key != "data.root":  # the digits have none
            assert OmegaConf.select(config, key, default=missing) is not missing, key
    assert set(helps._MEANINGS) == {g for g in Command().loader().list_groups("") if g != "hydra"}
    (tmp_path / "mine.yaml").write_text("defaults: [train, _self_]\nseed: 7\n")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "first.yaml").touch()
    text = help_text(Command(("--config-dir", str(tmp_path), "--config-name", "mine")))
    assert "seed=7" in text
    assert "study (yours): first" in text


def test_a_long_group_is_cut_and_says_how_to_list_it(tmp_path):
    (tmp_path / "study").mkdir()
    for number in range(90):
        (tmp_path / "study" / f"{chr(97 + number % 26) * 9}_{number}.yaml").touch()
    text = help_text(Command(("--config-dir", str(tmp_path))))
    assert "... (study=? lists all 90)" in text


def test_names_are_joined_only_if_they_differ_behind_their_first_number():
    names = ["b", "a2", "a10", "a1_3", "ab1", "c1x", "c1y"]
    assert helps._short(names) == ["a{1_3,2,10}", "ab1", "b", "c{1x,1y}"]


def test_the_version_is_of_this_package(cli):
    assert version_text().startswith("se_lightning 0.")
    assert "hydra-core 1.3" in version_text()
    done = cli("model=nope", "--version", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.stdout == version_text() + "\n"
    assert "| torch\n" not in done.stderr


@pytest.mark.parametrize("shown", ["--help", "--cfg job", "--hydra-help", "--info defaults"])
def test_a_closed_pipe_ends_what_is_shown_quietly(tmp_path, shown):
    command = f"{sys.executable} -m se_lightning {shown} | true"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
