"""A user's callback that draws random numbers, for chaos runs; imported by the runs."""

import random

import numpy as np
import pytorch_lightning as pl


class Noise(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        self.factor = 0.5 + random.random()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for parameter in pl_module.parameters():
            parameter.grad.mul_(self.factor * np.random.rand())  # noqa: NPY002 - as users do
