import pytest

from se_lightning.excitation import choose_classes


def test_the_default_for_imagenet_is_the_papers_classes():
    names = {1: "goldfish", 254: "pug", 404: "plane", 972: "cliff"}
    assert choose_classes(None, 1000) == names


def test_the_default_for_other_data_is_the_first_four_classes():
    assert choose_classes(None, 10) == {0: "0", 1: "1", 2: "2", 3: "3"}
    assert choose_classes(None, class_names=["ant", "bee"]) == {0: "ant", 1: "bee"}


@pytest.mark.parametrize("count", [1, 7, 100, 1000, 2000])
def test_a_number_of_classes_is_evenly_spaced(count):
    labels = list(choose_classes(count, 1000))
    assert len(labels) == min(count, 1000)
    assert labels[0] == 0
    assert count == 1 or labels[-1] == 999


@pytest.mark.parametrize(
    ("classes", "count", "names", "message"),
    [
        (["goldfsh"], 3, ["goldfish", "pug", "cliff"], "'goldfsh' .* Closest names: goldfish"),
        (["pug"], 10, None, "has no class names"),
        ([10], 10, None, "no class 10"),
        ([-1], None, None, "no class -1"),
        ([1, 1], 10, None, "twice"),
        (5, None, None, "must define `num_classes`"),
        (0, 10, None, "at least 1"),
    ],
)
def test_classes_that_do_not_exist_are_refused(classes, count, names, message):
    with pytest.raises(ValueError, match=message):
        choose_classes(classes, count, names)
