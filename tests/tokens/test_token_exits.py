"""Token classifiers that exit early: a batch is its rows alone, whatever the policy, the family and the
layout, and a row alone is what a plain loop over stock layers gives.
"""

from unittest.mock import patch

import pytest
import torch
from families import FAMILIES, families
from hypothesis import given, settings
from hypothesis import strategies as st
from rebatched import run_tokens
from tiny import LAYERS, tiny_backbone
from tiny_tokens import alone, build_tokens, padded, tiny_sentences, tokenised

from modeling_romebert import encoder, make_policy
from modeling_romebert.batch_layout import rounded_up
from modeling_romebert.cpu import prepacked
from modeling_romebert.token_encoder import TokenEncoder

UNITS = [{}, {"unit": "row"}, *({"unit": "token", "window": window} for window in (1, 3, 7))]
POLICIES = [
    {"name": "entropy", "threshold": 0.6},
    {"name": "confidence", "threshold": 0.5},
    {"name": "margin", "threshold": 0.3},
    {"name": "patience", "patience": 2},
    {"name": "patient_confidence", "patience": 2, "threshold": 0.3},
    {"name": "vote", "threshold": 1.0},
]
MODELS = {
    "eager": {"backbone": tiny_backbone(attention="eager")},
    "some exits": {"exit_layers": [1, 3]},
    **{family.name: {"backbone": family.backbone()} for family in FAMILIES},
}

policy = st.builds(
    lambda one, unit, threshold: {**one, **({"threshold": threshold} if "threshold" in one else {}), **unit},
    st.sampled_from(POLICIES),
    st.sampled_from(UNITS),
    st.floats(0.2, 0.9),
)
sentences = st.builds(
    tiny_sentences, st.integers(1, 30), st.integers(0, 10**6), st.sampled_from([1, 4, 15]), st.integers(1, 5)
)


def assert_rows(found, expected):
    """Logits (t, C) and exit layers (t,) of rows: equal, logits up to rounding."""
    for (logits, layers), (other, expected_layers) in zip(found, expected, strict=True):
        assert torch.equal(layers, expected_layers)
        torch.testing.assert_close(logits, other, rtol=0, atol=1e-5)


def of_batch(model, rows, policy, side="right"):
    """Rows as one padded batch -> logits and exit layers of each row."""
    ids, mask, words = padded(rows, side)
    output = model(ids, mask, word_ids=words, exit_policy=policy)
    assert not output.exit_layer[mask == 0].any() and not output.logits[mask == 0].any()
    pairs = zip(output.logits, output.exit_layer, mask.bool(), strict=True)
    return [(logits[kept], layers[kept]) for logits, layers, kept in pairs]


@settings(derandomize=True, deadline=None, max_examples=30, database=None)
@given(
    model=st.sampled_from(list(MODELS)),
    sentences=sentences,
    policy=policy,
    side=st.sampled_from(["right", "left"]),
    batch_tokens=st.integers(1, 120),
    workers=st.integers(1, 2),
)
@torch.no_grad()
def test_a_batch_is_its_rows(model, sentences, policy, side, batch_tokens, workers):
    model, rows = build_tokens(**MODELS[model]), tokenised(sentences, limit=60)
    expected = [alone(model, row, policy) for row in rows]
    assert_rows(of_batch(model, rows, policy, side), expected)
    assert_rows(run_tokens(model, rows, policy, batch_tokens, workers), expected)


@pytest.mark.parametrize("unit", UNITS[1:4], ids=str)
@families
@torch.no_grad()
def test_every_family_exits_in_batches(family, unit):
    model = build_tokens(family.backbone())
    rows = tokenised(tiny_sentences(12, seed=3, longest=6))
    policy = {"name": "confidence", "threshold": 0.45, **unit}
    expected = [alone(model, row, policy) for row in rows]
    if unit["unit"] == "token":
        depths = torch.cat([layers for _, layers in expected]).unique()
        assert len(depths) > 2  # or there is nothing to see
    assert_rows(of_batch(model, rows, policy), expected)
    assert_rows(run_tokens(model, rows, policy, 60), expected)


@torch.no_grad()
def halting_restated(model, row, threshold, window):
    """One row by a plain loop over the stock layers: whole layers, and halted states put back after each."""
    ids, words = torch.tensor([row["input_ids"]]), row["word_ids"]
    hidden = model.backbone.embeddings(ids)[0]  # (t, H)
    tokens = range(len(words))
    first = [words[i] >= 0 and words[i - 1] != words[i] for i in tokens]
    words = [words[1], *words[1:-1], words[-2]]  # special tokens go with a word
    layers, logits = [0] * len(words), [None] * len(words)
    for number, layer in enumerate(model.backbone.encoder.layer, start=1):
        stepped = layer(hidden.unsqueeze(0))
        stepped = (stepped[0] if isinstance(stepped, tuple) else stepped)[0]
        hidden = torch.stack([hidden[i] if layers[i] else stepped[i] for i in tokens])
        here = model.exits[str(number)].classifier(hidden)  # (t, C)
        p = here.softmax(-1)
        u = -(p * p.log()).sum(-1) / torch.tensor(float(p.shape[1])).log()
        unsure = [first[i] and not layers[i] and not u[i] < threshold for i in tokens]
        near = [any(unsure[max(0, i - window // 2) : i + window // 2 + 1]) for i in tokens]
        of_word = [any(near[j] for j in tokens if words[j] == words[i]) for i in tokens]
        for i in tokens:
            if not layers[i] and (number == LAYERS or not of_word[i]):
                layers[i], logits[i] = number, here[i]
    return torch.stack(logits), torch.tensor(layers)


@pytest.mark.parametrize(("unit", "window"), [("token", 1), ("token", 5), ("row", 999)])
@torch.no_grad()
def test_a_row_is_a_plain_loop(unit, window):
    """A halted token keeps its state; a row that leaves whole is one in whose window all others are."""
    model, rows = build_tokens(), tokenised(tiny_sentences(20, seed=5))
    threshold = 0.6 if unit == "token" else 0.9
    policy = make_policy(
        "entropy", threshold=threshold, unit=unit, window=window if unit == "token" else None
    )
    expected = [halting_restated(model, row, threshold, window) for row in rows]
    assert len(torch.cat([layers for _, layers in expected]).unique()) == LAYERS
    assert_rows([alone(model, row, policy) for row in rows], expected)
    assert_rows(run_tokens(model, rows, policy, 100), expected)


@torch.no_grad()
def test_layers_run_on_active_tokens_alone():
    model, rows = build_tokens(), tokenised(tiny_sentences(30, seed=6))
    seen = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    found = run_tokens(model, rows, {"name": "entropy", "threshold": 0.6, "unit": "token"}, 10**6)
    layers = torch.cat([layers for _, layers in found])
    active = [int((layers > depth).sum()) for depth in range(LAYERS)]
    assert active[0] > 1.5 * active[-1] > 0
    assert seen == [rounded_up(len(layers)), *map(rounded_up, active[1:])]  # filled up to few sizes


@torch.no_grad()
def test_prepacked_layers_halt_as_well():
    model, rows = build_tokens(), tokenised(tiny_sentences(8, seed=7))
    policy = {"name": "entropy", "threshold": 0.6, "unit": "token", "window": 3}
    expected = run_tokens(model, rows, policy, 10**6)
    made = TokenEncoder(model, prepacked(model.layers), pad_token_id=1)
    with patch.object(model, "encoder", lambda **_: made):
        assert_rows(run_tokens(model, rows, policy, 10**6), expected)


@pytest.mark.parametrize("unit", UNITS[1:3], ids=str)
@torch.no_grad()
def test_all_leave_at_the_first_exit_or_nobody_before_the_last(unit):
    model, rows = build_tokens(), tokenised(tiny_sentences(10, seed=8))
    ids, mask, words = padded(rows)
    full = model(ids, mask)
    for threshold, layer in ((1.0, 1), (0.0, LAYERS)):
        policy = {"name": "entropy", "threshold": threshold, **unit}
        output = model(ids, mask, word_ids=words, exit_policy=policy)
        attended = mask.bool()
        assert (output.exit_layer[attended] == layer).all()
        expected = full.exit_logits[:, layer - 1][attended]
        torch.testing.assert_close(output.logits[attended], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("unit", UNITS[1:4], ids=str)
@torch.no_grad()
def test_a_token_whose_logits_are_not_a_number_runs_every_layer(unit):
    model, rows = build_tokens(), tokenised([["abc", "d", "ef"], ["a"]])
    with torch.no_grad():
        model.exits["1"].classifier.bias[0] = torch.nan
    policy = {"name": "entropy", "threshold": 1.0, **unit}
    for logits, layers in of_batch(model, rows, policy):
        assert (layers == 2).all() and logits.isfinite().all()
    for head in model.exits.values():
        head.classifier.bias[0] = torch.nan
    for _, layers in [*of_batch(model, rows, policy), *run_tokens(model, rows, policy, 4)]:
        assert (layers == LAYERS).all()


@torch.no_grad()
def test_special_tokens_and_later_pieces_have_no_say():
    model, (row,) = build_tokens(), tokenised([["abcde", "f"]])
    sure = torch.tensor([9.0, 0, 0, 0, 0])
    logits = torch.zeros(1, 8, 5)  # [CLS] a b c d e f [SEP]
    logits[0, [1, 6]] = sure  # the first pieces
    with patch.object(TokenEncoder, "exit_logits", lambda *_, **__: logits):
        for unit in UNITS[1:3]:
            _, layers = alone(model, row, {"name": "entropy", "threshold": 0.1, **unit})
            assert layers.tolist() == [1] * 8
            words = torch.arange(8)[None]  # as when each token is a word
            output = model(
                torch.tensor([row["input_ids"]]),
                word_ids=words,
                exit_policy={"name": "entropy", "threshold": 0.1, **unit},
            )
            expected = {LAYERS} if unit["unit"] == "row" else {1, LAYERS}
            assert set(output.exit_layer[0].tolist()) == expected
            assert output.exit_layer[0, [2, 3, 4, 5]].tolist() == [LAYERS] * 4


@torch.no_grad()
def test_no_rows_and_rows_without_attended_tokens():
    model, policy = build_tokens(), {"name": "entropy", "threshold": 0.5}
    ids = torch.full((0, 4), 5)
    assert model(ids, exit_policy=policy).logits.shape == (0, 4, 5)
    output = model(torch.full((2, 4), 5), torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]), exit_policy=policy)
    assert output.exit_layer[1].tolist() == [0, 0, 0, 0] and output.exit_layer[0].min() > 0


def test_packed_families_are_those_with_names_for_keys_and_values():
    for family in FAMILIES:
        model = build_tokens(family.backbone())
        if model.adapter.packs:
            for path in model.adapter.keys_and_values:
                assert model.layers[0].get_submodule(path).weight.shape == (32, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unit": "word"}, "unit='word' is unknown; choose from row, token"),
        ({"unit": "token", "window": 4}, "window=4: give an odd number"),
        ({"unit": "token", "window": 0}, "window=0: give an odd number"),
        ({"window": 5}, "window=5 is for unit=\"token\"; here the unit is 'row'"),
    ],
)
def test_settings_of_a_policy_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_policy("entropy", threshold=0.5, **settings)


def test_a_policy_keeps_its_unit():
    policy = make_policy("entropy", threshold=0.5, unit="token", window=5, ask_every=2)
    again = policy.with_threshold(0.25)
    assert again.to_dict() == {
        "name": "entropy",
        "threshold": 0.25,
        "ask_every": 2,
        "unit": "token",
        "window": 5,
    }
    assert make_policy(**again.to_dict()).to_dict() == again.to_dict()


def test_workers_and_layouts_are_those_of_texts():
    assert encoder.TorchEncoder.packs is TokenEncoder.packs
