"""Half precision through the pipeline, and how many predictions it changes."""

import copy

import pytest
import torch
from tiny import LAYERS, build, spread_exits, tiny_texts, tiny_tokenizer
from transformers import pipeline

from modeling_romebert import compare_precision, score

ENTROPY = {"name": "entropy", "threshold": 0.6}
TEXTS = tiny_texts(80, seed=4)
MODEL = spread_exits(build(exit_policy=ENTROPY), TEXTS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_pipeline_in_half_precision(dtype, tmp_path):
    MODEL.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    classify = pipeline("early-exit-classification", model=str(tmp_path), dtype=dtype)
    full = pipeline("early-exit-classification", model=str(tmp_path))
    assert classify.model.dtype == getattr(torch, dtype)
    results, expected = classify(TEXTS), full(TEXTS)
    same = [one["label"] == other["label"] for one, other in zip(results, expected, strict=True)]
    assert sum(same) >= 0.9 * len(same)
    assert len({one["exit_layer"] for one in results}) >= 3 and all(0 < one["score"] <= 1 for one in results)


def test_comparison_counts_what_changes():
    model = copy.deepcopy(MODEL)
    changes = compare_precision(model, tiny_tokenizer(), TEXTS, ["bfloat16"])
    assert [change.dtype for change in changes] == ["float32", "bfloat16"]
    full, half = changes
    expected = list(score(model, tiny_tokenizer(), TEXTS))
    results = list(score(copy.deepcopy(model).bfloat16(), tiny_tokenizer(), TEXTS))
    pairs = list(zip(results, expected, strict=True))
    assert half.labels_changed == sum(one["label"] != other["label"] for one, other in pairs)
    assert half.exits_changed == sum(one["exit_layer"] != other["exit_layer"] for one, other in pairs) > 0
    of_same_label = [
        abs(one["score"] - other["score"]) for one, other in pairs if one["label"] == other["label"]
    ]
    assert half.largest_score_change == max(of_same_label) > 0
    assert half.cost == pytest.approx(sum(one["exit_layer"] for one in results) / len(TEXTS) / LAYERS)
    assert (full.texts, full.labels_changed, full.exits_changed, full.largest_score_change) == (80, 0, 0, 0.0)
    assert full.seconds > 0 and model.dtype == torch.float32


def test_settings_of_scoring_reach_it():
    full, half = compare_precision(
        MODEL, tiny_tokenizer(), TEXTS, ["float16"], exit_policy=False, batch_tokens=100
    )
    assert full.cost == half.cost == 1 and half.exits_changed == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (build().bfloat16(), tiny_tokenizer(), TEXTS),
            r"the model is in torch.bfloat16: give it in torch.float32",
        ),
        ((MODEL, tiny_tokenizer(), []), "there are no texts"),
        ((MODEL, tiny_tokenizer(), TEXTS, ["int8"]), "'int8' is no floating-point type of torch"),
        (
            (MODEL, tiny_tokenizer(), TEXTS, ["half_precision"]),
            "'half_precision' is no floating-point type of torch",
        ),
    ],
)
def test_what_cannot_be_compared(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare_precision(*arguments)
