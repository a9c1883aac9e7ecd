"""examples/calibrate.py on files, and the code of docs/calibration.md."""

import doctest
import json
import re
from pathlib import Path

import calibrate as example
import pytest
import torch
from benchmarks import calibration
from tiny import build, tiny_texts, tiny_tokenizer, write_rows

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "calibration.md"


@pytest.fixture
def saved(here):
    """A saved model in `model`, and files of texts with and without labels."""
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    build(num_labels=2, **names).save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    texts = tiny_texts(60)
    write_rows("labelled.csv", [{"text": text, "label": ("bad", "1")[i % 2]} for i, text in enumerate(texts)])
    write_rows("unlabelled.jsonl", [{"text": text} for text in texts])


def config_of(folder):
    return json.loads(Path(folder, "config.json").read_text())


def test_a_copy_beside_the_model(saved, capsys):
    before = config_of("model")
    example.main(["--model", "model", "--texts", "unlabelled.jsonl", "--max_drop", "0.3"])
    config = config_of("model-calibrated")
    assert config["calibration"]["risk"] == "disagreement" and config["calibration"]["num_examples"] == 60
    assert config["calibration"]["policy"] == config["exit_policy"]
    assert Path("model-calibrated/calibration.png").stat().st_size > 1000
    assert config_of("model") == before
    assert "Certified on 60 examples with 0.95 confidence" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="model-calibrated is not empty: give another --output_dir"):
        example.main(["--model", "model", "--texts", "unlabelled.jsonl"])


def test_in_place_with_labels_and_a_budget(saved, capsys):
    example.main(["--model", "model", "--texts", "labelled.csv", "--in_place", "--speedup", "2"])
    assert config_of("model")["calibration"]["budget"] == 0.5
    assert "at full depth" in capsys.readouterr().out


@pytest.mark.parametrize("label", [1, 1.0], ids=str)  # pandas writes 1.0 where a column has gaps
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_labels_that_are_numbers_are_the_names_that_training_made_of_them(here, kind, label):
    """Classes "1" and "2" have ids 0 and 1."""
    names = {"id2label": {0: "1", 1: "2"}, "label2id": {"1": 0, "2": 1}}
    model = build(num_labels=2, **names)
    for head in model.exits.values():
        head.classifier.weight.data.zero_()
        head.classifier.bias.data.copy_(torch.tensor([1.0, -1.0]))  # always "1"
    model.save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    write_rows(f"stars.{kind}", [{"text": text, "label": label} for text in tiny_texts(60)])
    example.main(["--model", "model", "--texts", f"stars.{kind}", "--max_drop", "0.3", "--in_place"])
    assert config_of("model")["calibration"]["full_depth"] == 1.0
    write_rows(f"none.{kind}", [{"text": text, "label": 0 * label} for text in tiny_texts(60)])
    with pytest.raises(SystemExit, match=r"row 0 has label '0(\.0)?'; single_label_classification takes"):
        example.main(["--model", "model", "--texts", f"none.{kind}", "--in_place"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--texts", "unlabelled.jsonl", "--risk", "harm"], r"unlabelled.jsonl: row 0 has no 'labels'"),
        (["--texts", "labelled.csv", "--max_drop", "2"], "max_drop=2.0 is not between 0 and 1"),
        (["--texts", "labelled.csv", "--in_place", "--output_dir", "x"], "give one of them"),
    ],
)
def test_what_is_wrong_is_told_without_a_traceback(saved, arguments, message):
    with pytest.raises(SystemExit, match=message):
        example.main(["--model", "model", *arguments])


def test_docs_show_what_their_code_prints():
    code = "\n".join(re.findall(r"```pycon\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL))
    test = doctest.DocTestParser().get_doctest(code, {}, "calibration.md", None, 0)
    said = []
    assert doctest.DocTestRunner(verbose=False).run(test, out=said.append).failed == 0, "".join(said)
    assert len(test.examples) > 10


def test_docs_show_the_figures_of_the_results_file():
    results = json.loads((DOCS / "results/calibration.json").read_text())
    assert calibration.markdown(results) in PAGE.read_text(encoding="utf-8")
    assert results["summary"]["kept_in_every_cell"]
