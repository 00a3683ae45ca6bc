import pytest
import timm
import torch
from torch import nn

from se_lightning.excitation import replaced, what_if
from se_lightning.excitation.what_if import stages
from se_lightning.models import SpatialExcitation, SqueezeExcitation, find_gates, se_resnet20


class Net(nn.Module):
    """Two consecutive gates, and logits that depend on both."""

    def __init__(self, kind="channel"):
        super().__init__()
        torch.manual_seed(3)
        make = SpatialExcitation if kind == "spatial" else SqueezeExcitation
        options = {"squeeze": "none"} if kind == "pixels" else {}
        self.a, self.b = make(6, **options), make(6, **options)
        for se in (self.a, self.b):
            for parameter in se.parameters():
                nn.init.normal_(parameter, std=2)
        self.fc = nn.Linear(6, 3)

    def forward(self, x, change_a=lambda g: g, change_b=lambda g: g):
        for se, change in ((self.a, change_a), (self.b, change_b)):
            if isinstance(se, SpatialExcitation):
                gate = se.gate(se.conv(x))
            else:
                z = x if se.squeeze == "none" else x.mean((2, 3), keepdim=True)
                gate = se.gate(se.fc2(se.act(se.fc1(z))))
            x = x * change(gate)
        return self.fc(x.mean((2, 3)))


class Hooked(Net):
    """The same network, calling its modules so that hooks work."""

    def forward(self, x):
        return self.fc(self.b(self.a(x)).mean((2, 3)))


def data(samples=60):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, 6, 2, 3, generator=generator)
    labels = torch.arange(samples) % 3
    return images + 2 * nn.functional.one_hot(labels, 6)[..., None, None], labels


def gates_of(net, images):
    found = {}
    net(images, *(lambda g, k=k: found.setdefault(k, g) for k in "ab"))
    return found


def by_hand(net, images, labels, block, change):
    changes = [change[k] if block in (k, "all blocks") else (lambda g: g) for k in "ab"]
    return (net(images, *changes).argmax(1) == labels).double().mean().item()


def channels_mean(gates):
    return gates.double().mean((0, 2, 3), keepdim=True).float()


@pytest.mark.parametrize("kind", ["channel", "spatial", "pixels"])
@torch.no_grad()
def test_each_accuracy_equals_that_of_a_forward_pass_written_by_hand(kind):
    net, hooked = Net(kind).eval(), Hooked(kind).eval()
    images, labels = data()
    gates = gates_of(net, images)
    chunks = (images.split(25), labels.split(25))
    rows = what_if(hooked, lambda: zip(*chunks, strict=True), 3, seed=5)
    assert (rows[0].block, rows[0].replacement, rows[0].drop) == ("", "none", 0)
    assert rows[0].acc1 == pytest.approx((net(images).argmax(1) == labels).double().mean().item())

    def class_mean(gate):
        means = torch.stack([channels_mean(gate[labels == k])[0] for k in range(3)])
        return lambda g: means[labels].expand_as(g)

    expected = {
        "one": dict.fromkeys("ab", torch.ones_like),
        "data_mean": {k: lambda g, k=k: channels_mean(gates[k]).expand_as(g) for k in "ab"},
        "class_mean": {k: class_mean(gates[k]) for k in "ab"},
    }
    found = {(row.block, row.replacement): row for row in rows[1:]}
    blocks = ("a", "b", "all blocks")
    assert list(found) == [(b, r) for b in blocks for r in [*expected, "shuffle"]]
    for block in blocks:
        for name, change in expected.items():
            row = found[block, name]
            assert row.acc1 == pytest.approx(by_hand(net, images, labels, block, change))
            assert row.drop == pytest.approx(rows[0].acc1 - row.acc1)
            assert row.samples == 60
    # The replacements must matter; otherwise a no-op would pass.
    assert len({row.acc1 for row in rows}) > 3


@torch.no_grad()
def test_shuffled_gates_belong_to_another_image_of_the_batch():
    net, seen = Hooked().eval(), []
    images, labels = data(12)
    gates = gates_of(Net().eval(), images)["a"]

    def spy(module, inputs, output):
        seen.append(output / inputs[0])

    net.a.register_forward_hook(spy)
    batches = list(zip(images.split(6), labels.split(6), strict=True))
    what_if(net, lambda: batches, 3, ["shuffle"])
    # Two batches for the means, then a, b and both for each batch.
    for batch, first in ((0, 2), (1, 5)):
        own = gates[6 * batch : 6 * batch + 6]
        shown = seen[first].mean((2, 3), keepdim=True)
        donors = [
            next(j for j in range(6) if torch.allclose(shown[i], own[j], atol=1e-5))
            for i in range(6)
        ]
        assert sorted(donors) == list(range(6))
        assert all(donor != i for i, donor in enumerate(donors))
        torch.testing.assert_close(seen[first + 1], own.expand_as(images[:6]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen[first + 2], seen[first])  # the same donors for all blocks


def test_replacing_a_constant_gate_by_its_mean_or_another_images_has_no_effect():
    net = Hooked().eval()
    for se in (net.a, net.b):
        nn.init.zeros_(se.fc2.weight)
    images, labels = data()
    rows = what_if(net, lambda: [(images, labels)], 3, ["data_mean", "class_mean", "shuffle"])
    assert [row.drop for row in rows] == [0] * 10


def test_results_are_reproducible_and_no_hooks_are_left():
    net = Hooked().eval()
    images, labels = data()
    batches = list(zip(images.split(7), labels.split(7), strict=True))
    assert what_if(net, lambda: batches, 3) == what_if(net, lambda: iter(batches), 3)
    assert not any(module._forward_hooks for module in net.modules())
    assert not any(hasattr(module, "_tapped") for module in net.modules())


def test_gates_of_timm_can_be_replaced():
    net = timm.create_model("seresnet18", num_classes=3).eval()
    images = torch.randn(4, 3, 32, 32)
    plain = timm.create_model("resnet18", num_classes=3).eval()
    plain.load_state_dict(net.state_dict(), strict=False)
    with replaced(net, dict.fromkeys(find_gates(net), torch.ones_like)), torch.no_grad():
        torch.testing.assert_close(net(images), plain(images))


@pytest.mark.slow
def test_gates_of_a_compiled_network_can_be_replaced():
    net = se_resnet20(ratio=4).eval()
    images = torch.randn(2, 3, 32, 32)
    net.compile()
    with torch.no_grad():
        before = net(images)
        with replaced(net, {"layer3.2.se": torch.zeros_like}):
            assert not torch.allclose(net(images), before, atol=1e-3)
        torch.testing.assert_close(net(images), before)


def test_invalid_arguments_are_refused():
    net, batch = Hooked(), [data()]
    with pytest.raises(ValueError, match=r"`replacements` \(='two'\) must be one of one"):
        what_if(net, lambda: batch, 3, ["two"])
    with pytest.raises(ValueError, match="`replacements` must name at least one"):
        what_if(net, lambda: batch, 3, [])
    with pytest.raises(ValueError, match=r"\(=Linear\) has no squeeze-and-excitation gates"):
        what_if(nn.Linear(2, 3), lambda: batch, 3)
    with pytest.raises(ValueError, match="`batches` must contain at least one image"):
        what_if(net, list, 3)
    with (
        pytest.raises(ValueError, match=r"no gate 'c'\. Gates: a, b"),
        replaced(net, {"c": abs}),
    ):
        pass


class Ones(nn.Module):
    def forward(self, x):
        return torch.ones_like(x)


@torch.no_grad()
def test_all_blocks_of_a_stage_are_replaced_at_once():
    net = se_resnet20(ratio=4, num_classes=3).eval()
    images, labels = torch.rand(24, 3, 32, 32), torch.arange(24) % 3
    rows = what_if(net, lambda: [(images, labels)], 3, ["one"])
    found = {row.block: row for row in rows}
    assert [row.gates for row in rows] == [1] * 10 + [3] * 3 + [9]

    def right():
        return (net(images).argmax(1) == labels).double().mean().item()

    for block in net.layer1:
        block.se.gate = Ones()
    assert found["layer1"].acc1 == pytest.approx(right())
    for block in (*net.layer2, *net.layer3):
        block.se.gate = Ones()
    assert found["all blocks"].acc1 == pytest.approx(right())


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        (["layer1.0.se", "layer1.1.se", "layer2.0.se"], ["layer1", "layer2"]),
        (["n.blocks.0.0.se", "n.blocks.1.0.se", "n.blocks.1.1.se"], ["n.blocks.0", "n.blocks.1"]),
        (["a.se", "b.se"], []),
        (["se"], []),
        (["layer1.0.se", "layer1.1.se"], []),
    ],
)
def test_stages_are_groups_of_paths_with_a_common_prefix(layers, found):
    assert list(stages(layers)) == found
