"""Checkpoints of a run whose folder was moved or copied."""

from pathlib import Path
from typing import Any

from se_lightning.lightning import MisconfigurationException, ModelCheckpoint, Trainer, TrainerFn

__all__ = ["relocate"]


def relocate(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Point the states of ModelCheckpoints in a loaded checkpoint to where their files are now.

    Lightning saves absolute paths. In a folder that was moved it forgets which epoch was best, and
    from a copy it would test the original's file. A new run that starts from the checkpoint of
    another one has no best epoch yet.

    Args:
        trainer: The trainer; its callbacks have the new folders.
        checkpoint: The loaded checkpoint, changed in place.

    Raises:
        MisconfigurationException: If training continues and the best checkpoint is missing.
    """
    states = checkpoint.get("callbacks", {})
    loaded = Path(trainer.ckpt_path or "").parent.resolve()
    for callback in trainer.checkpoint_callbacks:
        state = states.get(callback.state_key)
        if not isinstance(callback, ModelCheckpoint) or not state or not state.get("dirpath"):
            continue
        folder = Path(callback.dirpath or state["dirpath"])
        if state["dirpath"] != str(folder) and loaded != folder.resolve():
            state.update(callback.state_dict())  # that of a callback which has saved nothing
            continue
        _rewrite(state, Path(state["dirpath"]), folder)
        best = Path(state["best_model_path"] or ".")
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting and callback is trainer.checkpoint_callback and not best.exists():
            raise MisconfigurationException(
                f"{best} is missing, the best checkpoint of the run so far. Copy it back, or start "
                "a new run from the last weights: model.weights=.../last.ckpt"
            )


def _rewrite(state: dict[str, Any], old: Path, new: Path) -> None:
    """Replace the folder of each path in the state."""

    def moved(path: str) -> str:
        inside = path and Path(path).is_relative_to(old)
        return str(new / Path(path).relative_to(old)) if inside else path

    state["dirpath"] = str(new)
    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = moved(state.get(name, ""))
    best = {moved(path): score for path, score in state.get("best_k_models", {}).items()}
    state["best_k_models"] = best
