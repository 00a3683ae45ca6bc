import errno
import os
import pickle
import zipfile

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn

from se_lightning import DigitsDataModule, ImageClassifier, MNISTDataModule, SEResNetModule
from se_lightning.checkpoint import (
    AtomicCheckpointIO,
    check_fits,
    datamodule_from,
    model_from,
    read_checkpoint,
)


def save(model, path, data=None):
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=1, limit_val_batches=0, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=path.parent,
    )  # fmt: skip
    trainer.fit(model, datamodule=data or DigitsDataModule(batch_size=8, crop_padding=1))
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = SEResNetModule(20, ratio=8, in_channels=1, placement="standard")
    return save(model, tmp_path_factory.mktemp("saved") / "net.ckpt"), model


def test_model_and_data_are_rebuilt_from_the_file_alone(saved):
    path, model = saved
    checkpoint = read_checkpoint(path)
    again = model_from(checkpoint, path)
    assert type(again) is SEResNetModule
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    data = datamodule_from(checkpoint, eval_batch_size=3)
    assert (data.batch_size, data.hparams.crop_padding, data.eval_batch_size) == (8, 1, 3)


def test_weights_of_another_network_are_refused_with_the_first_difference(saved):
    path, model = saved
    checkpoint = read_checkpoint(path)
    check_fits(checkpoint, model, path)
    other = SEResNetModule(20, ratio=4, in_channels=1)
    message = (
        r"27 parameters differ.*layer1\.0\.se\.fc1\.weight, which is \(2, 16, 1, 1\) in the ch"
    )
    with pytest.raises(ValueError, match=message):
        check_fits(checkpoint, other, path)
    with pytest.raises(ValueError, match=r"se\.fc1\.weight, .* and missing from the model"):
        check_fits(checkpoint, SEResNetModule(20, gate="none", in_channels=1), path)
    plain = {**checkpoint, "state_dict": dict(list(checkpoint["state_dict"].items())[1:])}
    with pytest.raises(
        ValueError, match=r"does not match this model: 1 .* missing from the checkp"
    ):
        check_fits(plain, model, path)


@pytest.mark.parametrize(
    ("option", "value"), [("placement", "post"), ("squeeze", "max"), ("gate_activation", "tanh")]
)
def test_a_network_of_the_same_shapes_is_refused_with_the_differing_option(saved, option, value):
    path, _ = saved
    other = SEResNetModule(20, ratio=8, in_channels=1, **{option: value})
    with pytest.raises(
        ValueError, match=rf"{option}=.* in the checkpoint and '{value}' in the model"
    ):
        check_fits(read_checkpoint(path), other, path)
    same = SEResNetModule([3, 3, 3], ratio=8, in_channels=1, stem="cifar")
    check_fits(read_checkpoint(path), same, path)


class Code:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_file_with_code_is_refused_and_not_executed(tmp_path):
    path, ran = tmp_path / "evil.ckpt", tmp_path / "ran"
    torch.save({"state_dict": {}, "se_lightning": {}, "x": Code(ran)}, path)
    with pytest.raises(ValueError, match=r"could run code \(.*\); it was refused") as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    path.write_bytes(pickle.dumps(Code(ran)))
    with pytest.raises(ValueError, match=str(path)):
        read_checkpoint(path)
    assert not ran.exists()


def damage(content: bytes, kind: str) -> bytes:
    return {
        "empty": b"",
        "text": b"<html><body>404</body></html>",
        "cut": content[: len(content) // 2],
        "header": content[:100],
        "garbage": bytes(range(256)) * 20,
        "an unrelated zip": b"",
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "header", "garbage", "an unrelated zip"])
def test_files_that_are_not_checkpoints_are_refused(saved, tmp_path, kind):
    path = tmp_path / "broken.ckpt"
    path.write_bytes(damage(saved[0].read_bytes(), kind))
    if kind == "an unrelated zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.txt", "a")
    with pytest.raises(ValueError, match=r"broken\.ckpt is not a checkpoint, or is damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [torch.zeros(3), {"weight": torch.zeros(3)}])
def test_other_torch_files_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match="but not a Lightning checkpoint"):
        read_checkpoint(tmp_path / "weights.ckpt")


def test_a_checkpoint_of_another_program_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not written by a module of se_lightning"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "nowhere.ckpt", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"RUN_DIR/checkpoints/best\.ckpt"):
            read_checkpoint(path)


def test_a_custom_network_must_be_loaded_in_python(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    path = save(ImageClassifier(net, 10), tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match=r"load it in Python: ImageClassifier\.load_from"):
        model_from(read_checkpoint(path), path)


def test_only_classes_of_this_package_are_rebuilt(saved):
    checkpoint = read_checkpoint(saved[0])
    for name in ("os.system", "__all__", "ImageClassifier"):
        checkpoint["se_lightning"] = {"module": name, "datamodule": name}
        with pytest.raises(ValueError, match="was written by"):
            model_from(checkpoint, saved[0])
        with pytest.raises(ValueError, match="was trained on"):
            datamodule_from(checkpoint)


def test_a_checkpoint_downloads_nothing_and_starts_no_workers(saved):
    checkpoint = read_checkpoint(saved[0])
    checkpoint["se_lightning"]["datamodule"] = "MNISTDataModule"
    own = {"root": "/nowhere", "download": True, "num_workers": 10**6, "batch_size": 17}
    checkpoint["datamodule_hyper_parameters"] = own
    checkpoint.pop("DigitsDataModule", None)
    rebuilt = datamodule_from(checkpoint)
    assert rebuilt.hparams.download is False
    assert rebuilt.num_workers == MNISTDataModule().num_workers
    assert rebuilt.batch_size == 17
    assert datamodule_from(checkpoint, num_workers=2).num_workers == 2  # of the command line


@pytest.mark.parametrize("version", ["0.0.1", "1.9.0", "no version", ""])
def test_an_impossible_version_of_lightning_is_refused(saved, tmp_path, version):
    checkpoint = torch.load(saved[0], weights_only=True)
    torch.save(checkpoint | {"pytorch-lightning_version": version}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="its entry `pytorch-lightning_version` is invalid"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_weights_that_are_not_finite_are_reported(saved, tmp_path, caplog):
    checkpoint = torch.load(saved[0], weights_only=True)
    checkpoint["state_dict"]["backbone.fc.bias"][0] = float("nan")
    torch.save(checkpoint, tmp_path / "x.ckpt")
    model_from(read_checkpoint(tmp_path / "x.ckpt"), tmp_path / "x.ckpt")
    assert "not finite, in 1 tensors: backbone.fc.bias." in caplog.text


def test_a_checkpoint_names_no_code(saved, tmp_path):
    """Lightning before 2.6.6 imported and called what `_instantiator` names."""
    checkpoint = torch.load(saved[0], weights_only=True)
    checkpoint["hyper_parameters"]["_instantiator"] = "os.system"
    torch.save(checkpoint, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="its entry `hyper_parameters` is invalid"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_a_checkpoint_is_written_to_a_temporary_file_beside_it(tmp_path, monkeypatch):
    moved, synced = [], []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append((a, b)), replace(a, b)))
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(len(moved)), fsync(file)))
    path = tmp_path / "deep" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(2)}, path)
    ((source, target),) = moved
    assert (source.parent, target) == (path.parent, path)  # the same file system
    assert synced == [0, 1]  # first the content, then the name
    assert AtomicCheckpointIO().load_checkpoint(path)["a"].tolist() == [1, 1]
    assert [each.name for each in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("failing", ["write", "replace"])
def test_a_failed_save_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, failing):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    (tmp_path / ".last.ckpt.77.tmp").write_bytes(b"of a killed process")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    where = (torch, "save") if failing == "write" else (os, "replace")
    monkeypatch.setattr(*where, full)
    words = "No space left on device: the checkpoint was not saved; the previous one is kept"
    with pytest.raises(OSError, match=words) as error:
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert error.value.filename == str(path)
    assert AtomicCheckpointIO().load_checkpoint(path) == {"step": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_fit_does_not_resume_from_a_checkpoint_that_could_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": {}, "evil": Evil()}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"which could run code \(.*\); it was refused"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "ran").exists()
