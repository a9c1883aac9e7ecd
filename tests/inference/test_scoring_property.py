"""Whatever the texts, the policy, the exits and the batches: bulk scoring says of a text what the model says
of it alone.
"""

from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import assert_same_results, build, spread_exits, tiny_texts, tiny_tokenizer
from transformers import RobertaConfig

from modeling_romebert import encoder, score

TOKENIZER = tiny_tokenizer()
MODELS = [
    spread_exits(build(**arguments), tiny_texts(40, seed=7))
    for arguments in (
        {"exit_pooling": "mean"},
        {"exit_pooling": "cls", "attention": "eager"},
        {"exit_pooling": "mean", "exit_layers": [2, 4]},
        {"family": RobertaConfig, "exit_pooling": "cls", "exit_layers": [1, 3, 4]},
        {"exit_pooling": "mean", "problem_type": "multi_label_classification"},
        {"exit_pooling": "mean", "exit_mix": True},
        {"exit_pooling": "cls", "exit_mix": True, "exit_layers": [1, 3, 4], "attention": "eager"},
    )
]


def mixed_items(count: int, seed: int, longest: int, pairs: bool) -> list:
    """Texts of up to `longest` words, some empty, some longer than the 64 positions, and every third one of a
    pair.
    """
    texts = ["", *tiny_texts(2 * count, seed, longest)]
    return [
        {"text": texts[index], "text_pair": texts[-index]} if pairs and index % 3 == 0 else texts[index]
        for index in range(count)
    ]


items = st.builds(
    mixed_items, st.integers(0, 60), st.integers(0, 10**6), st.sampled_from([3, 30, 80]), st.booleans()
)
share = st.floats(0.2, 0.95)
policy = st.one_of(
    st.just(None),
    st.builds(
        lambda name, value: {"name": name, "threshold": value},
        st.sampled_from(["entropy", "confidence", "margin"]),
        share,
    ),
    st.builds(lambda value: {"name": "vote", "threshold": 2 * value}, share),
    st.builds(lambda count: {"name": "patience", "patience": count}, st.integers(1, 3)),
    st.builds(
        lambda n, v: {"name": "patient_confidence", "patience": n, "threshold": v}, st.integers(1, 2), share
    ),
)
batching = st.fixed_dictionaries(
    {},
    optional={
        "batch_size": st.integers(1, 20),
        "batch_tokens": st.integers(1, 600),
        "window": st.integers(1, 40),
        "rebatching": st.booleans(),
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
        results.append(
            {"label": label, "score": float(probabilities.max()), "exit_layer": int(output.exit_layer)}
        )
    return results


@settings(derandomize=True, deadline=None, max_examples=60, database=None)
@given(
    model=st.sampled_from(MODELS),
    items=items,
    policy=policy,
    ask=st.integers(1, 3),
    batching=batching,
    workers=st.integers(1, 3),
)
@torch.no_grad()
def test_bulk_scoring_is_one_by_one(model, items, policy, ask, batching, workers):
    if policy is not None and ask > 1:
        policy = {**policy, "ask_every": ask}
    with patch.object(encoder, "workers_for", lambda device, tokens: workers):
        found = list(score(model, TOKENIZER, iter(items), exit_policy=policy or False, **batching))
    assert_same_results(found, alone(model, items, policy))
