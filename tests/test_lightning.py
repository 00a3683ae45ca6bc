"""The package works under `pytorch_lightning` and under `lightning.pytorch`.

Each process imports one of the two before `se_lightning`, or both.
"""

import json
import os
import subprocess
import sys
import textwrap

import pytest

PACKAGES = ("pytorch_lightning", "lightning.pytorch")

TRAIN = """
    import json, pathlib, sys, tempfile, warnings
    from functools import partial
    import {package} as pl
    import torch
    from {package}.callbacks import EarlyStopping, ModelCheckpoint
    from {package}.loggers import TensorBoardLogger, WandbLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from se_lightning import (
        EMA, ClassSelectivity, DigitsDataModule, ExactState, ExcitationCurves,
        ExcitationHistogram, GateDoctor, LastCheckpoint, NonFinite, SEResNetModule, TopK,
    )
    from se_lightning.checkpoint import (
        AtomicCheckpointIO, check_fits, datamodule_from, model_from, read_checkpoint,
    )
    from se_lightning.lightning import PACKAGE

    warnings.simplefilter("ignore")
    root = pathlib.Path("run")

    def trainer(epochs, *more, logger=False):
        callbacks = [
            ExactState(seed=3), EMA(), NonFinite(), LastCheckpoint(str(root / "saved")),
            TopK(root / "top", filename="{{epoch}}", monitor="val/acc1", mode="max", save_top_k=2),
            ModelCheckpoint(root / "best", filename="best", monitor="val/loss"), *more,
        ]
        return pl.Trainer(
            callbacks=callbacks, default_root_dir=root, logger=logger, max_epochs=epochs,
            accelerator="cpu", limit_train_batches=3, limit_val_batches=2, limit_test_batches=1,
            enable_progress_bar=False, enable_model_summary=False, plugins=[AtomicCheckpointIO()],
        )

    def network():
        torch.manual_seed(0)
        return SEResNetModule(
            20, ratio=4, num_classes=10, in_channels=1,
            optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
            lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
        )

    loggers = [WandbLogger(save_dir=root, offline=True), TensorBoardLogger(root, name="board")]
    gates = [ExcitationHistogram(), ExcitationCurves(), ClassSelectivity(), GateDoctor()]
    whole, model, data = trainer(2, *gates, logger=loggers), network(), DigitsDataModule()
    whole.fit(model, data)
    tested = whole.test(model, datamodule=data, verbose=False)
    predicted = whole.predict(model, data.test_dataloader())[0].tolist()

    trainer(1).fit(network(), DigitsDataModule())
    again, last = network(), root / "saved" / "last.ckpt"
    resumed = trainer(2, EarlyStopping("val/loss", patience=9))
    resumed.fit(again, DigitsDataModule(), ckpt_path=str(last))
    read = read_checkpoint(last)
    rebuilt = model_from(read, last)
    check_fits(read, network(), last)
    loaded = SEResNetModule.load_from_checkpoint(last)
    same = all(
        torch.equal(a, b) and torch.equal(a, c) and torch.equal(a, d)
        for a, b, c, d in zip(*(m.parameters() for m in (model, again, rebuilt, loaded)))
    )

    board = None
    for log in root.glob("board/**/events*"):
        events = EventAccumulator(str(log), {{"images": 0, "histograms": 0}})
        events.Reload()
        if events.Tags()["histograms"]:
            board = events
    histograms = {{
        name: [event.histogram_value.bucket for event in board.Histograms(name)]
        for name in board.Tags()["histograms"]
    }}
    pathlib.Path("out.json").write_text(json.dumps(dict(
        package=PACKAGE,
        test=tested,
        predicted=predicted,
        resumes_exactly=same,
        rebuilt=type(datamodule_from(read)).__name__,
        histograms=histograms,
        images=sorted(board.Tags()["images"]),
        sent=sorted(path.name.rsplit("_", 2)[0] for path in root.glob("wandb/**/*.png")),
        files=sorted(path.name for path in (root / "excitation").iterdir()),
        best=pathlib.Path(whole.checkpoint_callbacks[-1].best_model_path).name,
        checkpoints=[type(each).__name__ for each in whole.checkpoint_callbacks],
        imported=[name for name in ("pytorch_lightning", "lightning") if name in sys.modules],
    )))
"""

# What happens if a part meets a Trainer of the package that it does not belong to.
MIXED = """
    import json, logging, pathlib, warnings
    import lightning.pytorch
    import pytorch_lightning
    import torch
    from torch import nn
    from se_lightning import (
        EMA, DigitsDataModule, ExactState, ExcitationCurves, ExcitationHistogram, GateDoctor,
        LastCheckpoint, NonFinite, SEResNetModule, TopK,
    )
    from se_lightning.models import se_resnet20

    warnings.simplefilter("ignore")
    data = DigitsDataModule()
    data.setup("fit")
    loader = data.train_dataloader()

    def network(package):
        class Network(package.LightningModule):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.net = se_resnet20(num_classes=10, in_channels=1, ratio=4)

            def training_step(self, batch, batch_idx):
                images, labels = batch
                loss = nn.functional.cross_entropy(self.net(images), labels)
                self.log("loss", loss)
                return loss

            validation_step = training_step

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        return Network()

    def fit(package, *callbacks, data=None, model=None, where="data"):
        root = pathlib.Path(package.__name__)
        trainer = package.Trainer(
            callbacks=list(callbacks), default_root_dir=root, max_epochs=1, accelerator="cpu",
            logger=package.loggers.TensorBoardLogger(root), limit_train_batches=2,
            limit_val_batches=2, enable_progress_bar=False, enable_model_summary=False,
        )
        model = model or network(package)
        if where == "keyword":
            trainer.fit(model, datamodule=data)
        else:
            trainer.fit(model, data or loader, None if data else loader)
        return trainer

    def refused(*arguments, **options):
        try:
            fit(lightning.pytorch, *arguments, **options)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    out = {}
    for package in (pytorch_lightning, lightning.pytorch):
        histogram = ExcitationHistogram()
        callbacks = [
            histogram, ExcitationCurves(), GateDoctor(), NonFinite("skip"), ExactState(),
            package.callbacks.GradientAccumulationScheduler({0: 1}),
        ]
        trainer = fit(package, *callbacks)
        root = pathlib.Path(package.__name__)
        out[package.__name__] = {
            "counts": histogram.history.arrays()["counts"].tolist(),
            "files": sorted(path.name for path in (root / "excitation").iterdir()),
        }
    out["last"] = refused(LastCheckpoint())
    out["ema"] = refused(EMA())
    out["top"] = refused(TopK(monitor="loss"))
    out["positional"] = refused(data=DigitsDataModule())
    out["keyword"] = refused(data=DigitsDataModule(), where="keyword")
    logged = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger("se_lightning").addHandler(handler)
    model = SEResNetModule(20, in_channels=1)
    SEResNetModule(20)
    out["module"] = refused(model=model)
    out["logged"] = logged
    pathlib.Path("out.json").write_text(json.dumps(out))
"""


def run(folder, program, **values):
    code = textwrap.dedent(program)
    (folder / "program.py").write_text(code.format(**values) if values else code)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((folder / "out.json").read_text())


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"), TRAIN, package=PACKAGES[0])


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"), TRAIN, package=PACKAGES[1])


@pytest.fixture(scope="module")
def trained(old, new):
    return dict(zip(PACKAGES, (old, new), strict=True))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("mixed"), MIXED)


@pytest.mark.parametrize("package", PACKAGES)
def test_classes_belong_to_the_package_that_was_imported(trained, package):
    found = trained[package]
    assert found["package"] == package
    assert found["imported"] == [package.partition(".")[0]]  # the other one is never imported


@pytest.mark.parametrize("package", PACKAGES)
def test_histograms_and_pictures_are_sent(trained, package):
    found = trained[package]
    assert len(found["histograms"]) == 9  # gates of se_resnet20
    assert all(len(validations) == 2 for validations in found["histograms"].values())
    pictures = {"curves", "epochs", "histogram", "selectivity", "selectivity_epochs", "spread"}
    assert {name.removeprefix("excitation/") for name in found["images"]} == pictures
    assert {f"{name}.png" for name in pictures} <= set(found["files"])
    assert set(found["sent"]) == pictures


def test_both_packages_send_the_same_values(trained):
    old, new = (trained[package] for package in PACKAGES)
    for key in ("histograms", "images", "sent", "files", "test", "predicted", "best"):
        assert old[key] == new[key], key


@pytest.mark.parametrize("package", PACKAGES)
def test_runs_resume_exactly_and_checkpoints_load(trained, package):
    found = trained[package]
    assert found["resumes_exactly"]
    assert found["rebuilt"] == "DigitsDataModule"
    assert set(found["checkpoints"]) == {"LastCheckpoint", "TopK", "ModelCheckpoint"}


def test_callbacks_work_in_the_trainer_of_the_other_package(mixed):
    old, new = (mixed[package] for package in PACKAGES)
    assert old == new
    assert sum(map(sum, old["counts"][0])) > 0
    assert {"histogram.png", "curves.png", "doctor.csv"} <= set(old["files"])


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("last", "LastCheckpoint"),
        ("ema", "EMA"),
        ("top", "TopK"),
        ("positional", "DigitsDataModule"),
        ("keyword", "DigitsDataModule"),
    ],
)
def test_a_trainer_of_the_other_package_is_refused_in_one_sentence(mixed, part, name):
    kind, _, text = mixed[part].partition(": ")
    assert kind == "MisconfigurationException"
    assert text.startswith(f"{name} is a ")
    assert "import lightning.pytorch, and not pytorch_lightning, before se_lightning" in text
    assert "\n" not in text


def test_a_module_warns_once_if_both_packages_are_imported(mixed):
    (text,) = mixed["logged"]
    assert text.startswith("SEResNetModule works in a Trainer of pytorch_lightning, not in one of")
    assert "import lightning.pytorch, and not pytorch_lightning, before se_lightning" in text
    assert "SEResNetModule" in mixed["module"]  # Lightning's own message


@pytest.mark.parametrize(
    ("imports", "package"),
    [
        ("", "pytorch_lightning"),
        ("import lightning", "lightning.pytorch"),
        ("from lightning.fabric import Fabric", "lightning.pytorch"),
        ("import lightning, se_lightning.cli.main", "pytorch_lightning"),
    ],
)
def test_the_first_import_decides(imports, package):
    code = f"{imports}\nfrom se_lightning.lightning import PACKAGE, Trainer\n"
    code += "print(PACKAGE, Trainer.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [package, f"{package}.trainer.trainer"]
