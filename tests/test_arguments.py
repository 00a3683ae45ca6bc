import math

import pytest

from se_lightning.arguments import (
    boolean,
    fraction,
    natural_number,
    one_of,
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
