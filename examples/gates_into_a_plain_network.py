"""Insert gates into a plain network trained on digits, and train only the gates.

python examples/gates_into_a_plain_network.py

The gates start as an exact identity, so inserting them does not change the accuracy.
"""

import argparse
import logging
import warnings
from functools import partial

import pytorch_lightning as pl
import torch

from se_lightning import DigitsDataModule, ImageClassifier
from se_lightning.models import add_excitation, se_resnet20
from se_lightning.modules.optim import cosine


def trainer(**options: object) -> pl.Trainer:
    """Return a quiet trainer that writes no files."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(**quiet, enable_checkpointing=False, **options)


def train(network: torch.nn.Module, epochs: int, freeze: str | None = None) -> None:
    """Train the parameters that are not frozen."""
    model = ImageClassifier(
        network,
        num_classes=10,
        freeze=freeze,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
        lr_scheduler=cosine,
    )
    trainer(max_epochs=epochs).fit(model, datamodule=DigitsDataModule())


def accuracy(network: torch.nn.Module) -> str:
    """Return the test accuracy in percent."""
    model = ImageClassifier(network, num_classes=10)
    (metrics,) = trainer().test(model, datamodule=DigitsDataModule(), verbose=False)
    return f"{100 * metrics['test/acc1']:.2f} %"


def main() -> None:
    """Train the network, insert gates, train the gates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2, help="epochs of the plain network")
    parser.add_argument("--gate-epochs", type=int, default=3, help="epochs of the gates")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*many workers|.*LeafSpec|.*logging interval")
    pl.seed_everything(arguments.seed, verbose=False)

    network = se_resnet20(gate="none", in_channels=1)  # ResNet-20
    train(network, arguments.epochs)
    print(f"plain: {accuracy(network)}", flush=True)
    add_excitation(network, "residual", ratio=4, image=torch.zeros(1, 1, 32, 32))
    print(f"with inserted gates: {accuracy(network)}", flush=True)
    train(network, arguments.gate_epochs, freeze="all_but_gates")
    print(f"after training them: {accuracy(network)}")


if __name__ == "__main__":
    main()
