"""``compile=``: compiling the network when the run starts, and messages if that fails."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from torch import nn

from se_lightning.cli.schema import make
from se_lightning.modules.compiled import check_compiler, is_compiled

__all__ = ["CompileNetwork", "explained"]


class CompileNetwork(pl.Callback):
    """Compiles the module's ``backbone`` in each process, after other callbacks added their hooks.

    Args:
        node: The node ``compile`` of the config.
    """

    def __init__(self, node: DictConfig) -> None:
        self.backend = node.get("backend", "inductor")
        self.compile: Callable[[nn.Module], None] = make(node, "compile", Callable)  # type: ignore[arg-type]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compile the network, unless an earlier stage did.

        Raises:
            ValueError: If the network or this machine does not allow it.
        """
        network = getattr(pl_module, "backbone", None)
        if not isinstance(network, nn.Module):
            raise ValueError(
                f"`compile` compiles the `backbone` of a module, which {type(pl_module).__name__} "
                "does not have: compile it in its constructor, and leave out compile=."
            )
        if not is_compiled(network):
            check_compiler(trainer.strategy.root_device, self.backend)
            self.compile(network)


@contextlib.contextmanager
def explained(cfg: DictConfig) -> Iterator[None]:
    """Replace torch's errors about compiling in the block with one message.

    Raises:
        ValueError: If the network cannot be compiled.
    """
    if cfg.get("compile") is None:
        yield
        return
    from torch._dynamo import exc

    kinds: tuple[Any, ...] = (exc.TorchDynamoException, exc.FailOnRecompileLimitHit)
    try:
        yield
    except kinds as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(
            f"The network cannot be compiled: {' '.join(lines[:3])[:500]} Leave out compile=; "
            "HYDRA_FULL_ERROR=1 shows where it fails."
        ) from error
