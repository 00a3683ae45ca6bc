"""Fine-tuning from the command line: published weights, inserted gates and frozen parts."""

import re
import sys
from pathlib import Path

import pytest
import timm
import torch
from omegaconf import OmegaConf

from se_lightning.cli.run import build


def test_gates_are_trained_into_a_plain_network(cli, short, tmp_path, result):
    """The two commands of docs/commands.md; only the gates change."""
    cli(*short, "model.gate=none", "logger=csv", "hydra.run.dir=plain")
    best = tmp_path / "plain" / "checkpoints" / "best.ckpt"
    options = ["model.gate_activation=double-sigmoid", "model.freeze=all_but_gates"]
    done = cli(*short, *options, f"model.weights={best}", "logger=csv", "hydra.run.dir=gated")
    assert re.search(
        rf"{best}, se_lightning's layout: 128 tensors loaded; 36 kept as they were \(layer1\.0\.se",
        done.stdout + done.stderr,
    )
    plain = torch.load(best, weights_only=True)["state_dict"]
    gated = torch.load(tmp_path / "gated" / "checkpoints" / "last.ckpt", weights_only=True)
    for key, tensor in plain.items():
        assert torch.equal(gated["state_dict"][key], tensor), key
    assert gated["state_dict"]["backbone.layer1.0.se.fc2.weight"].any()
    assert gated["hyper_parameters"]["freeze"] == "all_but_gates"
    best.unlink()  # the checkpoint must not depend on it
    again = tmp_path / "gated" / "checkpoints" / "last.ckpt"
    cli("task=test", f"ckpt_path={again}", "logger=csv", "trainer.limit_test_batches=1")


@pytest.mark.parametrize(
    ("library", "rule", "gates"),
    [("torchvision", "residual", 8), ("timm", "stages", 4)],
)
@pytest.mark.slow
def test_gates_are_trained_in_a_network_of_another_library(
    cli, short, tmp_path, result, library, rule, gates
):
    network = [f"model={library}", "model.name=resnet18", f"model.add_gates={rule}"]
    cli(*short, *network, "model.ratio=8", "logger=csv", "hydra.run.dir=run", "data.batch_size=8")
    found = result(tmp_path / "run")
    assert (found["model"], found["gates"]) == (f"{library} resnet18", gates)
    assert set(found["hidden_widths"].values()) == {8, 16, 32, 64}
    assert (tmp_path / "run" / "excitation" / "histogram.png").exists()
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    cli("task=test", f"ckpt_path={best}", "logger=csv", "hydra.run.dir=test")
    tested = result(tmp_path / "test")
    assert tested["parameters"] == found["parameters"]


def test_published_weights_are_loaded_from_the_command_line(cli, short, tmp_path):
    torch.save(timm.create_model("seresnet18", in_chans=1).state_dict(), tmp_path / "timm.pth")
    done = cli(
        *short, "model=se_resnet18", "model.divisor=8", "model.weights=timm.pth",
        "model.freeze=backbone", "model.layer_decay=0.5", "model.grad_checkpointing=true",
        "logger=csv", "hydra.run.dir=run",
    )  # fmt: skip
    assert "timm.pth, timm's layout: 152 tensors loaded; 2 left out" in done.stdout + done.stderr
    trained = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    state = torch.load(tmp_path / "timm.pth", weights_only=True)
    for key, tensor in state.items():
        if not key.startswith("fc."):
            assert torch.equal(trained["state_dict"][f"backbone.{key}"], tensor), key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.weights=nowhere.pth"], "model: `weights` (=nowhere.pth) is not a file"),
        (["model.weights=page.pth"], "page.pth is not a checkpoint, or is damaged: it is a web p"),
        (["model.weights=other.pth"], "other.pth (timm's layout) does not match this model"),
        (["model.weights=other.pth", "ckpt_path=other.pth"], "both set the initial weights"),
        (["model.freeze=gates"], "`freeze` (='gates') must be one of backbone, norms, all_but_"),
        (["model.freeze=all_but_gates", "model.gate=none"], "leaves nothing to train"),
        (["model=torchvision"], "Missing mandatory value: model.name"),
        (["model=torchvision", "model.name=resnet51"], "must be one of torchvision's networks. Ne"),
        (["model=timm", "model.name=resnet51"], "must be one of timm's networks. Nearest: resnet5"),
        (
            ["model=torchvision", "model.name=resnet18", "model.add_gates=layer9.*"],
            "`where` (='layer9.*') matches no place for a gate",
        ),
        (["model=torchvision", "model.name=resnet18", "model.placement=pre"], "model.placement"),
    ],
)
def test_a_mistake_gets_one_message(run_main, tmp_path, arguments, message):
    (tmp_path / "page.pth").write_text("<html>sign in</html>")
    torch.save(timm.create_model("seresnet18").state_dict(), tmp_path / "other.pth")
    code, error = run_main(*arguments)
    assert code == 1
    assert "Traceback" not in error
    assert message in error.rstrip().rpartition("se_lightning: error: ")[2]
    assert not (tmp_path / "outputs").exists() or not any((tmp_path / "outputs").iterdir())


@pytest.mark.slow
def test_the_example_runs(cli, short):
    example = Path(__file__).parents[2] / "examples" / "gates_into_a_plain_network.py"
    done = cli("--gate-epochs", "1", command=[sys.executable, str(example)])
    accuracies = re.findall(r"^(\w[\w ]+): ([\d.]+) %", done.stdout, re.MULTILINE)
    assert [name for name, _ in accuracies] == [
        "plain",
        "with inserted gates",
        "after training them",
    ]
    assert accuracies[0][1] == accuracies[1][1]


@pytest.mark.parametrize(
    ("weights", "ckpt_path", "warned"), [(None, None, 1), ("a.pth", None, 0), (None, "a.ckpt", 0)]
)
def test_freezing_random_weights_causes_a_warning(weights, ckpt_path, warned, caplog):
    model = {"freeze": "backbone", "weights": weights}
    build._check_start(OmegaConf.create({"model": model, "ckpt_path": ckpt_path}))
    assert caplog.text.count("model.freeze=backbone freezes randomly initialized weights") == warned
