import json

import pytest

from se_lightning.tasks import benchmark_excitation


def test_every_second_batch_is_recorded_and_the_results_are_written(tmp_path):
    """The state has the counts, classes and hidden units of eight gates."""
    options = {"name": "se_resnet18", "batch_size": 2, "image_size": 32, "pairs": 3}
    metrics = benchmark_excitation(folder=str(tmp_path), **options)
    written = json.loads((tmp_path / "benchmark_excitation.json").read_text())
    assert len(written["ratios"]) == 3
    assert metrics["ratio"] == written["ratio"] == sorted(written["ratios"])[1]
    widths = [64, 64, 128, 128, 256, 256, 512, 512]
    channels, hidden = sum(widths), [width // 16 for width in widths]
    spread = {round(k * 999 / 99) for k in range(100)} | {1, 254, 404, 972}
    moments = (len(spread) + 1) * (8 + 2 * channels)
    numbers = channels * 66 + moments + sum(2 * h + h * h for h in hidden)
    assert written["state_mb"] * 1e6 == 8 * numbers
    assert (tmp_path / "excitation" / "histogram.png").exists()


def test_invalid_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`pairs` \(=0\)"):
        benchmark_excitation(folder=str(tmp_path), pairs=0)
