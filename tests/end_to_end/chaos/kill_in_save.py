"""Callback of the chaos test that kills its own process during a save.

``CHAOS_SAVE=3:writing`` kills it in the third save, with half of the file written.
"""

import io
import os
import signal

import pytorch_lightning as pl
import torch

STAGES = ("writing", "written", "replaced")


class KillInSave(pl.Callback):
    def setup(self, trainer, pl_module, stage):
        setting = os.environ.pop("CHAOS_SAVE", "")  # only once, and only on rank 0
        if not setting or not trainer.is_global_zero:
            return
        number, stage = setting.split(":")
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
            is_target = self.left == 0 and str(target).endswith(".ckpt")
            if is_target and stage == "written":
                die()
            replace(source, target, **options)
            if is_target:
                die()

        torch.save, os.replace = saving, replacing


def die():
    os.kill(os.getpid(), signal.SIGKILL)
