"""Files of tensors and plain values: what is written can be read, and nothing in it is executed."""

import random
from collections import OrderedDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from se_lightning.models.weights.safe_files import plain, read_file, write_file

Point = namedtuple("Point", "x y")


def test_numpy_scalars_become_pythons_numbers(tmp_path):
    given = {"a": np.float64(0.25), "b": [np.int64(3), (np.bool_(True), np.float32(0.5))]}
    wanted = {"a": 0.25, "b": [3, (True, 0.5)]}
    assert plain(given) == wanted
    write_file(given, tmp_path / "x")
    read = read_file(tmp_path / "x")
    assert read == wanted
    assert type(read["a"]) is float
    assert type(read["b"][1][0]) is bool


def test_a_state_dict_stays_what_it_is(tmp_path):
    state = torch.nn.Linear(2, 2).state_dict()
    write_file({"state": state, "shape": torch.Size([2]), "type": torch.float16}, tmp_path / "x")
    read = read_file(tmp_path / "x")
    assert type(read["state"]) is OrderedDict
    assert read["state"]._metadata == state._metadata
    assert read["type"] is torch.float16


@pytest.mark.parametrize(
    ("value", "name"),
    [(Path("a"), "pathlib.PosixPath"), (Point(1, 2), "test_safe_files.Point"), (open, "io.open")],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, value, name):
    with pytest.raises(ValueError, match=r"The checkpoint cannot be saved: it.* holds a ") as error:
        write_file({"callbacks": {"Mine": {"list": [0, value]}}}, tmp_path / "x")
    assert name in str(error.value)
    if isinstance(value, Path):
        assert "its entry ['callbacks']['Mine']['list'][1]" in str(error.value)


@pytest.mark.parametrize("seed", range(8))
def test_other_files_are_refused_in_one_way(tmp_path, seed):
    draw = random.Random(seed)
    write_file({"a": torch.zeros(3), "b": [1, "text"]}, tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    starts = (b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"(lp", b"\x00" * 8 + b"{", good[:60])
    path = tmp_path / "x"
    for _ in range(60):
        damaged = bytearray(good)
        for _ in range(draw.randint(1, 30)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        noise = draw.choice(starts) + draw.randbytes(draw.randint(0, 300))
        path.write_bytes(draw.choice((bytes(damaged), noise, good[: draw.randrange(len(good))])))
        try:
            read_file(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 - a file that is read is fine as well
