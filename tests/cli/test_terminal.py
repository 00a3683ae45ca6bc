"""The log stays readable on a terminal, where progress bars are drawn over and over."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

LINE = (
    "step {} is left out: its gradient is not finite, 12 of the 280,670 numbers in layer1.0.se.fc1"
)
ROWS = [f"layer{n}.0.se   gate {n / 10:.2f} +- 0.01   dead 0 %   open {n} %" for n in range(1, 10)]
# Draws a bar as Lightning does, and logs with the logging of conf/train.yaml.
DRAW = f"""
import logging, sys, time
from hydra.core.utils import configure_log
from se_lightning.cli.command import Command
logged = Command().config.hydra.job_logging
logged.handlers = {{"console": logged.handlers.console}}
logged.root.handlers = ["console"]
configure_log(logged, False)
log = logging.getLogger("x")

def steps(advance):
    for step in range(9):
        advance()
        log.warning({LINE!r}.format(step))
    log.info("%s", "\\n".join({ROWS!r}))
    advance()

if sys.argv[1] == "rich":
    from rich.progress import Progress
    with Progress() as bar:
        task = bar.add_task("Epoch 0", total=10)
        steps(lambda: (bar.advance(task), bar.refresh()))
elif sys.argv[1] == "tqdm":
    from tqdm.auto import tqdm
    with tqdm(total=10, file=sys.stdout, mininterval=0, desc="Epoch 0") as bar:
        steps(bar.update)
else:
    from tqdm.auto import tqdm
    with tqdm(total=10, mininterval=0) as outer, tqdm(total=10, mininterval=0) as inner:
        steps(lambda: (outer.update(), inner.update()))
"""


class Screen:
    """A terminal with the control sequences that rich and tqdm use; lines never scroll away."""

    def __init__(self, columns):
        self.columns, self.lines, self.row, self.column = columns, [[]], 0, 0

    def feed(self, text):
        for sequence, character in re.findall(r"\x1b\[([?0-9;]*[A-Za-z])|(.)", text, re.DOTALL):
            if sequence:
                self._control(sequence)
            elif character == "\r":
                self.column = 0
            elif character == "\n":
                self._down()
            elif character >= " ":
                if self.column == self.columns:
                    self._down()
                    self.column = 0
                line = self.lines[self.row]
                line += [" "] * (self.column + 1 - len(line))
                line[self.column] = character
                self.column += 1

    def _down(self):
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append([])

    def _control(self, sequence):
        count, kind = sequence[:-1], sequence[-1]
        if kind == "A":
            self.row = max(0, self.row - int(count or 1))
        elif kind == "K":
            line = self.lines[self.row]
            self.lines[self.row] = [] if count == "2" else line[: self.column]
        else:
            assert kind in "mhl", sequence  # colors, and hiding the cursor

    def text(self):
        return "\n".join("".join(line) for line in self.lines)


def seen(command, columns):
    """Run a command in a terminal of this width, and return what remains on the screen."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    environment = {k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    raw = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the terminal is closed at the end
            break
        if not part:
            break
        raw += part
    os.close(leader)
    screen = Screen(columns)
    screen.feed(raw.decode())
    assert process.wait() == 0, screen.text()
    return screen.text()


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("bar", ["rich", "tqdm", "two bars of tqdm on stderr"])
def test_a_progress_bar_hides_no_line_of_the_log(bar, columns):
    text = seen([sys.executable, "-c", DRAW, bar], columns)
    assert "10/10" in text or "100%" in text  # the bar itself
    lines = [line.strip() for line in text.splitlines()]
    for row in ROWS:
        assert row in lines, text
    whole = " ".join(" ".join(lines).split())  # rich wraps long lines
    unwrapped = "".join(text.split())
    for step in range(9):
        line = f"WARNING: {LINE.format(step)}"
        assert line in whole or "".join(line.split()) in unwrapped, text
    assert not re.search("WARNING.*WARNING", text)
    assert not re.search("Epoch 0.*(WARNING|layer)", text)


def test_a_stream_that_is_not_standard_is_kept(tmp_path):
    from se_lightning.cli.console import Handler

    with (tmp_path / "log").open("w+") as file:
        handler = Handler(file)
        assert handler.stream is file
    assert Handler(sys.stderr).stream is sys.stderr
