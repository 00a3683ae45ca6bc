import matplotlib
import matplotlib.style
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from se_lightning.excitation import draw_selectivity, draw_selectivity_epochs

LAYERS = ["first", "second", "third"]


def test_there_is_one_bar_per_layer_with_the_first_on_top(tmp_path):
    values = np.array([0.25, np.nan, 0.95])
    figure = draw_selectivity(LAYERS, values, "title")
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.25, 0, 0.95]
    heights = [bar.get_y() for bar in axes.patches]
    assert heights == sorted(heights)
    assert axes.yaxis_inverted()
    assert [label.get_text() for label in axes.get_yticklabels()] == LAYERS
    assert [text.get_text().strip() for text in axes.texts] == ["0.250", "n/a", "0.950"]
    assert axes.get_xlim() == (0, 1)
    figure.savefig(tmp_path / "selectivity.png")


def test_there_is_one_curve_per_layer_over_epochs(tmp_path):
    values = np.array([[0.1, 0.2, np.nan], [0.2, 0.4, np.nan]])
    figure = draw_selectivity_epochs(LAYERS, [1, 2], values, "title")
    axes = figure.axes[0]
    drawn = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    assert list(drawn) == LAYERS
    np.testing.assert_array_equal(drawn["second"], [[1, 0.2], [2, 0.4]])
    assert np.isnan(drawn["third"][:, 1]).all()
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == LAYERS
    figure.savefig(tmp_path / "epochs.png")
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_colors_encode_depth_and_contrast_with_the_background(style):
    values = np.zeros((2, 50))
    names = [f"layer{k}" for k in range(50)]
    with matplotlib.style.context(style):
        figure = draw_selectivity_epochs(names, [1, 2], values, "title")
        background = np.array(to_rgb(matplotlib.rcParams["axes.facecolor"]))
    colors = np.array([to_rgb(line.get_color()) for line in figure.axes[0].get_lines()])
    assert len(np.unique(colors, axis=0)) == 50
    assert np.abs(colors - background).max(axis=1).min() > 0.4
    green = colors[:, 1]  # increases along viridis
    assert (np.diff(green) > 0).all()
    assert len(figure.axes[1].get_yticks()) == 10


@pytest.mark.parametrize("epochs", [[0.25, 0.5, 0.75], [3]])
def test_fractions_of_epochs_and_a_single_layer_are_drawn(epochs, tmp_path):
    figure = draw_selectivity_epochs(["only"], epochs, np.full((len(epochs), 1), 0.5), "title")
    figure.savefig(tmp_path / "epochs.png")
    assert figure.axes[0].get_lines()[0].get_xdata().tolist() == epochs
