"""Exits asked sparsely at inference: the others are not computed, and what is asked decides as before."""

import pytest
import torch
from tiny import LAYERS, ROWS, build, padded_batch, tiny_rows, tiny_texts, tiny_tokenizer
from transformers import pipeline

from modeling_romebert import calibrate, evaluate_exits, make_policy
from modeling_romebert.evaluation.sweep import replay

CONFIDENCE = {"name": "confidence", "threshold": 0.6}


def computed(model) -> set[int]:
    """Layers whose exit is computed from here on."""
    seen = set()
    for layer, head in model.exits.items():
        head.register_forward_pre_hook(lambda *_, layer=layer: seen.add(int(layer)))
    return seen


@pytest.mark.parametrize(
    ("exit_layers", "asked", "layers"),
    [
        ([1, 2, 3, 4], {"ask_every": 1}, {1, 2, 3, 4}),
        ([1, 2, 3, 4], {"ask_every": 2}, {2, 4}),
        ([1, 2, 3, 4], {"ask_every": 3}, {3, 4}),
        ([1, 2, 3, 4], {"ask_every": 9}, {4}),
        ([1, 2, 3, 4], {"ask_exits": [3, 1]}, {1, 3, 4}),
        ([1, 3, 4], {"ask_every": 2}, {3, 4}),
        ([2, 3, 4], {"ask_exits": [3]}, {3, 4}),
    ],
)
@torch.no_grad()
def test_only_what_is_asked_is_computed(exit_layers, asked, layers):
    model, (ids, mask) = build(exit_layers=exit_layers), padded_batch()
    exit_logits = model(ids, mask).exit_logits
    seen = computed(model)
    output = model(ids, mask, exit_policy={**CONFIDENCE, **asked})
    assert seen == layers
    # by hand: the first asked exit that is confident enough, or the last
    confident = exit_logits.softmax(-1).amax(-1) > CONFIDENCE["threshold"]  # (B, E)
    expected = [
        next((at for at in sorted(layers) if row[exit_layers.index(at)]), LAYERS)
        for row in confident.tolist()
    ]
    assert output.exit_layer.tolist() == expected
    left_at = torch.tensor([exit_layers.index(layer) for layer in expected])
    torch.testing.assert_close(output.logits, exit_logits[torch.arange(ROWS), left_at], rtol=0, atol=1e-5)
    assert torch.equal(
        replay({**CONFIDENCE, **asked}, exit_logits, "single_label_classification", exit_layers), left_at
    )


@torch.no_grad()
def test_thresholds_stay_those_of_their_exits():
    model, (ids, mask) = build(), padded_batch()
    policy = {"name": "confidence", "thresholds": [0.0, 0.6, 0.0, 0.0], "ask_exits": [2]}
    second = model(ids, mask).exit_logits[:, 1].softmax(-1).amax(-1)
    assert torch.equal(model(ids, mask, exit_policy=policy).exit_layer, torch.where(second > 0.6, 2, LAYERS))


@torch.no_grad()
def test_patience_counts_exits_that_were_asked():
    model, (ids, mask) = build(), padded_batch()
    labels = model(ids, mask).exit_logits.argmax(-1)  # (B, E)
    output = model(ids, mask, exit_policy={"name": "patience", "patience": 2, "ask_exits": [1, 3]})
    assert torch.equal(output.exit_layer, torch.where(labels[:, 0] == labels[:, 2], 3, LAYERS))


def test_settings_travel():
    policy = make_policy("entropy", threshold=0.2, ask_exits=(4, 2))
    assert policy.to_dict() == {"name": "entropy", "threshold": 0.2, "ask_exits": [2, 4]}
    assert make_policy(**policy.to_dict()).to_dict() == policy.to_dict()
    assert policy.asking(every=3).to_dict() == {"name": "entropy", "threshold": 0.2, "ask_every": 3}
    assert policy.asking().to_dict() == {"name": "entropy", "threshold": 0.2}
    assert policy.ask_exits == [2, 4]


@pytest.mark.parametrize("asked", [{"ask_every": 2}, {"ask_exits": [2, 3]}])
@pytest.mark.parametrize(
    "of_call", [{}, {"exit_threshold": 0.5}, {"exit_policy": {"name": "margin", "threshold": 0.4}}]
)
def test_arguments_of_the_pipeline(asked, of_call):
    model = build(exit_policy=CONFIDENCE)
    classify = pipeline("early-exit-classification", model=model, tokenizer=tiny_tokenizer())
    policy = of_call.get(
        "exit_policy", {**CONFIDENCE, "threshold": of_call.get("exit_threshold", CONFIDENCE["threshold"])}
    )
    texts = tiny_texts(30)
    assert classify(texts, **of_call, **asked) == classify(texts, exit_policy={**policy, **asked})
    assert classify(texts[0], **of_call, **asked) == classify(texts[0], exit_policy={**policy, **asked})


def test_evaluate_and_calibrate_take_it():
    model, rows = build(num_labels=2), tiny_rows(40)
    report = evaluate_exits(
        model, rows, tiny_tokenizer(), policy={"name": "entropy", "ask_every": 2}, progress=False
    )
    assert all(point.exit_shares[0] == point.exit_shares[2] == 0 for point in report.curve)
    assert max(point.exit_shares[1] for point in report.curve) == 1
    policy = calibrate(
        model,
        rows,
        tiny_tokenizer(),
        policy={"name": "entropy", "ask_exits": [2]},
        progress=False,
        risk="disagreement",
        max_drop=0.99,
    ).policy
    assert policy.ask_exits == [2] and model.config.exit_policy == {
        "name": "entropy",
        "threshold": 0.995,
        "ask_exits": [2],
    }


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"ask_every": 0}, "ask_every=0: give a whole number from 1"),
        ({"ask_every": 1.5}, "ask_every=1.5: give a whole number from 1"),
        ({"ask_exits": []}, r"ask_exits=\[\]: give a list of layers"),
        ({"ask_exits": 2}, "ask_exits=2: give a list of layers"),
        ({"ask_exits": [0, 2]}, r"ask_exits=\[0, 2\]: give a list of layers"),
        ({"ask_every": 2, "ask_exits": [2]}, r"ask_every=2 and ask_exits=\[2\]: give one of them"),
        (
            {"ask_exits": [1, 2]},
            r"ask_exits=\[1, 2\]: there is no exit after \[1\]; there are after \[2, 4\]",
        ),
    ],
)
def test_what_cannot_be_asked(asked, message):
    model, (ids, mask) = build(exit_layers=[2, 4]), padded_batch()
    with pytest.raises(ValueError, match=message):
        model(ids, mask, exit_policy={**CONFIDENCE, **asked})
