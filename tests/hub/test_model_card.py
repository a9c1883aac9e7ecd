"""The card says what it was handed and nothing else, the Hub can read it, and what its user wrote stays."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from tiny import LAYERS, build, tiny_rows, tiny_tokenizer

from modeling_romebert import RomeBertConfig, evaluate_exits
from modeling_romebert.evaluation.provenance import read_json
from modeling_romebert.model_card import BEGIN, END, model_card, write_model_card

module = sys.modules[model_card.__module__]
POLICY = {"name": "entropy", "threshold": 0.62}
TRAINING = {
    "objective": "alternating",
    "learning_rate": 2e-5,
    "num_train_epochs": 3,
    "seed": 17,
    "exit_scale": 0.3,
}
DATASET = {"name": "reviews", "split": "test"}
OWN_KEYS = "# mine\nco2_eq_emissions:\n  emissions: 3\nauthors:\n- Ann\n- Bo\n"


def config_of(**settings) -> RomeBertConfig:
    sizes = {
        "num_hidden_layers": LAYERS,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    return RomeBertConfig(**sizes | {"num_labels": 3} | settings)


def based_on(name: str) -> RomeBertConfig:
    config = config_of()
    config.backbone_config._name_or_path = name
    return config


@pytest.fixture(scope="module")
def report():
    return evaluate_exits(build(), tiny_rows(20, classes=3), tiny_tokenizer(), progress=False)


@pytest.fixture
def evaluation(report, tmp_path) -> dict:
    """What the report writes to a file."""
    report.to_json(tmp_path / "exits.json")
    return read_json(tmp_path / "exits.json")


def metadata(text: str) -> dict:
    """The front matter, which has to be the first thing in the file."""
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def section(text: str, title: str) -> str:
    (found,) = re.findall(rf"^## {title}\n\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return found


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+\.\d+", text))


# ---- metadata


def test_metadata_of_a_model_that_was_not_evaluated():
    assert metadata(model_card(based_on("google-bert/bert-base-uncased"))) == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["romebert", "early-exit", "text-classification", "custom_code"],
        "base_model": "google-bert/bert-base-uncased",
    }


def test_license_language_and_datasets_are_those_of_training():
    known = {"license": "cc-by-4.0", "language": ["no", "en"], "datasets": ["nyu-mll/glue"]}
    found = metadata(model_card(config_of(), training=known))
    assert {name: found[name] for name in known} == known


@pytest.mark.parametrize("name", ["bert-base-uncased", "FacebookAI/roberta-base", "user/my_model.v1"])
def test_base_model_is_the_id_of_the_encoder(name):
    assert metadata(model_card(based_on(name)))["base_model"] == name


@pytest.mark.parametrize(
    "name",
    ["/tmp/encoder", "./encoder", "../encoder", "~/encoder", "runs/mine/model", "C:\\encoder", "", None],
)
def test_base_model_is_no_folder(name):
    text = model_card(based_on(name))
    assert (
        "base_model" not in metadata(text) and "# romebert-bert\n" in text and (not name or name not in text)
    )


def test_base_model_is_no_folder_that_looks_like_an_id(here):
    os.makedirs("runs/encoder")
    assert "base_model" not in metadata(model_card(based_on("runs/encoder")))
    assert metadata(model_card(based_on("runs/encoder"), training={"base_model": "bert-base-uncased"}))[
        "base_model"
    ]


def test_hub_reads_the_figures_of_the_evaluation(evaluation, report):
    evaluation |= {
        "dataset": {**DATASET, "type": "user/reviews"},
        "calibrated": {"cost": 0.5512, "metric": 0.345678},
    }
    card = ModelCard(model_card(config_of(exit_policy=POLICY), evaluation, {"hub_model_id": "ann/critic"}))
    assert card.data.metrics == [report.metric] and card.data.model_name == "critic"
    full, early = card.data.eval_results
    assert (full.metric_value, early.metric_value) == (report.exits[-1], 0.345678)
    assert full.metric_name == "accuracy at full depth"
    assert early.metric_name == "accuracy with the calibrated exit policy, cost 0.551"
    for result in (full, early):
        assert (result.task_type, result.metric_type) == ("text-classification", "accuracy")
        assert (result.dataset_type, result.dataset_name, result.dataset_split) == (
            "user/reviews",
            "reviews",
            "test",
        )
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_without_a_policy_the_figures_are_those_at_full_depth(evaluation):
    evaluation["calibrated"] = {
        "cost": 0.5,
        "metric": 0.9,
    }  # left over from a policy that the config no longer has
    (result,) = ModelCard(model_card(config_of(), evaluation)).data.eval_results
    assert result.metric_name == "accuracy at full depth" and result.dataset_name == "unknown"


@pytest.mark.parametrize("value", [1e-05, 3e-07, -2e-09, 0.0, 1.0, 0.123456789012345])
def test_small_numbers_stay_numbers(evaluation, value):
    evaluation["exits"][-1] = value
    (result,) = ModelCard(model_card(config_of(), evaluation)).data.eval_results
    assert isinstance(result.metric_value, float) and result.metric_value == value


def test_a_metric_that_is_no_number_is_not_published(evaluation):
    evaluation["exits"][-1] = float("nan")
    found = metadata(model_card(config_of(), evaluation))
    assert "model-index" not in found and found["metrics"] == ["accuracy"]


@pytest.mark.parametrize(
    "text",
    ["yes", "1e3", 'a "quoted": one', "# no comment", "---", "naïve 😀 \x85\x7f", "tab\tline\nbreak", "a: b"],
)
def test_any_text_survives_the_front_matter(evaluation, text):
    card = model_card(config_of(), {**evaluation, "dataset": {"name": text}}, {"license": text})
    found = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)[1])
    assert found["license"] == text and found["model-index"][0]["results"][0]["dataset"]["name"] == text


# ---- the text


def test_not_evaluated_is_said_and_no_table_is_there():
    text = model_card(config_of())
    assert "This model has not been evaluated." in text
    assert not [line for line in text.splitlines() if line.startswith("|")] and "![" not in text
    assert not {"metrics", "model-index"} & metadata(text).keys()


def test_tables_are_those_of_the_report(evaluation, report):
    card = model_card(config_of(), {**evaluation, "dataset": DATASET})
    found = [line for line in section(card, "Evaluation").splitlines() if line.startswith("|")]
    assert found == [line for line in report.table().splitlines() if line.startswith("|")]
    assert "On 20 examples (reviews, test)" in card and f"Area under the curve: {report.area:.4f}." in card
    assert "has not been evaluated" not in card


def test_every_number_was_handed_in(evaluation, report):
    text = model_card(
        config_of(exit_policy=POLICY),
        {**evaluation, "calibrated": {"cost": 0.4321, "metric": 0.8765}},
        TRAINING,
    )
    measured = numbers(section(text, "Evaluation") + section(text, "Exit policy"))
    assert measured == numbers(report.table()) | {"0.62", "0.432", "0.8765"}
    assert not numbers(section(text, "Limits"))


@pytest.mark.parametrize(("picture", "expected"), [(True, "curve.png"), ("my curve.png", "my%20curve.png")])
def test_picture_is_shown_when_there_is_one(evaluation, picture, expected):
    assert f"![accuracy over cost]({expected})" in model_card(config_of(), {**evaluation, "picture": picture})


def test_no_picture_is_shown_when_there_is_none(evaluation):
    for more in ({}, {"picture": False}, {"picture": None}):
        assert "![" not in model_card(config_of(), {**evaluation, **more})


def test_calibrated_policy_and_its_price(evaluation, report):
    text = section(
        model_card(
            config_of(exit_policy=POLICY), {**evaluation, "calibrated": {"cost": 0.5, "metric": 0.25}}
        ),
        "Exit policy",
    )
    assert '`{"name": "entropy", "threshold": 0.62}`' in text
    assert (
        f"costs 0.500 of the layers and reaches accuracy 0.2500, against {report.exits[-1]:.4f} at full depth"
        in text
    )


def test_a_price_that_nobody_measured_is_not_told(evaluation):
    for given in (None, evaluation):
        text = section(model_card(config_of(exit_policy=POLICY), given), "Exit policy")
        assert text.strip().endswith("What it costs has not been measured.") and numbers(text) == {"0.62"}


def test_without_a_policy_every_layer_runs():
    assert "no calibrated exit policy, so every text runs every layer" in model_card(config_of())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {},
            "one of 3 labels (`LABEL_0`, `LABEL_1`, `LABEL_2`): a `bert` encoder of 4 layers with an exit"
            " after every layer",
        ),
        ({"exit_layers": [1, 2, 4]}, "of 4 layers with an exit after layers 1, 2 and 4,"),
        ({"exit_layers": [4]}, "of 4 layers with an exit after layer 4,"),
        ({"num_labels": 1}, "gives a text a number: a `bert`"),
        ({"problem_type": "regression", "num_labels": 1}, "gives a text a number: a `bert`"),
        ({"problem_type": "multi_label_classification"}, "gives a text any number of 3 labels (`LABEL_0`"),
    ],
)
def test_what_the_model_is(settings, expected):
    assert expected in model_card(config_of(**settings))


def test_training_settings_win_over_the_config_which_fills_the_gaps():
    rows = [
        line.strip("| ").split(" | ")
        for line in section(model_card(config_of(), training=TRAINING), "Training").splitlines()
    ]
    found = dict(row for row in rows if len(row) == 2)
    assert found == {
        **{
            "setting": "value",
            "objective": "alternating",
            "learning_rate": "2e-05",
            "num_train_epochs": "3",
            "seed": "17",
        },
        **{"exit_scale": "0.3", "distillation_weight": "0.5", "distillation_temperature": "1"},
        **{"distillation_reduction": "batchmean", "teacher": "last", "exit_weights": "uniform"},
    }


def test_training_that_nobody_recorded_is_not_invented():
    text = section(model_card(config_of(teacher="next")), "Training")
    assert "not recorded" in text and "`distillation_weight` 0.5" in text and "`teacher` next" in text


def test_tokens_and_folders_stay_out_of_the_card():
    private = {
        "hub_token": "abc123",
        "output_dir": "/home/ann/runs",
        "push_to_hub_token": "abc123",
        "run_name": None,
    }
    text = model_card(config_of(), training={**TRAINING, **private})
    assert not any(word in text for word in ("abc123", "/home/ann", "run_name"))


def test_cells_stay_cells():
    text = model_card(
        config_of(), training={"note": f"a | b\n| c {END}", "optim_args": {"betas": [0.9, 0.99]}}
    )
    assert (
        r"| note | a \| b \| c &lt;!-- romebert" in text and '| optim_args | {"betas": [0.9, 0.99]} |' in text
    )
    assert text.count(END) == 1


def test_versions_are_those_of_the_evaluation(evaluation):
    of_training = {"provenance": {"versions": {"torch": "1.2.3"}}}
    found = section(model_card(config_of(), evaluation, of_training), "Versions")
    versions = evaluation["provenance"]["versions"]
    assert (
        all(f"{name} {version}" in found for name, version in versions.items())
        and evaluation["provenance"]["date"] in found
    )
    assert "torch 1.2.3, romebert" in section(model_card(config_of(), training=of_training), "Versions")


def test_versions_without_provenance_are_what_the_config_knows():
    config = config_of()
    config.romebert_version = "0.7.1"
    assert section(model_card(config), "Versions").strip() == "romebert 0.7.1."
    del config.romebert_version
    assert section(model_card(config), "Versions").strip() == "Not recorded."


def test_citation_is_that_of_the_readme():
    (entry,) = re.findall(r"@article\{.*?\n\}\n", module.CITATION, flags=re.DOTALL)
    assert entry in (Path(__file__).parents[2] / "README.md").read_text(
        encoding="utf-8"
    ) and entry in model_card(config_of())


# ---- refused


def test_an_evaluation_that_lacks_something(evaluation):
    del evaluation["curve"], evaluation["metric"]
    with pytest.raises(
        ValueError,
        match=r"evaluation has no metric, curve; give the content of the file that ExitReport.to_json",
    ):
        model_card(config_of(), evaluation)


def test_an_evaluation_of_another_model(evaluation):
    with pytest.raises(
        ValueError,
        match=r"exits after layers \[1, 2, 3, 4\] of 4, but the config says \[2, 4\] of 4; evaluate this",
    ):
        model_card(config_of(exit_layers=[2, 4]), evaluation)


def test_a_price_without_its_metric(evaluation):
    with pytest.raises(
        ValueError, match=r"evaluation\['calibrated'\] has no metric; it needs cost and metric"
    ):
        model_card(config_of(exit_policy=POLICY), {**evaluation, "calibrated": {"cost": 0.5}})


# ---- writing


def test_written_as_it_is_made_and_nothing_else_is_left(tmp_path, evaluation):
    path = write_model_card(tmp_path / "new" / "model", config_of(), evaluation, TRAINING)
    assert path == tmp_path / "new" / "model" / "README.md" and os.listdir(path.parent) == ["README.md"]
    assert path.read_text(encoding="utf-8") == model_card(config_of(), evaluation, TRAINING)


def test_written_twice_is_written_once(tmp_path, evaluation):
    path = write_model_card(tmp_path, config_of(), evaluation, TRAINING)
    once = path.read_bytes()
    assert write_model_card(tmp_path, config_of(), evaluation, TRAINING).read_bytes() == once


def test_what_the_user_added_survives_a_new_card(tmp_path, evaluation):
    path = write_model_card(tmp_path, config_of(), evaluation, {"license": "mit", "language": "en"})
    text = path.read_text().replace("library_name", f"{OWN_KEYS}library_name", 1)
    path.write_text(text.replace(BEGIN, f"Mine, before.\n\n{BEGIN}").replace(END, f"{END}\n## Mine, after"))
    write_model_card(tmp_path, config_of(), training={**TRAINING, "license": "apache-2.0"})
    found = metadata(text := path.read_text())
    assert (
        found["co2_eq_emissions"] == {"emissions": 3}
        and found["authors"] == ["Ann", "Bo"]
        and OWN_KEYS in text
    )
    assert (found["license"], found["language"]) == (
        "apache-2.0",
        "en",
    )  # of the license something new is known
    assert (
        not {"metrics", "model-index"} & found.keys()
        and text.count("library_name:") == text.count("license:") == 1
    )
    assert (
        text.index("Mine, before.\n")
        < text.index(BEGIN)
        < text.index("has not been evaluated")
        < text.index(END)
    )
    assert text.endswith(f"{END}\n## Mine, after\n") and ModelCard(text).data.license == "apache-2.0"
    once = path.read_bytes()
    assert (
        write_model_card(tmp_path, config_of(), training={**TRAINING, "license": "apache-2.0"}).read_bytes()
        == once
    )


def test_block_lists_and_windows_line_ends_are_read(tmp_path):
    path = write_model_card(tmp_path, config_of())
    block = "---\r\ntags:\r\n- old\r\n- older\r\nmine: [1, 2]\r\n---\r\n\r\nHéllo\r\n"
    path.write_bytes(block.encode() + b"\xff\r\n" + path.read_bytes()[path.read_text().index(BEGIN) :])
    write_model_card(tmp_path, config_of())
    content = path.read_bytes()
    front = yaml.safe_load(content.split(b"---")[1])
    assert front["mine"] == [1, 2]
    assert front["tags"] == ["romebert", "early-exit", "text-classification", "custom_code"]
    assert "\r\nHéllo\r\n".encode() + b"\xff\r\n<!--" in content and content.count(BEGIN.encode()) == 1


def test_front_matter_that_was_deleted_is_the_first_thing_again(tmp_path):
    path = write_model_card(tmp_path, config_of())
    path.write_text("Mine." + path.read_text()[path.read_text().index(BEGIN) :])
    write_model_card(tmp_path, config_of())
    assert (
        metadata(path.read_text())["library_name"] == "transformers" and f"\nMine.{BEGIN}" in path.read_text()
    )


@pytest.mark.parametrize(
    "content",
    [
        "",
        "# My model\r\nnot yours \xff",
        "---\nlicense: mit\n---\n\n# Mine\n",
        f"# Mine\n{BEGIN}\nno end",
        f"{END}\nthe wrong way round\n{BEGIN}\n",
        f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n",
        f"---\n{{license: mit}}\n---\n{BEGIN}\n{END}\n",
    ],
)
def test_a_readme_of_somebody_else_is_left_alone(tmp_path, content, evaluation):
    path = tmp_path / "README.md"
    path.write_bytes(content.encode("latin-1"))
    os.utime(path, ns=(1, 1))
    assert write_model_card(tmp_path, config_of(), evaluation, TRAINING) == path
    assert path.read_bytes() == content.encode("latin-1") and path.stat().st_mtime_ns == 1


def test_a_write_that_fails_leaves_the_old_card_whole(tmp_path, monkeypatch):
    path = write_model_card(tmp_path, config_of())
    before = path.read_bytes()
    monkeypatch.setattr(module.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_model_card(tmp_path, config_of(), training=TRAINING)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["README.md"]


# ---- what it says about use is so, and it can travel


def code_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", section(text, "Use"), flags=re.DOTALL)


@pytest.mark.slow
def test_code_of_the_card_runs(tmp_path):
    """The second block in a process that cannot import the package."""
    model = build(exit_policy=POLICY)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    installed, remote = code_blocks(model_card(model.config))
    found: dict = {"ID": str(tmp_path / "model")}
    exec(installed, found)
    expected = found["classify"]("a very good film")
    hidden = "import sys; sys.modules['modeling_romebert'] = None\n"
    code = (
        f"{hidden}ID = {str(tmp_path / 'model')!r}\n{remote}\nprint(classify('a very good "
        f"film'), type(model).__name__, sep='\\n')"
    )
    offline = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **offline},
    )
    assert done.returncode == 0, done.stderr
    answer, kind = done.stdout.splitlines()[-2:]
    (answer,) = ast.literal_eval(answer)
    assert (answer["label"], answer["exit_layer"]) == (expected[0]["label"], expected[0]["exit_layer"])
    assert (
        answer["score"] == pytest.approx(expected[0]["score"], abs=1e-5)
        and kind == "RomeBertForSequenceClassification"
    )


def test_code_of_the_card_names_the_repository_when_it_is_known():
    for block in code_blocks(model_card(config_of(), training={"hub_model_id": "ann/critic"})):
        assert 'model="ann/critic"' in block and "ID" not in block


def test_it_imports_what_travels_and_nothing_else():
    allowed = {*sys.stdlib_module_names, "torch", "transformers"}
    path = Path(module.__file__)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and (path.parent / f"{node.module}.py").is_file()
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = (
                [node.module] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            )
            assert {name.split(".")[0] for name in modules} <= allowed
