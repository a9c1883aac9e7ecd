"""The oracle of early exit: each row of a batch through the model alone, and what each layer was given."""

import torch
from torch import Tensor


@torch.no_grad()
def one_by_one(model, ids, mask, policy) -> tuple[Tensor, Tensor]:
    """Logits (B, C) and exit layers (B,) of every row alone, without padding."""
    outputs = [
        model(row[attended == 1].unsqueeze(0), exit_policy=policy)
        for row, attended in zip(ids, mask, strict=True)
    ]
    return torch.cat([output.logits for output in outputs]), torch.cat(
        [output.exit_layer for output in outputs]
    )


def assert_same(batch, logits, exit_layer):
    assert torch.equal(batch.exit_layer, exit_layer)
    assert torch.equal(batch.logits.argmax(dim=-1), logits.argmax(dim=-1))
    torch.testing.assert_close(batch.logits, logits, rtol=0, atol=1e-5)


class LayerLog:
    """Rows and tokens (b, t) that each layer of a model was given."""

    def __init__(self, model):
        self.seen = []
        for layer in model.layers:
            layer.register_forward_pre_hook(lambda _, inputs: self.seen.append(tuple(inputs[0].shape[:2])))
