"""A bundle on ONNX Runtime gives what the torch model gives, wherever that goes, and refuses what is not
whole.
"""

import json
import multiprocessing
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES
from tiny import assert_same_results, build, spread_exits, tiny_texts, tiny_tokenizer
from transformers import AlbertConfig, BertConfig, ModernBertConfig, pipeline

from modeling_romebert import (
    OnnxRomeBertForSequenceClassification,
    RomeBertConfig,
    RomeBertForSequenceClassification,
    calibrate,
    cpu,
    evaluate_exits,
    export_onnx,
    make_policy,
    score,
)
from modeling_romebert.certificate import certificate_of
from modeling_romebert.evaluation.exit_logits import collect_exit_logits
from modeling_romebert.onnx import bundle, engine, export, quantise

ROOT = Path(__file__).parents[2]
TEXTS, TOKENIZER = tiny_texts(60, seed=3), tiny_tokenizer()
POLICY = {"name": "entropy", "threshold": 0.6}
WITHOUT_TORCH = """
import sys
import importlib.util

find = importlib.util.find_spec
hidden = ("torch", "transformers", "huggingface_hub", "onnx")
importlib.util.find_spec = lambda name, package=None: None if name in hidden else find(name, package)


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def model():
    return spread_exits(build(exit_policy=POLICY), TEXTS)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return export_onnx(model, TOKENIZER, tmp_path_factory.mktemp("onnx") / "fp32", precision="fp32")


@pytest.fixture(scope="module")
def onnx(folder):
    return OnnxRomeBertForSequenceClassification.from_pretrained(folder)


def depths(results):
    return {result["exit_layer"] for result in results}


# ---- the same as torch


OFTEN = ("bert", "albert", "modernbert")


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=family.name, marks=() if family.name in OFTEN else pytest.mark.slow)
        for family in FAMILIES
    ],
)
def test_every_family(family, tmp_path):
    pooling = ("cls", "mean")[FAMILIES.index(family) % 2]
    config = RomeBertConfig(family.backbone(), exit_pooling=pooling)
    model = spread_exits(RomeBertForSequenceClassification(config).eval(), TEXTS)
    onnx = OnnxRomeBertForSequenceClassification.from_pretrained(
        export_onnx(model, TOKENIZER, tmp_path / "bundle", precision="fp32")
    )
    expected = list(score(model, TOKENIZER, TEXTS, exit_policy=POLICY))
    assert len(depths(expected)) > 1
    assert_same_results(list(score(onnx, TOKENIZER, TEXTS, exit_policy=POLICY, batch_tokens=100)), expected)
    inputs = TOKENIZER(TEXTS[:5], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            onnx(**inputs).exit_logits, model(**inputs).exit_logits, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("family", "exit_layers"),
    [
        (BertConfig, None),
        pytest.param(AlbertConfig, [1, 3, 4], marks=pytest.mark.slow),
        pytest.param(ModernBertConfig, [1, 3, 4], marks=pytest.mark.slow),
    ],
)
def test_exits_that_mix_layers(family, exit_layers, tmp_path):
    """With fewer exits too: every layer's pooled states go from graph to graph."""
    model = spread_exits(build(family, exit_pooling="mean", exit_mix=True, exit_layers=exit_layers), TEXTS)
    onnx = OnnxRomeBertForSequenceClassification.from_pretrained(
        export_onnx(model, TOKENIZER, tmp_path / "bundle", precision="fp32")
    )
    expected = list(score(model, TOKENIZER, TEXTS, exit_policy=POLICY))
    assert len(depths(expected)) > 1
    assert_same_results(list(score(onnx, TOKENIZER, TEXTS, exit_policy=POLICY, batch_tokens=100)), expected)
    fewer = OnnxRomeBertForSequenceClassification.from_pretrained(
        export_onnx(model, TOKENIZER, tmp_path / "int8", exits=[3], dataset=TEXTS, max_changed=1.0)
    )
    exits = [index for index, layer in enumerate(model.exit_layers) if layer in (3, 4)]
    inputs = TOKENIZER(TEXTS[:5], padding=True, return_tensors="pt")
    with torch.no_grad():
        of_exits = model(**inputs).exit_logits[:, exits]
    assert fewer.config.exit_layers == [3, 4]
    step = 1 if bundle.multiplies_int8() else 2  # of rounding, where weights have 8 bits or 7
    torch.testing.assert_close(fewer(**inputs).exit_logits, of_exits, atol=0.3 * step, rtol=0.1)


@pytest.mark.parametrize(
    "policy", [False, POLICY, {"name": "confidence", "threshold": 0.0}, {"name": "patience", "patience": 2}]
)
@pytest.mark.parametrize(
    "settings", [{}, {"batch_size": 1}, {"batch_tokens": 64}, {"rebatching": False}], ids=str
)
def test_bulk_is_what_torch_gives(model, onnx, policy, settings):
    expected = list(score(model, TOKENIZER, TEXTS, exit_policy=policy))
    assert_same_results(list(score(onnx, TOKENIZER, TEXTS, exit_policy=policy, **settings)), expected)


def test_pipeline_evaluation_and_calibration_take_it(model, onnx, capsys):
    rows = [{"text": text, "label": index % 2} for index, text in enumerate(TEXTS)]
    ours, theirs = (
        pipeline("early-exit-classification", model=one, tokenizer=TOKENIZER) for one in (onnx, model)
    )
    assert_same_results(ours(TEXTS), theirs(TEXTS))
    assert_same_results(ours(TEXTS[0]), theirs(TEXTS[0]))
    reports = [evaluate_exits(one, rows, TOKENIZER, progress=False) for one in (onnx, model)]
    assert reports[0].exits == reports[1].exits and reports[0].curve == reports[1].curve
    before = dict(onnx.config.exit_policy), dict(model.config.exit_policy)
    found = [calibrate(one, rows, TOKENIZER, max_drop=0.3, progress=False) for one in (onnx, model)]
    onnx.config.exit_policy, model.config.exit_policy = before
    onnx.config.calibration = model.config.calibration = None
    assert str(found[0]) == str(found[1]) and found[0].precision == "float32"


def test_a_call_takes_arrays_and_tensors(model, onnx):
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        expected = model(ids, mask)
        early = model(ids, mask, exit_policy=POLICY)
    of_arrays, of_tensors = onnx(ids.numpy(), mask.numpy()), onnx(ids, mask)
    np.testing.assert_allclose(of_arrays.exit_logits, expected.exit_logits, atol=1e-4)
    torch.testing.assert_close(of_tensors.exit_logits, expected.exit_logits, atol=1e-4, rtol=1e-4)
    assert of_tensors.exit_layer.tolist() == [4, 4] and of_tensors.logits.shape == (2, 3)
    assert onnx(ids, mask, exit_policy=POLICY).exit_layer.tolist() == early.exit_layer.tolist()
    nothing = onnx(ids[:0], mask[:0])
    assert nothing.logits.shape == (0, 3) and nothing.exit_logits.shape == (0, 4, 3)
    assert onnx(ids[:0], exit_policy=POLICY).logits.shape == (0, 3)
    assert onnx(ids[:1, :1]).logits.shape == (1, 3)  # one text of one token


def test_a_text_at_the_position_limit(model, onnx):
    longest = torch.full((2, model.max_tokens), 7)
    with torch.no_grad():
        torch.testing.assert_close(onnx(longest).logits, model(longest).logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(
        ValueError, match=rf"have {model.max_tokens + 1} tokens, and the model has positions for"
    ):
        onnx(torch.full((1, model.max_tokens + 1), 7))


def test_a_tokenizer_that_pads_on_the_left(model, onnx):
    """Who pads for a bundle does so on the right; the tokenizer stays as it is."""
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    rows = [{"text": text, "label": 0} for text in TEXTS]
    found, expected = (
        collect_exit_logits(*given, progress=False).exit_logits
        for given in ((onnx, rows, tokenizer), (model, rows, TOKENIZER))
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert tokenizer.padding_side == "left"


def test_threads_share_a_model(model, onnx):
    expected = list(score(model, TOKENIZER, TEXTS))
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: list(score(onnx, TOKENIZER, TEXTS)), range(4)):
            assert_same_results(found, expected)


def _in_a_child(onnx, queue):
    queue.put(onnx.classify(TEXTS[:3]))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork here")
def test_a_fork_goes_on(onnx):
    expected = onnx.classify(TEXTS[:3])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_child, args=(onnx, queue))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join()


def test_classify_needs_neither_torch_nor_transformers(onnx, folder):
    code = WITHOUT_TORCH + (
        "import json, modeling_romebert\n"
        "model = modeling_romebert.OnnxRomeBertForSequenceClassification.from_pretrained(sys.argv[1])\n"
        "print(json.dumps(model.classify(json.loads(sys.argv[2]))))\n"
        "assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys()\n"
        "try: modeling_romebert.score\n"
        "except ImportError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(folder), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    results, refusal = done.stdout.splitlines()
    assert_same_results(json.loads(results), list(score(onnx, TOKENIZER, TEXTS)))
    assert "score needs torch and transformers, not installed here: pip install romebert" in refusal


def test_pairs_in_every_form(onnx):
    expected = list(score(onnx, TOKENIZER, [{"text": TEXTS[0], "text_pair": TEXTS[1]}]))
    forms = [(TEXTS[0], TEXTS[1]), {"text": TEXTS[0], "text_pair": TEXTS[1]}]
    assert_same_results(onnx.classify(forms), expected * 2)
    assert onnx.classify([]) == []
    with pytest.raises(TypeError, match="text 1 is 5 of type int"):
        onnx.classify(["one", 5])
    for broken in ("\ud800", ("a", "\ud800")):
        with pytest.raises(TypeError, match="text 1: it is not Unicode: surrogates not allowed at character"):
            onnx.classify(["one", broken])


@pytest.mark.parametrize("settings", [{"truncation_side": "left"}, {"model_input_names": ["input_ids"]}])
def test_a_tokenizer_s_own_settings_travel(model, tmp_path, settings):
    """Which end of a long text is cut, and whether the parts of a pair are told apart."""
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 8
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    onnx = opened(model, tokenizer, tmp_path / "bundle", precision="fp32")
    texts = [{"text": one, "text_pair": other} for one, other in pairwise(TEXTS)]
    texts += [f"{one} {other}" for one, other in pairwise(TEXTS)]
    expected = list(score(model, tokenizer, texts))
    assert_same_results(onnx.classify(texts), expected)
    assert expected != list(score(model, TOKENIZER, texts))


# ---- what an export writes


def test_layers_that_are_shared_are_written_once(tmp_path):
    config = AlbertConfig(**FAMILIES[0].backbone().to_dict() | {"model_type": "albert", "embedding_size": 16})
    model = RomeBertForSequenceClassification(RomeBertConfig(config)).eval()
    folder = export_onnx(model, TOKENIZER, tmp_path / "albert", precision="fp32")
    manifest = bundle.Manifest.load(folder)
    used = [segment.files for segment in manifest.segments]
    assert used == [["layer_1.onnx"], *[["layer_2.onnx"]] * (len(used) - 1)]  # the first holds the embeddings


def test_exits_are_chosen(model, tmp_path):
    folder = export_onnx(model, TOKENIZER, tmp_path / "two", precision="fp32", exits=[2])
    onnx = OnnxRomeBertForSequenceClassification.from_pretrained(folder)
    ids = torch.tensor([[5, 6, 7]])
    assert onnx.exit_layers == onnx.config.exit_layers == [2, 4] and model.exit_layers == [1, 2, 3, 4]
    with torch.no_grad():
        torch.testing.assert_close(
            onnx(ids).exit_logits, model(ids).exit_logits[:, [1, 3]], atol=1e-4, rtol=1e-4
        )
    with pytest.raises(ValueError, match=r"there is no exit after \[7\]; there are after \[1, 2, 3, 4\]"):
        export_onnx(model, TOKENIZER, tmp_path / "other", exits=[7])


def test_int8_keeps_in_fp32_what_changes_labels(model, tmp_path, monkeypatch, caplog):
    """The second segment is said to change labels: it is fp32, the others are int8."""
    own_and_in_all = [(0.0, 0.0), (0.2, 0.01), (0.005, 0.005), (0.0, 0.0)]
    shares = iter([share for both in own_and_in_all for share in both])
    monkeypatch.setattr(quantise, "_changed", lambda *_: next(shares))
    onnx = opened(model, TOKENIZER, tmp_path / "int8", dataset=[{"text": text} for text in TEXTS])
    assert [segment.precision for segment in onnx.manifest.segments] == ["int8", "fp32", "int8", "int8"]
    assert onnx.manifest.checked == {"texts": 60, "labels_changed": [0.0, 0.01, 0.005, 0.0]}
    assert "Layers 2 to 2 stay in fp32: in int8 they change the label of more than 2.0% of 60" in caplog.text
    sizes = [(onnx.folder / segment.files[0]).stat().st_size for segment in onnx.manifest.segments]
    assert sizes[2] == sizes[3] < sizes[1]
    found, expected = list(score(onnx, TOKENIZER, TEXTS)), list(score(model, TOKENIZER, TEXTS))
    assert sum(one["label"] == other["label"] for one, other in zip(found, expected, strict=True)) > 50


def test_a_shared_graph_leaves_int8_in_every_segment(tmp_path, monkeypatch):
    """ALBERT's one layer is said to change labels where it runs last: every segment of it is fp32, and the
    shares are those of the bundle.
    """
    config = AlbertConfig(**FAMILIES[0].backbone().to_dict() | {"model_type": "albert", "embedding_size": 16})
    model = spread_exits(RomeBertForSequenceClassification(RomeBertConfig(config)).eval(), TEXTS)
    own, actual, segments = iter([0.0, 0.0, 0.0, 0.9]), quantise._changed, len(model.exit_layers)
    asked = []

    def changed(logits, reference, manifest):
        asked.append(actual(logits, reference, manifest))
        first_pass = len(asked) < 2 * segments  # which ends with the fourth segment's own share
        return next(own) if first_pass and len(asked) % 2 else asked[-1]

    monkeypatch.setattr(quantise, "_changed", changed)
    onnx = opened(model, TOKENIZER, tmp_path / "albert", dataset=TEXTS, max_changed=0.5)
    assert [segment.precision for segment in onnx.manifest.segments] == ["int8", *["fp32"] * (segments - 1)]
    inputs = TOKENIZER(TEXTS, padding=True, return_tensors="np")
    fp32 = opened(model, TOKENIZER, tmp_path / "fp32", precision="fp32")(**inputs).exit_logits.argmax(axis=-1)
    shares = (onnx(**inputs).exit_logits.argmax(axis=-1) != fp32).mean(axis=0)
    assert onnx.manifest.checked["labels_changed"] == pytest.approx(shares, abs=0.035)  # padding rounds


@pytest.mark.slow
def test_shares_of_changed_labels_are_those_of_the_bundle(model, tmp_path):
    """What the manifest tells is what the bundle does, all of it in int8, and none of it."""
    inputs = TOKENIZER(TEXTS, padding=True, return_tensors="np")
    fp32 = opened(model, TOKENIZER, tmp_path / "fp32", precision="fp32")(**inputs).exit_logits.argmax(axis=-1)
    for max_changed, precision in ((1.0, "int8"), (-1.0, "fp32")):
        onnx = opened(model, TOKENIZER, tmp_path / precision, dataset=TEXTS, max_changed=max_changed)
        assert {segment.precision for segment in onnx.manifest.segments} == {precision}
        changed = (onnx(**inputs).exit_logits.argmax(axis=-1) != fp32).mean(axis=0)
        assert onnx.manifest.checked["labels_changed"] == pytest.approx(changed, abs=0.035)  # padding rounds


@pytest.fixture
def certified():
    """A model with a certificate, and rows that it holds on."""
    model = spread_exits(build(exit_policy=POLICY), TEXTS)
    rows = [{"text": text, "label": 0} for text in TEXTS]
    found = calibrate(model, rows, TOKENIZER, max_drop=0.2, confidence=0.8, progress=False)
    assert found.certified and model.config.calibration["precision"] == "float32"
    return model, rows


def opened(*arguments, **settings):
    return OnnxRomeBertForSequenceClassification.from_pretrained(export_onnx(*arguments, **settings))


@pytest.mark.slow
def test_a_certificate_holds_in_its_precision(certified, tmp_path, caplog):
    """fp32 keeps it, int8 without labels loses it with a word, int8 with labels is certified anew."""
    model, rows = certified
    fp32 = opened(model, TOKENIZER, tmp_path / "fp32", precision="fp32")
    assert (
        fp32.config.calibration == model.config.calibration and "without the certificate" not in caplog.text
    )
    without = opened(model, TOKENIZER, tmp_path / "without", dataset=TEXTS)
    assert without.config.calibration is None and without.config.exit_policy == model.config.exit_policy
    assert "certified in float32 with exits after [1, 2, 3, 4]. The bundle, in int8 with" in caplog.text
    again = opened(model, TOKENIZER, tmp_path / "again", dataset=rows)
    promise = again.config.calibration
    assert (promise["precision"], promise["max_drop"], promise["confidence"]) == ("int8", 0.2, 0.8)
    assert promise["policy"] == again.config.exit_policy


def test_a_certificate_holds_with_its_exits(certified, tmp_path, caplog):
    """With other exits it is another classifier; a bundle with labels is certified anew."""
    model, rows = certified
    settings = {"precision": "fp32", "exits": [2]}
    without = opened(model, TOKENIZER, tmp_path / "without", **settings)
    assert without.config.calibration is None and without.config.exit_policy == model.config.exit_policy
    assert "with exits after [2, 4], has the policy without the certificate" in caplog.text
    again = opened(model, TOKENIZER, tmp_path / "again", dataset=rows, **settings)
    assert certificate_of(again.config)["exit_layers"] == [2, 4]
    model.save_pretrained(tmp_path / "model")
    for exits, holds in (([1, 2, 3, 4], True), ([1, 4], False)):
        loaded = RomeBertForSequenceClassification.from_pretrained(tmp_path / "model", exit_layers=exits)
        assert (certificate_of(loaded.config) is not None) is holds


@pytest.mark.parametrize("given", ["nothing", "texts", "labels"])
def test_a_certificate_in_half_precision_is_none_in_fp32(tmp_path, given, caplog):
    model = spread_exits(build(), TEXTS).to(torch.bfloat16)
    rows = [{"text": text, "label": 0} for text in TEXTS]
    promise = {"max_drop": 0.2, "confidence": 0.8, "progress": False}
    policy = {"name": "entropy", "ask_exits": [2, 3]}
    assert calibrate(model, rows, TOKENIZER, policy=policy, **promise).certified
    dataset = {"nothing": None, "texts": TEXTS, "labels": rows}[given]
    onnx = opened(model, TOKENIZER, tmp_path / "on", precision="fp32", exits=[3], dataset=dataset)
    assert onnx.config.exit_policy["ask_exits"] == [3]
    stored = RomeBertConfig.from_pretrained(tmp_path / "on")  # the manifest alone tells both
    assert stored.calibration is stored.exit_policy is None
    if given != "labels":
        assert onnx.config.calibration is None and "without the certificate" in caplog.text
        return
    found = certificate_of(onnx.config)
    assert (found["precision"], found["exit_layers"], found["max_drop"]) == ("float32", [3, 4], 0.2)


def test_exits_that_are_asked_are_the_same_with_fewer_of_them(tmp_path):
    policy = {**POLICY, "ask_every": 2}
    model = spread_exits(build(exit_policy=policy), TEXTS)
    expected = list(score(model, TOKENIZER, TEXTS))
    assert len(depths(expected)) > 1
    onnx = opened(model, TOKENIZER, tmp_path / "on", precision="fp32", exits=[2])
    model.save_pretrained(tmp_path / "model")
    fewer = RomeBertForSequenceClassification.from_pretrained(tmp_path / "model", exit_layers=[2, 4])
    for one in (onnx, fewer.eval()):
        assert_same_results(list(score(one, TOKENIZER, TEXTS)), expected)


def test_an_export_that_fails_leaves_the_bundle_that_was_there(certified, folder, tmp_path, monkeypatch):
    model, rows = certified
    there = shutil.copytree(folder, tmp_path / "bundle")
    before = {path.name: path.read_bytes() for path in there.iterdir()}

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(export, "calibrate", full)
    with pytest.raises(OSError, match="No space left"):
        export_onnx(model, TOKENIZER, there, dataset=rows)
    assert {path.name: path.read_bytes() for path in there.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_is_calibrated_on_a_bundle_is_saved_with_it(folder, tmp_path):
    rows = [{"text": text} for text in TEXTS]
    onnx = OnnxRomeBertForSequenceClassification.from_pretrained(shutil.copytree(folder, tmp_path / "copied"))
    settings = {"risk": "disagreement", "max_drop": 0.3, "confidence": 0.8, "progress": False}
    calibrate(onnx, rows, TOKENIZER, **settings)
    layers = [one["exit_layer"] for one in onnx.classify(TEXTS)]
    assert layers == [one["exit_layer"] for one in score(onnx, TOKENIZER, TEXTS)] and len(set(layers)) > 1
    with pytest.raises(TypeError, match="texts is one dict"):
        onnx.classify({"text": TEXTS[0], "text_pair": TEXTS[1]})
    for target in ("copied", "other"):
        onnx.save_pretrained(tmp_path / target)
        loaded = OnnxRomeBertForSequenceClassification.from_pretrained(tmp_path / target)
        assert loaded.config.exit_policy == onnx.config.exit_policy
        assert loaded.config.calibration == json.loads(json.dumps(onnx.config.calibration))
    onnx.config.exit_policy = make_policy(**POLICY)
    onnx.save_pretrained(tmp_path / "made")
    loaded = OnnxRomeBertForSequenceClassification.from_pretrained(tmp_path / "made")
    assert POLICY.items() <= loaded.config.exit_policy.items()
    with pytest.raises(ValueError, match="those of a bundle are fixed: calibrate the torch model"):
        calibrate(onnx, [row | {"label": 0} for row in rows], TOKENIZER, temperature=True)


def test_share_of_changed_labels():
    manifest = type("M", (), {"problem_type": "single_label_classification"})
    reference = np.array([[0.0, 1.0], [1.0, 0.0]])  # (2, 2)
    assert quantise._changed(reference[::-1], reference, manifest) == 1.0
    manifest.problem_type = "multi_label_classification"
    assert quantise._changed(reference - 0.5, reference, manifest) == 0.0
    manifest.problem_type = "regression"
    assert quantise._changed(reference + np.array([[0.0], [0.2]]), reference, manifest) == 0.5


def test_a_bundle_behind_a_link_is_replaced_where_it_lies(model, tmp_path):
    export_onnx(model, TOKENIZER, tmp_path / "there", precision="fp32")
    (tmp_path / "link").symlink_to("there")
    manifest = tmp_path / "there" / bundle.MANIFEST
    before = manifest.stat().st_ino
    export_onnx(model, TOKENIZER, tmp_path / "link", precision="fp32")
    assert (tmp_path / "link").is_symlink() and manifest.stat().st_ino != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]


def test_a_folder_of_other_files_is_not_replaced(model, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files than a bundle's; name a new one"):
        export_onnx(model, TOKENIZER, tmp_path / "mine")
    with pytest.raises(ValueError, match=r"thesis\.txt' is a file; name a folder"):
        export_onnx(model, TOKENIZER, tmp_path / "mine" / "thesis.txt")
    with pytest.raises(ValueError, match="precision='int4' is unknown; choose from fp32, int8"):
        export_onnx(model, TOKENIZER, tmp_path / "new", precision="int4")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "thesis.txt"]


# ---- a bundle that is not whole


def altered(folder, tmp_path, change):
    copied = shutil.copytree(folder, tmp_path / "copied")
    path = copied / "manifest.json"
    content = json.loads(path.read_text())
    change(copied, content)
    path.write_text(json.dumps(content))
    return copied


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda folder, _: (folder / "layers_2_to_2.onnx").unlink(),
            OSError,
            "layers_2_to_2.onnx is missing",
        ),
        (
            lambda folder, _: (folder / "tokenizer.json").write_text("{}"),
            ValueError,
            "tokenizer.json is cut off or altered",
        ),
        (lambda _, content: content.update(format=99), ValueError, "of format 99.*pip install --upgrade"),
        (lambda _, content: content.pop("segments"), ValueError, "is altered"),
        (
            lambda _, content: content["files"].pop("layers_1_to_1.onnx"),
            ValueError,
            "has no digest of layers_1_to_1.onnx",
        ),
        (
            lambda _, content: content["files"].update({"../secret": "0"}),
            ValueError,
            "names '../secret', which is no file of the folder",
        ),
    ],
)
def test_what_is_not_whole_is_refused(folder, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        OnnxRomeBertForSequenceClassification.from_pretrained(altered(folder, tmp_path, change))


def test_no_bundle_and_half_a_manifest(folder, tmp_path):
    with pytest.raises(OSError, match=r"has no manifest\.json: it is no bundle"):
        OnnxRomeBertForSequenceClassification.from_pretrained(tmp_path)
    copied = shutil.copytree(folder, tmp_path / "copied")
    (copied / "manifest.json").write_bytes((folder / "manifest.json").read_bytes()[:100])
    with pytest.raises(ValueError, match="is cut off or altered"):
        OnnxRomeBertForSequenceClassification.from_pretrained(copied)


@pytest.mark.parametrize(
    ("made_for", "here", "said"),
    [
        (True, False, "may saturate"),
        (False, True, "gives away a bit"),
        (None, True, None),
        (True, True, None),
    ],
)
def test_another_kind_of_processor_is_told(monkeypatch, recwarn, onnx, made_for, here, said):
    monkeypatch.setattr(bundle, "multiplies_int8", lambda: here)
    manifest = type("M", (), {"processor": {"multiplies_int8": made_for}})
    bundle.warn_of_processor(manifest)
    assert [said in str(one.message) for one in recwarn] == ([True] if said else [])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.tensor([[0, 1]])},
            "padded on the left, or has gaps",
        ),
        ({"input_ids": torch.tensor([[1, 10**6]])}, "the vocabulary has ids 0"),
        ({"input_ids": torch.tensor([1, 2])}, r"shape \(2,\); give \(B, T\)"),
        (
            {"input_ids": torch.tensor([[1]]), "position_ids": torch.tensor([[0]])},
            "position_ids: a bundle takes input_ids",
        ),
    ],
)
def test_inputs_that_a_bundle_does_not_take(onnx, inputs, message):
    with pytest.raises(ValueError, match=message):
        onnx(**inputs)


def test_providers_and_threads(folder):
    with pytest.raises(
        ValueError, match="provider NoSuchProvider is not in this build of onnxruntime; there are"
    ):
        OnnxRomeBertForSequenceClassification.from_pretrained(folder, provider="NoSuchProvider")
    with pytest.raises(ValueError, match="num_threads=2 and session_options are both given"):
        OnnxRomeBertForSequenceClassification.from_pretrained(
            folder, session_options=engine.default_options(), num_threads=2
        )
    assert OnnxRomeBertForSequenceClassification.from_pretrained(folder, num_threads=1).classify(TEXTS[:1])


def test_bulk_runs_batches_side_by_side(folder, model, monkeypatch):
    """Two workers share two threads; a single text has both."""
    monkeypatch.setattr(cpu, "WORKER_TOKENS", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        onnx = OnnxRomeBertForSequenceClassification.from_pretrained(folder, num_threads=2)
        found = list(score(onnx, TOKENIZER, TEXTS, batch_tokens=100))
        assert onnx.encoder(for_tokens=10**6).workers(10**6) == 2 and onnx.encoder().workers(5) == 1
    finally:
        torch.set_num_threads(before)
    assert_same_results(found, list(score(model, TOKENIZER, TEXTS)))
    own = OnnxRomeBertForSequenceClassification.from_pretrained(
        folder, session_options=engine.default_options(2)
    )
    assert own.encoder(for_tokens=10**6).workers(10**6) == 1  # whose threads are somebody else's business
