"""The list of feature maps has the interface of timm's."""

import copy
import pickle

import pytest
import timm
import torch

from se_lightning.models import FeatureInfo, FeatureMap, create_model

NAMES = [
    ("se_resnet50", "seresnet50"),
    ("se_inception_v3", "inception_v3"),
    ("se_inception_resnet_v2", "inception_resnet_v2"),
]


def example():
    info = FeatureInfo()
    for number in range(3):
        info.append(FeatureMap(f"layer{number}", 8 * 2**number, 2**number))
    return info


@pytest.mark.parametrize(("name", "reference"), NAMES)
def test_values_equal_timms(name, reference):
    with torch.device("meta"):
        info = create_model(name).feature_info
        theirs = timm.create_model(reference).feature_info
    oracle = timm.models.FeatureInfo(theirs, tuple(range(len(theirs))))
    for method in ("channels", "reduction"):
        for index in (None, 0, -1, [1, -1]):
            assert getattr(info, method)(index) == getattr(oracle, method)(index)
    assert [m["num_chs"] for m in info] == [m["num_chs"] for m in theirs]
    assert len(info) == len(info.out_indices) == len(oracle)


def test_timms_class_takes_the_list():
    found = timm.models.FeatureInfo(example(), 3)
    assert found.channels() == [8, 16, 32]
    assert found.from_other((1,)).module_name() == ["layer1"]
    keys = ["num_chs", "index"]
    assert found.get_dicts(keys) == [{"num_chs": 8 * 2**n, "index": n} for n in range(3)]
    assert example().get_dicts(keys) == found.get_dicts(keys)
    assert example().get_dicts(keys, 1) == {"num_chs": 16, "index": 1}


def test_a_map_is_a_mapping_and_a_tuple():
    _, info, _ = example()
    assert dict(info) == {"num_chs": 16, "reduction": 2, "module": "layer1", "index": 1}
    assert dict(info.items()) == dict(info)
    assert info == ("layer1", 16, 2)
    module, channels, reduction = info
    assert (module, channels, reduction) == (info.module, info.channels, info.reduction)
    assert info[1] == info["num_chs"] == info.get("num_chs") == 16
    assert info.get("depth") is None
    assert "num_chs" in info
    assert "depth" not in info
    for again in (copy.deepcopy(info), pickle.loads(pickle.dumps(info))):
        assert again == info
        assert again["index"] == 1
    with pytest.raises(KeyError):
        info["depth"]


def test_indices_select_as_in_timm():
    for indices, expected in ((None, [0, 1, 2]), (2, [1, 2]), (3, [0, 1, 2]), ([-1, 0], [2, 0])):
        assert example().select(indices) == expected


@pytest.mark.parametrize("indices", [0, -4, 4, [], [0, 3], [-4]])
def test_indices_out_of_range_are_refused(indices):
    with pytest.raises(ValueError, match=r"`indices` .* must select from 3 feature maps"):
        example().select(indices)
