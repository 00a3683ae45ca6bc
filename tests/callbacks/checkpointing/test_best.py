"""The best checkpoint of modules that log a loss of another name, or none."""

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from se_lightning.callbacks import BestCheckpoint

LOSSES = [3.0, 1.0, 2.0]


class Logging(LightningModule):
    """Logs the given losses, one per epoch, under given names."""

    def __init__(self, *names):
        super().__init__()
        self.names = names
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        for name in self.names:
            self.log(name, LOSSES[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module, saving, tmp_path, epochs=3, **options):
    trainer = Trainer(
        max_epochs=epochs, logger=False, accelerator="cpu", callbacks=[saving],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.rand(2, 1), 2)
    trainer.fit(module, loader, loader, **options)
    return trainer


@pytest.mark.parametrize(
    ("names", "epoch", "score"),
    [
        (["val/loss"], 1, 1.0),
        (["val_loss"], 1, 1.0),
        (["val_loss", "val/loss"], 1, 1.0),
        (["loss"], 2, None),
        ([], 2, None),
    ],
)
@pytest.mark.filterwarnings("ignore")  # Lightning's advice on loaders and logging
def test_it_takes_the_usual_names_or_the_latest_epoch(tmp_path, names, epoch, score):
    saving = BestCheckpoint(dirpath=tmp_path, filename="best", monitor="val/loss")
    key = ModelCheckpoint(monitor="val/loss").state_key
    assert saving.state_key == key
    fit(Logging(*names), saving, tmp_path)
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert saved["epoch"] == epoch
    assert saving.best_model_score == score
    assert saved["callbacks"].keys() == {key}


@pytest.mark.parametrize("monitor", ["f1", "val/f1"])
@pytest.mark.filterwarnings("ignore")
def test_a_metric_that_the_user_chose_must_be_logged(tmp_path, monitor):
    saving = BestCheckpoint(dirpath=tmp_path, filename="best", monitor=monitor)
    with pytest.raises(MisconfigurationException, match=monitor):
        fit(Logging("val_loss"), saving, tmp_path)


@pytest.mark.parametrize("monitor", [None, "val_loss"])
def test_its_key_is_that_of_a_model_checkpoint(monitor):
    assert BestCheckpoint(monitor=monitor).state_key == ModelCheckpoint(monitor=monitor).state_key


@pytest.mark.filterwarnings("ignore")
def test_the_best_score_is_kept_when_a_run_resumes(tmp_path):
    def saving():
        return BestCheckpoint(dirpath=tmp_path, filename="{epoch}", monitor="val/loss")

    trainer = fit(Logging("val_loss"), saving(), tmp_path, epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = saving()
    fit(Logging("val_loss"), again, tmp_path, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert again.best_model_score == 1.0
    assert again.best_model_path.endswith("epoch=1.ckpt")
