"""examples/train_tokens.py: the files that it reads, what a run writes, continues and refuses."""

import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
import train_tokens
from benchmarks import token_curves, token_exits
from support import token_data
from support.token_data import load_tokens, of_dataset, parse_columns, read_sentences
from tiny import tiny_backbone, write_rows
from tiny_tokens import TAGS, piece_tokenizer, tagged
from transformers import BertModel, pipeline

from modeling_romebert import RomeBertForTokenClassification

COLUMNS = SimpleNamespace(word_column=0, tag_column=-1, label_column=None)
CONLL = """-DOCSTART- -X- -X- O

Ann NNP B-NP B-PER
sings VBZ B-VP O

Rome NNP B-NP B-LOC
"""
CONLLU = """# sent_id = 1
1-2\tdon't\t_\t_\t_
1\tdo\tdo\tAUX\t_
2\tn't\tnot\tPART\t_
2.1\tx\tx\tX\t_

1\tGo\tgo\tVERB\t_
"""


# ---- data


def test_columns_are_read():
    found = parse_columns("file", CONLL)
    assert found.tokens == [["Ann", "sings"], ["Rome"]] and found.tags == [["B-PER", "O"], ["B-LOC"]]
    assert found.lines == [3, 6]
    found = parse_columns("file", CONLLU, word_column=1, tag_column=3, is_conllu=True)
    assert found.tokens == [["do", "n't"], ["Go"]] and found.tags == [["AUX", "PART"], ["VERB"]]
    assert parse_columns("file", "a b\tO\r\n").tokens == [["a b"]]  # a word of two in a file with tabs
    assert parse_columns("file", "# O\n").tokens == [["#"]]


def test_a_line_with_too_few_columns_is_named():
    with pytest.raises(SystemExit, match=r"--train_file x: line 3 has 1 column, 'Rome': the word is"):
        parse_columns("--train_file x", "Ann B-PER\nsings O\nRome\n")
    with pytest.raises(SystemExit, match="line 1 has 2 columns"):
        parse_columns("file", "Ann B-PER\n", tag_column=3)


def test_json_is_read(here):
    rows = [{"tokens": ["Ann"], "ner_tags": ["B-PER"]}, {"tokens": [], "ner_tags": []}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_sentences("--train_file", "rows.jsonl", COLUMNS).tags == [["B-PER"], []]
    for row, message in (
        ({"tokens": ["a"], "tag": ["O"]}, "needs a column tokens, .* it has tokens, tag"),
        ({"tokens": "a", "tags": ["O"]}, r"row 1 \(line 1\) has tokens 'a'; give a list"),
        ({"tokens": [1], "tags": ["O"]}, "has the token 1, which is no text"),
    ):
        Path("rows.jsonl").write_text(json.dumps(row))
        with pytest.raises(SystemExit, match=message):
            read_sentences("--train_file", "rows.jsonl", COLUMNS)


def test_words_without_a_label_are_no_tag(here):
    rows = [{"tokens": ["Ann", "sings", "well"], "labels": ["B-PER", "-100", "O"]}]
    write_rows("tags.jsonl", [*rows, {"tokens": ["no"], "labels": [-100]}])
    train = read_sentences("--train_file", "tags.jsonl", COLUMNS)
    names = token_data._names(train)
    assert names == ["O", "B-PER"]
    assert token_data._encoded(train, names)["labels"][:] == [[1, -100, 0], [-100]]


def test_data_sets_are_read():
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-X"])),
        }
    )
    rows = datasets.Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[1, 0]]}, features=features)
    assert of_dataset("it", rows).tags == [["B-X", "O"]]
    with pytest.raises(SystemExit, match="it needs the column tokens and one of ner_tags"):
        of_dataset("it", rows.remove_columns("ner_tags"))


def data_of(**given):
    defaults = {"dataset_name": None, "train_file": None, "validation_file": None, "test_file": None}
    defaults |= {"max_train_samples": None, "max_eval_samples": None, "calibrate_max_drop": None}
    return SimpleNamespace(**vars(COLUMNS), **defaults | given)


def test_data_that_cannot_be_used_are_refused(here):
    Path("train.conll").write_text(CONLL)
    Path("other.conll").write_text("Ann B-ORG\n")
    Path("one.conll").write_text("Ann O\n")
    write_rows("none.jsonl", [{"tokens": ["Ann"], "tags": ["-100"]}])
    both = {"train_file": "train.conll", "validation_file": "other.conll"}
    with pytest.raises(SystemExit, match="--windows 4: give odd numbers from 1"):
        train_tokens.parse(["--windows", "5", "4", "--use_cpu"])
    for given, message in (
        ({}, "give either --train_file and --validation_file, or --dataset_name"),
        ({**both, "dataset_name": "x"}, "give either"),
        ({"train_file": "train.conll"}, "--train_file is given without --validation_file"),
        ({**both, "train_file": "no.conll"}, r"--train_file no\.conll: give an existing file that ends in"),
        (both, r"other\.conll: sentence 1 \(line 1\) has the tag 'B-ORG', which training does not know"),
        ({**both, "train_file": "one.conll"}, "the only tag is 'O'; tagging needs at least two"),
        ({**both, "validation_file": "none.jsonl"}, r"none\.jsonl: every row has the label -100, so there"),
        (
            {**both, "validation_file": "train.conll", "calibrate_max_drop": 0.1},
            "too few to hold out",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            load_tokens(data_of(**given))
    found = load_tokens(data_of(**both | {"validation_file": "train.conll", "max_train_samples": 1}))
    assert found.names == ["O", "B-LOC", "B-PER"] and len(found.train) == 1
    assert found.evaluation["eval"][0] == {"tokens": ["Ann", "sings"], "labels": [2, 0]}


# ---- runs


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    BertModel(tiny_backbone()).save_pretrained(folder)
    piece_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def files(here) -> list[str]:
    """The arguments that name files in CoNLL format."""
    for name, rows in (("train", tagged(48)), ("dev", tagged(20, seed=1))):
        lines = [
            "".join(f"{w} {TAGS[t]}\n" for w, t in zip(row["tokens"], row["labels"], strict=True))
            for row in rows
        ]
        Path(f"{name}.conll").write_text("\n".join(lines))
    return ["--train_file", "train.conll", "--validation_file", "dev.conll"]


def run(encoder, *arguments) -> dict:
    common = {"model_name_or_path": encoder, "output_dir": "run", "num_train_epochs": 1}
    common |= {"use_cpu": True, "disable_tqdm": True, "objective": "joint"}
    train_tokens.main([*(f"--{name}={value}" for name, value in common.items()), *map(str, arguments)])
    return json.loads(Path("run", "metrics.json").read_text())


def test_a_run_writes_what_it_says_and_is_not_done_again(encoder, files, capsys):
    found = run(encoder, *files, "--test_file", "dev.conll", "--windows", 3, 5, "--calibrate_max_drop", 0.5)
    assert {"eval_f1", "eval_f1_exit_1", "eval_f1_mean", "test_f1"} <= found["metrics"].keys()
    assert found["metric"] == "f1" and found["policy"]["settings"]["name"] == "entropy"
    assert found["policy"]["outcome"].keys() == {"eval", "test"}
    names = {path.name for path in Path("run").glob("exits*.json")}
    kinds = ("row", "token_3", "token_5")
    assert names == {f"exits_{prefix}{kind}.json" for prefix in ("", "test_") for kind in kinds}
    report = json.loads(Path("run/exits_token_3.json").read_text())
    assert report["policy"] == {"name": "entropy", "unit": "token", "window": 3}
    find = pipeline("early-exit-token-classification", model="run/model", aggregation_strategy="first")
    assert find("abc d") is not None and find.model.config.id2label == dict(enumerate(sorted_tags()))
    before = Path("run/metrics.json").stat().st_mtime_ns
    capsys.readouterr()
    again = run(encoder, *files, "--test_file", "dev.conll", "--windows", 3, 5, "--calibrate_max_drop", 0.5)
    assert again == found and Path("run/metrics.json").stat().st_mtime_ns == before
    assert "nothing is done again" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="run holds a run with other settings"):
        run(encoder, *files)


def sorted_tags():
    return sorted(TAGS, key=lambda tag: (tag != "O", tag))


def test_a_run_goes_on_from_its_checkpoint(encoder, files, capsys):
    steps = ["--max_steps", 4, "--save_steps", 2, "--save_strategy", "steps"]
    whole = run(encoder, *files, *steps)
    for path in ("run/metrics.json", "run/checkpoint-4/trainer_state.json"):
        Path(path).unlink()
    again = run(encoder, *files, *steps)
    assert again["train"]["resumed_from"] == "checkpoint-2"
    assert again["metrics"] == pytest.approx(whole["metrics"])


def test_a_fault_after_the_training_does_not_cost_the_model(encoder, files, monkeypatch):
    def fault(*_):
        raise RuntimeError("no space")

    monkeypatch.setattr(train_tokens, "judge_policies", fault)
    with pytest.raises(RuntimeError, match="no space"):
        run(encoder, *files, "--save_strategy", "no")
    assert RomeBertForTokenClassification.from_pretrained("run/model").config.label2id


def test_a_second_stage_goes_on_from_the_first(encoder, files):
    run(encoder, *files)
    Path("run").rename("first")
    steps = ["--max_steps", 2, "--save_steps", 1, "--save_strategy", "steps"]
    second = ["--first_stage", "first/model", "--sampling_windows", 1, 3, "--sampling_thresholds", 0.2, 0.9]
    found = run(encoder, *files, *steps, *second)
    assert found["settings"]["model"]["first_stage"] == "first/model"
    for path in ("run/metrics.json", "run/checkpoint-2/trainer_state.json"):
        Path(path).unlink()
    again = run(encoder, *files, *steps, *second)
    assert again["train"]["resumed_from"] == "checkpoint-1"
    assert again["metrics"] == pytest.approx(found["metrics"])
    Path("train.conll").write_text("a B-ORG\nb O\n")
    Path("dev.conll").write_text("a B-ORG\nb O\n")
    with pytest.raises(SystemExit, match="--first_stage first/model was trained on other tags"):
        run(encoder, *files, *second, "--output_dir=other")


@pytest.mark.slow
def test_benchmarks_tell_what_a_run_costs_and_saves(encoder, files, capsys):
    run(encoder, *files, "--windows", 3)
    found = token_curves.main(["--runs", "run", "--output_file", "curves.json"])
    assert json.loads(Path("curves.json").read_text()) == found
    (of_run,) = found["runs"]
    report = json.loads(Path("run/exits_token_3.json").read_text())
    by_kind = {one["policy"].get("unit", "row"): one["curve"] for one in of_run["policies"]}
    assert [point["cost"] for point in by_kind["token"]] == [point["cost"] for point in report["curve"]]
    full = f"{100 * report['exits'][-1]:.1f}"
    assert f"| `joint`, exit_scale 0.1 | 1 | 1 | tokens, window 3 | {full} |" in capsys.readouterr().out

    asked = [
        "--model",
        "run/model",
        "--file",
        "dev.conll",
        "--costs",
        "0.6",
        "--windows",
        "3",
        "--minutes",
        "0",
    ]
    timed = token_exits.main([*asked, "--output_file", "timed.json"])
    assert json.loads(Path("timed.json").read_text()) == timed
    deep, row, token = timed["sides"]
    assert deep["policy"] is None and deep["times_as_fast"] == 1
    assert row["policy"]["unit"] == "row" and token["policy"]["window"] == 3
    assert timed["rounds"] == 3 and all(0.3 < side["cost"] <= 0.6 for side in (row, token))
    assert "| tokens, window 3 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--runs nowhere holds no metrics"):
        token_curves.main(["--runs", "nowhere"])


def test_curves_are_read_at_a_cost_and_over_seeds():
    def run_of(seed: int, *points: tuple[float, float], objective: str = "mixed") -> dict:
        curve = [{"cost": cost, "metric": metric} for cost, metric in points]
        training = {"objective": objective, "exit_scale": 0.2, "num_train_epochs": 2.0, "seed": seed}
        policies = [{"policy": {}, "curve": curve}]
        rows = {"samples": 9, "texts": 5}
        return {"training": training, "second_stage": False, **rows, "policies": policies}

    first = run_of(1, (1.0, 0.90), (0.6, 0.88), (0.4, 0.80), (0.3, 0.70))
    second = run_of(2, (1.0, 0.92), (0.5, 0.88), (0.3, 0.72))
    assert token_curves.at_cost(first["policies"][0]["curve"], 0.5) == pytest.approx(0.84)
    assert token_curves.at_cost(first["policies"][0]["curve"], 0.25) is None
    other = run_of(1, (1.0, 0.95), objective="deebert")
    lines = token_curves.table({"runs": [first, other, second]}).split("\n")[2:]
    assert lines[0].startswith("| `mixed`, exit_scale 0.2 | 2 + 2 | 2 | sentences | 91.0 ± 1.4 | 89.4")
    assert lines[0].endswith(" ± 0.9 | 86.0 ± 2.8 | 73.7 ± 1.0 |  |")
    assert lines[1].startswith("| `deebert` | 2 + 2 | 1 | sentences | 95.0 |")
    with pytest.raises(SystemExit, match="was trained in ways that differ in more than the seed"):
        token_curves.table({"runs": [first, second | {"samples": 8}]})


def test_the_recipe_of_conll_is_read():
    where, data, training = train_tokens.parse(["--recipe", "conll2003", "--output_dir", "run"])
    assert data.windows == [5, 15] and training.objective == "mixed"
    assert where.model_name_or_path == "bert-base-cased" and training.metric_for_best_model == "f1"
