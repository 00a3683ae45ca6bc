import math
from collections import OrderedDict

import pytest
from omegaconf import OmegaConf

from se_lightning.arguments import (
    argument_docs,
    boolean,
    fraction,
    natural_number,
    one_of,
    plain,
    positive_integer,
    refuse_unknown,
)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (positive_integer, [1, 7], [0, -1, True, 1.0, "1", None]),
        (natural_number, [0, 7], [-1, True, 1.0, "1", None]),
        (boolean, [True, False], [0, 1, "true", None]),
        (fraction, [0, 0.0, 0.999], [1, -0.1, True, math.nan, math.inf, "0.5", None]),
    ],
)
def test_a_check_names_the_argument_and_its_value(check, good, bad):
    for value in good:
        check("name", value)
    for value in bad:
        with pytest.raises(ValueError, match="`name`") as raised:
            check("name", value)
        assert f"(={value!r})" in str(raised.value)


def test_one_of_lists_the_valid_names():
    one_of("gate", "channel", ("channel", "spatial"))
    with pytest.raises(ValueError, match=r"`gate` \(='nope'\) must be one of channel, spatial"):
        one_of("gate", "nope", {"channel": 1, "spatial": 2})
    with pytest.raises(ValueError, match="must be one of avg, ''"):
        one_of("global_pool", "max", ("avg", ""))


def test_an_unknown_option_is_answered_with_the_nearest_or_all():
    refuse_unknown("SE-Net", ["ratio"], ["ratio", "gate"])
    with pytest.raises(ValueError, match=r"SE-Net has no option `ratoi`\. Nearest: ratio\."):
        refuse_unknown("SE-Net", ["gate", "ratoi"], ["ratio", "gate"])
    with pytest.raises(ValueError, match=r"has no option `xyz`\. Its options: ratio, gate\."):
        refuse_unknown("SE-Net", ["xyz"], iter(["ratio", "gate"]))


def test_lists_and_mappings_of_omegaconf_become_plain():
    given = OmegaConf.create({"widths": [8, [16]], "ratio": 4, "none": None, "map": {"a": [1]}})
    found = plain(given)
    assert found == {"widths": [8, [16]], "ratio": 4, "none": None, "map": {"a": [1]}}
    assert type(found) is type(found["map"]) is dict
    assert type(found["widths"]) is type(found["widths"][1]) is type(found["map"]["a"]) is list


@pytest.mark.parametrize("value", [(1, 2), "text", {1}, OrderedDict(a=1), None, 3.0])
def test_other_values_stay_as_they_are(value):
    assert plain(value) is value


def test_the_arguments_of_several_docstrings_become_those_of_one():
    def first():
        """Do.

        Args:
            a: One.
                Two.

        Raises:
            ValueError: No.
        """

    def second():
        """Do not."""

    def third():
        """Do.

        Args:
            b: Three.
        """

    expected = "The options.\n\nArgs:\n    a: One.\n        Two.\n    b: Three."
    assert argument_docs(first, second, third) == expected
