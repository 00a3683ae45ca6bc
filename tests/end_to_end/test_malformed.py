"""Malformed input: each case ends at once with one message that names it, and leaves no files."""

import pickle
import random
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer

from se_lightning import DigitsDataModule, SEResNetModule

# Keeps the run short in case a mistake goes unnoticed.
BRIEF = (
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "trainer.accelerator=cpu",
    "callbacks=none",
)

# Arguments, separated by |, and the expected part of the message.
KINDS = {
    "trainer.devices=1.5": "trainer: `devices` (=1.5) must be",
    "trainer.devices=true": "trainer: `devices` (=True) must be",
    "trainer.max_epochs=ten": "trainer: `max_epochs` (='ten') must be a whole number or null",
    "trainer.max_epochs=1.5": "trainer: `max_epochs` (=1.5) must be a whole number or null",
    "trainer.max_steps=x": "trainer: `max_steps` (='x') must be a whole number",
    "trainer.limit_train_batches=x": "trainer: `limit_train_batches` (='x') must be",
    "trainer.gradient_clip_val=x": "trainer: `gradient_clip_val` (='x') must be",
    "trainer.deterministic=maybe": "trainer: `deterministic` (='maybe') must be",
    "trainer.sync_batchnorm=x": "trainer: `sync_batchnorm` (='x') must be true or false",
    "trainer.precision=12": "trainer: `precision` (=12) must be one of",
    "trainer.accelerator=null": "trainer: `accelerator` (=None) must be text",
    "trainer.strategy=[ddp]": "trainer: `strategy` (=['ddp']) must be text",
    "data.batch_size=many": "data: `batch_size` (='many') must be a whole number",
    "data.batch_size=1e9": "data: `batch_size` (=1000000000.0) must be a whole number",
    "data.batch_size=null": "data: `batch_size` (=None) must be a whole number",
    "data.batch_size=[4]": "data: `batch_size` (=[4]) must be a whole number",
    "data.batch_size={a: 1}": "data: `batch_size` (={'a': 1}) must be a whole number",
    "data.eval_batch_size=x": "data: `eval_batch_size` (='x') must be a whole number",
    "data.num_workers=x": "data: `num_workers` (='x') must be a whole number",
    "data.flip=maybe": "data: `flip` (='maybe') must be true, false or alternating",
    "optimizer.lr=fast": "optimizer: `lr` (='fast') must be a finite number",
    "optimizer.lr=nan": "optimizer: `lr` (=nan) must be a finite number",
    "optimizer.lr=inf": "optimizer: `lr` (=inf) must be a finite number",
    "optimizer.lr=null": "optimizer: `lr` (=None) must be a finite number",
    "optimizer.weight_decay=x": "optimizer: `weight_decay` (='x') must be a finite number",
    "optimizer.weight_decay=99999999999999999999": "optimizer: `weight_decay` (=999",
    "optimizer.momentum=nan": "optimizer: `momentum` (=nan) must be a finite number",
    "optimizer=adamw|optimizer.betas=[0.9]": "optimizer: `betas` (=[0.9]) must be a list of 2",
    "optimizer=adamw|optimizer.betas=x": "optimizer: `betas` (='x') must be a list of 2",
    "lr_scheduler.warmup_epochs=x": "lr_scheduler: `warmup_epochs` (='x') must be a finite number",
    "lr_scheduler.min_factor=nan": "lr_scheduler: `min_factor` (=nan) must be a finite number",
    "lr_scheduler=multi_step|lr_scheduler.milestones=5": "`milestones` (=5) must be a list",
    "lr_scheduler=multi_step|lr_scheduler.milestones=[a]": "`milestones` (=['a']) must be a list",
    "model.label_smoothing=x": "model: `label_smoothing` (='x') must be a finite number",
    "model.layer_decay=x": "model: `layer_decay` (='x') must be a finite number or null",
    "model.channels_last=maybe": "model: `channels_last` (='maybe') must be true or false",
    "model.weights=[1]": "model: `weights` (=[1]) must be",
    "model.ratio={a: 1}": "model: `ratio` (={'a': 1}) must be",
    "callbacks.excitation_histogram.bins=x": "callbacks.excitation_histogram: `bins` (='x') must",
    "callbacks.checkpoint.save_top_k=x": "callbacks.checkpoint: `save_top_k` (='x') must be",
    "logger.csv.flush_logs_every_n_steps=x": "logger.csv: `flush_logs_every_n_steps` (='x')",
    "seed=abc": "`seed` (='abc') must be a whole number from 0 to 4294967295",
    "seed=-1": "`seed` (=-1) must be a whole number",
    "seed=1e20": "`seed` (=1e+20) must be a whole number",
    "seed=99999999999999999999": "`seed` (=99999999999999999999) must be a whole number",
    "seed=null": "`seed` (=None) must be a whole number",
    "seed=[1]": "`seed` (=[1]) must be a whole number",
    "seed=true": "`seed` (=True) must be a whole number",
}
RANGES = {
    "trainer.devices=0": "`Trainer(devices=0)` value is not a valid input",
    "trainer.devices=-1|trainer.accelerator=cpu": "`devices`",
    "trainer.max_epochs=-5": "`max_epochs` must be a non-negative integer or -1",
    "trainer.max_time=soon": "`Timer(duration='soon')` is not a valid duration",
    "trainer.accumulate_grad_batches=0": "trainer: `accumulate_grad_batches` (=0) must be at least",
    "trainer.check_val_every_n_epoch=0": "trainer: `check_val_every_n_epoch` (=0) must be at least",
    "trainer.gradient_clip_val=-1": "trainer: `gradient_clip_val` (=-1) must be at least 0",
    "trainer.val_check_interval=0": "trainer: `val_check_interval` (=0) must be above 0",
    "trainer.limit_train_batches=2.5": "invalid value 2.5 for limit_train_batches",
    "trainer.strategy=nope": "`strategy='nope'`",
    "trainer.accelerator=quantum": "`accelerator='quantum'`",
    "trainer.num_nodes=0": "`num_nodes` must be a positive integer, but got 0",
    "trainer.profiler=nope": "`profiler`",
    "data.batch_size=0": "`batch_size` (=0) must be at least 2",
    "data.batch_size=-3": "`batch_size` (=-3) must be at least 2",
    "data.eval_batch_size=0": "data: `eval_batch_size` (=0) must be",
    "data.repeats=0": "data: `repeats` (=0) must be",
    "data.rotation=-9": "data: `rotation` (=-9) must be a number of degrees",
    "data.mixup=-1": "data: `mixup` (=-1) must be",
    "optimizer.lr=-1": "Invalid learning rate: -1",
    "optimizer=adamw|optimizer.betas=[2,3]": "Invalid beta parameter at index 0: 2",
    "lr_scheduler.warmup_epochs=-1": "`warmup_epochs` (=-1) must not be negative",
    "lr_scheduler.min_factor=2": "`min_factor` (=2) must be a fraction",
    "lr_scheduler=multi_step|lr_scheduler.gamma=-1": "`gamma` (=-1) must be above 0",
    "lr_scheduler=multi_step|lr_scheduler.milestones=[3,1]": "`milestones` (=[3, 1]) must be above",
    "model.ratio=[]": "model: `ratio` (=[]) must be a number, or one per stage",
    "model.ratio=0.5": "model: `ratio` (=0.5) must be a number of at least 1",
    "model.depth=[0,0,0]": "model: `depth` (=0) must be a whole number of at least 1",
    "model.layer_decay=2": "model: `layer_decay` (=2) must be above 0",
    "model.weights=/tmp": "model: `weights` (=/tmp) is a folder",
    "callbacks.checkpoint.mode=up": "`mode` can be min, max",
    "callbacks.checkpoint.save_top_k=-5": "save_top_k=-5",
    "callbacks.excitation_curves.channels=0": "`channels` (=0)",
    "callbacks.gate_doctor.patience=0": "`patience` (=0)",
    "callbacks.class_selectivity.classes=0": "`classes` (=0)",
}
NODES = {
    "~model": "model",
    "~optimizer": "`optimizer._target_` (=None) must name",
    "~data": "`data._target_` (=None) must name a class or function",
    "~task": "`task._target_` (=None) must name a class or function",
    "~seed": "`seed` (=None) must be",
    "~nope": "'nope' does not exist",
    "~model._target_": "`model._target_` (=None) must name",
    "~trainer._target_": "`trainer._target_` (=None) must name",
    "~optimizer._target_": "`optimizer._target_` (=None) must name",
    "model._target_=": "`model._target_=` has no value",
    "model._target_=nope.Nope": "No module named 'nope'",
    "model._target_=se_lightning.Nope": "Nope",
    "model._target_=os.getcwd|+model.x=1": "model: os.getcwd does not take `x`. It takes nothing.",
    "data._target_=builtins.dict": "`data._target_` (='builtins.dict') returns a dict, but must",
    "trainer._target_=builtins.dict": "`trainer._target_` (='builtins.dict') returns a dict",
    "optimizer._target_=torch.optim.Adam|optimizer.momentum=0.9|+optimizer.beta=1": (
        "torch.optim.Adam does not take `momentum`, `beta`. Did you mean `optimizer.betas`? It"
    ),
    "optimizer._target_=torch.nn.Linear": "optimizer: torch.nn.Linear needs `out_features`: +opt",
    "lr_scheduler._target_=torch.optim.lr_scheduler.StepLR|~lr_scheduler.factor": "`step_size`",
    "optimizer._partial_=false": "SGD.__init__() missing 1 required positional argument: 'params'",
    "+callbacks.x={_target_: os.getcwd}": "`callbacks.x._target_` (='os.getcwd') returns a str",
    "+logger.x={_target_: os.getcwd}": "`logger.x._target_` (='os.getcwd') returns a str",
    "task._target_=nope.nope": "No module named 'nope'",
    "model=null": "Config group override must be a string or a list",
    "model=5": "Config group override must be a string or a list",
    "model=": "`model=` has no value",
    "task=": "`task=` has no value",
    "callbacks=nope": "Could not find 'callbacks/nope'",
    "experiment=nope": "Could not find 'experiment/nope'",
    "ckpt_path=3": "`ckpt_path` (=3)",
    "task=compare|ckpt_path=a": "this task takes two checkpoints, ckpt_path=[A,B]",
    "task=compare|ckpt_path=[a,c]": "`ckpt_path` (=c) is not a file",
    "task=test|ckpt_path=[a,b]": "this task takes one checkpoint",
}
GRAMMAR = {
    "model.ratio='${nope}'": "model.ratio: Interpolation key 'nope' not found",
    "model.ratio=${model.ratio}": "model.ratio: Recursive interpolation detected",
    "model.ratio=${oc.env:NOPE}": "Environment variable 'NOPE' not found",
    "model.ratio=${nope:1}": "Unsupported interpolation type nope",
    "model.ratio=${": 'model.ratio="${"',
    "model.ratio=[4": "[4",
    "model.ratio={a:1": "{a:1",
    "model.ratio='4": "model.ratio='4",
    "model.ratio": "model.ratio",
    "model..ratio=3": "model..ratio=3",
    "=4": "override",
    "m\u00f6d.ratio=3": "m\u00f6d",
    "model.ratio=\u2603": "model: `ratio` (='\u2603') must be",
    "model.ratio=" + "9" * 5000: "must be a finite number",
    "hydra/launcher=nope": "Could not find 'hydra/launcher/nope'",
    "hydra.nope=1": "hydra.nope",
    "hydra.mode=NOPE": "NOPE",
    "hydra.run.dir='${nope}'": "Interpolation key 'nope' not found",
    "--config-name|nope": "nope",
    "--config-dir|/nonexistent": "/nonexistent",
}


@pytest.fixture
def check_refusal(run_main, tmp_path):
    """Run a command; check that it ends with one message and leaves no files."""

    def check(arguments, words, kept=()):
        before = {path for path in tmp_path.rglob("*") if path.is_file()}
        code, error = run_main(*arguments)
        _, found, last = error.rstrip().rpartition("se_lightning: error: ")
        assert code == 1
        assert found
        assert words in last
        assert "Traceback" not in error
        after = {p for p in tmp_path.rglob("*") if p.is_file() and p.name not in (".lock", *kept)}
        after -= set((tmp_path / "cache").rglob("*"))  # the index of data files stays valid
        assert after <= before

    return check


@pytest.mark.parametrize("row", [*KINDS, *RANGES], ids=lambda row: row[:50])
def test_a_wrong_value_is_named(check_refusal, row):
    brief = [a for a in BRIEF if a.partition("=")[0] not in row and "callbacks." not in row]
    scheduler = [] if "lr_scheduler" in row else ["lr_scheduler=constant"]
    check_refusal([*brief, *scheduler, *row.split("|")], (KINDS | RANGES)[row])


@pytest.mark.parametrize("row", NODES, ids=lambda row: row[:50])
def test_a_wrong_node_is_named(check_refusal, tmp_path, row):
    for name in "ab":
        (tmp_path / name).touch()
    fit = "task=" not in row
    short = [*BRIEF[:-1], "lr_scheduler=constant"] if fit else []
    check_refusal([*short, *row.split("|")], NODES[row])


@pytest.mark.parametrize("row", GRAMMAR, ids=lambda row: ascii(row[:40]))
def test_a_syntax_error_gets_one_message_from_hydra(check_refusal, row):
    check_refusal(row.split("|"), GRAMMAR[row])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Save a checkpoint after one step."""
    folder = tmp_path_factory.mktemp("trained")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu", max_epochs=1, limit_train_batches=1, limit_val_batches=0,
            logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=folder,
        )  # fmt: skip
        model = SEResNetModule(20, ratio=4, in_channels=1)
        trainer.fit(model, datamodule=DigitsDataModule(batch_size=8))
    trainer.save_checkpoint(folder / "net.ckpt")
    return folder / "net.ckpt"


class Code:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def cut(content, size):
    return content[:size]


def flip(content, where):
    """Invert four bytes, usually of a tensor; torch alone would load the file."""
    changed = bytearray(content)
    changed[where : where + 4] = bytes(255 - byte for byte in changed[where : where + 4])
    return bytes(changed)


def zipped(name, content):
    def make(path):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(name, content)

    return make


BYTES = {
    "one byte": (lambda content: content[:1], "not a checkpoint, or is damaged"),
    "a third": (lambda content: content[: len(content) // 3], "not a checkpoint, or is damaged"),
    "all but a byte": (lambda content: content[:-1], "not a checkpoint, or is damaged"),
    "all but its directory": (
        lambda content: content[:-3000],
        "not a checkpoint, or is damaged",
    ),
    "a wrong byte": (lambda content: flip(content, len(content) // 2), "the checksum of "),
    "zeros": (lambda _: bytes(5000), "not a checkpoint, or is damaged"),
    "noise": (lambda _: random.Random(0).randbytes(5000), "not a checkpoint, or is damaged"),
    "a pickle": (lambda _: pickle.dumps({"state_dict": 3}), "bad.ckpt"),
    "code": (lambda _: pickle.dumps(Code("ran")), "bad.ckpt"),
    "a safetensors header that is too long": (
        lambda _: struct.pack("<Q", 1 << 60) + b'{"a":1}',
        "(safetensors: ",
    ),
    "an invalid safetensors header": (
        lambda _: struct.pack("<Q", 20) + b'{"a": not json      }',
        "(safetensors: ",
    ),
}


@pytest.mark.parametrize("use", ["task=fit|ckpt_path=", "task=test|ckpt_path=", "model.weights="])
@pytest.mark.parametrize("kind", BYTES)
def test_a_damaged_file_is_named(check_refusal, trained, tmp_path, kind, use):
    change, words = BYTES[kind]
    path = tmp_path / "bad.ckpt"
    path.write_bytes(change(trained.read_bytes()))
    if use == "model.weights=" and kind == "a wrong byte":
        pytest.skip("files of other programs may lack checksums")
    check_refusal(f"{use}{path}".split("|"), words)
    assert not (tmp_path / "ran").exists()


def put(*keys_and_value):
    """Return a function that sets a checkpoint's entry at these keys."""
    *keys, last, value = keys_and_value

    def change(checkpoint):
        for key in keys:
            checkpoint = checkpoint[key]
        checkpoint[last] = value

    return change


def drop(*keys):
    *keys, last = keys

    def change(checkpoint):
        for key in keys:
            checkpoint = checkpoint[key]
        del checkpoint[last]

    return change


def first_state(checkpoint):
    checkpoint["optimizer_states"][0]["state"][0]["momentum_buffer"] = torch.zeros(7)


HYPER, DATA = "hyper_parameters", "datamodule_hyper_parameters"
ENTRIES = {
    "fit": {
        "no state_dict": (drop("state_dict"), "but not a Lightning checkpoint"),
        "state_dict as list": (put("state_dict", []), "`state_dict`"),
        "state_dict of numbers": (put("state_dict", "a", 3), "`state_dict`"),
        "state_dict without names": (put("state_dict", 3, torch.zeros(1)), "`state_dict`"),
        "an empty state_dict": (put("state_dict", {}), "parameters differ"),
        "another shape": (put("state_dict", "backbone.conv1.weight", torch.zeros(2)), "conv1"),
        "of another program": (drop("se_lightning"), "not written by a module of se_lightning"),
        "se_lightning as text": (put("se_lightning", "x"), "`se_lightning`"),
        "structure as text": (put("se_lightning", "structure", "x"), "`structure`"),
        "folded as list": (put("se_lightning", "folded", [1]), "`folded`"),
        "folded elsewhere": (
            put("se_lightning", "folded", {"a": "constant"}),
            "not a gate of this network",
        ),
        "no optimizer": (drop("optimizer_states"), "no optimizer"),
        "optimizer as text": (put("optimizer_states", "x"), "`optimizer_states`"),
        "optimizer of nothing": (put("optimizer_states", []), "`optimizer_states`"),
        "optimizer without groups": (drop("optimizer_states", 0, "param_groups"), "`optimizer_s"),
        "optimizer of other shapes": (first_state, "`optimizer_states`"),
        "no schedulers": (drop("lr_schedulers"), "`lr_schedulers`"),
        "no loops": (drop("loops"), "`loops`"),
        "loops empty": (put("loops", {}), "`loops`"),
        "loops garbage": (put("loops", {"fit_loop": {"state_dict": 3}}), "`loops`"),
        "callbacks garbage": (put("callbacks", {"x": 3}), "`callbacks`"),
        "no epoch": (drop("epoch"), "`epoch`"),
        "no version": (drop("pytorch-lightning_version"), "`pytorch-lightning_version`"),
        "an invalid version": (
            put("pytorch-lightning_version", "abc"),
            "`pytorch-lightning_version`",
        ),
    },
    "test": {
        "module as number": (put("se_lightning", "module", 3), "`module`"),
        "no module": (drop("se_lightning", "module"), "was written by None"),
        "another module": (
            put("se_lightning", "module", "SEDenseNetModule"),
            "rebuild the SEDenseNet",
        ),
        "no such module": (put("se_lightning", "module", "Nope"), "was written by Nope"),
        "a foreign datamodule": (put("se_lightning", "datamodule", "Nope"), "trained on Nope"),
        "datamodule as list": (put("se_lightning", "datamodule", [1]), "was trained on [1]"),
        "hyper-parameters as text": (put(HYPER, "abc"), f"`{HYPER}`"),
        "hyper-parameters as None": (put(HYPER, None), f"`{HYPER}`"),
        "no hyper-parameters": (drop(HYPER), "Cannot rebuild the SEResNetModule"),
        "unknown hyper-parameters": (put(HYPER, "nope", 3), "no option `nope`"),
        "hyper-parameters without names": (put(HYPER, 3, 4), f"`{HYPER}`"),
        "wrong hyper-parameters": (put(HYPER, "depth", "x"), "There is no SE-ResNet of depth 'x'"),
        "hyper-parameters of another net": (put(HYPER, "ratio", 8), "Cannot rebuild the SERes"),
        "data's hyper-parameters as text": (put(DATA, "x"), f"`{DATA}`"),
        "data's unknown hyper-parameters": (put(DATA, "nope", 3), "'nope'"),
        "a list": (lambda _: [1], "but not a Lightning checkpoint"),
        "a tensor": (lambda _: torch.zeros(2), "but not a Lightning checkpoint"),
    },
}


@pytest.mark.parametrize(("task", "kind"), [(t, k) for t, kinds in ENTRIES.items() for k in kinds])
def test_a_checkpoint_with_wrong_entries_is_named(check_refusal, trained, tmp_path, task, kind):
    change, words = ENTRIES[task][kind]
    checkpoint = torch.load(trained, weights_only=True)
    changed = change(checkpoint)
    path = tmp_path / "bad.ckpt"
    torch.save(checkpoint if changed is None else changed, path)
    check_refusal([f"task={task}", f"ckpt_path={path}"], words)


def test_a_zip_with_code_is_refused_and_not_executed(check_refusal, tmp_path):
    path, ran = tmp_path / "bad.ckpt", tmp_path / "ran"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Code(ran)))
        file.writestr("archive/version", "3")
    check_refusal(["task=test", f"ckpt_path={path}"], str(path))
    assert not ran.exists()


CONFIGS = {
    "tabs": ("defaults:\n\t- train\n", "found character '\\t'"),
    "twice": ("defaults:\n  - train\n  - _self_\nseed: 1\nseed: 2\n", "found duplicate key seed"),
    "list": ("- a\n- b\n", "'list'"),
    "unfinished": ("model: {ratio: 8\n", "unfinished.yaml"),
    "nowhere": ("defaults:\n  - nope\n", "nope"),
    "code": ("a: !!python/object/apply:os.mkdir ['ran']\n", "could not determine a constructor"),
    "loop": ("defaults:\n  - loop\n", "includes itself"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_broken_config_file_is_named(check_refusal, tmp_path, name):
    text, words = CONFIGS[name]
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / f"{name}.yaml").write_text(text)
    check_refusal(["--config-dir", str(tmp_path / "conf"), "--config-name", name], words)
    assert not (tmp_path / "ran").exists()


EXPERIMENTS = {
    "unknown": ("model:\n  ratioo: 3\n", "ratioo"),
    "top": ("nope: 3\n", "nope"),
    "option": ("defaults:\n  - override /model: nope\n", "model/nope"),
    "group": ("defaults:\n  - override /nope: nope\n", "nope"),
    "text": ("model: hello\n", "model"),
    "cycle": ("model:\n  ratio: ${model.divisor}\n  divisor: ${model.ratio}\n", "Recursive interp"),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_broken_experiment_is_named(check_refusal, tmp_path, name):
    text, words = EXPERIMENTS[name]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    check_refusal(["--config-dir", str(tmp_path), f"experiment={name}"], words)


def huge_png():
    """A PNG whose header claims 100,000 x 100,000 pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)

    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


# Files of a run that has started before its data turns out to be malformed.
STARTED = ("config.yaml", "hydra.yaml", "overrides.yaml", "result.json", "se_lightning.log")
STARTED += ("hparams.yaml", "metrics.csv")
IMAGES = {
    "empty": (lambda _: b"", "empty file"),
    "cut": (lambda content: content[: len(content) // 2], "cannot be read"),
    "text": (lambda _: b"hello", "cannot be read"),
    "html": (lambda _: b"<html>404</html>", "cannot be read"),
    "bomb": (lambda _: huge_png(), "cannot be read"),
    "noise": (lambda content: content[:4] + random.Random(1).randbytes(400), "cannot be read"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_that_cannot_be_read_is_named(check_refusal, image_root, kind):
    change, words = IMAGES[kind]
    for path in (image_root / "train").rglob("*.jpg"):  # any of them may come first
        path.write_bytes(change(path.read_bytes()))
    data = ("data=image_folder", f"data.root={image_root}", "data.num_workers=0")
    sizes = ("data.image_size=32", "data.batch_size=4", "lr_scheduler=constant", "logger=csv")
    check_refusal(
        [*data, *sizes, *BRIEF[:1], *BRIEF[3:], "trainer.num_sanity_val_steps=0"],
        words,
        kept=STARTED,
    )


def test_unusual_images_are_read(run_main, image_root):
    one, two, three, *_ = sorted((image_root / "train").rglob("*.jpg"))
    Image.new("CMYK", (40, 30)).save(one, "JPEG")
    Image.new("RGB", (1, 1)).save(two, "JPEG")
    Image.new("L", (30, 40)).save(three, "PNG")  # with the wrong suffix
    data = ("data=image_folder", f"data.root={image_root}", "data.num_workers=0")
    sizes = ("data.image_size=32", "data.batch_size=12", "lr_scheduler=constant")
    code, error = run_main(*data, *sizes, BRIEF[0], *BRIEF[2:])
    assert code == 0, error


def folders(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(root / name / f"{number}.png")


TREES = {
    "nothing": ((), "has no class folders"),
    "one class": (("train/cat", "val/cat"), "class"),
    "other classes in val": (("train/cat", "train/dog", "val/cat", "val/eel"), "eel"),
}


@pytest.mark.parametrize("kind", TREES)
def test_folders_that_are_not_a_data_set_are_named(check_refusal, tmp_path, kind):
    names, words = TREES[kind]
    (tmp_path / "data").mkdir()
    folders(tmp_path / "data", *names)
    check_refusal(
        ["data=image_folder", f"data.root={tmp_path / 'data'}", "data.image_size=32"], words
    )


@pytest.mark.parametrize("data", ["mnist", "cifar10", "image_folder", "imagenet"])
def test_a_root_that_is_a_file_is_named(check_refusal, tmp_path, data):
    (tmp_path / "file").write_text("hello")
    check_refusal([f"data={data}", f"data.root={tmp_path / 'file'}"], str(tmp_path / "file"))


IDX = {
    "magic": (lambda raw: b"\1\2\3\4" + raw[4:], "train-labels"),
    "short": (lambda raw: raw[:-5], "train-labels"),
    "long": (lambda raw: raw + b"\0\0", "train-labels"),
    "header": (lambda raw: raw[:6], "train-labels"),
    "label": (lambda raw: raw[:-1] + b"\x0b", "has the label 11"),
    "fewer": (lambda raw: raw[:4] + struct.pack(">I", 119) + raw[8:-1], "do not match: "),
    "claim": (lambda raw: raw[:4] + struct.pack(">I", 2**32 - 1) + raw[8:], "train-labels"),
    "empty": (lambda raw: b"", "train-labels"),
}


@pytest.mark.parametrize("kind", IDX)
def test_a_malformed_idx_file_is_named(check_refusal, idx_root, kind):
    change, words = IDX[kind]
    path = idx_root / "train-labels-idx1-ubyte"
    path.write_bytes(change(path.read_bytes()))
    check_refusal(["data=mnist", f"data.root={idx_root}", "data.val_size=20"], words)


@pytest.mark.parametrize("size", ["1000000000", "1e9", "0", "-1", "120", "x"])
def test_an_impossible_validation_size_is_named(check_refusal, idx_root, size):
    check_refusal(["data=mnist", f"data.root={idx_root}", f"data.val_size={size}"], "`val_size` (=")


PICKLES = {
    "code": lambda path: Code(path),
    "a list": lambda _: [1],
    "no labels": lambda _: {"data": np.zeros((3, 3072), np.uint8)},
    "numbers": lambda _: {"data": 3, "labels": 4},
    "floats": lambda _: {"data": np.zeros((3, 3072)), "labels": [0, 1, 2]},
    "another shape": lambda _: {"data": np.zeros((3, 7), np.uint8), "labels": [0, 1, 2]},
    "fewer labels": lambda _: {"data": np.zeros((3, 3072), np.uint8), "labels": [0]},
    "a label": lambda _: {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 99]},
    "labels of text": lambda _: {"data": np.zeros((2, 3072), np.uint8), "labels": ["a", "b"]},
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_malformed_cifar_pickle_is_named(check_refusal, tmp_path, kind):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    content = pickle.dumps(PICKLES[kind](tmp_path / "ran"))
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch", "batches.meta"]
    for name in names:
        (folder / name).write_bytes(content)
    check_refusal(["data=cifar10", f"data.root={tmp_path}"], "cifar-10-batches-py")
    assert not (tmp_path / "ran").exists()


VALUES = ["-1", "0", "1", "1.5", "nan", "inf", "null", "true", "x", "[]", "[1]", "[[]]", "{}", "''"]
VALUES += ["{a: 1}", "'${nope}'", "1e9", "99999999999999999999", "\u2603", "'", "[", "--", "a b"]
KEYS = ["seed", "ckpt_path", "model.ratio", "model.depth", "model.stages", "model.gate"]
KEYS += ["model.label_smoothing", "model.weights", "model.freeze", "model.num_classes", "model"]
KEYS += ["data.batch_size", "data.num_workers", "data.mixup", "data.color_jitter", "data"]
KEYS += ["optimizer.lr", "optimizer.momentum", "optimizer.weight_decay", "lr_scheduler.factor"]
KEYS += ["trainer.max_epochs", "trainer.devices", "trainer.precision", "trainer.max_time"]
KEYS += ["trainer.limit_val_batches", "trainer.val_check_interval", "trainer.profiler"]
# Valid values that would make a run endless.
ENDLESS = [("trainer.max_epochs", "-1"), ("trainer.max_epochs", "null")]
ENDLESS += [(key, value) for key in ("trainer.max_epochs",) for value in VALUES if "9" in value]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(60))
def test_any_override_runs_or_is_refused(run_main, tmp_path, seed):
    draw = random.Random(seed)
    key, value = draw.choice([(k, v) for k in KEYS for v in VALUES if (k, v) not in ENDLESS])
    brief = [a for a in BRIEF if a.partition("=")[0] != key]
    code, error = run_main(*brief, "lr_scheduler=constant", f"{key}={value}")
    assert "Traceback" not in error, (key, value)
    assert code in (0, 1), (key, value)
    assert code == 0 or "se_lightning: error: " in error, (key, value)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(40))
def test_any_damage_to_a_checkpoint_is_reported(run_main, trained, tmp_path, seed):
    draw = random.Random(seed)
    content = bytearray(trained.read_bytes())
    start, size = draw.randrange(len(content)), draw.choice((1, 2, 8, 100, 5000))
    if draw.random() < 0.5:
        content[start : start + size] = draw.randbytes(size)
    else:
        del content[start : start + size]
    path = tmp_path / "bad.ckpt"
    path.write_bytes(content)
    code, error = run_main("task=test", f"ckpt_path={path}", *BRIEF[3:])
    assert "Traceback" not in error
    # Damage between the parts of the zip leaves the checkpoint as it was.
    assert code == 0 or str(path) in error.rpartition("se_lightning: error: ")[2]
