"""examples/score_file.py: any file in, the same rows with labels out, whatever happens on the way."""

import csv
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import score_file as example
from scored import TEXTS, assert_as_score, expected, save_classifier
from support.labelling import Labeller, as_columns
from support.row_source import open_rows
from support.shards import Shards
from tiny import tiny_tokenizer, write_rows

from modeling_romebert import RomeBertForSequenceClassification, calibrate, export_onnx

ROWS = len(TEXTS)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_classifier(tmp_path_factory.mktemp("model"))


@pytest.fixture
def rows(here) -> list[dict]:
    """Rows in reviews.csv: ids that look like numbers, and texts that pandas would take for missing."""
    rows = [{"id": f"{number:04}", "text": text} for number, text in enumerate(TEXTS)]
    rows[3]["text"], rows[4]["text"] = "NA", 'the "film", was\ngood'
    write_rows("reviews.csv", rows)
    return rows


def run(model, *more, input="reviews.csv", output="labels.parquet"):
    example.main(["--model", model, "--input", input, "--output", output, "--shard_rows", "50", *more])


def test_results_are_those_of_score(model, rows, capsys):
    run(model, "--keep", "id")
    table = pq.read_table("labels.parquet")
    assert table.column_names == ["id", "label", "score", "exit_layer", "error"]
    assert table["id"].to_pylist() == [row["id"] for row in rows]
    assert_as_score(table.to_pylist(), expected(model, [row["text"] for row in rows]))
    said = capsys.readouterr().out
    assert f"{ROWS} rows are in labels.parquet." in said and "texts per second" in said
    assert sorted(path.name for path in Path().iterdir()) == [
        *("labels.parquet", "labels.parquet.summary.json", "reviews.csv")
    ]


def test_summary_counts_what_is_in_the_output(model, rows):
    run(model)
    layers = pq.read_table("labels.parquet")["exit_layer"].to_pylist()
    summary = json.loads(Path("labels.parquet.summary.json").read_text())
    assert summary["exits"] == {str(layer): layers.count(layer) for layer in sorted(set(layers))}
    assert summary["cost"] == pytest.approx(sum(layers) / len(layers) / summary["layers"])
    assert (summary["rows"], summary["errors"], summary["rows_of_this_run"]) == (ROWS, 0, ROWS)
    assert len(summary["exits"]) > 2


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_other_formats_hold_the_same(model, rows, suffix):
    run(model, "--keep", "id")
    run(model, "--keep", "id", output=f"labels{suffix}")
    wanted = pq.read_table("labels.parquet").to_pylist()
    if suffix == ".jsonl":
        found = [json.loads(line) for line in Path("labels.jsonl").read_text().splitlines()]
    else:
        options = pa_csv.ConvertOptions(
            column_types=pq.read_schema("labels.parquet"), strings_can_be_null=True
        )
        found = pa_csv.read_csv("labels.csv", convert_options=options).to_pylist()
    assert [row["id"] for row in found] == [row["id"] for row in wanted]
    assert [row["exit_layer"] for row in found] == [row["exit_layer"] for row in wanted]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in wanted], abs=1e-6)


def write_inputs(rows: list[dict]) -> dict[str, str]:
    """The same rows in every kind of file that can be read -> what to give as --input."""
    write_rows("a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), "a.parquet")
    Path("a.csv.gz").write_bytes(gzip.compress(Path("reviews.csv").read_bytes()))
    Path("a.v2.tsv").write_text("id\ttext\n" + "".join(f"{row['id']}\t{row['text']}\n" for row in rows[5:]))
    write_rows("part-1.jsonl", rows[:100])
    write_rows("part-2.jsonl", rows[100:])
    return {
        "jsonl": "a.jsonl",
        "parquet": "a.parquet",
        "gz": "a.csv.gz",
        "tsv": "a.v2.tsv",
        "two": "part-*.jsonl",
    }


def test_every_kind_of_input_reads_the_same(rows):
    for kind, path in write_inputs(rows).items():
        tables = list(open_rows(path, ["text", "id"]).tables(64))
        found = [row for table in tables for row in table.to_pylist()]
        assert found == [{"text": row["text"], "id": row["id"]} for row in rows[5 if kind == "tsv" else 0 :]]
        assert {len(table) for table in tables[:-1]} == {64}


def test_cells_of_lines_of_json_are_kept_as_they_stand_there(model, here):
    """Columns that are not read may hold anything; one that begins with nothing holds texts."""
    rows = [{"text": "good", "day": "2021-01-01", "note": None, "n": 1, "other": 7} for _ in range(60)]
    rows += [{"text": "bad", "day": "2021-01-02", "note": "seen", "n": 2, "other": ["x"]} for _ in range(5)]
    del rows[0]["other"], rows[1]["n"]
    write_rows("drift.jsonl", rows)
    run(model, "--keep", "day", "note", "n", input="drift.jsonl")
    found = pq.read_table("labels.parquet").to_pylist()
    assert [(one["day"], one["note"], one["n"]) for one in found] == [
        (row["day"], row["note"], row.get("n")) for row in rows
    ]
    cells = [1, 2, "007", None, {"a": [1]}, {"b": 2.5}, 2**64, True, 1.5]
    write_rows("MIXED.JSONL", [{"text": "good", "n": cell} for cell in cells] + [{"text": 5, "n": "x"}])
    for kind in ("jsonl", "csv", "parquet"):
        run(model, "--keep", "n", "--shard_rows", "2", input="MIXED.JSONL", output=f"mixed.{kind}")
    found = [json.loads(line) for line in Path("mixed.jsonl").read_text().splitlines()]
    assert [one["n"] for one in found] == [*cells, "x"] and type(found[0]["n"]) is int
    assert found[-1]["error"].startswith("cannot classify 5 of type int")
    texts = ["1", "2", "007", None, '{"a": [1]}', '{"b": 2.5}', str(2**64), "true", "1.5", "x"]
    assert pq.read_table("mixed.parquet")["n"].to_pylist() == texts
    with Path("mixed.csv").open(newline="") as file:
        assert [row["n"] or None for row in csv.DictReader(file)] == texts
    write_rows("numbers.jsonl", [{"text": "good", "n": number} for number in (1, 2.5)])
    run(model, "--keep", "n", input="numbers.jsonl", output="numbers.parquet")
    assert pq.read_table("numbers.parquet")["n"].to_pylist() == [1.0, 2.5]
    with pytest.raises(SystemExit, match="--keep n n: name each column once"):
        run(model, "--keep", "n", "n", input="numbers.jsonl", output="twice.parquet")
    for text, message in (
        ('{"text": "good"}\n{"text": ', "drift.jsonl, line 2: "),
        ("[1]", "line 1 is no obj"),
    ):
        Path("drift.jsonl").write_text(text)
        with pytest.raises(SystemExit, match=message):
            run(model, input="drift.jsonl", output="third.parquet")


def test_rows_that_fail_say_why(model, here):
    rows = [{"text": "the film"}, {"text": None}, {"text": "good"}]
    write_rows("holes.jsonl", rows)
    run(model, input="holes.jsonl")
    found = pq.read_table("labels.parquet").to_pylist()
    assert found[1]["label"] is found[1]["score"] is found[1]["exit_layer"] is None
    assert found[1]["error"].startswith("cannot classify None of type NoneType")
    assert found[0]["label"] and found[0]["error"] is None
    assert json.loads(Path("labels.parquet.summary.json").read_text())["errors"] == 1


def test_pairs(model, here):
    rows = [{"a": text, "b": text[:20]} for text in TEXTS[:20]]
    write_rows("pairs.csv", rows)
    run(model, "--text_column", "a", "--pair_column", "b", input="pairs.csv")
    pairs = [{"text": row["a"], "text_pair": row["b"]} for row in rows]
    assert_as_score(pq.read_table("labels.parquet").to_pylist(), expected(model, pairs))


def test_a_bundle_is_a_model_too(model, here):
    loaded = RomeBertForSequenceClassification.from_pretrained(model)
    export_onnx(loaded, tiny_tokenizer(), "bundle", precision="fp32")
    write_rows("few.csv", [{"text": text} for text in TEXTS[:30]])
    run("bundle", input="few.csv")
    assert_as_score(pq.read_table("labels.parquet").to_pylist(), expected(model, TEXTS[:30]))
    with pytest.raises(SystemExit, match="--dtype bfloat16: bundle is a bundle"):
        run("bundle", "--dtype", "bfloat16", input="few.csv", output="other.parquet")


def test_a_promise_is_of_its_threshold_and_its_precision(here, capsys):
    model = RomeBertForSequenceClassification.from_pretrained(save_classifier(Path("model")))
    rows = [{"text": text} for text in TEXTS]
    calibrate(model, rows, tiny_tokenizer(), risk="disagreement", max_drop=0.3, progress=False)
    model.save_pretrained("model")
    write_rows("reviews.csv", rows[:40])
    for number, (more, promised) in enumerate(
        [([], True), (["--exit_threshold", "1.0"], False), (["--dtype", "bfloat16"], False)]
    ):
        run("model", *more, output=f"{number}.csv")
        said, summary = capsys.readouterr().out, json.loads(Path(f"{number}.csv.summary.json").read_text())
        assert ("Certified on 230 examples" in said) is promised is (summary["certificate"] is not None)
        assert ("No certificate is of this exit policy" in said) is not promised


# ---- interrupted


class Killed(Exception):
    pass


@pytest.mark.parametrize("place", ["third shard", "while joining", "before the folder is gone"])
def test_a_run_that_was_cut_off_goes_on(model, rows, monkeypatch, capsys, place):
    """Wherever it stops, the file is byte for byte that of a run that did not, and no shard is made twice."""
    run(model, output="undisturbed.parquet")
    shards, calls = Shards, []

    def stop(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        if place == "third shard":
            write = shards.write
            patch.setattr(shards, "write", lambda *a: stop() if a[1] == 2 else write(*a))
        elif place == "while joining":
            patch.setattr("support.shards._write", stop)
        else:
            patch.setattr("support.shards.shutil.rmtree", stop)
            patch.setattr("support.shards.write_json", stop)
        with pytest.raises(Killed):
            run(model)
    assert Path("labels.parquet").exists() == (place == "before the folder is gone")
    write = shards.write
    monkeypatch.setattr(shards, "write", lambda *a: (calls.append(a[1]), write(*a)))
    run(model)
    assert calls == ([2, 3, 4] if place == "third shard" else [])
    assert "going on behind them" in capsys.readouterr().out
    assert Path("labels.parquet").read_bytes() == Path("undisturbed.parquet").read_bytes()
    assert not Path("labels.parquet.run").exists()


def test_a_run_is_continued_by_the_same_settings_alone(model, rows, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(example, "as_columns", lambda results, start: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(model)
    with pytest.raises(SystemExit, match=r"exit_threshold: was None, is 0.5.*Choose another --output"):
        run(model, "--exit_threshold", "0.5")
    write_rows("reviews.csv", rows[:100])
    with pytest.raises(SystemExit, match=r"input\.files: was"):
        run(model)
    write_rows("reviews.csv", rows)
    shutil.copytree(model, "other")
    config = json.loads(Path("other/config.json").read_text())
    config["exit_policy"]["threshold"] = 0.7
    Path("other/config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=r"model\.config\.json: was"):
        run("other")


def test_what_is_there_is_not_overwritten(model, rows):
    run(model)
    before = Path("labels.parquet").read_bytes()
    with pytest.raises(
        SystemExit, match=r"labels.parquet exists, and not as the output of an unfinished run"
    ):
        run(model)
    assert Path("labels.parquet").read_bytes() == before


@pytest.mark.slow
def test_killed_from_outside(model, rows):
    """SIGKILL as soon as the second shard is there."""
    run(model, output="undisturbed.parquet")
    command = [sys.executable, example.__file__, "--model", model, "--input", "reviews.csv"]
    command += ["--output", "labels.parquet", "--shard_rows", "50"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(example.torch.get_num_threads())}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while not Path("labels.parquet.run/shard-000001.parquet").exists():
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not Path("labels.parquet").exists()
    run(model)
    assert Path("labels.parquet").read_bytes() == Path("undisturbed.parquet").read_bytes()


# ---- refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "absent.csv"], "--input absent.csv: there is no such file"),
        (["--text_column", "review"], "--input reviews.csv has no column review; it has id, text"),
        (
            ["--output", "labels.xlsx"],
            r"--output labels.xlsx: give a file that ends in .parquet, .csv, .jsonl",
        ),
        (["--keep", "id", "--shard_rows", "0"], "--shard_rows 0: give a number from 1"),
        (["--exit_threshold", "7"], r"threshold.*7.*is not"),
        (["--model", "./no/where"], "--model ./no/where: "),
    ],
)
def test_what_is_wrong_is_told_without_a_traceback(model, rows, arguments, message):
    given = {"--model": [model], "--input": ["reviews.csv"], "--output": ["labels.parquet"]}
    given |= {arguments[0]: arguments[1:]} if len(arguments) == 2 else {}
    more = arguments if len(arguments) > 2 else []
    with pytest.raises(SystemExit, match=message):
        example.main([*(part for name, values in given.items() for part in (name, *values)), *more])
    assert not Path("labels.parquet").exists()


def test_columns_of_the_results_are_not_kept_twice(model, here):
    write_rows("labelled.csv", [{"text": "good", "label": "x"}])
    with pytest.raises(SystemExit, match="--keep label: the output has columns of that name"):
        run(model, "--keep", "label", input="labelled.csv")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["id,text\n1,the film was good, very good\n"], "ends in line 2 has 3 cells, and the header 2"),
        (["id,text\n1,the film\n2,a plot,\n"], "ends in line 3 has 3 cells"),
        (["id,text\n1,the film\n2\n"], "ends in line 3 has 1 cells"),
        (["id,text\n1,good\n", "id,text\n1,good,\n"], "row of b.csv that ends in line 2 has 3 cells"),
        (["id,text\n1,good\n", "text,id\ngood,1\n"], "the header of b.csv is text, id, and that of a.csv"),
        (["id,id\n1,good\n"], "has a column twice"),
        ([""], "a.csv is empty"),
    ],
)
def test_a_table_whose_cells_have_no_one_column_is_refused(model, here, files, message):
    """pandas takes cells that are too many for row numbers, and makes up what is missing."""
    for name, text in zip(("a.csv", "b.csv"), files, strict=False):
        Path(name).write_text(text)
    with pytest.raises(SystemExit, match=message):
        run(model, input="*.csv")
    assert not Path("labels.parquet").exists()


def test_row_numbers_as_pandas_writes_them(model, here):
    Path("rows.csv").write_text(f',text\n0,"the film, good"\n\n1,{"bad " * 40_000}\n')
    run(model, input="rows.csv")
    found = pq.read_table("labels.parquet").to_pylist()
    assert_as_score(found, expected(model, ["the film, good", "bad " * 40_000]))


def test_a_labeller_counts_positions_for_itself(model):
    table = Labeller(model)(["good", 7, "bad", None])
    assert table["error"].null_count == 2 and "text 1" not in table["error"].to_pylist()[1]
    assert as_columns([]).num_rows == 0


def test_a_dataset_by_its_name(model, here):
    """A folder stands in for the Hub."""
    Path("mine").mkdir()
    write_rows("mine/test.jsonl", [{"text": text, "label": 0} for text in TEXTS[:20]])
    run(model, "--split", "test", input="mine")
    assert_as_score(pq.read_table("labels.parquet").to_pylist(), expected(model, TEXTS[:20]))
    with pytest.raises(SystemExit, match=r"--input mine: there is no such file, and as a dataset: .*train"):
        run(model, input="mine", output="other.parquet")
