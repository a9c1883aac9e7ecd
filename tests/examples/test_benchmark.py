"""The benchmarks run on a tiny model, say what they measured, and their arithmetic is right."""

import contextlib
import gc
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from benchmarks import layers, onnx_agreement, throughput
from benchmarks.sides import Predictions, Side, export, logits_of, sorted_batches
from tiny import tiny_texts
from transformers import AutoModelForSequenceClassification, AutoTokenizer

# torch's older exporter, which the benchmark uses because its graphs run as fast and take a tenth of the time
# to make
old_exporter = pytest.mark.filterwarnings(
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
    "ignore:The feature will be removed:DeprecationWarning",
    "ignore:Converting a tensor to a Python boolean:torch.jit.TracerWarning",
)
SIDES = ["--model=run/model", "--dataset=own.csv", "--rounds=1", "--output_file=speed.json"]


@pytest.mark.slow
def test_layers_are_timed_against_the_stock_model(quick_done, capsys):
    layers.main(
        [
            "--model",
            "run/model",
            "--dataset",
            "own.csv",
            "--batch_sizes",
            "1",
            "4",
            "--rounds",
            "2",
            "--output_file",
            "timed.json",
        ]
    )
    timed = json.loads(Path("timed.json").read_text())
    assert (
        timed["full_depth"]["seconds"].keys() == {"stock", "ours"}
        and timed["full_depth"]["ours_over_stock"]["median"] > 0
    )
    assert [(row["batch_size"], row["policy"]) for row in timed["early_exit"]] == [
        (size, policy) for size in (1, 4) for policy in ("calibrated", "cost near 0.5", "cost near 0.3")
    ]
    for row in timed["early_exit"]:
        assert row["saving_on_the_clock"] == pytest.approx(
            row["speedup_time"]["median"] / row["speedup_layers"]
        )
    assert layers.table(timed) in capsys.readouterr().out


@pytest.mark.slow
def test_layers_are_timed_with_texts_of_a_length(quick_done):
    settings = [
        "--model=run/model",
        "--dataset=own.csv",
        "--batch_sizes=4",
        "--rounds=1",
        "--output_file=timed.json",
    ]
    layers.main([*settings, "--tokens", "4", "8"])
    timed = json.loads(Path("timed.json").read_text())
    assert timed["tokens"] == [4, 8] and 4 <= timed["tokens_per_text"] <= 8


def test_every_side_is_first_in_turn():
    sides = ["stock", "full", "early"]
    assert [layers.rotated(sides, turn)[0] for turn in range(4)] == [
        "stock",
        "full",
        "early",
        "stock",
    ]
    assert layers.rotated(sides, 2) == ["early", "stock", "full"]


def test_sides_take_turns_within_a_round(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(
        layers.time, "perf_counter", lambda: next(clock)
    )  # a second from one look to the next
    ran: list[tuple[str, int]] = []

    def side(name):
        return lambda batches: ran.extend((name, batch) for batch in batches)

    seconds = layers.seconds_of({"a": side("a"), "b": side("b")}, [0, 1, 2, 3, 4], rounds=2, title="", turn=2)
    first = [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("b", 1),
        ("b", 2),
        ("b", 3),
        ("a", 2),
        ("a", 3),
        ("a", 4),
        ("b", 4),
    ]
    assert ran[:10] == first and len(ran) == 30  # three rounds, of which the first is not counted
    assert seconds == {"a": [3, 3], "b": [3, 3]}  # three turns a round, of a second each


@pytest.fixture(scope="module")
def benchmark_once(encoder, quickstart_once, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a benchmark of every side, and what it said."""
    folder, said = tmp_path_factory.mktemp("benchmark") / "of", io.StringIO()
    shutil.copytree(quickstart_once[0], folder)
    settings = {"encoder": encoder, "epochs": 1, "bf16": True, "compile": False, "growth": 40}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(folder)
        patch.setattr(throughput.time, "sleep", lambda seconds: None)  # so that clocks tell more
        throughput.main([*SIDES, *(f"--{name}={value}" for name, value in settings.items())])
    return folder, said.getvalue()


@pytest.mark.slow
@old_exporter
def test_every_side_classifies_the_same_texts(benchmark_once):
    folder, said = benchmark_once
    results = json.loads((folder / "speed.json").read_text())
    sides = {row["side"]: row for row in results["throughput"]}
    assert len(sides) == 23 and sides[throughput.REFERENCE]["speedup"]["median"] == 1
    for name, row in sides.items():
        assert row["texts_per_second"] == pytest.approx(results["texts"] / row["seconds"][0])
        if (
            "fp32" in name
            and "layers" not in name
            and not any(part in name for part in ("cost", "calibrated"))
        ):
            assert row["as_full_depth"] == 1, name  # the same model, however it is run
    assert sides["stock model of 2 layers, sorted by length, fp32"]["cost"] == 0.5
    assert sides["RomeBERT, full depth, fp32"]["cost"] == 1 > sides["RomeBERT, cost near 0.3, fp32"]["cost"]
    assert {row["side"] for row in results["latency"]} < set(sides)
    (grown,) = results["growth"]
    assert grown["texts"] == 40 and grown["peak_megabytes"] > 100  # torch alone takes more
    assert (folder / "speed.png").stat().st_size > 0
    assert len(throughput.tables(results)) == 3 and all(table in said for table in throughput.tables(results))


@pytest.mark.slow
@old_exporter
def test_stock_models_are_fine_tuned_once(benchmark_once, encoder, monkeypatch):
    """A second benchmark in the folder, of fewer sides."""
    monkeypatch.chdir(benchmark_once[0])
    before = Path("runs/benchmark/stock/model.safetensors").stat().st_mtime_ns
    settings = ["--epochs=1", "--growth=0", "--bf16=False", "--compile=False", "--onnx=False", "--costs=0.5"]
    throughput.main([*SIDES, f"--encoder={encoder}", *settings, "--output_file=again.json"])
    sides = [row["side"] for row in json.loads(Path("again.json").read_text())["throughput"]]
    assert throughput.REFERENCE in sides and not [side for side in sides if "bf16" in side]
    assert Path("runs/benchmark/stock/model.safetensors").stat().st_mtime_ns == before


def test_figures_are_ratios_within_rounds_and_shares_of_equal_predictions():
    names = {throughput.REFERENCE: "stock", throughput.SORTED.format("fp32"): "stock"}
    names |= {"RomeBERT, full depth, fp32": "RomeBERT", "RomeBERT, early, fp32": "RomeBERT"}
    sides = [Side(name, group, lambda texts: Predictions([])) for name, group in names.items()]
    stock, full, early = (
        Predictions([0, 1, 1, 0]),
        Predictions([0, 1, 1, 1]),
        Predictions([0, 1, 0, 1], [0.25, 0.25, 0.5, 1.0]),
    )
    first = dict(zip(names, (stock, stock, full, early), strict=True))
    seconds = dict(
        zip(names, ([4.0, 8.0, 4.0], [3.0, 3.0, 3.0], [4.0, 4.0, 4.0], [2.0, 2.0, 1.0]), strict=True)
    )
    row = throughput.figures(sides[3], sides, first, seconds, [0, 0, 0, 1], [4, 2, 2, 2])
    assert (
        row["speedup"]["median"] == 4
        and row["speedup_sorted"]["median"] == 1.5
        and row["texts_per_second"] == 2
    )
    assert row["accuracy"] == 0.75 and row["as_full_depth"] == 0.75 and row["cost"] == 0.5
    assert row["saving_on_the_clock"] == 2 * 0.5  # twice as fast with half of the layers
    assert row["saving_on_the_clock_by_tokens"] == pytest.approx(
        2 * 0.45
    )  # (4 * 0.25 + 2 * 0.25 + 2 * 0.5 + 2 * 1) / 10
    assert (
        throughput.figures(sides[0], sides, first, seconds, [0, 0, 0, 1], [4, 2, 2, 2])["saving_on_the_clock"]
        is None
    )


def test_old_objects_are_left_alone_while_sides_are_timed():
    def run(texts):
        frozen.append(gc.get_freeze_count())
        return Predictions([0] * len(texts))

    gc.unfreeze()  # what conftest.py froze
    frozen: list[int] = []
    names = (throughput.REFERENCE, throughput.SORTED.format("fp32"))
    for _ in throughput.throughput(
        [Side(name, "stock", run) for name in names], ["a", "b"], [0, 1], [1, 1], rounds=1
    ):
        pass
    assert frozen[:2] == [0, 0] and min(frozen[2:]) > 10_000 and gc.get_freeze_count() == 0


@pytest.mark.slow
def test_sorted_batches_give_the_predictions_of_single_texts(quick_done):
    model = AutoModelForSequenceClassification.from_pretrained("run/model").eval()
    tokenizer, texts = AutoTokenizer.from_pretrained("run/model"), tiny_texts(70)
    with torch.no_grad():
        alone = [model(**tokenizer(text, return_tensors="pt")).logits.argmax().item() for text in texts]
    assert sorted_batches(tokenizer, logits_of(model))(texts).labels == alone


@pytest.mark.slow
@old_exporter
def test_exported_model_is_the_stock_model(encoder, tmp_path):
    import onnxruntime

    tokenizer = AutoTokenizer.from_pretrained(encoder)
    AutoModelForSequenceClassification.from_pretrained(encoder).save_pretrained(tmp_path)
    export(tmp_path, tokenizer.model_input_names, tmp_path / "model.onnx")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for texts in (tiny_texts(3), tiny_texts(5, seed=1)):
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        (logits,) = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), stock(**batch).logits, rtol=0, atol=1e-5)


def test_agreement_is_of_labels_exits_and_scores():
    def answer(label, score, layer):
        return {"label": label, "score": score, "exit_layer": layer}

    one = answer("a", 0.9, 2)
    pairs = [
        (one, answer("a", 0.8, 2)),
        (one, answer("a", 0.1, 3)),
        (one, answer("b", 0.2, 2)),
        (one, answer("b", 0.2, 1)),
    ]
    found = onnx_agreement.agreement(pairs)
    assert found == {"same_label": 0.5, "same_exit": 0.5, "largest_difference": pytest.approx(0.1)}
