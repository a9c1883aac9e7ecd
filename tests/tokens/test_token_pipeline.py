"""pipeline("early-exit-token-classification"): at full depth the stock pipeline's entities, for everything it
takes; with exits what each text gives alone; and what it refuses.
"""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from tiny import LAYERS, build, tiny_tokenizer
from tiny_tokens import build_tokens, piece_tokenizer, tiny_sentences
from torch.utils.data import Dataset
from transformers import BertForTokenClassification, TokenClassificationPipeline, pipeline

from modeling_romebert import EarlyExitTokenPipeline, score_tokens, scoring, text_batcher

TOKENIZER = piece_tokenizer()
SENTENCES = tiny_sentences(30, seed=11)
TEXTS = [" ".join(words) + " ." for words in SENTENCES]
ENDS = [
    "",
    "a",
    ".",
    "abcdefghij" * 4,
    "a?b",
    "  ab  cd ",
]  # empty, one token, a word of forty pieces, unknown
LONG = [" ".join(word for words in tiny_sentences(count, seed=12) for word in words) for count in (8, 9, 30)]
POLICY = {"name": "entropy", "threshold": 0.6}
STRATEGIES = ["none", "simple", "first", "average", "max"]


def ours(model=None, tokenizer=TOKENIZER, **settings):
    return pipeline(
        "early-exit-token-classification", model=model or build_tokens(), tokenizer=tokenizer, **settings
    )


@pytest.fixture(scope="module")
def stock():
    """The stock pipeline of a stock model with the weights of our encoder and our last exit."""
    model = build_tokens()
    config = model.config.backbone_config
    config.id2label, config.label2id = model.config.id2label, model.config.label2id
    classifier = BertForTokenClassification(config).eval()
    classifier.bert.load_state_dict(model.backbone.state_dict())
    classifier.classifier.load_state_dict(model.exits[str(LAYERS)].classifier.state_dict())
    return TokenClassificationPipeline(model=classifier, tokenizer=piece_tokenizer())


def assert_same_entities(found, expected, depth=None):
    """Entities of texts: the same in every field, scores up to rounding; with the layers that ran."""
    assert len(found) == len(expected)
    for of_text, others in zip(found, expected, strict=True):
        assert len(of_text) == len(others)
        for one, other in zip(of_text, others, strict=True):
            layer = other.get("exit_layer", depth)
            assert one == {
                **other,
                "score": pytest.approx(float(other["score"]), abs=1e-5),
                "exit_layer": layer,
            }


# ---- the stock pipeline


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_full_depth_gives_the_stock_entities(stock, strategy):
    texts, settings = [*TEXTS, *ENDS], {"aggregation_strategy": strategy}
    expected = [stock(text, **settings) for text in texts]
    assert_same_entities(ours()(texts, exit_policy=False, **settings), expected, LAYERS)
    assert any(len(of_text) > 1 for of_text in expected)
    assert_same_entities([ours()(TEXTS[0], exit_policy=False, **settings)], expected[:1], LAYERS)


@pytest.mark.parametrize("stride", [0, 5, 20])
@pytest.mark.parametrize("strategy", ["simple", "first"])
def test_long_texts_go_in_chunks_as_in_the_stock_pipeline(stock, strategy, stride):
    settings = {"aggregation_strategy": strategy, "stride": stride}
    expected = [stock(text, **settings) for text in [*LONG, *ENDS]]
    assert_same_entities(ours()([*LONG, *ENDS], exit_policy=False, **settings), expected, LAYERS)
    assert max(entity["end"] for entity in expected[2]) > 300  # which one chunk does not reach


def test_long_texts_without_a_stride_are_cut_as_in_the_stock_pipeline(stock, caplog):
    expected = [stock(text, aggregation_strategy="simple") for text in LONG]
    found = ours()(LONG, exit_policy=False, aggregation_strategy="simple")
    assert_same_entities(found, expected, LAYERS)
    assert "3 of 3 texts were longer than 64 tokens and were cut. Give stride" in caplog.text


@pytest.mark.parametrize("delimiter", [None, "", "--"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_words_that_are_split_already(stock, strategy, delimiter):
    settings = {"is_split_into_words": True, "aggregation_strategy": strategy}
    settings |= {} if delimiter is None else {"delimiter": delimiter}
    words = [*SENTENCES, ["abcdefghij" * 4, "a"], [""], ["a", "", "b"]]
    expected = [stock(one, **settings)[0] for one in words]  # the stock pipeline gives a list for one, too
    assert_same_entities(ours()(words, exit_policy=False, **settings), expected, LAYERS)
    assert_same_entities(ours()(words[0], exit_policy=False, **settings), expected[:1], LAYERS)
    from_constructor = ours(**settings)
    assert_same_entities(from_constructor(words, exit_policy=False), expected, LAYERS)


def test_ignored_labels_and_offsets_of_one_s_own(stock):
    settings = {"ignore_labels": ["B-PER", "I-LOC"]}
    expected = [stock(text, **settings) for text in TEXTS]
    assert any(entity["entity"] == "O" for of_text in expected for entity in of_text)
    assert_same_entities(ours()(TEXTS, exit_policy=False, **settings), expected, LAYERS)
    offsets = [(10 * index, 10 * index + 1) for index in range(40)]
    for given in (offsets, [offsets]):
        expected = [stock(TEXTS[0], offset_mapping=given)]
        found = ours()(TEXTS[:1], exit_policy=False, offset_mapping=given)
        assert_same_entities(found, expected, LAYERS)
    with pytest.raises(ValueError, match="offset_mapping should have the same batch size"):
        ours()(TEXTS[:2], offset_mapping=[offsets])


def test_a_slow_tokenizer_has_no_offsets(stock, monkeypatch):
    slow = piece_tokenizer()
    monkeypatch.setattr(type(slow), "is_fast", property(lambda self: False))
    expected = TokenClassificationPipeline(model=stock.model, tokenizer=slow)(TEXTS[0])
    found = ours(tokenizer=slow)(TEXTS[:1], exit_policy=False)
    assert found[0][0]["start"] is None
    assert_same_entities(found, [expected], LAYERS)
    for settings, message in (
        ({"aggregation_strategy": "first"}, "Slow tokenizers cannot handle subwords"),
        ({"is_split_into_words": True}, "is_split_into_words=True is only supported with fast tokenizers"),
    ):
        with pytest.raises(ValueError, match=message):
            ours(tokenizer=slow)([["a"]], **settings)


# ---- exits


policies = st.builds(
    lambda name, threshold, unit: {"name": name, "threshold": threshold, **unit},
    st.sampled_from(["entropy", "confidence"]),
    st.floats(0.3, 0.8),
    st.sampled_from([{}, {"unit": "token"}, {"unit": "token", "window": 5}]),
)
batching = st.fixed_dictionaries(
    {},
    optional={
        "batch_size": st.integers(1, 20),
        "batch_tokens": st.integers(1, 400),
        "window": st.integers(1, 20),
        "rebatching": st.booleans(),
    },
)


@hypothesis.settings(derandomize=True, deadline=None, max_examples=12, database=None)
@hypothesis.given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 30),
    policy=policies,
    batching=batching,
    strategy=st.sampled_from(["none", "simple", "first"]),
)
def test_bulk_is_one_by_one(seed, count, policy, batching, strategy):
    texts = [" ".join(words) for words in tiny_sentences(count, seed)] + ENDS[:3]
    stride = {} if strategy == "none" else {"stride": 8}
    find = ours(exit_policy=policy, aggregation_strategy=strategy, **stride)
    expected = [find(text) for text in texts]
    assert_same_entities(list(find(iter(texts), **batching)), expected)


@pytest.mark.parametrize("unit", [{}, {"unit": "token", "window": 3}], ids=str)
@torch.no_grad()
def test_an_entity_tells_how_deep_its_deepest_token_went(unit):
    model, policy = build_tokens(), {**POLICY, **unit}
    find = ours(model, exit_policy=policy, ignore_labels=[])
    for text in TEXTS[:10]:
        encoded = TOKENIZER(text, return_tensors="pt")
        words = torch.tensor([[-1 if word is None else word for word in encoded.word_ids()]])
        layers = model(**encoded, word_ids=words, exit_policy=policy).exit_layer[0]
        tokens = find(text)
        assert [token["exit_layer"] for token in tokens] == layers[1:-1].tolist()
        places = [(token["start"], token["end"], token["exit_layer"]) for token in tokens]
        for strategy in ("simple", "first", "average", "max"):
            for entity in find(text, aggregation_strategy=strategy):
                within = [n for start, end, n in places if entity["start"] <= start and end <= entity["end"]]
                assert entity["exit_layer"] == max(within)


def test_generators_and_datasets_stream():
    class Texts(Dataset):
        def __len__(self):
            return len(TEXTS)

        def __getitem__(self, index):
            return TEXTS[index]

    find = ours(exit_policy=POLICY)
    expected = find(TEXTS)
    results = find(Texts())
    assert len(results) == len(TEXTS) and list(results) == expected
    assert list(find(text for text in TEXTS)) == expected
    assert find(tuple(TEXTS)) == expected and find([]) == []
    model = build_tokens()
    assert list(score_tokens(model, TOKENIZER, TEXTS, exit_policy=POLICY)) == expected
    words = score_tokens(model, TOKENIZER, SENTENCES, exit_policy=POLICY, is_split_into_words=True)
    assert len(words) == len(SENTENCES) and len(list(words)) == len(SENTENCES)


def test_the_config_s_policy_is_used_and_a_call_s_wins(caplog):
    scoring.logger.warning_once.__func__.cache_clear()  # another test may have had the one
    model = build_tokens()
    assert all(t["exit_layer"] == LAYERS for of_text in ours(model)(TEXTS) for t in of_text)
    assert "no calibrated exit policy" in caplog.text
    model.config.exit_policy = {"name": "entropy", "threshold": 1.0, "unit": "token", "window": 3}
    depths = {t["exit_layer"] for of_text in ours(model)(TEXTS) for t in of_text}
    assert depths == {1}
    found = ours(model)(TEXTS, exit_threshold=0.6)  # of the config's policy
    assert found == ours(model)(TEXTS, exit_policy={**model.config.exit_policy, "threshold": 0.6})
    assert found != ours(model)(TEXTS, exit_policy=POLICY)
    deep = ours(model)(TEXTS, exit_policy=False)
    assert {t["exit_layer"] for of_text in deep for t in of_text} == {LAYERS}


# ---- what goes wrong


def test_a_text_that_is_none_is_named_or_skipped():
    find, texts = ours(exit_policy=POLICY), [TEXTS[0], 7, "bad \ud800", TEXTS[1]]
    with pytest.raises(TypeError, match="text 1: cannot classify the tokens of 7 of type int: give a string"):
        find(texts)
    found = find(texts, on_error="skip")
    assert [len(of_text) > 1 for of_text in found] == [True, False, False, True]
    assert found[1][0]["entity"] is None and found[1][0]["error"].startswith("text 1: cannot classify")
    assert "not Unicode" in found[2][0]["error"]
    with pytest.raises(TypeError, match="give a list of words"):
        find([["a"], "b"], is_split_into_words=True, exit_policy=False)
    with pytest.raises(TypeError, match="texts is one str"):
        score_tokens(build_tokens(), TOKENIZER, "a text")
    with pytest.raises(TypeError, match="texts is one dict"):
        find({"text": "a text"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exit_policy": {**POLICY, "unit": "word"}}, "unit='word' is unknown"),
        ({"stride": 62, "aggregation_strategy": "simple"}, "stride=62: chunks of this model hold 62 tokens"),
        ({"stride": 5}, "`stride` was provided to process all the text but"),
        ({"on_error": "ignore"}, "on_error='ignore' is unknown"),
        ({"batch_tokens": 0}, "batch_tokens=0: give a whole number from 1"),
        ({"exit_policy": {"name": "entropy", "thresholds": [0.1, 0.2]}}, "thresholds has 2 entries"),
    ],
)
def test_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ours()(TEXTS, **settings)


def test_a_classifier_of_texts_keeps_its_own_pipeline():
    classify = pipeline("early-exit-classification", model=build(), tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match='unit="token" lets single tokens'):
        classify("a film", exit_policy={**POLICY, "unit": "token"})
    assert type(ours()) is EarlyExitTokenPipeline


def test_windows_of_long_texts_end_early_for_words_too(monkeypatch):
    monkeypatch.setattr(text_batcher, "WINDOW_CHARACTERS", 100)
    for texts in (["a" * 40] * 7, [["a" * 20, "b" * 20]] * 7):
        found = list(text_batcher.windows(texts, 5, 5))
        assert [(start, len(part)) for start, part in found] == [(0, 3), (3, 3), (6, 1)]
