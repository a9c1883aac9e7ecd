"""examples/export_onnx.py: a saved model and a file of texts -> a bundle, and a table of what it holds."""

import export_onnx as example
import pytest
from tiny import build, spread_exits, tiny_texts, tiny_tokenizer, write_rows

from modeling_romebert import OnnxRomeBertForSequenceClassification, calibrate


@pytest.fixture
def saved(here):
    build().save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    write_rows("texts.csv", [{"text": text} for text in tiny_texts(20)])


def test_a_bundle_and_its_table(saved, capsys):
    arguments = ["--model_dir", "model", "--output_dir", "bundle", "--exits", "2", "--dataset", "texts.csv"]
    example.main([*arguments, "--max_changed", "1"])
    said = capsys.readouterr().out
    assert "| 1 to 2 | int8 | 0.1 | " in said and "| 3 to 4 | int8 | 0.1 | " in said
    onnx = OnnxRomeBertForSequenceClassification.from_pretrained("bundle")
    assert onnx.exit_layers == [2, 4] and onnx.manifest.checked["texts"] == 20
    example.main(["--model_dir", "model", "--output_dir", "bundle", "--precision", "fp32"])  # replaces it
    assert "| 4 to 4 | fp32 | 0.1 | not compared |" in capsys.readouterr().out


def test_labels_of_the_file_certify_the_bundle(here):
    texts, tokenizer = tiny_texts(200), tiny_tokenizer()
    model = spread_exits(build(num_labels=2), texts)
    rows = [{"text": text, "label": "LABEL_0"} for text in texts]
    calibrate(model, rows, tokenizer, max_drop=0.3, confidence=0.8, progress=False)
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    write_rows("texts.csv", rows)
    arguments = ["--model_dir", "model", "--output_dir", "bundle", "--dataset", "texts.csv"]
    example.main([*arguments, "--max_changed", "1"])
    certificate = OnnxRomeBertForSequenceClassification.from_pretrained("bundle").config.calibration
    assert (certificate["precision"], certificate["num_examples"]) == ("int8", 200)
