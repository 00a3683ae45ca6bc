import re
from pathlib import Path

import se_lightning

PACKAGE = Path(se_lightning.__file__).parent
# These handle finished figures: they save, style or embed them.
HANDLERS = {"callbacks/publish.py", "tasks/report/page.py", "tasks/report/sections.py"}


def test_only_the_plots_draw():
    """Modules that compute import no matplotlib; two tasks draw images and speeds, not gates."""
    found = {
        path.relative_to(PACKAGE).as_posix()
        for room in ("excitation", "callbacks", "tasks")
        for path in (PACKAGE / room).rglob("*.py")
        if re.search(r"^\s*(import|from) matplotlib", path.read_text(), re.MULTILINE)
    }
    plots = {name for name in found if name.startswith("excitation/plots/")}
    assert len(plots) == 6
    assert found - plots - {"tasks/look.py", "tasks/report/speed.py"} == HANDLERS
