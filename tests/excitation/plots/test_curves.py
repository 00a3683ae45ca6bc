import matplotlib
import matplotlib.style
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba

from se_lightning.excitation import ExcitationStatistics, draw_curves, draw_spread

LAYERS = ["stem.se", "layer1.0.se", "layer1.1.se"]
CHANNELS = [3, 70, 1]
NAMES = {7: "pug", 2: "cliff"}
LABELS = np.array([7, 7, 2, 5, 7, 2, 2, 0])


@pytest.fixture
def gates():
    generator = np.random.default_rng(0)
    return [generator.random((len(LABELS), c)).astype(np.float32) for c in CHANNELS]


def summary_of(gates, classes=NAMES, **options):
    statistics = ExcitationStatistics(LAYERS, CHANNELS, classes=list(classes), **options)
    statistics.update([[torch.from_numpy(each)] for each in gates], labels=torch.tensor(LABELS))
    return statistics.summary()


def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def test_the_curves_are_the_means_computed_by_hand(gates):
    figure = draw_curves(summary_of(gates), NAMES, title="epoch 3")
    assert figure.get_suptitle() == "epoch 3"
    assert [axes.get_title() for axes in figure.axes] == LAYERS
    sampled = np.linspace(0, 69, 50).round()
    for axes, each, index in zip(
        figure.axes, gates, ([0, 1, 2], sampled.astype(int), [0]), strict=True
    ):
        each = each.astype(np.float64)[:, index]
        drawn = lines(axes)
        assert drawn.keys() == {"all samples", "pug", "cliff"}
        for name, rows in (("pug", LABELS == 7), ("cliff", LABELS == 2), ("all samples", ...)):
            np.testing.assert_array_equal(drawn[name][:, 0], index)
            np.testing.assert_allclose(drawn[name][:, 1], each[rows].mean(0), rtol=1e-12)


def test_the_bands_are_a_standard_deviation_wide(gates):
    figure = draw_spread(summary_of(gates, {7: "", 2: "", 5: ""}), {**NAMES, 5: "plane"})
    for axes, each in zip(figure.axes[::2], gates[::2], strict=True):
        each = each.astype(np.float64)
        assert lines(axes).keys() == {"pug", "cliff"}  # the first two
        assert len(axes.collections) == 2
        for band, label in zip(axes.collections, (7, 2), strict=True):
            mean, std = each[label == LABELS].mean(0), each[label == LABELS].std(0)
            ends = np.concatenate([path.vertices for path in band.get_paths()])
            for channel in range(each.shape[1]):
                at = ends[ends[:, 0] == channel, 1]
                assert at.min() == pytest.approx(mean[channel] - std[channel], rel=1e-9)
                assert at.max() == pytest.approx(mean[channel] + std[channel], rel=1e-9)


@pytest.mark.parametrize("draw", [draw_curves, draw_spread])
def test_a_class_without_samples_is_left_out_and_listed_in_the_title(gates, draw):
    names = {1: "goldfish", **NAMES}
    figure = draw(summary_of(gates, names), names, title="Means")
    assert figure.get_suptitle().startswith("Means\n")
    assert figure.get_suptitle().endswith("goldfish")
    assert lines(figure.axes[0]).keys() - {"all samples"} == {"pug", "cliff"}
    (legend,) = figure.legends
    assert "goldfish" not in [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("draw", [draw_curves, draw_spread])
def test_a_figure_is_drawn_even_without_samples_or_classes(gates, draw, tmp_path):
    many = {label: f"class {label}" for label in range(100, 200)}
    figure = draw(summary_of(gates, many), many)
    assert figure.get_suptitle().endswith("class 104 and 95 more")
    figure.savefig(tmp_path / "none.png")
    draw(summary_of(gates, {}), {}).savefig(tmp_path / "no_classes.png")


@pytest.mark.parametrize("draw", [draw_curves, draw_spread])
def test_two_labels_with_the_same_name_are_two_curves(gates, draw):
    names = {7: "crane", 2: "crane"}  # ImageNet has two classes called crane
    figure = draw(summary_of(gates), names)
    drawn = [line for line in figure.axes[0].get_lines() if line.get_label() != "all samples"]
    assert len(drawn) == 2
    assert not np.array_equal(drawn[0].get_ydata(), drawn[1].get_ydata())


@pytest.mark.parametrize("draw", [draw_curves, draw_spread])
def test_the_axes_cover_the_range_of_the_gates(gates, draw):
    figure = draw(summary_of(gates, lower=-1.0, upper=2.0), NAMES)
    assert {axes.get_ylim() for axes in figure.axes} == {(-1.0, 2.0)}


def test_a_layer_that_was_never_executed_is_marked(gates, tmp_path):
    statistics = ExcitationStatistics(LAYERS, CHANNELS, classes=list(NAMES))
    calls = [[], *([torch.from_numpy(each)] for each in gates[1:])]
    statistics.update(calls, labels=torch.tensor(LABELS))
    figure = draw_curves(statistics.summary(), NAMES)
    assert [axes.get_title() for axes in figure.axes][:2] == [
        "stem.se: never executed",
        "layer1.0.se",
    ]
    figure.savefig(tmp_path / "curves.png")


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_curves_have_distinct_colors_that_contrast_with_the_background(gates, style):
    names = {label: f"class {label}" for label in [7, 2, 5, 0, *range(10, 30)]}
    statistics = ExcitationStatistics(LAYERS, CHANNELS, classes=list(names))
    some = [[torch.rand(24, c)] for c in CHANNELS]
    statistics.update(some, labels=torch.tensor(list(names)))
    with matplotlib.style.context(style):
        figure = draw_curves(statistics.summary(), names)
        drawn = [to_rgba(line.get_color()) for line in figure.axes[0].get_lines()]
        background = to_rgba(matplotlib.rcParams["axes.facecolor"])
    assert len(set(drawn)) == 25
    assert min(np.abs(np.subtract(each, background)[:3]).max() for each in drawn) > 0.3


@pytest.mark.parametrize("name", ["$x{$", r"$\\frac{$", "a_b^{c"])
def test_names_of_classes_are_no_formulas(gates, name):
    figure = draw_curves(summary_of(gates), {7: name, 2: "other"})
    figure.canvas.draw()
    assert figure.legends[0].get_texts()[1].get_text() == name
