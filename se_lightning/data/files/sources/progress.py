"""Progress of long tasks on files: a bar in a terminal, else one line."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from se_lightning.ranks import is_further_rank

__all__ = ["progress"]

log = logging.getLogger(__name__)


@contextmanager
def progress(
    task: str, *, unit: str = "files", total: int | None = None
) -> Iterator[Callable[[int], object]]:
    """Show the progress of a task on standard error, on rank 0 only.

    Args:
        task: Name of the task, such as "indexing /data".
        unit: Unit of the steps; "bytes" are shown as MB and GB.
        total: Number of steps, if known.

    Yields:
        A function that takes the number of steps just done.
    """
    if is_further_rank():
        yield lambda steps: None
        return
    if not sys.stderr.isatty():
        log.info("%s ...", task)
        yield lambda steps: None
        return
    from rich import progress as bars
    from rich.console import Console

    counts = bars.DownloadColumn() if unit == "bytes" else bars.MofNCompleteColumn()
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), counts)
    rest = (bars.TextColumn("" if unit == "bytes" else unit), bars.TimeRemainingColumn())
    console = Console(stderr=True)
    with bars.Progress(*columns, *rest, console=console, transient=True) as bar:
        # Escaped, because a folder may be called [1].
        name = bar.add_task(task.replace("[", "\\["), total=total)
        yield lambda steps: bar.advance(name, steps)
