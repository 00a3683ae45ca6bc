import matplotlib.style
import pytest

from se_lightning.excitation.drift import Drift
from se_lightning.excitation.plots.drift import draw_drift


@pytest.mark.parametrize("style", ["default", "dark_background"])
@pytest.mark.parametrize("layers", [1, 9, 50])
def test_at_most_16_layers_are_labeled(style, layers):
    drifts = [Drift(f"layer{k}", 4, 1 - k / 99, 1 - k / 80, k / 70) for k in range(layers)]
    with matplotlib.style.context(style):
        figure = draw_drift(drifts, "title")
    above, below = figure.axes
    assert len(below.get_xticks()) <= 16
    assert [line.get_ydata()[-1] for line in above.get_lines()] == [*drifts[-1][2:4]]
    assert [bar.get_height() for bar in below.patches] == [drift.js for drift in drifts]
