import csv
import math

import numpy as np
import pytest
import torch
from torch import nn

from se_lightning.excitation import ExcitationStatistics, Taps
from se_lightning.excitation.doctor import diagnose, report_csv, report_text
from se_lightning.models import SpatialExcitation, SqueezeExcitation, find_excitations, se_resnet20


def examined(model, images, **options):
    taps = Taps(model, hidden=True)
    statistics = ExcitationStatistics(taps.layers, taps.channels, taps.hidden)
    taps.record()
    with torch.no_grad():
        for batch in images.split(40):
            model(batch)
            statistics.update(*taps.take())
    taps.remove()
    weights = {path: parts.expand.weight for path, parts in find_excitations(model).items()}
    return diagnose(statistics.summary(), weights, **options)


def kinds(report):
    return [finding.kind for finding in report.findings]


def gate(channels=8, ratio=2):
    torch.manual_seed(1)
    se = SqueezeExcitation(channels, ratio)
    nn.init.zeros_(se.fc1.bias)
    return se, torch.randn(120, channels, 3, 3)


def test_the_numbers_equal_those_computed_by_hand_from_all_gates():
    se, images = gate()
    (report,) = examined(nn.Sequential(se), images)
    with torch.no_grad():
        hidden = se.act(se.fc1(images.mean((2, 3), keepdim=True)))[..., 0, 0].double().numpy()
    last, bias = (
        p.detach().double().flatten(1).numpy() for p in (se.fc2.weight, se.fc2.bias[None])
    )
    before = hidden @ last.T + bias
    gates = 1 / (1 + np.exp(-before))
    assert (report.samples, report.channels, report.hidden) == (120, 8, 4)
    assert report.mean == pytest.approx(gates.mean(), rel=1e-6)
    assert report.from_one == pytest.approx(np.sqrt(((gates - 1) ** 2).mean(0)).max(), rel=1e-6)
    assert report.from_zero == pytest.approx(np.sqrt((gates**2).mean(0)).max(), rel=1e-6)
    assert report.dead == (hidden == 0).all(0).sum()
    share = np.linalg.eigvalsh(np.cov(before.T, bias=True))
    share = np.clip(share, 0, None) / share.sum()
    share = share[share > 1e-12]
    assert report.effective_rank == pytest.approx(math.exp(-(share @ np.log(share))), rel=1e-5)


def test_the_effective_rank_of_a_known_spectrum():
    se = SqueezeExcitation(6, 1)
    with torch.no_grad():
        for layer, columns in ((se.fc1, 6), (se.fc2, 3)):
            layer.weight.zero_()
            layer.weight[range(columns), range(columns), 0, 0] = 1
            layer.bias.zero_()
    images = torch.eye(6).repeat(20, 1)[..., None, None]
    (report,) = examined(nn.Sequential(se), images)
    # The covariance of the first three one-hot inputs is I/6 - 1/36: eigenvalues 1/6, 1/6, 1/12.
    entropy = -(2 * 0.4 * math.log(0.4) + 0.2 * math.log(0.2))
    assert report.effective_rank == pytest.approx(math.exp(entropy))


def test_a_gate_with_a_bias_of_20_is_an_identity_and_of_minus_20_shut():
    for bias, kind in ((20.0, "identity"), (-20.0, "shut")):
        se, images = gate()
        nn.init.constant_(se.fc2.bias, bias)
        (report,) = examined(nn.Sequential(se), images)
        assert kinds(report) == [kind]
        assert report.constant_share == 1


def test_a_gate_that_ignores_its_input_is_a_constant_without_a_rank():
    se, images = gate()
    nn.init.zeros_(se.fc2.weight)
    (report,) = examined(nn.Sequential(se), images)
    assert kinds(report) == ["constant"]
    assert "no gate varies over the images (mean 0.49" in report.findings[0].text
    assert report.effective_rank == 0


def test_a_dead_hidden_unit_is_counted_and_a_layer_of_dead_ones_is_grave():
    se, images = gate()
    with torch.no_grad():
        se.fc1.bias[2] = -1000
    (report,) = examined(nn.Sequential(se), images)
    assert (report.dead, report.hidden) == (1, 4)
    (finding,) = report.findings
    assert (finding.kind, finding.grave) == ("dead", False)
    assert finding.text == "1 of 4 hidden units are 0 for every image"
    nn.init.constant_(se.fc1.bias, -1000)
    (report,) = examined(nn.Sequential(se), images)
    assert kinds(report) == ["constant", "all_dead"]
    assert all(finding.grave for finding in report.findings)


def test_constant_channels_are_grave_if_they_are_the_majority():
    for stuck, grave in ((2, False), (6, True)):
        se, images = gate()
        with torch.no_grad():
            se.fc2.weight[:stuck] = 0
        (report,) = examined(nn.Sequential(se), images)
        assert report.constant_share == stuck / 8
        assert [(f.kind, f.grave) for f in report.findings] == [("stuck", grave)]


def test_a_module_that_is_never_executed_is_found():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = gate()[0], gate()[0]

        def forward(self, x):
            return self.used(x)

    used, idle = examined(Idle(), gate()[1])
    assert kinds(used) == []
    assert (kinds(idle), idle.samples, idle.findings[0].sure) == (["unseen"], 0, True)


def test_nan_gates_are_counted_and_have_no_other_finding():
    se, images = gate()
    images[5] = math.nan
    (report,) = examined(nn.Sequential(se), images)
    assert (report.nan, math.isnan(report.mean), kinds(report)) == (8, True, ["nan"])


def test_a_spatial_gate_has_no_hidden_units_and_no_rank():
    se = SpatialExcitation(4)
    (report,) = examined(nn.Sequential(se), torch.randn(40, 4, 3, 3))
    assert (report.hidden, kinds(report)) == (0, [])
    assert math.isnan(report.effective_rank)


@pytest.mark.parametrize("seed", range(5))
def test_a_newly_initialized_network_has_no_grave_finding(seed):
    torch.manual_seed(seed)
    reports = examined(se_resnet20(ratio=4).eval(), torch.randn(80, 3, 16, 16))
    assert not [finding for report in reports for finding in report.findings if finding.grave]


def test_the_table_is_aligned_and_the_csv_has_every_number():
    se, images = gate()
    with torch.no_grad():
        se.fc1.bias[2] = -1000
    reports = examined(nn.Sequential(se, gate()[0]), images)
    lines = report_text(reports).splitlines()
    assert len(lines) == 3
    assert [line.index(word) for line, word in zip(lines, ("findings", "1 of 4", "-"), strict=True)]
    assert lines[0].index("findings") == lines[1].index("1 of 4") == len(lines[2]) - 1
    rows = list(csv.DictReader(report_csv(reports).splitlines()))
    assert [row["layer"] for row in rows] == ["0", "1"]
    assert float(rows[0]["mean"]) == reports[0].mean
    assert (rows[0]["kinds"], rows[0]["dead"]) == ("dead", "1")
