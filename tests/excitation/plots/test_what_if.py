import matplotlib.style
import numpy as np
import pytest
from matplotlib.image import imread

from se_lightning.excitation.plots.what_if import draw_what_if
from se_lightning.excitation.what_if import ALL_BLOCKS, REPLACEMENTS, WhatIfRow


@pytest.mark.parametrize("style_name", ["default", "dark_background"])
@pytest.mark.parametrize("blocks", [1, 9, 50])
def test_there_is_one_bar_per_block_and_replacement(blocks, style_name, tmp_path):
    names = [f"layer{i // 3 + 1}.{i % 3}.se" for i in range(blocks)] + [ALL_BLOCKS]
    rows = [WhatIfRow("", "none", 0.9, 0.0, 100)]
    names.insert(-1, "layer1")
    rows += [
        WhatIfRow(name, kind, 0.8, 0.01 * k, 100, 1 + (name == "layer1"))
        for name in names
        for k, kind in enumerate(REPLACEMENTS)
    ]
    with matplotlib.style.context(style_name):
        figure = draw_what_if(rows, "test")
        figure.savefig(tmp_path / "x.png", dpi=120)
    left, right = figure.axes
    assert len(left.patches) == 4 * blocks
    assert [bar.get_height() for bar in right.patches] == pytest.approx([0, 0, 1, 1, 2, 2, 3, 3])
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["layer1", ALL_BLOCKS]
    pixels = imread(tmp_path / "x.png")[..., :3].mean(-1)
    assert (np.median(pixels) < 0.1) == (style_name == "dark_background")
