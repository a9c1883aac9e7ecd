"""Bulk scoring when something goes wrong: a text, a batch, the source, a number; and that nothing is left
behind at the end.
"""

import copy
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import long_stream
import pytest
import torch
from tiny import LAYERS, assert_same_results, build, spread_exits, tiny_texts, tiny_tokenizer

from modeling_romebert import score

ENTROPY = {"name": "entropy", "threshold": 0.6}
TEXTS = tiny_texts(150, seed=3)
MODEL = spread_exits(build(exit_policy=ENTROPY), TEXTS)


def scored(texts, model=MODEL, **settings) -> list:
    return list(score(model, tiny_tokenizer(), texts, **settings))


def tokenizer_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tokenizer")]


# ---- errors


def unknown_to_the_model():
    """A tokenizer with words beyond the model's vocabulary of 100."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"w{index}" for index in range(100)])
    return tokenizer


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (None, TypeError, "cannot classify None of type NoneType: give a string"),
        ("the \ud800 film", TypeError, "it is not Unicode: surrogates not allowed at character 4"),
        ("film w99", ValueError, "input_ids contain 124, but the model's vocabulary has 100 tokens"),
    ],
    ids=["no text", "tokenizer", "model"],
)
@pytest.mark.parametrize("rebatching", [False, True])
def test_an_error_in_one_text(wrong, kind, message, rebatching, caplog):
    texts = [*TEXTS[:90], wrong, *TEXTS[90:]]
    tokenizer = unknown_to_the_model()
    settings = {"window": 40, "rebatching": rebatching, "batch_tokens": 100}
    results = score(MODEL, tokenizer, texts, **settings)
    assert len([next(results) for _ in range(80)]) == 80
    with pytest.raises(kind, match=f"^text 90: {message}"):
        list(results)
    assert not tokenizer_threads()
    caplog.clear()
    skipped = list(score(MODEL, tokenizer, texts, on_error="skip", **settings))
    assert skipped[90].keys() == {"label", "score", "exit_layer", "error"}
    assert skipped[90]["label"] is skipped[90]["score"] is skipped[90]["exit_layer"] is None
    assert skipped[90]["error"].startswith("text 90: ") and message in skipped[90]["error"]
    assert_same_results(skipped[:90] + skipped[91:], scored(TEXTS))
    assert (
        caplog.records[-1].getMessage()
        == "1 of 151 texts could not be classified; their results say why, as 'error'."
    )


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_pair_that_cannot_be_cut_as_asked_for(window):
    """Of which a fast tokenizer raises no more than `Exception`, for all rows of the window."""
    long = "good " * 80
    texts = [{"text": "bad", "text_pair": long}, {"text": long, "text_pair": "bad"}, "good"]
    settings = {"truncation": "only_second", "window": window}
    with pytest.raises(ValueError, match=r"^text 1: Truncation error: .* too short"):
        scored(texts, **settings)
    cut, failed, single = scored(texts, on_error="skip", **settings)
    assert failed["label"] is None and failed["error"].startswith("text 1: Truncation error")
    assert_same_results([cut, single], scored([texts[0], texts[2]], **settings))


def test_only_errors_and_the_form_of_an_error_with_top_k():
    assert [result["error"][:7] for result in scored([None, 3], on_error="skip")] == ["text 0:", "text 1:"]
    results = scored(["the film", None], on_error="skip", top_k=2)
    assert [one["label"] is None for one in results[1]] == [True] and len(results[0]) == 2


class Fails:
    """A layer's hook that fails where there are too many tokens, and counts how often."""

    def __init__(self, model, error, most=0):
        self.error, self.most, self.calls = error, most, 0
        self.handle = model.layers[1].register_forward_pre_hook(self)

    def __call__(self, module, inputs):
        if inputs[0].shape[:2].numel() > self.most:
            self.calls += 1
            raise self.error


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried to"
        " allocate 9 bytes."
    ),
    MemoryError(),
]


@pytest.mark.parametrize("rebatching", [False, True])
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["gpu", "cpu", "python"])
def test_where_memory_runs_out_batches_are_halved(error, rebatching, caplog):
    model, expected = copy.deepcopy(MODEL), scored(TEXTS)
    fails = Fails(model, error, most=100)
    assert_same_results(scored(TEXTS, model, rebatching=rebatching, window=50, batch_tokens=1000), expected)
    said = [record.getMessage() for record in caplog.records]
    assert 3 <= fails.calls == len(said) <= 5  # 1000, 500, 250, 125: for good, not for each window
    assert all("There was not enough memory for a batch of" in one for one in said)


@pytest.mark.parametrize("rebatching", [False, True])
def test_a_text_that_is_too_large_for_the_memory_is_an_error_of_that_text(rebatching):
    texts = [*TEXTS[:20], "film " * 50, *TEXTS[20:40]]
    model, expected = copy.deepcopy(MODEL), scored(texts, exit_policy=False)
    Fails(model, torch.OutOfMemoryError("CUDA out of memory."), most=48)
    with pytest.raises(
        MemoryError, match="text 20: there is not enough memory for its 52 tokens: CUDA out of memory"
    ):
        scored(texts, model, exit_policy=False, rebatching=rebatching)
    skipped = scored(texts, model, exit_policy=False, rebatching=rebatching, on_error="skip")
    assert [row for row, result in enumerate(skipped) if "error" in result] == [20]
    assert_same_results(skipped[:20] + skipped[21:], expected[:20] + expected[21:])


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("rebatching", [False, True])
def test_a_fault_of_the_model_is_raised_as_it_is_and_tried_once(rebatching, on_error, caplog):
    model = copy.deepcopy(MODEL)
    fails = Fails(model, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2 shapes cannot be multiplied$") as raised:
        scored(TEXTS, model, rebatching=rebatching, on_error=on_error, batch_tokens=200)
    assert any(
        entry.name == "__call__" and entry.path.name == Path(__file__).name for entry in raised.traceback
    )
    assert fails.calls == 1 and not caplog.records


class BrokenTokenizer:
    """A tokenizer that takes no text, and counts how often it was asked."""

    def __init__(self, error):
        self.error, self.calls, self._whole = error, 0, tiny_tokenizer()

    def __getattr__(self, name):
        return getattr(self._whole, name)

    def __call__(self, *texts, **settings):
        self.calls += 1
        raise self.error


@pytest.mark.parametrize(
    "error", [TypeError("unexpected setting"), ValueError("no vocabulary"), RuntimeError("a fault")]
)
def test_a_fault_of_the_tokenizer_is_raised_as_it_is_and_tried_once(error):
    tokenizer = BrokenTokenizer(error)
    with pytest.raises(type(error), match=f"^{error}$"):
        list(score(MODEL, tokenizer, TEXTS, on_error="skip"))
    assert tokenizer.calls == 1


def test_an_error_of_the_source_passes_as_it_is():
    def texts():
        yield from TEXTS
        raise KeyError("gone")

    results = score(MODEL, tiny_tokenizer(), texts(), window=20)
    with pytest.raises(KeyError, match="gone"):
        list(results)
    assert not tokenizer_threads()


@pytest.mark.parametrize("rebatching", [False, True])
def test_rows_that_are_not_finite_run_every_layer_and_leave_others_alone(rebatching):
    model, tokenizer = build(exit_policy={"name": "confidence", "threshold": 0.0}), tiny_tokenizer()
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("dull")] = float("nan")
    results = scored(TEXTS, model, rebatching=rebatching)
    bad = ["dull" in text.split() for text in TEXTS]
    assert any(bad) and not all(bad)
    assert [result["exit_layer"] for result in results] == [LAYERS if one else 1 for one in bad]
    assert [result["score"] != result["score"] for result in results] == bad


# ---- the end


@pytest.mark.parametrize("end", ["close", "del", "through"])
def test_no_thread_is_left(end):
    before = set(threading.enumerate())
    results = score(MODEL, tiny_tokenizer(), iter(TEXTS), window=20)
    next(results)
    assert tokenizer_threads()
    if end == "close":
        results.close()
        assert list(results) == []
    elif end == "through":
        assert len(list(results)) == len(TEXTS) - 1
    else:
        del results
    assert set(threading.enumerate()) == before


@pytest.fixture(scope="module")
def streams():
    """What a process says of a long stream, and of one without an end that Ctrl-C ends."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = subprocess.Popen(
        [sys.executable, long_stream.__file__],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        growth, ready = running.stdout.readline(), running.stdout.readline()
        start = time.monotonic()
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=20)
        seconds = time.monotonic() - start
    finally:
        running.kill()
    return SimpleNamespace(
        growth=growth, ready=ready, seconds=seconds, out=out, err=err, returncode=running.returncode
    )


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_texts(streams):
    # MB; twice as many where every number of tokens had code of its own (batch_layout.rounded_up)
    assert float(streams.growth) < 70


@pytest.mark.slow
def test_ctrl_c_ends_an_endless_stream(streams):
    assert streams.ready.startswith("ready") and streams.seconds < 5
    assert streams.returncode == -signal.SIGINT and streams.err.rstrip().endswith("KeyboardInterrupt")
    assert streams.out.strip() == "['MainThread']"
