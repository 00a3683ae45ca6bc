import pytest
import torch

from se_lightning.models import SqueezeExcitation


def _gates_by_hand(model, batches):
    gates, labels, handles = {}, [], []
    for path, module in model.named_modules():
        if isinstance(module, SqueezeExcitation):
            handles.append(
                module.gate.register_forward_hook(
                    lambda m, i, o, path=path: gates.setdefault(path, []).append(o.flatten(1))
                )
            )
    model.eval()
    with torch.no_grad():
        for images, each in batches:
            model(images)
            labels.append(each)
    for handle in handles:
        handle.remove()
    found = {path: torch.cat(each).double().numpy() for path, each in gates.items()}
    return found, torch.cat(labels).numpy()


@pytest.fixture
def gates_by_hand():
    """Return the gates, (N, C) by path, and the labels, from a separate pass over batches."""
    return _gates_by_hand
