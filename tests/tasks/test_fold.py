import json
import logging

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from se_lightning import DigitsDataModule, ImageClassifier, SEResNetModule
from se_lightning.checkpoint import check_fits, model_from, read_checkpoint
from se_lightning.models.surgery.folded import ChannelScale, folded
from se_lightning.tasks import fold

NET = {"depth": [1, 1], "widths": [8, 16], "stem": "cifar", "ratio": 4, "in_channels": 1}


def trainer(folder, **options):
    return Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=2, limit_val_batches=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=folder, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data():
    data = DigitsDataModule(batch_size=32, eval_batch_size=90)
    data.prepare_data()
    data.setup()
    return data


def trained(folder, data, stuck=(), **options):
    """Train briefly, plant constant gates, and save; return the path and the model."""
    torch.manual_seed(0)
    model = SEResNetModule(**{**NET, **options})
    run = trainer(folder)
    run.fit(model, datamodule=data)
    with torch.no_grad():
        for index in stuck:
            se = model.backbone.get_submodule(f"layer{index}.0.se")
            se.fc2.weight.zero_()
            se.fc2.bias.normal_()
    run.save_checkpoint(folder / "best.ckpt")
    return str(folder / "best.ckpt"), model.eval()


def logits(model, data):
    with torch.no_grad():
        return model(next(iter(data.test_dataloader()))[0].float())


def test_a_folded_checkpoint_loads_has_the_same_outputs_and_can_be_trained(data, tmp_path, caplog):
    path, model = trained(tmp_path, data, stuck=(2,), placement="post")
    original = (tmp_path / "best.ckpt").read_bytes()
    before = logits(model, data)
    with caplog.at_level(logging.INFO):
        metrics = fold(model, data, path, folder=str(tmp_path / "out"), tolerance=1e-5)
    assert (metrics["fold/gates"], metrics["fold/folded"]) == (2, 1)
    assert metrics["fold/acc1_before"] == metrics["fold/acc1_after"]
    assert metrics["fold/speedup"] > 0
    assert "1 of 2 gates are constant within 1e-05" in caplog.text
    assert (tmp_path / "best.ckpt").read_bytes() == original
    assert torch.equal(logits(model, data), before)  # the given model is not changed

    out = tmp_path / "out" / "folded.ckpt"
    content = torch.load(out, weights_only=True)
    assert "optimizer_states" not in content
    assert content["se_lightning"]["folded"] == {"layer2.0.se": "identity"}
    again = SEResNetModule.load_from_checkpoint(out, weights_only=True).eval()
    torch.testing.assert_close(logits(again, data), before, rtol=1e-5, atol=1e-5)
    assert type(again.backbone.layer2[0].se) is nn.Identity
    assert type(model_from(read_checkpoint(out), out)) is SEResNetModule
    check_fits(read_checkpoint(out), SEResNetModule(**NET, placement="post"), out)

    refused = SEResNetModule(**NET, placement="post")
    with pytest.raises(MisconfigurationException, match="has no optimizer state"):
        trainer(tmp_path).fit(refused, datamodule=data, ckpt_path=out, weights_only=True)
    (tested,) = trainer(tmp_path).test(again, data, verbose=False)
    assert tested["test/acc1"] == pytest.approx(metrics["fold/acc1_after"])
    run = trainer(tmp_path)
    run.fit(again.train(), data)
    run.save_checkpoint(tmp_path / "more.ckpt")
    more = SEResNetModule.load_from_checkpoint(tmp_path / "more.ckpt", weights_only=True)
    assert folded(more.backbone) == {"layer2.0.se": "identity"}
    # A run of the folded model resumes where it stopped.
    resumed = SEResNetModule(**NET, placement="post")
    check_fits(read_checkpoint(tmp_path / "more.ckpt"), resumed, "more.ckpt")
    further = trainer(tmp_path)
    further.fit_loop.max_epochs = 2
    further.fit(resumed, datamodule=data, ckpt_path=tmp_path / "more.ckpt", weights_only=True)
    assert further.current_epoch == 2


def test_constants_that_no_layer_absorbs_are_saved_and_reported_as_scales(data, tmp_path):
    path, model = trained(tmp_path, data, stuck=(1, 2), placement="identity")
    fold(model, data, path, folder=str(tmp_path), tolerance=1e-5)
    again = SEResNetModule.load_from_checkpoint(tmp_path / "folded.ckpt", weights_only=True).eval()
    torch.testing.assert_close(logits(again, data), logits(model, data), rtol=1e-5, atol=1e-5)
    kinds = folded(again.backbone)
    assert "scale" in kinds.values()
    scales = [p for p, m in again.backbone.named_modules() if isinstance(m, ChannelScale)]
    assert scales == [path for path, kind in kinds.items() if kind == "scale"]
    facts = json.loads((tmp_path / "fold.json").read_text())
    paths = {f"backbone.{path}": kind for path, kind in kinds.items()}  # as in all tables
    assert {gate["layer"]: gate["action"] for gate in facts["gates"]} == paths
    assert facts["samples"] == len(data.labels("val"))
    assert facts["batch_size"] == 90
    assert "replaced by a channel scale" in (tmp_path / "fold.md").read_text()


def test_without_constant_gates_no_file_is_written(data, tmp_path, caplog):
    path, model = trained(tmp_path, data)
    with caplog.at_level(logging.INFO):
        metrics = fold(model, data, path, folder=str(tmp_path / "out"), tolerance=1e-6)
    assert metrics == {"fold/gates": 2, "fold/folded": 0}
    assert "No gate is constant within 1e-06 over 180 images of val. The closest is" in caplog.text
    assert not (tmp_path / "out").exists()


def test_invalid_arguments_are_refused(data, tmp_path):
    model = SEResNetModule(**NET).eval()
    for wrong in ({"split": "x"}, {"test_split": "x"}):
        with pytest.raises(ValueError, match=r"split` \(='x'\) must be one of"):
            fold(model, data, "a.ckpt", folder=str(tmp_path), **wrong)
    with pytest.raises(ValueError, match="needs the checkpoint of a se_lightning model"):
        fold(model, data, folder=str(tmp_path))
    with pytest.raises(ValueError, match="no squeeze-and-excitation gates"):
        fold(ImageClassifier(nn.Linear(2, 10), 10), data, "a.ckpt", folder=str(tmp_path))
    with pytest.raises(ValueError, match=r"`tolerance` \(=-1\)"):
        fold(model, data, "a.ckpt", folder=str(tmp_path), tolerance=-1)


def test_the_command_line_folds_and_tests_what_it_folded(run_main, short, result, tmp_path):
    net = ("model=se_resnet20", "model.depth=[1,1]", "model.stem=cifar", "model.ratio=4")
    gates = (
        "model.gate_activation=double-sigmoid",
        "optimizer.lr=0",
        "lr_scheduler=constant",
    )  # they stay at 1
    run = ("data=digits", *net, *gates, *short, "callbacks=checkpoint")
    code, message = run_main(*run, "hydra.run.dir=run")
    assert code == 0, message
    best, cpu = "run/checkpoints/best.ckpt", "trainer.accelerator=cpu"
    code, message = run_main("task=fold", f"ckpt_path={best}", "hydra.run.dir=out", cpu)
    assert code == 0, message
    metrics = result(tmp_path / "out")["metrics"]
    assert (metrics["fold/gates"], metrics["fold/folded"]) == (2, 2)
    options = ("ckpt_path=out/folded.ckpt", "callbacks=none", "hydra.run.dir=tested")
    code, message = run_main("task=test", *options, cpu)
    assert code == 0, message
    tested = result(tmp_path / "tested")
    assert tested["metrics"]["test/acc1"] == pytest.approx(metrics["fold/acc1_after"])
    assert tested["gates"] == 0
