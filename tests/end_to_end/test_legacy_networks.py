"""timm's legacy networks give what networks of this package give that have the same weights."""

import math

import pytest
import timm
import torch
from pytorch_lightning import Trainer
from torch import nn

from se_lightning import (
    DigitsDataModule,
    ExcitationHistogram,
    GateDoctor,
    ImageClassifier,
    TimmModule,
)
from se_lightning.excitation import (
    ExcitationStatistics,
    Taps,
    diagnose,
    excitations,
    fold_gates,
    what_if,
)
from se_lightning.excitation.recording import record
from se_lightning.models import create_model, find_excitations, find_gates, load_weights

PAIRS = [
    ("legacy_seresnet18", "se_resnet18", {"relu_before_gate": True, "ceil_pool": True}),
    ("legacy_seresnet34", "se_resnet34", {"relu_before_gate": True, "ceil_pool": True}),
    ("legacy_seresnet50", "se_resnet50", {"stride_in": "1x1", "ceil_pool": True}),
    ("legacy_seresnext50_32x4d", "se_resnext50_32x4d", {"ceil_pool": True}),
]
SLOW = pytest.mark.slow
CASES = [pytest.param(*p, id=p[0], marks=() if "18" in p[0] else SLOW) for p in PAIRS]


def pair(reference, name, options):
    """Return timm's network and this package's with the same weights, and images."""
    torch.manual_seed(0)
    theirs = timm.create_model(reference, num_classes=10).eval()
    for parts in find_excitations(theirs).values():
        nn.init.normal_(parts.expand.weight, std=2.0)
    ours = create_model(name, num_classes=10, **options)
    load_weights(ours, theirs.state_dict())
    return theirs, ours.eval(), torch.randn(4, 3, 40, 40), torch.arange(4)


def renamed(path: str) -> str:
    return path.replace("se_module", "se")


@pytest.mark.parametrize(("reference", "name", "options"), CASES)
def test_gates_statistics_diagnosis_and_replacements_are_those_of_the_same_network(
    reference, name, options
):
    theirs, ours, images, labels = pair(reference, name, options)
    found, expected = excitations(theirs, images), excitations(ours, images)
    assert [renamed(path) for path in found] == list(expected)
    for actual, wanted in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)
    reports = [reported(model, images, labels) for model in (theirs, ours)]
    assert [renamed(layer) for layer in reports[0]] == list(reports[1])
    assert list(reports[0].values()) == list(reports[1].values())
    rows = [what_if(m, lambda: [(images, labels)], 10, ["one"]) for m in (theirs, ours)]
    assert [(renamed(r.block), r.replacement, r.acc1) for r in rows[0]] == [
        (r.block, r.replacement, r.acc1) for r in rows[1]
    ]


def reported(model, images, labels):
    """Return channels, mean, hidden units and findings of each gate."""
    with Taps(model, hidden=True) as taps:
        statistics = ExcitationStatistics(taps.layers, taps.channels, taps.hidden, classes=[])
        (recorded,) = record(model, [(images, labels)], taps)
        statistics.update(recorded.gates, recorded.hidden, labels)
    weights = {path: parts.expand.weight for path, parts in find_excitations(model).items()}
    found = diagnose(statistics.summary(), weights)
    return {
        r.layer: (r.channels, round(r.mean, 4), r.hidden, r.dead, [f.kind for f in r.findings])
        for r in found
    }


@pytest.mark.parametrize(("reference", "name", "options"), CASES)
def test_constant_gates_fold_without_a_change_of_the_outputs(reference, name, options):
    theirs, _, images, _ = pair(reference, name, options)
    for number, parts in enumerate(find_excitations(theirs).values()):
        nn.init.zeros_(parts.expand.weight)
        nn.init.constant_(parts.expand.bias, 40.0 if number % 2 else 1.0)
    with torch.no_grad():
        before = theirs(images)
        report = fold_gates(theirs, [images])
        assert len(report.folded) == len(report.gates) == len(PLAN[reference])
        assert find_gates(theirs) == {}
        torch.testing.assert_close(theirs(images), before, rtol=1e-4, atol=1e-4)
    if "seresnet18" not in reference and "34" not in reference:  # those have a ReLU in between
        assert all(gate.action == "identity" for gate in report.gates)


PLAN = {reference: range(8 if "18" in reference else 16) for reference, *_ in PAIRS}


@pytest.mark.parametrize("how", ["module", "backbone"])
def test_the_callbacks_see_the_gates(how, tmp_path):
    options = {"num_classes": 10, "in_channels": 1}
    network = timm.create_model("legacy_seresnet18", num_classes=10, in_chans=1)
    module = (
        TimmModule("legacy_seresnet18", **options)
        if how == "module"
        else ImageClassifier(network, 10)
    )
    histogram, doctor = ExcitationHistogram(), GateDoctor()
    trainer = Trainer(
        callbacks=[histogram, doctor],
        default_root_dir=tmp_path,
        logger=False,
        accelerator="cpu",
        limit_val_batches=1,
        enable_progress_bar=False,
    )
    trainer.validate(module, DigitsDataModule(eval_batch_size=8), verbose=False)
    assert len(histogram.summary.layers) == 8
    assert histogram.picture.exists()
    assert [report.layer for report in doctor.reports][:1] == ["backbone.layer1.0.se_module"]
    assert all(math.isfinite(report.mean) for report in doctor.reports)


def test_only_the_gates_of_a_legacy_network_train():
    module = TimmModule("legacy_seresnet18", num_classes=10, freeze="all_but_gates")
    trained = {path for path, p in module.backbone.named_parameters() if p.requires_grad}
    assert trained
    assert all(".se_module.fc" in path for path in trained)
