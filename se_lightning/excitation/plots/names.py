"""Names in figures, drawn as they are.

Others choose the names of classes, layers and runs. matplotlib takes ``$`` for a formula, and draws
boxes for characters that its font does not have.
"""

import logging
import re
from collections.abc import Callable, Iterator
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import matplotlib
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font

__all__ = ["legible", "plain_text"]

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

# No font has these: control characters, those that reverse text, and bytes that are not UTF-8.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
# Fonts that are looked into first for characters that are missing.
_LARGE = re.compile(r"CJK|Noto|Unicode|Gothic|Han|YaHei|PingFang|Hei|Song|Emoji|Symbol")


def plain_text(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that draws, so that no text in its figure is a formula or TeX.

    Fonts that :func:`legible` adds are those of this figure only.
    """

    @wraps(draw)
    def drawing(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(
            {
                "text.parse_math": False,
                "text.usetex": False,
                "axes.formatter.use_mathtext": False,
            }
        ):
            return draw(*args, **kwargs)

    return drawing


def legible(name: str, *, keep: str = "") -> str:
    r"""Return a name as it can be drawn: what no installed font has is shown as an escape.

    To be called in a function with :func:`plain_text`; fonts that have the characters of the name
    are added to those of the figure.

    Args:
        name: The name.
        keep: Control characters to keep, such as the line breaks of a title.

    Example:
        >>> legible("two\nlines, a $ and \ud800")
        'two\\nlines, a $ and \\ud800'
    """
    shown = _CONTROL.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), name)
    if shown.isascii():
        return shown
    missing = frozenset(map(ord, shown)) - {ord(each) for each in keep}
    for family in matplotlib.rcParams["font.family"]:
        missing -= _glyphs(findfont(FontProperties(family=[family])))
    if not missing:
        return shown
    families, missing = _fallback(missing)
    matplotlib.rcParams["font.family"] = [*matplotlib.rcParams["font.family"], *families]
    return "".join(_escape(each) if ord(each) in missing else each for each in shown)


def _escape(character: str) -> str:
    return ascii(character)[1:-1]


@cache
def _glyphs(path: str) -> frozenset[int]:
    """Return the characters that a font has; none if matplotlib cannot read it."""
    try:
        found = frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):  # such as a font of color bitmaps
        return frozenset()
    # matplotlib's Last Resort has a box for each code point, also for those that are no characters.
    return frozenset() if 0x10FFFF in found else found


@cache
def _fallback(missing: frozenset[int]) -> tuple[list[str], frozenset[int]]:
    """Return installed fonts that have the missing characters, and those that none has."""
    families = []
    for font in _fonts():
        if missing & _glyphs(font.fname):
            families.append(font.name)
            missing -= _glyphs(font.fname)
        if not missing:
            return families, missing
    log.warning(
        "No installed font has %s: names in figures show %s instead. Install one that has them, "
        "such as Noto Sans CJK for Chinese, Japanese and Korean.",
        "these characters" if len(missing) > 1 else "a character",
        ", ".join(_escape(chr(code)) for code in sorted(missing)[:3]),
    )
    return families, missing


def _fonts() -> Iterator[FontEntry]:
    """Yield the installed upright fonts of normal weight, those with many characters first."""
    plain = (400, "normal", "regular", "book")
    upright = [f for f in fontManager.ttflist if f.style == "normal" and f.weight in plain]
    yield from sorted(upright, key=lambda font: (not _LARGE.search(font.name), font.name))
