import matplotlib
import matplotlib.style
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from se_lightning.excitation import draw_epochs, draw_histogram


def test_the_colors_are_the_share_of_each_layer():
    counts = np.array([[3, 1], [0, 0]])
    figure = draw_histogram(["first", "second"], counts, "title")
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert axes.get_title() == "title"


def test_the_axis_covers_the_range_of_the_bins():
    axes = draw_histogram(["first"], np.ones((1, 8)), "title", -1, 1).axes[0]
    assert axes.images[0].get_extent() == [-1, 1, 1, 0]
    assert draw_histogram(["first"], np.ones((1, 8)), "").axes[0].get_xlim() == (0, 1)


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_empty_bins_match_the_background(style):
    with matplotlib.style.context(style):
        image = draw_histogram(["first"], np.array([[0, 9]]), "title").axes[0].images[0]
        background = np.mean(to_rgba(matplotlib.rcParams["axes.facecolor"])[:3])
    none, all_gates = image.to_rgba(np.array([0.0, 1.0]))[:, :3].mean(axis=1)
    assert abs(none - background) < 0.15
    assert abs(all_gates - background) > 0.7


def test_the_heat_map_has_one_row_per_layer_and_one_column_per_validation():
    means = np.array([[0.5, 0.25], [0.5, 0.75], [np.nan, 1.0]])
    axes = draw_epochs(["first", "second"], [1, 2.5, 3], means, "title").axes[0]
    shown = axes.images[0].get_array()
    np.testing.assert_array_equal(shown.filled(np.nan), means.T)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2.5", "3"]
    assert axes.get_title() == "title"


@pytest.mark.parametrize("count", [1, 16, 17, 300])
def test_the_heat_map_labels_at_most_16_epochs(count):
    means = np.full((count, 50), 0.5)
    axes = draw_epochs([f"layer{k}" for k in range(50)], range(count), means, "").axes[0]
    ticks = axes.get_xticks()
    assert min(count, 8) <= len(ticks) <= 16
    assert axes.images[0].get_array().shape == (50, count)


def test_means_that_are_all_nan_are_drawn_blank(tmp_path):
    figure = draw_epochs(["first"], [1, 2], np.full((2, 1), np.nan), "title")
    figure.savefig(tmp_path / "epochs.png")  # warnings are errors
    assert figure.axes[0].images[0].get_array().mask.all()
