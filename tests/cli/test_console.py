import logging
import warnings

import pytest

from se_lightning.cli.console import Formatter, printable, quiet, say


@pytest.fixture
def console(monkeypatch):
    """Set up the root logger as Hydra leaves it; return the list of lines that it prints."""
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append(self.format(record))

    handler = Handler()
    handler.setFormatter(Formatter())
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [handler])
    monkeypatch.setattr(root, "level", logging.INFO)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    return lines


def test_noise_is_hidden_and_the_rest_takes_one_line_each(console):
    quiet()
    log = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    log.propagate, log.disabled = True, False
    log.setLevel(logging.INFO)
    log.info("💡 Tip: For seamless cloud logging, try installing [litlogger]")
    log.info("TPU available: False, using: 0 TPU cores")
    log.info("se_resnet20: 9 gates")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for _ in range(2):
            warnings.showwarning(
                UserWarning("ratio=16 leaves one hidden unit"), UserWarning, "f", 1
            )
        warnings.showwarning(
            FutureWarning("`isinstance(treespec, LeafSpec)` is deprecated"), FutureWarning, "f", 1
        )
    assert console == ["se_resnet20: 9 gates", "WARNING: ratio=16 leaves one hidden unit"]


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("\x1b", r"\x1b"), ("\r", r"\r"), ("\b", r"\x08"), ("\0", r"\x00"), ("\x9b", r"\x9b"),
        ("\x7f", r"\x7f"), ("\u2028", r"\u2028"), ("\u202e", r"\u202e"),
    ],
)  # fmt: skip
def test_control_characters_in_names_are_shown_as_escapes(console, capsys, character, shown):
    logging.getLogger("x").warning("the class %s", f"a{character}b")
    say(f"job a{character}b")
    say(f"no a{character}b", error=True)
    assert console == [f"WARNING: the class a{shown}b"]
    assert capsys.readouterr() == (f"job a{shown}b\n", f"no a{shown}b\n")


def test_other_characters_are_printed_as_they_are(console):
    text = "two\n\tlines, C:\\a\\b, é, \u3000, 猫, 💡, ━ and \xa0"
    logging.getLogger("x").info(text)
    assert console == [text]
    assert printable("a\nb", keep="") == r"a\nb"


def test_further_ranks_print_only_errors(console, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    quiet()
    logging.getLogger("x").warning("the same on every rank")
    logging.getLogger("x").error("broken")
    assert console == ["ERROR: broken"]


def test_a_byte_that_is_not_utf_8_is_shown_as_an_escape():
    # Not logged, since xdist cannot send what this test would have logged.
    assert printable("a\udcffb") == r"a\udcffb"
