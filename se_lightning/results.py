"""result.json: what a run leaves for programs to read."""

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["RESULT", "write_result", "write_whole"]

RESULT = "result.json"


def write_whole(path: Path, text: str, *, keep: bool = False) -> None:
    """Write a file in one step: a reader sees all of it or none.

    Args:
        path: where it goes.
        text: its content.
        keep: leave a file that is there already as it is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        if not keep:
            os.replace(temporary, path)
        elif not path.exists():
            os.link(temporary, path)
    except FileExistsError:
        return  # another rank was first
    finally:
        temporary.unlink(missing_ok=True)


def write_result(run_dir: Path, result: dict[str, Any], *, keep: bool = False) -> None:
    """Write result.json; ``keep`` lets the first of several failing ranks tell the cause."""
    write_whole(run_dir / RESULT, json.dumps(result, indent=2) + "\n", keep=keep)
