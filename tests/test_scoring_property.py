"""Whatever the texts, the policy, the exits and the batches: bulk scoring says of a text what the model says of it alone."""

from itertools import accumulate, pairwise
from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from modeling_romebert.batching import BATCH_COST, LEAST, cut, fill, level, plan_batches
from tiny import assert_same_results, build, spread_exits, tiny_texts, tiny_tokenizer
from transformers import RobertaConfig

from modeling_romebert import score, scoring

TOKENIZER = tiny_tokenizer()
MODELS = [
    spread_exits(build(**arguments), tiny_texts(40, seed=7))
    for arguments in (
        {"exit_pooling": "mean"},
        {"exit_pooling": "cls", "attention": "eager"},
        {"exit_pooling": "mean", "exit_layers": [2, 4]},
        {"family": RobertaConfig, "exit_pooling": "cls", "exit_layers": [1, 3, 4]},
        {"exit_pooling": "mean", "problem_type": "multi_label_classification"},
    )
]


def mixed_items(count: int, seed: int, longest: int, pairs: bool) -> list:
    """Texts of up to `longest` words, some empty, some longer than the 64 positions, and every third one of a pair."""
    texts = ["", *tiny_texts(2 * count, seed, longest)]
    return [
        {"text": texts[index], "text_pair": texts[-index]} if pairs and index % 3 == 0 else texts[index] for index in range(count)
    ]


items = st.builds(mixed_items, st.integers(0, 60), st.integers(0, 10**6), st.sampled_from([3, 30, 80]), st.booleans())
share = st.floats(0.2, 0.95)
policy = st.one_of(
    st.just(None),
    st.builds(lambda name, value: {"name": name, "threshold": value}, st.sampled_from(["entropy", "confidence", "margin"]), share),
    st.builds(lambda value: {"name": "vote", "threshold": 2 * value}, share),
    st.builds(lambda count: {"name": "patience", "patience": count}, st.integers(1, 3)),
    st.builds(lambda n, v: {"name": "patient_confidence", "patience": n, "threshold": v}, st.integers(1, 2), share),
)
batching = st.fixed_dictionaries(
    {},
    optional={
        "batch_size": st.integers(1, 20),
        "batch_tokens": st.integers(1, 600),
        "window": st.integers(1, 40),
        "depth_pools": st.booleans(),
    },
)


def alone(model, items, policy) -> list[dict]:
    """Each item through the model by itself."""
    results = []
    for one in items:
        text, pair = (one["text"], one["text_pair"]) if isinstance(one, dict) else (one, None)
        limit = 62 if model.config.backbone_config.model_type == "roberta" else 64
        inputs = TOKENIZER(text, pair or None, return_tensors="pt", truncation=True, max_length=limit)
        output = model(**inputs, exit_policy=policy)
        multi = model.config.problem_type == "multi_label_classification"
        probabilities = output.logits[0].sigmoid() if multi else output.logits[0].softmax(-1)
        label = model.config.id2label[int(probabilities.argmax())]
        results.append({"label": label, "score": float(probabilities.max()), "exit_layer": int(output.exit_layer)})
    return results


@settings(derandomize=True, deadline=None, max_examples=150, database=None)
@given(
    model=st.sampled_from(MODELS), items=items, policy=policy, ask=st.integers(1, 3), batching=batching, streams=st.integers(1, 3)
)
@torch.no_grad()
def test_bulk_scoring_is_one_by_one(model, items, policy, ask, batching, streams):
    if policy is not None and ask > 1:
        policy = {**policy, "ask_every": ask}
    with patch.object(scoring, "streams_for", lambda device, tokens: streams):
        found = list(score(model, TOKENIZER, iter(items), exit_policy=policy or False, **batching))
    assert_same_results(found, alone(model, items, policy))


@settings(derandomize=True, deadline=None, max_examples=300, database=None)
@given(
    lengths=st.lists(st.integers(1, 512), max_size=200),
    batch_tokens=st.one_of(st.none(), st.integers(1, 4096)),
    batch_size=st.one_of(st.none(), st.integers(1, 64)),
)
def test_plan_holds_every_row_once_within_the_bounds(lengths, batch_tokens, batch_size):
    plan = plan_batches(lengths, batch_tokens, batch_size)
    assert sorted(row for rows in plan for row in rows) == list(range(len(lengths)))
    in_order = [lengths[row] for rows in plan for row in rows]
    assert in_order == sorted(lengths, reverse=True)
    for rows in plan:
        assert rows and (batch_size is None or len(rows) <= batch_size)
        assert batch_tokens is None or len(rows) == 1 or len(rows) * lengths[rows[0]] <= batch_tokens
    assert batch_size is not None or batch_tokens is not None or len(plan) <= 1


@settings(derandomize=True, deadline=None, max_examples=300, database=None)
@given(lengths=st.lists(st.integers(1, 512), max_size=200), batch_tokens=st.integers(1, 4096), streams=st.integers(1, 4))
def test_batches_of_the_last_turn_are_level(lengths, batch_tokens, streams):
    filled, levelled = fill(lengths, batch_tokens), level(lengths, batch_tokens, streams)
    assert sum(levelled) == len(lengths) and all(levelled)
    ends = [0, *accumulate(levelled)]
    tokens = [sum(lengths[start:stop]) for start, stop in pairwise(ends)]
    assert all(of_one <= batch_tokens or count == 1 for of_one, count in zip(tokens, levelled, strict=True))
    if levelled != filled:
        turns = (len(filled) - 1) // streams  # all but the last one
        assert levelled[: turns * streams] == filled[: turns * streams]
        last = tokens[turns * streams :]
        assert len(last) <= streams
        mean = sum(last) / len(last)
        assert all(abs(of_one - mean) <= 2 * max(lengths) for of_one in last)
        assert mean >= LEAST or len(levelled) <= len(filled)
    if streams == 1:
        assert levelled == filled


def every_cut(rows: int):
    """All ways to cut so many rows into batches."""
    if rows == 0:
        yield []
    for first in range(1, rows + 1):
        for others in every_cut(rows - first):
            yield [first, *others]


def cost_of(lengths: list[int], counts: list[int], batch_tokens: int) -> float:
    """What a layer takes for rows in these batches, in tokens; infinite where a batch of several rows holds too many."""
    total, start = 0.0, 0
    for count in counts:
        tokens = count * max(lengths[start : start + count])
        total += BATCH_COST * batch_tokens + (tokens if count == 1 or tokens <= batch_tokens else float("inf"))
        start += count
    return total


@settings(derandomize=True, deadline=None, max_examples=200, database=None)
@given(lengths=st.lists(st.integers(26, 120), max_size=9))
def test_no_cut_takes_less_time(lengths):
    counts = cut(lengths, batch_tokens=100)  # of rows so long that each is a group
    assert sum(counts) == len(lengths)
    least = min(cost_of(lengths, other, 100) for other in every_cut(len(lengths)))
    assert abs(cost_of(lengths, counts, 100) - least) < 1e-9
