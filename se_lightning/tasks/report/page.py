"""A self-contained HTML page with figures for light and dark mode, and tables."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib.style
from matplotlib.figure import Figure

__all__ = ["Picture", "Section", "draw_both", "page", "picture_html", "table_html"]

# Colors of the page and the figures.
LIGHT = {"page": "#ffffff", "text": "#1b1f24", "faint": "#5b6570", "line": "#d8dee4"}
DARK = {"page": "#14171a", "text": "#e4e8ec", "faint": "#9aa4ae", "line": "#363d44"}
# CSS pixels per inch of a figure (8 points are 13 pixels); PNG pixels per CSS pixel, for screens
# with a high resolution.
INCH, FINENESS = 120, 1.5


class Picture(NamedTuple):
    """A figure as two PNG files, and its width in CSS pixels."""

    light: bytes
    dark: bytes
    width: int


class Section(NamedTuple):
    """A section of the page; ``content`` is HTML, the rest plain text."""

    title: str
    text: str
    content: str


def draw_both(draw: Callable[[], Figure]) -> Picture:
    """Draw a figure in light and dark mode."""
    files = []
    for style, colors in (("default", LIGHT), ("dark_background", DARK)):
        backgrounds = ("figure", "axes", "savefig", "legend")
        texts = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
        own = {f"{name}.facecolor": colors["page"] for name in backgrounds}
        own |= dict.fromkeys(texts, colors["text"])
        own |= dict.fromkeys(("axes.edgecolor", "grid.color"), colors["faint"])
        own["legend.edgecolor"] = colors["line"]
        with matplotlib.style.context([style, own]):
            figure = draw()
            file = io.BytesIO()
            figure.savefig(file, dpi=INCH * FINENESS, format="png")
        files.append(file.getvalue())
    return Picture(files[0], files[1], round(figure.get_figwidth() * INCH))


def picture_html(picture: Picture, name: str) -> str:
    """Return the HTML of an embedded figure, in light or dark mode as the reader prefers."""
    light, dark = (f"data:image/png;base64,{base64.b64encode(x).decode()}" for x in picture[:2])
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" width="{picture.width}" alt="{html.escape(name)}"></picture>'
    )


def table_html(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    texts: Sequence[int] = (0,),
    total: Sequence[str] | None = None,
) -> str:
    """Return the HTML of a table, in a box that scrolls if it is too wide.

    Args:
        header: Column names.
        rows: Cells of each row.
        texts: Text columns, which are aligned to the left.
        total: Last row, with emphasis.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        made = (
            f"<{tag}{' class=text' if column in texts else ''}>{html.escape(cell)}</{tag}>"
            for column, cell in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    foot = f"\n<tfoot>{line(total, 'td')}</tfoot>" if total else ""
    return (
        f'<div class="box" tabindex="0"><table><thead>{line(header, "th")}</thead>\n'
        f"<tbody>{body}</tbody>{foot}</table></div>"
    )


def page(title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    """Return the whole page: heading, facts and sections.

    Args:
        title: Title of the page.
        facts: Facts by name.
        sections: Sections in order.
    """
    listed = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(fact)}</dd></div>"
        for name, fact in facts.items()
    )
    parts = "\n".join(
        f"<section><h2>{html.escape(part.title)}</h2>\n<p>{html.escape(part.text)}</p>\n"
        f"{part.content}</section>"
        for part in sections
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_style()}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n<dl>{listed}</dl>\n{parts}\n</body>\n</html>\n"
    )


def _style() -> str:
    light, dark = (
        "".join(f"--{name}: {color}; " for name, color in colors.items())
        for colors in (LIGHT, DARK)
    )
    return f"""
:root {{ color-scheme: light dark; {light}}}
@media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}
body {{ max-width: 72rem; margin: 2.5rem auto; padding: 0 1.25rem; background: var(--page);
  color: var(--text); font: 1rem/1.55 system-ui, "Helvetica Neue", Arial, sans-serif; }}
h1 {{ font-size: 1.75rem; line-height: 1.2; margin: 0 0 1.25rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.2rem; margin: 3rem 0 .4rem; }}
p {{ max-width: 44rem; margin: 0 0 1rem; color: var(--faint); }}
dl {{ display: flex; flex-wrap: wrap; gap: .75rem 2.25rem; margin: 0; padding: .9rem 0;
  border: solid var(--line); border-width: 1px 0; }}
dt {{ font-size: .8rem; color: var(--faint); }}
dd {{ margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }}
img {{ display: block; max-width: 100%; height: auto; }}
.box {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .8rem .3rem 0; text-align: right; vertical-align: top;
  white-space: nowrap; border-bottom: 1px solid var(--line); }}
th {{ font-weight: 600; color: var(--faint); }}
.text {{ text-align: left; }}
td.text:last-child {{ white-space: normal; min-width: 16rem; }}
tfoot td {{ font-weight: 600; }}
"""
