"""What a forward pass returns: fields, shapes and types, and all that a `ModelOutput` can do."""

import pickle
from dataclasses import fields, make_dataclass

import pytest
import torch
from tiny import CLASSES, ROWS, build, padded_batch
from torch.utils import _pytree
from transformers.utils import ModelOutput

from modeling_romebert.modeling_romebert import RomeBertClassifierOutput

ENTROPY = {"name": "entropy", "threshold": 0.6}
# The same fields, with the library's own way to set them.
Plain = make_dataclass(
    "Plain", [(field.name, object, None) for field in fields(RomeBertClassifierOutput)], bases=(ModelOutput,)
)
Plain.__module__ = __name__


@pytest.mark.parametrize("policy", [None, ENTROPY], ids=["full", "policy"])
@torch.no_grad()
def test_output_types(policy):
    model, (ids, mask) = build(), padded_batch()
    output = model(ids, mask, exit_policy=policy)
    assert (output.logits.shape, output.logits.dtype) == ((ROWS, CLASSES), torch.float32)
    assert (output.exit_layer.shape, output.exit_layer.dtype) == ((ROWS,), torch.int64)
    assert (output.exit_logits is None) == (policy is not None)
    assert output.loss is None and output.hidden_states is None and output.attentions is None
    in_order = model(ids, mask, exit_policy=policy, return_dict=False)
    assert len(in_order) == len(output.to_tuple()) == (3 if policy is None else 2)
    assert all(torch.equal(one, other) for one, other in zip(in_order, output.to_tuple(), strict=True))


@torch.no_grad()
def test_a_text_alone_has_the_same_fields_and_types():
    model, (ids, mask) = build(), padded_batch()
    every, alone = model(ids, mask, exit_policy=ENTROPY), model(ids[:1, : mask[0].sum()], exit_policy=ENTROPY)
    assert list(alone) == list(every)
    assert [(value.dtype, value.shape[1:]) for value in alone.values()] == [
        (value.dtype, value.shape[1:]) for value in every.values()
    ]


def built(kind):
    """Outputs of a class, each made or changed in another way."""
    logits, layers, loss = torch.ones(2, 3), torch.tensor([1, 2]), torch.tensor(0.5)
    made = kind(logits=logits, exit_layer=layers)
    changed = kind(logits=logits)
    changed.loss, changed["exit_layer"], changed.note = loss, layers, "no field"
    emptied = kind(loss=loss, logits=logits)
    emptied.loss = None
    leaves, structure = _pytree.tree_flatten(made)
    return [
        kind(),
        kind(loss, logits),  # by position
        made,
        changed,
        emptied,
        kind({"logits": logits, "exit_layer": layers}),  # as accelerate rebuilds one
        pickle.loads(pickle.dumps(made)),
        _pytree.tree_unflatten(leaves, structure),
    ]


def told(output):
    """All that can be seen of an output, as plain values."""
    attributes = {field.name: getattr(output, field.name) for field in fields(output)}
    return str(
        [list(output.items()), output.to_tuple(), attributes, len(output), getattr(output, "note", None)]
    )


def test_outputs_are_those_of_the_library():
    assert [told(output) for output in built(RomeBertClassifierOutput)] == [
        told(output) for output in built(Plain)
    ]
