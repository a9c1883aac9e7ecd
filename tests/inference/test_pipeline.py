"""`pipeline("early-exit-classification")`: a list gives what each text gives alone, at the depth that the
model says.
"""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import CLASSES, LAYERS, assert_same_results, build, spread_exits, tiny_texts, tiny_tokenizer
from transformers import BertConfig, RobertaConfig, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_romebert import EarlyExitPipeline, make_policy, pipeline_romebert, scoring

ENTROPY = {"name": "entropy", "threshold": 0.6}
TEXTS = tiny_texts(40, seed=2)
NAMES = {0: "bad", 1: "good", 2: "so so"}


def classifier(policy=ENTROPY, family=BertConfig, **settings):
    """A pipeline of a tiny model whose texts leave at every exit, and its tokenizer."""
    names = {} if "num_labels" in settings else {"id2label": NAMES}
    model = spread_exits(build(family, exit_policy=policy, **names, **settings), TEXTS)
    return pipeline("early-exit-classification", model=model, tokenizer=tiny_tokenizer())


@torch.no_grad()
def by_hand(classify, texts, policy, activation=lambda logits: logits.softmax(dim=-1)):
    """Scores (B, C) and exit layers of each text alone, by the model itself."""
    outputs = [
        classify.model(**classify.tokenizer(text, return_tensors="pt"), exit_policy=policy) for text in texts
    ]
    scores = torch.cat([activation(output.logits) for output in outputs])
    return scores, [int(output.exit_layer) for output in outputs]


def assert_results(results, scores, layers, names=NAMES):
    """Results in order, each with its own text's label, score and depth."""
    assert len(results) == len(scores) == len(layers)
    for result, score, layer in zip(results, scores, layers, strict=True):
        assert set(result) == {"label", "score", "exit_layer"}
        assert result["label"] == names[int(score.argmax())]
        assert result["score"] == pytest.approx(float(score.max()), abs=1e-5)
        assert result["exit_layer"] == layer and type(result["exit_layer"]) is int


# ---- a list is its texts


@pytest.mark.parametrize("batch_size", [1, 8, 64])
@pytest.mark.parametrize("family", [BertConfig, RobertaConfig], ids=lambda family: family.model_type)
def test_list_equals_texts_one_by_one(family, batch_size):
    classify = classifier(family=family)
    scores, layers = by_hand(classify, TEXTS, ENTROPY)
    assert len(set(layers)) >= 3
    assert_results(classify(TEXTS, batch_size=batch_size), scores, layers)
    assert_results([classify(text)[0] for text in TEXTS], scores, layers)
    assert_results(classify(TEXTS[::-1], batch_size=batch_size), scores.flip(0), layers[::-1])


def test_one_text_gives_a_list_of_one():
    classify = classifier()
    assert classify(TEXTS[0]) == classify([TEXTS[0]])
    assert type(classify) is EarlyExitPipeline


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {"add_special_tokens": False}),
        ({"text": "good " * 80, "text_pair": "bad"}, {"truncation": "only_second"}),
        ("good " * 80, {"truncation": False}),
        ("\ud800", {}),
        (5, {}),
    ],
    ids=["no tokens", "cannot be cut", "too long", "no Unicode", "no text"],
)
def test_what_is_wrong_with_a_text_is_said_alike_of_one_and_of_a_list(text, settings):
    classify, told = classifier(), []
    for texts in (text, [text]):
        with pytest.raises((ValueError, TypeError)) as refused:
            classify(texts, **settings)
        told.append((type(refused.value), str(refused.value).split(": ", 1)[1]))
    assert told[0] == told[1]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_generators_and_datasets(batch_size):
    classify = classifier()
    scores, layers = by_hand(classify, TEXTS, ENTROPY)
    rows = Dataset.from_dict({"text": TEXTS, "label": [0] * len(TEXTS)})
    assert_results(list(classify(KeyDataset(rows, "text"), batch_size=batch_size)), scores, layers)
    assert_results(list(classify((text for text in TEXTS), batch_size=batch_size)), scores, layers)


@pytest.mark.parametrize("batch_size", [1, 8])
@torch.no_grad()
def test_pairs(batch_size):
    classify = classifier()
    pairs = [{"text": one, "text_pair": other} for one, other in zip(TEXTS[:20], TEXTS[20:], strict=True)]
    encoded = [classify.tokenizer(pair["text"], pair["text_pair"], return_tensors="pt") for pair in pairs]
    assert all(one["token_type_ids"].any() for one in encoded)
    outputs = [classify.model(**one, exit_policy=ENTROPY) for one in encoded]
    scores, layers = (
        torch.cat([one.logits.softmax(-1) for one in outputs]),
        [int(one.exit_layer) for one in outputs],
    )
    assert_results(classify(pairs, batch_size=batch_size), scores, layers)
    assert_results([classify(pairs[0])], scores[:1], layers[:1])


@pytest.mark.parametrize(
    "ask", ["list of both", "list and one", "generators", "datasets", "one by one", "constructor"]
)
def test_text_pair_as_an_argument(ask):
    """As the stock pipeline takes it for a text; for a list also a list."""
    texts, seconds = TEXTS[:10], TEXTS[10:20]
    classify = classifier()
    stock = pipeline("text-classification", model=classify.model, tokenizer=classify.tokenizer)
    if ask in ("list and one", "constructor"):
        seconds = [TEXTS[3]] * 10
    expected = [stock(text, text_pair=second)[0] for text, second in zip(texts, seconds, strict=True)]
    if ask == "list of both":
        found = classify(texts, text_pair=seconds, exit_policy=False)
    elif ask == "list and one":
        found = classify(texts, text_pair=TEXTS[3], exit_policy=False)
    elif ask == "generators":
        found = list(classify(iter(texts), text_pair=iter(seconds), exit_policy=False))
    elif ask == "datasets":
        rows = Dataset.from_dict({"a": texts, "b": seconds})
        found = classify(KeyDataset(rows, "a"), text_pair=KeyDataset(rows, "b"), exit_policy=False)
        assert len(found) == 10
        found = list(found)
    elif ask == "constructor":
        of_its_own = pipeline(
            classify.task, model=classify.model, tokenizer=classify.tokenizer, text_pair=TEXTS[3]
        )
        found = of_its_own(texts, exit_policy=False)
    else:
        one_by_one = [
            classify(text, text_pair=second, exit_policy=False)
            for text, second in zip(texts, seconds, strict=True)
        ]
        found = [result for (result,) in one_by_one]
    assert_same_results(found, [{**one, "exit_layer": LAYERS} for one in expected])


@pytest.mark.parametrize("pair", [None, ""])
def test_a_pair_that_is_none_is_none(pair):
    classify = classifier()
    assert classify({"text": TEXTS[0], "text_pair": pair}) == classify(TEXTS[0])[0]
    assert classify([{"text": text, "text_pair": pair} for text in TEXTS]) == classify(TEXTS)
    assert classify(TEXTS[:2], text_pair=[None, TEXTS[3]])[0] == pytest.approx(classify(TEXTS[0])[0])


def test_pairs_that_do_not_fit():
    classify = classifier()
    with pytest.raises(
        ValueError, match="text_pair has 2 texts for 3 first ones: give one for each, or one for all"
    ):
        classify(TEXTS[:3], text_pair=TEXTS[:2])
    with pytest.raises(ValueError, match="text_pair is given twice"):
        classify([{"text": "a", "text_pair": "b"}], text_pair="c")
    with pytest.raises(TypeError, match=r"cannot classify .*give a string"):
        classify("a", text_pair=["b"])


@pytest.mark.parametrize("top_k", [None, 2, 1])
def test_top_k(top_k):
    classify = classifier()
    scores, layers = by_hand(classify, TEXTS, ENTROPY)
    for results, score, layer in zip(classify(TEXTS, top_k=top_k, batch_size=8), scores, layers, strict=True):
        assert [one["label"] for one in results] == [
            NAMES[index] for index in score.argsort(descending=True).tolist()
        ][:top_k]
        assert [one["score"] for one in results] == pytest.approx(
            score.sort(descending=True).values.tolist()[:top_k], abs=1e-5
        )
        assert [one["exit_layer"] for one in results] == [layer] * (top_k or CLASSES)


# ---- which policy


def test_config_policy_is_the_default():
    classify = classifier({"name": "patience", "patience": 2})
    assert_results(
        classify(TEXTS, batch_size=8), *by_hand(classify, TEXTS, {"name": "patience", "patience": 2})
    )


@pytest.mark.parametrize(
    ("of_config", "arguments", "policy"),
    [
        (ENTROPY, {"exit_threshold": 0.3}, {"name": "entropy", "threshold": 0.3}),
        (
            ENTROPY,
            {"exit_threshold": [0.2, 0.4, 0.6, 0.0]},
            {"name": "entropy", "thresholds": [0.2, 0.4, 0.6, 0.0]},
        ),
        ({"name": "entropy", "thresholds": [0.1] * 4}, {"exit_threshold": 0.6}, ENTROPY),
        (
            {"name": "confidence", "threshold": 0.9},
            {"exit_threshold": 0.7},
            {"name": "confidence", "threshold": 0.7},
        ),
        ({"name": "patience", "patience": 4}, {"exit_threshold": 2}, {"name": "patience", "patience": 2}),
        (
            {"name": "patient_confidence", "patience": 2, "threshold": 0.9},
            {"exit_threshold": 0.5},
            {"name": "patient_confidence", "patience": 2, "threshold": 0.5},
        ),
        (None, {"exit_threshold": 0.6}, ENTROPY),
        (None, {"exit_policy": {"name": "vote", "threshold": 1.1}}, {"name": "vote", "threshold": 1.1}),
        (ENTROPY, {"exit_policy": {"name": "vote", "threshold": 1.1}}, {"name": "vote", "threshold": 1.1}),
        (ENTROPY, {"exit_policy": make_policy("vote", threshold=1.1)}, {"name": "vote", "threshold": 1.1}),
        (
            ENTROPY,
            {"exit_policy": {"name": "margin", "threshold": 0.9}, "exit_threshold": 0.5},
            {"name": "margin", "threshold": 0.5},
        ),
        (
            ENTROPY,
            {"exit_policy": make_policy("margin", threshold=0.9), "exit_threshold": 0.5},
            {"name": "margin", "threshold": 0.5},
        ),
        (ENTROPY, {"exit_policy": False}, None),
    ],
)
def test_policy_of_the_call(of_config, arguments, policy):
    classify = classifier(of_config)
    expected = by_hand(classify, TEXTS, policy)
    assert_results(classify(TEXTS, batch_size=8, **arguments), *expected)
    of_its_own = pipeline(
        "early-exit-classification", model=classify.model, tokenizer=classify.tokenizer, **arguments
    )
    assert_results(of_its_own(TEXTS, batch_size=8), *expected)
    assert classify.model.config.exit_policy == of_config
    assert (set(expected[1]) == {LAYERS}) == (policy is None)


CONFIDENT = {"name": "confidence", "threshold": 0.7}


@pytest.fixture(scope="module")
def model():
    return build(exit_policy=ENTROPY)


@pytest.mark.parametrize(
    ("of_constructor", "of_call", "policy"),
    [
        ({"exit_policy": CONFIDENT}, {"ask_every": 2}, CONFIDENT | {"ask_every": 2}),
        ({"exit_policy": CONFIDENT}, {"ask_exits": [3]}, CONFIDENT | {"ask_exits": [3]}),
        ({"exit_policy": CONFIDENT}, {"exit_threshold": 0.5}, CONFIDENT | {"threshold": 0.5}),
        (
            {"exit_policy": make_policy(**CONFIDENT)},
            {"exit_threshold": 0.5, "ask_every": 2},
            CONFIDENT | {"threshold": 0.5, "ask_every": 2},
        ),
        (
            {"exit_policy": "confidence", "exit_threshold": 0.7},
            {"ask_every": 2},
            CONFIDENT | {"ask_every": 2},
        ),
        (
            {"exit_policy": CONFIDENT | {"ask_every": 2}},
            {"exit_threshold": 0.5},
            CONFIDENT | {"threshold": 0.5, "ask_every": 2},
        ),
        ({"exit_policy": CONFIDENT | {"ask_every": 2}}, {"ask_exits": [3]}, CONFIDENT | {"ask_exits": [3]}),
        ({"exit_policy": CONFIDENT}, {"exit_policy": ENTROPY}, ENTROPY),
        ({"exit_policy": CONFIDENT}, {"exit_policy": "entropy", "exit_threshold": 0.6}, ENTROPY),
        (
            {"exit_threshold": 0.3},
            {"ask_exits": [3]},
            {"name": "entropy", "threshold": 0.3, "ask_exits": [3]},
        ),
        ({"exit_threshold": 0.3}, {"exit_threshold": 0.6}, ENTROPY),
        ({"exit_threshold": 0.3}, {"exit_policy": CONFIDENT}, CONFIDENT),
        ({"exit_threshold": 0.7}, {"exit_policy": "confidence"}, CONFIDENT),
        (
            {"exit_threshold": 0.7},
            {"exit_policy": {"name": "patient_confidence", "patience": 2}},
            {"name": "patient_confidence", "patience": 2, "threshold": 0.7},
        ),
        ({"ask_every": 2}, {"exit_threshold": 0.3}, {"name": "entropy", "threshold": 0.3, "ask_every": 2}),
        ({"ask_every": 2}, {"exit_policy": CONFIDENT}, CONFIDENT | {"ask_every": 2}),
        ({"ask_every": 2}, {"exit_policy": CONFIDENT | {"ask_exits": [3]}}, CONFIDENT | {"ask_exits": [3]}),
        ({"ask_every": 2}, {"ask_exits": [3]}, ENTROPY | {"ask_exits": [3]}),
        ({"ask_every": 2}, {"ask_every": 1}, ENTROPY | {"ask_every": 1}),
        ({"ask_exits": [3], "exit_threshold": 0.3}, {"exit_policy": False}, None),
        ({"exit_policy": False}, {"exit_policy": CONFIDENT}, CONFIDENT),
        ({"exit_policy": False}, {"exit_threshold": 0.3}, {"name": "entropy", "threshold": 0.3}),
        ({"exit_policy": False}, {"ask_every": 2}, None),
        ({"exit_policy": False}, {"top_k": 1}, None),
        ({}, {"exit_threshold": np.float32(0.5)}, {"name": "entropy", "threshold": 0.5}),
        (
            {},
            {"exit_threshold": np.array([0.2, 0.4, 0.6, 0.0])},
            {"name": "entropy", "thresholds": [0.2, 0.4, 0.6, 0.0]},
        ),
        (
            {},
            {"exit_threshold": torch.tensor(0.5), "ask_every": np.int64(2)},
            {"name": "entropy", "threshold": 0.5, "ask_every": 2},
        ),
    ],
)
def test_constructor_and_call_add_up(model, of_constructor, of_call, policy):
    classify = pipeline(
        "early-exit-classification", model=model, tokenizer=tiny_tokenizer(), **of_constructor
    )
    before = classify._forward_params
    given = classify._sanitize_parameters(**of_call)[1]
    found = {**classify._forward_params, **given}["exit_policy"]  # as a call combines them
    assert found is False if policy is None else found.to_dict() == policy
    assert classify._forward_params == before


def test_a_call_of_another_policy_brings_its_threshold():
    classify = pipeline(
        "early-exit-classification", model=build(), tokenizer=tiny_tokenizer(), exit_policy=ENTROPY
    )
    with pytest.raises(ValueError, match=r"'confidence' takes exactly one of threshold .*add it"):
        classify(TEXTS, exit_policy="confidence")


def test_call_does_not_change_the_next():
    classify = classifier()
    before = classify(TEXTS)
    classify(TEXTS, exit_threshold=0.99)
    assert classify(TEXTS) == before


def test_without_a_policy_a_warning_once_and_full_depth():
    classify = classifier(policy=None)
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger(scoring.__name__)
    logger.addHandler(handler)
    scoring.logger.warning_once.__func__.cache_clear()  # another test may have had the one
    try:
        full = classify(TEXTS, exit_policy=False)
        assert said == []
        assert classify(TEXTS) == classify(TEXTS) == full
    finally:
        logger.removeHandler(handler)
    assert {result["exit_layer"] for result in full} == {LAYERS}
    assert len(said) == 1
    assert (
        "no calibrated exit policy, so every text runs every layer" in said[0] and "exit_threshold" in said[0]
    )


# ---- other problems


def test_regression_with_patience():
    policy = {"name": "patience", "patience": 2, "tolerance": 1.0}
    classify = classifier(policy, num_labels=1, problem_type="regression")
    classify.model.config.id2label = {0: "stars"}
    scores, layers = by_hand(classify, TEXTS, policy, activation=lambda logits: logits)
    assert len(set(layers)) >= 2 and scores.min() < 0  # no activation
    assert_results(classify(TEXTS, batch_size=8), scores, layers, {0: "stars"})


def test_regression_with_entropy():
    classify = classifier(None, num_labels=1, problem_type="regression")
    with pytest.raises(ValueError, match="'entropy' needs class probabilities"):
        classify(TEXTS, exit_threshold=0.5)


@pytest.mark.parametrize(
    ("function", "activation"),
    [
        (None, torch.sigmoid),
        ("sigmoid", torch.sigmoid),
        ("softmax", lambda logits: logits.softmax(-1)),
        ("none", lambda logits: logits),
    ],
)
def test_multi_label(function, activation):
    policy = {"name": "confidence", "threshold": 0.6}
    classify = classifier(policy, problem_type="multi_label_classification")
    scores, layers = by_hand(classify, TEXTS, policy, activation)
    assert len(set(layers)) >= 3
    given = {} if function is None else {"function_to_apply": function}
    results = classify(TEXTS, top_k=None, batch_size=8, **given)
    for one, score, layer in zip(results, scores, layers, strict=True):
        assert {result["label"]: result["score"] for result in one} == pytest.approx(
            {NAMES[index]: value for index, value in enumerate(score.tolist())},
            # In fp32: spread as they are, these logits by hand are 8e-6 off those in double precision
            # already
            abs=3e-5,
        )
        assert {result["exit_layer"] for result in one} == {layer}


# ---- inputs at the edge


@pytest.mark.parametrize("nothing", [[], ()])
def test_no_texts(nothing):
    assert classifier()(nothing) == []


def test_empty_and_unknown_texts():
    classify = classifier()
    texts = ["", "zzz", " ", TEXTS[0]]
    assert_results(classify(texts, batch_size=4), *by_hand(classify, texts, ENTROPY))
    assert classify("")[0]["label"] in NAMES.values()


@pytest.mark.parametrize(
    "wrong",
    [None, 3, 2.5, b"bytes", {"text": 3}, {"text_pair": "a"}, {"text": None}, {"text": "a", "text_pair": 1}],
    ids=str,
)
def test_what_is_no_text(wrong):
    classify = classifier()
    with pytest.raises(TypeError, match=r"cannot classify .*give a string"):
        classify(["the film", wrong])
    with pytest.raises(TypeError, match=r"cannot classify .*give a string"):
        classify(wrong)


@pytest.mark.parametrize("wrong", ["the \ud800 film", {"text": "good", "text_pair": "\ud800"}])
def test_what_is_no_unicode(wrong):
    classify = classifier()
    for texts in (wrong, ["the film", wrong]):
        with pytest.raises(TypeError, match="it is not Unicode: surrogates not allowed at character"):
            classify(texts)


@pytest.mark.parametrize(("family", "limit"), [(BertConfig, 64), (RobertaConfig, 62)])
def test_text_longer_than_the_positions_is_cut(family, limit, caplog):
    classify = classifier(family=family)
    long, cut = "good " * 100, " ".join(["good"] * (limit - 2))
    pipeline_romebert.logger.warning_once.__func__.cache_clear()  # another test may have had the one
    assert classify(long) == classify(cut)
    assert_same_results(classify([cut, long, "good", long], batch_size=2)[1:2], classify(cut))
    assert [record.getMessage() for record in caplog.records] == [
        f"A text was longer than {limit} tokens and was cut. This is said once.",
        f"2 of 4 texts were longer than {limit} tokens and were cut.",
    ]


def test_text_longer_than_the_positions_is_an_error_without_truncation():
    classify = classifier()
    message = r"102 tokens, but the (model|backbone) has positions for 64.*truncation=True and max_length=64"
    with pytest.raises(ValueError, match=f"the text: it has {message}"):
        classify("good " * 100, truncation=False)
    with pytest.raises(ValueError, match=f"text 1: it has {message}"):
        classify(["good", "good " * 100], truncation=False)


@pytest.mark.parametrize("arguments", [{"max_length": 8}, {"truncation": True, "max_length": 8}])
def test_max_length_of_the_call(arguments):
    classify = classifier()
    expected = [classify(" ".join(text.split()[:6]))[0] for text in TEXTS]
    assert [classify(text, **arguments)[0] for text in TEXTS] == expected
    for one, other in zip(classify(TEXTS, **arguments), expected, strict=True):
        assert one == {**other, "score": pytest.approx(other["score"], abs=1e-5)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exit_threshold": 1.5}, r"threshold=1.5 is not in 0\.\.1"),
        ({"exit_threshold": [0.1, 0.2]}, "thresholds has 2 entries, but the model has 4 exits"),
        (
            {"exit_policy": {"name": "entropie", "threshold": 0.1}},
            "'entropie' is unknown; choose from entropy",
        ),
        (
            {"exit_policy": "entropy"},
            "'entropy' takes exactly one of threshold .*add it, as in .*exit_threshold=",
        ),
        ({"exit_policy": 5}, "give a policy or its settings"),
        ({"exit_policy": {}}, "has no 'name'"),
    ],
)
def test_policy_without_meaning(arguments, message):
    classify = classifier()
    with pytest.raises(ValueError, match=message):
        classify(TEXTS, **arguments)


# ---- from a folder


def test_saved_model_and_tokenizer_load_by_path(tmp_path):
    classify = classifier()
    classify.model.save_pretrained(tmp_path)
    classify.tokenizer.save_pretrained(tmp_path)
    expected = classify(TEXTS, batch_size=8)
    assert pipeline("early-exit-classification", model=str(tmp_path))(TEXTS, batch_size=8) == expected


def test_half_precision():
    classify = classifier()
    classify.model.to(torch.bfloat16)
    results = classify(TEXTS, batch_size=8)
    assert len({result["exit_layer"] for result in results}) >= 3
    assert all(0 < result["score"] <= 1 for result in results)
