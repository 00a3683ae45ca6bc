"""A callback for the runs of the chaos test: it kills its own process inside a save.

The environment says when: ``CHAOS_SAVE=3:writing`` is in the third save, half of it written.
"""

import io
import os
import signal

import pytorch_lightning as pl
import torch

STAGES = ("writing", "written", "replaced")


class KillInSave(pl.Callback):
    def setup(self, trainer, pl_module, stage):
        told = os.environ.pop("CHAOS_SAVE", "")  # once, and in rank 0 alone
        if not told or not trainer.is_global_zero:
            return
        number, stage = told.split(":")
        self.left = int(number)
        save, replace = torch.save, os.replace

        def saving(content, file):
            self.left -= 1
            if self.left == 0 and stage == "writing":
                buffer = io.BytesIO()
                save(content, buffer)
                file.write(buffer.getvalue()[: buffer.tell() // 2])
                file.flush()
                die()
            save(content, file)

        def replacing(source, target, **options):
            ours = self.left == 0 and str(target).endswith(".ckpt")
            if ours and stage == "written":
                die()
            replace(source, target, **options)
            if ours:
                die()

        torch.save, os.replace = saving, replacing


def die():
    os.kill(os.getpid(), signal.SIGKILL)
