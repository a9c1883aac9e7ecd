"""serving/: texts that come at any time are answered as if each were alone, and each by its own policy."""

import random

import pytest
import torch
from tiny import build, spread_exits, tiny_texts, tiny_tokenizer

from modeling_romebert import ContinuousBatcher, ExitPolicy, export_onnx, make_policy, score
from modeling_romebert.early_exit import ActiveBatch
from modeling_romebert.onnx import OnnxRomeBertForSequenceClassification
from modeling_romebert.serving.mixed_policy import MixedPolicy

TEXTS = tiny_texts(60)
POLICIES = [
    {"name": "entropy", "threshold": 0.6},
    {"name": "entropy", "threshold": 0.9},
    {"name": "patience", "patience": 2},
    False,
]
NEVER = {"name": "entropy", "threshold": 0.0}


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def model():
    return spread_exits(build(exit_policy=POLICIES[0]), TEXTS)


def empty(batcher, answers=None) -> dict:
    """Step until nothing is left -> results by ticket."""
    answers = {} if answers is None else answers
    while len(batcher):
        answers.update(batcher.step())
    return answers


def assert_same(found, wanted):
    assert (found["label"], found["exit_layer"]) == (wanted["label"], wanted["exit_layer"])
    assert found["score"] == pytest.approx(wanted["score"], abs=1e-5)


def alone(model, texts, policy):
    return list(score(model, tiny_tokenizer(), texts, exit_policy=policy, batch_size=1))


@pytest.mark.parametrize("seed", range(4))
def test_whenever_it_comes_a_text_gets_what_it_gets_alone(model, seed):
    """Random numbers of texts between random numbers of steps, each under one of four policies."""
    chance = random.Random(seed)
    batcher = ContinuousBatcher(model, tiny_tokenizer(), batch_tokens=chance.choice([1, 60, 1000]))
    policies = [batcher.checked(policy) for policy in POLICIES]
    answers, asked, rest = {}, {}, list(TEXTS)
    while rest:
        texts, rest = rest[: (count := chance.randint(1, 9))], rest[count:]
        which = chance.randrange(len(POLICIES))
        for ticket, text in zip(batcher.add(texts, policies[which]), texts, strict=True):
            asked[ticket] = text, which
        for _ in range(chance.randint(0, 4)):
            for ticket, result in batcher.step():
                assert ticket not in answers
                answers[ticket] = result
    empty(batcher, answers)
    assert answers.keys() == asked.keys() and len(batcher) == 0 and batcher.waiting() == {}
    for which, policy in enumerate(POLICIES):
        tickets = [ticket for ticket, (_, chosen) in asked.items() if chosen == which]
        for ticket, wanted in zip(
            tickets, alone(model, [asked[ticket][0] for ticket in tickets], policy), strict=True
        ):
            assert_same(answers[ticket], wanted)
    assert len({result["exit_layer"] for result in answers.values()}) > 2


def test_a_bundle_of_onnx(model, tmp_path):
    bundle = OnnxRomeBertForSequenceClassification.from_pretrained(
        export_onnx(model, tiny_tokenizer(), tmp_path / "bundle", precision="fp32")
    )
    batcher = ContinuousBatcher(bundle, tiny_tokenizer(), batch_tokens=100)
    for begin in range(0, 30, 5):
        batcher.add(TEXTS[begin : begin + 5])
    answers = empty(batcher)
    for ticket, wanted in enumerate(alone(model, TEXTS[:30], POLICIES[0])):
        assert_same(answers[ticket], wanted)


def test_texts_join_at_the_next_layer_and_leave_first(model):
    """A text that is not sure before the last layer is overtaken by one that came later."""
    results = alone(model, TEXTS, POLICIES[0])
    deep = next(text for text, result in zip(TEXTS, results, strict=True) if result["exit_layer"] == 4)
    early = next(text for text, result in zip(TEXTS, results, strict=True) if result["exit_layer"] == 1)
    clock = Clock()
    batcher = ContinuousBatcher(model, tiny_tokenizer(), clock=clock)
    batcher.add([deep])
    assert batcher.step() == [] and batcher.waiting() == {1: 1}
    (late,) = batcher.add([early])
    clock.now = 1.0
    batcher.add([early] * 3)
    assert batcher.waiting() == {0: 4, 1: 1}
    # one text each waits for a second; a third one at depth 0 would decide, the fresh ones weigh nothing
    clock.now = 2.0
    left = batcher.step()  # 2 squared at depth 1, 2 squared + 3 x 1 squared at depth 0
    assert [ticket for ticket, _ in left] == [late, late + 1, late + 2, late + 3]
    assert [ticket for ticket, _ in empty(batcher).items()] == [0]


def test_an_old_text_outweighs_many_new_ones(model):
    clock = Clock()
    batcher = ContinuousBatcher(model, tiny_tokenizer(), exit_policy=NEVER, clock=clock)
    batcher.add(["the film"])
    batcher.step()
    clock.now = 1.0
    batcher.add(["good"] * 8)
    clock.now = 1.2
    batcher.step()  # 1.44 at depth 1, 8 x 0.04 at depth 0
    assert batcher.waiting() == {0: 8, 2: 1}


def test_companies_meet_at_a_depth(model):
    """Two texts that began apart share the batch that goes on."""
    clock = Clock()
    batcher = ContinuousBatcher(model, tiny_tokenizer(), exit_policy=NEVER, clock=clock)
    batcher.add(["the film"])
    batcher.step()
    batcher.add(["was good"])
    clock.now = 1.0
    batcher.add(["again", "never"])
    clock.now = 2.0
    batcher.step()
    assert batcher.waiting() == {1: 4}
    batcher.step()
    assert batcher.waiting() == {2: 4}


def test_all_of_a_request_or_nothing(model):
    batcher = ContinuousBatcher(model, tiny_tokenizer())
    with pytest.raises(TypeError, match="text 1: cannot classify 7 of type int"):
        batcher.add(["good", 7])
    with pytest.raises(TypeError, match="texts is one str: give a list of texts"):
        batcher.add("good")
    with pytest.raises(ValueError, match="text 0: it has 82 tokens, but the model has positions for 64"):
        batcher.add(["good " * 80], truncation=False)
    assert len(batcher) == 0 and batcher.step() == []
    long, short = batcher.add(["good " * 80, "good"])
    answers = empty(batcher)
    assert answers[long]["truncated"] is True and "truncated" not in answers[short]


def test_settings_without_meaning_are_refused(model):
    with pytest.raises(ValueError, match="batch_tokens=0: give a whole number from 1"):
        ContinuousBatcher(model, tiny_tokenizer(), batch_tokens=0)

    class Own(type(make_policy("entropy", threshold=0.5))):
        def keep(self, rows):
            super().keep(rows)

    with pytest.raises(ValueError, match="has no merge, so its rows cannot join others"):
        ContinuousBatcher(model, tiny_tokenizer()).checked(Own(0.5))


def test_where_memory_runs_out_batches_get_smaller(model, monkeypatch):
    """No text is lost; one that is too large alone says so."""
    step = ActiveBatch.step

    def small_machine(self):
        if sum(self.batch.lengths) > 30 or 25 in self.batch.lengths:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return step(self)

    monkeypatch.setattr(ActiveBatch, "step", small_machine)
    texts = [*["good film"] * 20, "good " * 23, "bad"]
    batcher = ContinuousBatcher(model, tiny_tokenizer())
    batcher.add(texts)
    answers = empty(batcher)
    assert "not enough memory for its 25 tokens" in answers[20]["error"] and answers[20]["label"] is None
    monkeypatch.undo()
    for ticket, wanted in enumerate(alone(model, texts, None)):
        if ticket != 20:
            assert_same(answers[ticket], wanted)


def test_other_faults_are_raised(model, monkeypatch):
    def broken(self):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(ActiveBatch, "step", broken)
    batcher = ContinuousBatcher(model, tiny_tokenizer())
    batcher.add(["good"])
    with pytest.raises(RuntimeError, match="shape mismatch"):
        batcher.step()


# ---- several policies in one batch


class Seen(ExitPolicy):
    """Remembers how often each row was asked; a row leaves the n-th time."""

    name = "seen"

    def __init__(self, times):
        self.times, self._count = times, None

    def leaves(self, exit_index, logits):
        self._count = (0 if self._count is None else self._count) + torch.ones(len(logits), dtype=torch.long)
        return self._count >= self.times

    def keep(self, rows):
        self._count = self._count[rows]

    def merge(self, policies):
        merged = self._copy()
        counts = [policy._count for policy in policies if policy._count is not None]
        merged._count = torch.cat(counts) if counts else None
        return merged


def test_memory_follows_rows_through_splits_and_merges():
    """Rows leave at the exit that their own policy says, whatever company they were in."""
    twice, thrice = Seen(2), Seen(3)
    kind, layers = "single_label_classification", [1, 2, 3, 4]

    def ask(mixed, exit_index, rows):
        return mixed.leaves(exit_index, torch.zeros(rows, 2)).tolist()

    left = MixedPolicy.of([twice, thrice, twice, thrice], kind, layers)
    right = MixedPolicy.of([thrice, twice], kind, layers)
    assert ask(left, 0, 4) == [False] * 4 and ask(right, 0, 2) == [False] * 2
    part = left.merge([left])
    part.keep(slice(1, 3))  # thrice, twice
    both = part.merge([part, right])  # thrice, twice, thrice, twice
    assert ask(both, 1, 4) == [False, True, False, True]
    both.keep(torch.tensor([0, 2]))
    assert ask(both, 2, 2) == [True, True]
    left.keep(torch.tensor([3, 0]).sort().values)  # twice, thrice: untouched by its part
    assert ask(left, 1, 2) == [True, False]


def test_each_policy_is_asked_where_it_asks():
    kind, layers = "single_label_classification", [1, 2, 3, 4]
    sure = make_policy("confidence", threshold=0.6)
    seldom, often = sure.asking(every=2), sure.asking()
    mixed = MixedPolicy.of([seldom, often], kind, layers)
    logits = torch.tensor([[0.0, 5.0], [0.0, 5.0]])
    assert [mixed.asks(index) for index in range(4)] == [True] * 4
    assert mixed.leaves(0, logits).tolist() == [False, True]
    assert mixed.leaves(1, logits).tolist() == [True, True]
    assert not MixedPolicy.of([seldom], kind, layers).asks(0)
