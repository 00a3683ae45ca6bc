"""A gate is one class and one row of GATES: everything that works on gates works on a new one."""

import inspect
import re
from pathlib import Path

import pytest
import torch
import torchvision
from pytorch_lightning import Trainer
from torch import Tensor, nn

from se_lightning.excitation import excitation_cost, excitations, fold_gates, what_if
from se_lightning.models import (
    Excitation,
    add_excitation,
    find_excitations,
    find_gates,
    hidden_widths,
    load_weights,
    remove_excitation,
    se_densenet40_12,
    se_resnet20,
)
from se_lightning.models.layers.gate_base import ExcitationParts, Gate, start_at_one
from se_lightning.models.layers.gates import ACTIVATIONS, GATES, MERGES, SQUEEZES
from se_lightning.models.weights.structure import structure
from se_lightning.modules import SEResNetModule
from se_lightning.modules.families import FamilyModule

CONF = Path(__file__).parents[3] / "conf"


class EfficientExcitation(Gate):
    """A 1-D convolution over the channels' means (ECA-Net, arXiv:1910.03151)."""

    def __init__(self, channels: int, *, kernel_size: int = 3, gate_activation: str = "sigmoid"):
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.gate = ACTIVATIONS[gate_activation]()
        start_at_one(self)

    def parts(self) -> ExcitationParts:
        return ExcitationParts(self, None, self.conv, self.gate, self.channels)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return x * self.gate(z[..., None, None])


class ReducedExcitation(Gate):
    """A gate with dense layers and a fixed activation."""

    def __init__(self, channels: int, ratio: float = 16):
        super().__init__()
        self.ratio = ratio
        self.down = nn.Linear(channels, max(1, channels // ratio))
        self.up = nn.Linear(max(1, channels // ratio), channels)
        self.act = nn.Sigmoid()

    def parts(self) -> ExcitationParts:
        return ExcitationParts(self, self.down, self.up, self.act)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.act(self.up(self.down(x.mean((2, 3))).relu()))[..., None, None]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(GATES, "eca", EfficientExcitation)
    monkeypatch.setitem(GATES, "reduced", ReducedExcitation)


def test_a_network_is_built_with_a_new_gate_and_its_option():
    network = se_resnet20(gate="eca", kernel_size=5, stages=[2, 3], placement="pre")
    gates = find_excitations(network)
    assert [path for path in gates if path.startswith("layer2")] == [
        "layer2.0.se", "layer2.1.se", "layer2.2.se",
    ]  # fmt: skip
    assert [parts.channels for parts in gates.values()] == [16, 32, 32, 32, 64, 64]
    assert all(parts.expand.kernel_size == (5,) for parts in gates.values())
    assert hidden_widths(network) == {}
    assert structure(network)["layer2.0.se"] == "EfficientExcitation()"
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parts.expand.weight.grad is not None for parts in gates.values())
    assert len(find_gates(se_densenet40_12(gate="eca"))) == 5


def test_hidden_widths_are_found_and_single_units_are_named():
    network = se_resnet20(gate="reduced", ratio=8)
    assert list(dict.fromkeys(hidden_widths(network).values())) == [2, 4, 8]
    with pytest.warns(UserWarning, match=r"ratio=16 leaves one hidden unit in 3 gates \(layer1\."):
        se_resnet20(gate="reduced", ratio=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 5}, r"`kernel_size` \(=5\) applies only to gate=eca\."),
        ({"gate": "eca", "squeeze": "max"}, "applies only to gate=channel or concurrent"),
        ({"gate": "ecca"}, r"`gate` \(='ecca'\) must be one of .*, none, eca, reduced\."),
        ({"kernel": 5}, "SE-ResNet has no option `kernel`. Nearest: kernel_size"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        se_resnet20(**options)
    if "kernel" not in options:
        with pytest.raises(ValueError, match=message):
            Excitation.of(**options)


def test_other_gates_accept_the_option_of_a_new_gate_at_its_default():
    assert se_resnet20(ratio=4, kernel_size=3).layer1[0].se.fc1.out_channels == 4
    assert find_gates(se_resnet20(gate="none", kernel_size=5)) == {}


def test_a_modules_signature_shows_the_option_of_a_new_gate():
    class Module(FamilyModule):
        network = SEResNetModule.network

    parameter = inspect.signature(Module).parameters["kernel_size"]
    assert (parameter.default, parameter.kind) == (3, parameter.KEYWORD_ONLY)
    assert "kernel_size" not in Module(20, ratio=4).hparams


def test_a_checkpoint_with_a_new_gate_loads_only_into_the_same_network(tmp_path):
    options = {"gate": "eca", "gate_activation": "tanh", "kernel_size": 5}
    model = SEResNetModule(20, **options)
    trainer = Trainer(
        max_epochs=0, accelerator="cpu", logger=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, [0])
    trainer.save_checkpoint(tmp_path / "net.ckpt", weights_only=True)
    again = SEResNetModule.load_from_checkpoint(tmp_path / "net.ckpt", weights_only=True)
    assert {name: again.hparams[name] for name in options} == options
    assert repr(again) == repr(model)
    assert not load_weights(se_resnet20(**options), tmp_path / "net.ckpt").kept
    for other in ({**options, "gate_activation": "sigmoid"}, {**options, "kernel_size": 3}, {}):
        with pytest.raises(ValueError, match="does not match this model"):
            load_weights(se_resnet20(**{"ratio": 4, **other}), tmp_path / "net.ckpt")


def test_excitation_tools_work_on_a_new_gate():
    network = se_resnet20(gate="eca").eval()
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6) % 3
    gates = excitations(network, images)
    assert [gates[path].shape[1] for path in list(gates)[::3]] == [16, 32, 64]
    rows = what_if(network, lambda: [(images, labels)], 10, ["one", "class_mean", "shuffle"])
    assert {row.block for row in rows} >= {"layer1.0.se", "layer1", "all blocks"}
    costs = excitation_cost(network, images)
    assert [(cost.channels, cost.hidden, cost.parameters) for cost in costs[::3]] == [
        (16, 0, 3), (32, 0, 3), (64, 0, 3),
    ]  # fmt: skip


def test_a_new_gate_is_inserted_as_an_identity_that_learns_and_can_be_folded():
    network = torchvision.models.resnet18().eval()
    image = torch.randn(2, 3, 64, 64)
    before = network(image)
    add_excitation(network, gate="eca", kernel_size=5)
    assert len(find_gates(network)) == 8
    assert torch.equal(network(image), before)
    network(image).square().sum().backward()
    assert network.layer1[0].bn2.se.conv.weight.grad.any()
    report = fold_gates(network, [image])
    assert set(report.folded.values()) == {"identity"}
    assert torch.equal(network(image), before)
    remove_excitation(network)


def test_a_constant_new_gate_is_folded_into_its_norm():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), EfficientExcitation(4)).eval()
    nn.init.zeros_(network[2].conv.weight)  # a gate of sigmoid(0)
    image = torch.randn(2, 3, 8, 8)
    before = network(image)
    assert fold_gates(network, [image]).folded == {"2": "identity"}  # folded into the norm
    torch.testing.assert_close(network(image), before)


def test_a_gate_that_cannot_start_as_an_identity_is_not_inserted():
    network = torchvision.models.resnet18()
    with pytest.raises(ValueError, match=r"`gate` \(='reduced'\) cannot start as an identity"):
        add_excitation(network, gate="reduced")
    assert find_gates(network) == {}


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("gate", set(GATES)),
        ("squeeze", set(SQUEEZES)),
        ("gate_activation", set(ACTIVATIONS)),
        ("merge", set(MERGES)),
    ],
)
def test_the_comments_of_the_config_list_every_name(option, names):
    lines = (CONF / "model" / "family" / "gates.yaml").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{option}: "))
    assert names <= set(re.findall(r"[a-z-]+", line))
