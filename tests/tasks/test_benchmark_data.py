import json

import pytest
import torch
from torchvision.datasets import CIFAR10

from se_lightning.tasks import benchmark_data
from se_lightning.tasks.benchmark_data import _CASES, _line, _PerSample, _Result


def test_it_writes_what_it_measured(run_main, tmp_path):
    threads = torch.get_num_threads()
    code, message = run_main(
        "task=benchmark_data",
        "task.cases=[mnist]",
        "task.rounds=1",
        "task.seconds=0",
        "task.workers=[0]",
        "hydra.run.dir=run",
    )
    torch.set_num_threads(threads)
    assert code == 0, message
    report = json.loads((tmp_path / "run" / "benchmark_data.json").read_text())
    assert [result["case"] for result in report["results"]] == ["mnist"]
    for result in report["results"]:
        assert result["ratio"] == result["ours"] / result["torchvision"]
        assert set(result["torchvision_settings"]) == {
            "transforms, 0 workers",
            "transforms.v2, 0 workers",
        }
    assert report["machine"]["cores"] >= 1


def test_both_sides_do_the_same(tmp_path):
    """Size, dtype and scale of both sides agree."""
    _, ours, theirs = _CASES["cifar"](tmp_path)
    ours.setup()
    batch, _ = next(iter(ours.train_dataloader()))
    for dataset in theirs.values():
        image, _ = dataset[0]
        assert image.shape == batch.shape[1:]
        assert image.dtype == batch.dtype
        mean, std = torch.stack([dataset[i][0] for i in range(64)]).mean(), batch.std()
        assert abs(mean - batch.mean()) < 0.05
        assert abs(torch.stack([dataset[i][0] for i in range(64)]).std() - std) < 0.05


def test_a_sample_is_served_as_torchvision_does():
    """Oracle: CIFAR10.__getitem__ on the same arrays."""
    theirs = _CASES["cifar"](None)[2]
    arrays = theirs["transforms"].images
    oracle = object.__new__(CIFAR10)
    oracle.data, oracle.targets = arrays, [0] * len(arrays)
    oracle.transform, oracle.target_transform = lambda image: image, None
    served = _PerSample(arrays, lambda image: image)
    assert oracle[3][0].tobytes() == served[3][0].tobytes()
    assert oracle[3][0].mode == served[3][0].mode


def test_a_line_has_all_figures():
    result = _Result("mnist", "28x28", 200_000.4, 10_000, 20.0, [20.0], "v2, 2 workers", {})
    assert _line(result).split() == ["28x28", "200,000", "10,000", "20.0x", "(v2,", "2", "workers)"]


@pytest.mark.parametrize(("name", "value"), [("cases", ["imagenet"]), ("rounds", 0)])
def test_a_wrong_argument_is_refused_by_name(name, value, tmp_path):
    with pytest.raises(ValueError, match=f"`{name}`"):
        benchmark_data(folder=str(tmp_path), **{name: value})
