"""Bulk scoring gives what the texts give one by one, in order, from texts read as they are needed."""

import copy
import functools
import threading

import pandas as pd
import pytest
import torch
from datasets import Dataset
from pairs import in_turn, pairwise
from tiny import CLASSES, LAYERS, assert_same_results, build, spread_exits, tiny_texts, tiny_tokenizer
from transformers import TextClassificationPipeline, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_romebert import score
from modeling_romebert.encoder import TorchEncoder
from modeling_romebert.result_format import ResultFormat
from modeling_romebert.text_batcher import TextBatcher, windows
from modeling_romebert.text_items import text_and_pair

ENTROPY = {"name": "entropy", "threshold": 0.6}
TEXTS = tiny_texts(150, seed=3)
MODEL = spread_exits(build(exit_policy=ENTROPY), TEXTS)


def scored(texts, model=MODEL, **settings) -> list:
    return list(score(model, tiny_tokenizer(), texts, **settings))


def classifier(**arguments):
    return pipeline(
        "early-exit-classification", model=copy.deepcopy(MODEL), tokenizer=tiny_tokenizer(), **arguments
    )


def tokenizer_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tokenizer")]


# ---- the same as one by one


POLICIES = [ENTROPY, {"name": "patience", "patience": 2}, {"name": "vote", "threshold": 1.1}]
BATCHING = [
    {},
    {"batch_size": 7},
    {"batch_tokens": 64},
    {"batch_tokens": 1},
    {"batch_size": 3, "batch_tokens": 64},
    {"window": 10},
    {"window": 10, "batch_size": 4},
    {"rebatching": True},
    {"rebatching": True, "batch_tokens": 128, "window": 40},
    {"rebatching": True, "batch_size": 2},
]


@functools.cache
def one_by_one(which):
    return scored(TEXTS, exit_policy=POLICIES[which], batch_size=1)


@pytest.mark.parametrize(("settings", "which"), in_turn(BATCHING, range(len(POLICIES))), ids=str)
def test_bulk_equals_one_by_one(settings, which):
    """Each of the settings with one of the policies; test_scoring_property.py draws from their product."""
    policy, alone = POLICIES[which], one_by_one(which)
    assert len({result["exit_layer"] for result in alone}) >= 3
    assert_same_results(scored(TEXTS, exit_policy=policy, **settings), alone)
    assert_same_results(scored(TEXTS[::-1], exit_policy=policy, **settings), alone[::-1])


@torch.no_grad()
def test_one_by_one_is_the_model_s_own_answer():
    tokenizer = tiny_tokenizer()
    for text, result in zip(TEXTS, scored(TEXTS, batch_size=1), strict=True):
        output = MODEL(**tokenizer(text, return_tensors="pt"), exit_policy=ENTROPY)
        label = MODEL.config.id2label[int(output.logits.argmax())]
        probability = float(output.logits.softmax(-1).max())
        assert result == {
            "label": label,
            "score": pytest.approx(probability, abs=1e-6),
            "exit_layer": int(output.exit_layer),
        }


def test_policy_of_the_config_one_that_is_given_and_none():
    careful = {"name": "entropy", "threshold": 0.3}
    assert scored(TEXTS) == scored(TEXTS, exit_policy=ENTROPY) != scored(TEXTS, exit_policy=careful)
    assert {result["exit_layer"] for result in scored(TEXTS, exit_policy=False)} == {LAYERS}


def test_texts_and_pairs_in_one_list():
    mixed = [
        {"text": one, "text_pair": other} if len(one) % 2 else one
        for one, other in zip(TEXTS, TEXTS[::-1], strict=True)
    ]
    assert_same_results(scored(mixed), [scored([item])[0] for item in mixed])
    assert scored([{"text": "the film", "text_pair": ""}, {"text": "the film"}]) == scored(["the film"] * 2)


def test_padding_to_max_length_and_to_a_multiple_change_nothing():
    expected = scored(TEXTS)
    assert_same_results(scored(TEXTS, padding="max_length"), expected)
    assert_same_results(scored(TEXTS, padding=True, pad_to_multiple_of=8), expected)


@pytest.mark.parametrize(
    ("settings", "pooling", "attention"),
    pairwise(
        [{}, {"rebatching": False}, {"exit_policy": False}, {"batch_size": 3}],
        ["cls", "mean"],
        ["sdpa", "eager"],  # packed and padded batches
    ),
    ids=str,
)
@pytest.mark.slow
def test_a_tokenizer_that_pads_on_the_left_changes_nothing(attention, pooling, settings):
    model, tokenizer = (
        spread_exits(build(attention=attention, exit_pooling=pooling, exit_policy=ENTROPY), TEXTS),
        tiny_tokenizer(),
    )
    tokenizer.padding_side, texts = "left", TEXTS[:60]
    alone = [one for text in texts for one in score(model, tokenizer, [text], **settings)]
    assert len({one["exit_layer"] for one in alone}) >= (1 if "exit_policy" in settings else 3)
    assert_same_results(list(score(model, tokenizer, texts, **settings)), alone)
    assert_same_results(alone, scored(texts, model, **settings))


def test_a_tokenizer_without_a_padding_token():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    assert list(score(MODEL, tokenizer, TEXTS)) == scored(TEXTS)  # nothing is padded
    model = build(attention="eager", exit_policy=ENTROPY)
    with pytest.raises(ValueError, match=r"no padding token; set tokenizer\.pad_token, or give batch_size=1"):
        list(score(model, tokenizer, TEXTS))
    assert_same_results(list(score(model, tokenizer, TEXTS, batch_size=1)), scored(TEXTS, model))


def test_model_in_training_mode_is_put_in_evaluation_mode():
    model = copy.deepcopy(MODEL).train()
    expected = scored(TEXTS)
    assert scored(TEXTS, model) == expected and not model.training


# ---- results are the stock pipeline's


@pytest.mark.parametrize("top_k", ["best", None, 1, 2])
@pytest.mark.parametrize("function", [None, "sigmoid", "softmax", "none"])
@pytest.mark.parametrize(
    "problem", ["single_label_classification", "multi_label_classification", "regression", None]
)
def test_results_are_those_of_the_stock_postprocess(problem, function, top_k):
    num_labels = 1 if problem == "regression" else CLASSES
    model = build(num_labels=num_labels, problem_type=problem)
    stock = pipeline("text-classification", model=model, tokenizer=tiny_tokenizer())
    logits = torch.randn(20, num_labels, generator=torch.Generator().manual_seed(0)) * 5
    logits[3] = 1.0  # all labels tie
    given = {} if function is None else {"function_to_apply": function}
    params = stock._sanitize_parameters(**given, **({} if top_k == "best" else {"top_k": top_k}))[2]
    found = ResultFormat(model.config, function, top_k)(logits, torch.arange(20))
    for row, result in enumerate(found):
        expected = TextClassificationPipeline.postprocess(stock, {"logits": logits[row : row + 1]}, **params)
        with_layer = [
            {**one, "exit_layer": row} for one in (expected if isinstance(expected, list) else [expected])
        ]
        assert (result if isinstance(result, list) else [result]) == with_layer
        assert isinstance(result, list) == isinstance(expected, list)


def test_a_single_label_without_problem_type_is_a_sigmoid():
    assert (
        ResultFormat(build(num_labels=1).config, None, "best")(torch.zeros(1, 1), torch.ones(1))[0]["score"]
        == 0.5
    )


# ---- what comes in, what comes out


def test_types_of_the_pipeline():
    classify = classifier()
    rows = Dataset.from_dict({"text": TEXTS})
    expected = classify(TEXTS)
    assert type(expected) is list
    assert (
        classify(tuple(TEXTS)) == classify(rows["text"]) == classify(rows.select_columns("text")) == expected
    )
    for streamed in (
        KeyDataset(rows, "text"),
        (text for text in TEXTS),
        iter(TEXTS),
        rows.to_iterable_dataset()["text"],
    ):
        results = classify(streamed)
        assert iter(results) is results and not isinstance(results, list)
        assert list(results) == expected
    assert len(classify(KeyDataset(rows, "text"))) == len(TEXTS)
    with pytest.raises(TypeError, match="these results have no length"):
        len(classify(text for text in TEXTS))


@pytest.mark.parametrize("settings", [{}, {"batch_size": 1}, {"rebatching": True}], ids=str)
def test_nothing_gives_nothing(settings):
    assert scored([], **settings) == scored(iter([]), **settings) == []
    classify = classifier()
    assert classify([], **settings) == []
    assert list(classify((text for text in []), **settings)) == []
    assert list(classify(KeyDataset(Dataset.from_dict({"text": []}), "text"), **settings)) == []


def test_arguments_of_the_pipeline_and_of_a_call():
    arguments = {"batch_tokens": 64, "window": 20, "on_error": "skip", "rebatching": True, "progress": False}
    classify = classifier(**arguments)
    results = classify([*TEXTS, None])
    assert_same_results(results[:-1], scored(TEXTS))
    assert results[-1]["label"] is None
    with pytest.raises(TypeError, match="text 150"):
        classify([*TEXTS, None], on_error="raise", num_workers=2, batch_size=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_error": "stop"}, "on_error='stop' is unknown; choose from raise, skip"),
        ({"batch_size": 0}, "batch_size=0: give a whole number from 1"),
        ({"batch_tokens": 2.5}, "batch_tokens=2.5: give a whole number from 1"),
        ({"window": True}, "window=True: give a whole number from 1"),
        ({"top_k": "all"}, "top_k='all': give \"best\", a number of labels, or None for all"),
        (
            {"function_to_apply": "tanh"},
            "function_to_apply='tanh' is unknown; choose from sigmoid, softmax, none",
        ),
        (
            {"exit_policy": {"name": "entropy", "thresholds": [0.1]}},
            "thresholds has 1 entries, but the model has 4 exits",
        ),
    ],
)
def test_settings_without_meaning_fail_before_the_first_text(settings, message):
    with pytest.raises(ValueError, match=message):
        score(MODEL, tiny_tokenizer(), iter(TEXTS), **settings)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("the film", "texts is one str: give a list of texts"),
        ({"train": ["the film"]}, "texts is one dict, which yields the names of its parts"),
        (pd.DataFrame({"text": ["the film"]}), "texts is one DataFrame, which yields the names of its parts"),
    ],
    ids=["text", "dict", "table"],
)
def test_what_holds_texts_is_no_list_of_them(texts, message):
    with pytest.raises(TypeError, match=message):
        score(MODEL, tiny_tokenizer(), texts)


def test_a_text_has_one_row():
    for texts in ("the film", ["the film"]):
        with pytest.raises(ValueError, match="return_overflowing_tokens=True makes several rows"):
            classifier()(texts, return_overflowing_tokens=True, max_length=3)


def test_an_open_table_is_no_texts_and_an_open_text_file_is(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[:20]))
    (tmp_path / "train.csv").write_text("text,label\nthe film,1\n")
    with open(tmp_path / "texts.txt") as file:
        assert_same_results(scored(file), scored(TEXTS[:20]))
    with (
        open(tmp_path / "train.csv") as file,
        pytest.raises(ValueError, match=r"open file .*train.csv.*csv.DictReader"),
    ):
        scored(file)


def test_progress(capsys):
    assert scored(TEXTS) == scored(TEXTS, progress=True)
    assert f"classifying: 100%|██████████| {len(TEXTS)}/{len(TEXTS)}" in capsys.readouterr().err
    scored(TEXTS)
    assert capsys.readouterr().err == ""


# ---- windows and batches


def test_windows_grow_and_long_texts_end_them():
    sizes = [(start, len(texts)) for start, texts in windows(["a"] * 100, 8, 32)]
    assert sizes == [(0, 8), (8, 16), (24, 32), (56, 32), (88, 12)]
    long = "x" * 2**18
    assert [len(texts) for _, texts in windows([long] * 6, 100, 100)] == [4, 2]
    assert [len(texts) for _, texts in windows([{"text": long, "text_pair": long}] * 5, 100, 100)] == [
        2,
        2,
        1,
    ]


@pytest.mark.parametrize(
    "settings", [{"batch_size": 3}, {"batch_tokens": 50}, {"batch_size": 4, "batch_tokens": 80}], ids=str
)
@pytest.mark.parametrize("rebatching", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_batch_size_and_batch_tokens_bound_what_a_layer_runs(attention, rebatching, settings, monkeypatch):
    model, seen = build(attention=attention, exit_pooling="mean", exit_policy=ENTROPY), []
    run = TorchEncoder.run

    def watched(self, batch, *layers):
        seen.append((len(batch), sum(batch.lengths), batch.tokens))
        run(self, batch, *layers)

    monkeypatch.setattr(TorchEncoder, "run", watched)
    scored(TEXTS, model, rebatching=rebatching, **settings)
    rows, tokens = settings.get("batch_size", 10**6), settings.get("batch_tokens", 2048)
    assert len(seen) > 10
    for count, of_texts, with_padding in seen:
        bound = of_texts if attention == "sdpa" else with_padding  # behind packed texts there are a few zeros
        assert count <= rows and (bound <= tokens or count == 1)


@pytest.mark.parametrize("wrong", [3, None, ["the", "film"], {"text": "a", "label": 1}, {}], ids=str)
def test_what_is_no_text(wrong):
    with pytest.raises(TypeError, match=r"cannot classify .* give a string"):
        text_and_pair(wrong)


# ---- streams


def test_an_endless_stream_is_read_two_windows_ahead_and_in_the_caller_s_thread():
    read, threads = [], set()

    def texts():
        while True:
            read.append("the film")
            threads.add(threading.current_thread())
            yield read[-1]

    results = score(MODEL, tiny_tokenizer(), texts(), window=20)
    ahead = [len(read) - number for number, _ in zip(range(200), results, strict=False)]
    results.close()
    assert max(ahead) == 40
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"window": 1}], ids=str)
def test_one_by_one_each_result_comes_before_the_next_text_is_read(settings):
    read = []

    def texts():
        for text in TEXTS:
            read.append(text)
            yield text

    for number, _ in enumerate(score(MODEL, tiny_tokenizer(), texts(), **settings), start=1):
        assert len(read) == number and not tokenizer_threads()


def test_tokenised_in_a_thread_with_a_tokenizer_of_its_own(monkeypatch):
    seen, expected, work = [], scored(TEXTS), TextBatcher.__call__
    monkeypatch.setattr(
        TextBatcher,
        "__call__",
        lambda self, *window: (
            seen.append((threading.current_thread().name, self.tokenizer)) or work(self, *window)
        ),
    )
    tokenizer = tiny_tokenizer()
    results = score(MODEL, tokenizer, TEXTS, window=40)
    found = [(next(results), tokenizer("the film", truncation=True, max_length=3))[0] for _ in TEXTS]
    assert_same_results(found, expected)
    assert [name.startswith("tokenizer") for name, _ in seen] == [False, True, True, True]
    assert seen[0][1] is tokenizer and all(own is not tokenizer for _, own in seen[1:])
