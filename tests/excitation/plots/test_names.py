"""Names in figures are drawn as they are, or as escapes."""

import os

import matplotlib
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from se_lightning.excitation import (
    ExcitationStatistics,
    draw_curves,
    draw_epochs,
    draw_histogram,
    draw_selectivity,
    draw_selectivity_epochs,
    draw_spread,
)
from se_lightning.excitation.drift import Drift
from se_lightning.excitation.plots import names as names_module
from se_lightning.excitation.plots.drift import draw_drift
from se_lightning.excitation.plots.names import legible, plain_text
from se_lightning.excitation.plots.what_if import draw_what_if
from se_lightning.excitation.what_if import ALL_BLOCKS, WhatIfRow
from se_lightning.tasks.look import _draw_counts, _draw_sheet

# A name, and what is shown of it where no font has other characters than DejaVu Sans.
NAMES = {
    "dollars": ("A$$", "A$$"),
    "half a formula": (r"$x{\frac", r"$x{\frac"),
    "TeX": (r"a_b^c\{d}%#&~", r"a_b^c\{d}%#&~"),
    "escaped": (r"\$5 \\ \%", r"\$5 \\ \%"),
    "newline": ("two\nlines\ttabs", r"two\nlines\ttabs"),
    "control": ("bell\x07\x1b[31m", r"bell\x07\x1b[31m"),
    "cats": ("\u732b", r"\u732b"),
    "hangul": ("\uace0\uc591\uc774", r"\uace0\uc591\uc774"),
    "emoji": ("dog \U0001f9ae", r"dog \U0001f9ae"),
    "latin-1": (os.fsdecode(b"Mu\xf1oz"), r"Mu\udcf1oz"),
    "reversed": ("a\u202eb", r"a\u202eb"),
    "accents": ("Mu\u00f1oz \u017b\u00f3\u0142w \u03a9", "Mu\u00f1oz \u017b\u00f3\u0142w \u03a9"),
    "underscore": ("_private", "_private"),
    "empty": ("", ""),
}


@pytest.fixture(autouse=True)
def no_other_fonts(monkeypatch):
    """Hide the fonts of this machine."""
    shipped = [f for f in fontManager.ttflist if matplotlib.get_data_path() in f.fname]
    monkeypatch.setattr(fontManager, "ttflist", shipped)
    names_module._fallback.cache_clear()
    yield
    names_module._fallback.cache_clear()


def summary(layers):
    statistics = ExcitationStatistics(layers, [3] * len(layers), classes=[0, 1, 2])
    statistics.update([[torch.rand(8, 3)] for _ in layers], labels=torch.arange(8) % 2)
    return statistics.summary()


def what_if_rows(names):
    rows = [WhatIfRow("", "none", 0.9, 0.0, 100)]
    return rows + [WhatIfRow(n, "one", 0.8, 0.1, 100, 1) for n in [*names, ALL_BLOCKS]]


DRAW = {
    "curves": lambda n, path: draw_curves(summary(n), dict(enumerate([*n, "none"])), title=n[0]),
    "spread": lambda n, path: draw_spread(summary(n), dict(enumerate([*n, "none"])), title=n[0]),
    "histogram": lambda n, path: draw_histogram(n, np.ones((2, 4)), n[0]),
    "epochs": lambda n, path: draw_epochs(n, [1, 2], np.ones((2, 2)), n[0]),
    "selectivity": lambda n, path: draw_selectivity(n, np.ones(2), n[0]),
    "selectivity of epochs": lambda n, path: draw_selectivity_epochs(
        n, [1, 2], np.ones((2, 2)), n[0]
    ),
    "drift": lambda n, path: draw_drift([Drift(k, 4, 0.9, 0.8, 0.1) for k in n], n[0]),
    "what if": lambda n, path: draw_what_if(what_if_rows(n), "x"),
    "sheet": lambda n, path: _draw_sheet(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), n, path),
    "counts": lambda n, path: _draw_counts({"train": np.ones(2), "val": np.ones(2)}, n, path),
}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw a figure where a user's style asks for TeX, and return its texts."""

    def draw(kind, names):
        figures = []
        save = Figure.savefig
        monkeypatch.setattr(
            Figure, "savefig", lambda f, *a, **k: figures.append(f) or save(f, *a, **k)
        )
        with matplotlib.rc_context({"text.usetex": True, "axes.formatter.use_mathtext": True}):
            figure = DRAW[kind](names, tmp_path / "x.png")
        if figure is None:
            (figure,) = figures
        else:
            figure.savefig(tmp_path / "x.png")
        return [text.get_text() for text in figure.findobj(Text)]

    return draw


def check(texts, *names):
    for name in names:
        shown = NAMES[name][1]
        short = " ".join(shown.split())
        assert any(text == shown or short in text for text in texts)
    assert not any(c in "".join(texts) for c in "\u732b\uace0\udcf1\x1b\U0001f9ae")


@pytest.mark.filterwarnings("error")  # a missing glyph is a warning
@pytest.mark.parametrize("first", range(0, len(NAMES), 2))
def test_every_name_is_drawn(drawn, first):
    pair = list(NAMES)[first : first + 2]
    check(drawn("epochs", [NAMES[name][0] for name in pair]), *pair)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", DRAW)
@pytest.mark.parametrize("pair", ["half a formula,cats", "TeX,newline", "dollars,latin-1"])
def test_every_figure_draws_names_as_they_are(drawn, kind, pair):
    pair = pair.split(",")
    check(drawn(kind, [NAMES[name][0] for name in pair]), *pair)


def test_missing_characters_are_told_once_with_the_way_out(caplog):
    for _ in range(2):
        plain_text(legible)("\u732b and \u72ac")
    (told,) = caplog.messages
    assert told.startswith(
        r"No installed font has these characters: names in figures show \u72ac, "
    )
    assert "Noto Sans CJK" in told


def font_of(path, family, characters):
    builder = FontBuilder(1000, isTTF=True)
    pen = TTGlyphPen(None)
    for at, point in enumerate(((0, 0), (0, 900), (900, 900), (900, 0))):
        (pen.lineTo if at else pen.moveTo)(point)
    pen.closePath()
    glyphs = [".notdef", *(f"u{ord(c):X}" for c in characters)]
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap({ord(c): f"u{ord(c):X}" for c in characters})
    square = pen.glyph()
    builder.setupGlyf(dict.fromkeys(glyphs, square))
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=900)
    builder.setupPost()
    builder.save(path)
    fontManager.addfont(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", DRAW)
def test_an_installed_font_that_has_the_characters_is_used(drawn, kind, tmp_path):
    font_of(tmp_path / "cats.ttf", "Cats", "\u732b")
    font_of(tmp_path / "dogs.ttf", "Dogs", "\u72ac")
    before = list(matplotlib.rcParams["font.family"])
    texts = drawn(kind, ["\u732b$ \u72ac", "\u72ac"])
    assert any("\u732b$ \u72ac" in text for text in texts)
    assert matplotlib.rcParams["font.family"] == before
