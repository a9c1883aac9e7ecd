"""A saved folder is complete and loads where this package is not, from disk or a Hub cache; where it is, its code is not run."""

import ast
import configparser
import json
import shutil
import sys
from pathlib import Path

import check_portability
import pytest
import torch
from portability_checks import TASK, code_files, expected_from, make_other_version, run_group, same_results
from tiny import build, tiny_rows, tiny_tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline
from transformers.dynamic_module_utils import get_relative_imports

import modeling_romebert
from modeling_romebert import (
    RomeBertConfig,
    RomeBertForSequenceClassification,
    RomeBertModel,
    RomeBertTrainer,
    RomeBertTrainingArguments,
)
from modeling_romebert.configuration_romebert import VERSION
from modeling_romebert.hub import AUTO_MAP, CLOSURE, CUSTOM_PIPELINES

ROOT = Path(__file__).parents[1]
POLICY = {"name": "entropy", "threshold": 0.7}
# What a folder must hold besides code, by what wrote it; a tokenizer and training_args.bin may be there too.
NOT_CODE = {"config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved model, whose texts leave at several depths, with its tokenizer."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    build(exit_policy=POLICY).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(folder) -> dict:
    return expected_from(str(folder))


def assert_all_pass(results, *names):
    assert set(names) <= results.keys()
    assert results == dict.fromkeys(results, "pass")


# ---- what is written


def save_model(model, folder):
    model.save_pretrained(folder)


def save_encoder(model, folder):
    RomeBertModel(model.config).save_pretrained(folder)


def save_by_trainer(model, folder):
    arguments = RomeBertTrainingArguments(output_dir=str(folder.parent / "run"), use_cpu=True, report_to="none")
    RomeBertTrainer(model, arguments, train_dataset=tiny_rows(4), processing_class=tiny_tokenizer()).save_model(str(folder))


def save_by_pipeline(model, folder):
    pipeline(TASK, model=model, tokenizer=tiny_tokenizer()).save_pretrained(folder)


def save_what_was_loaded(model, folder):
    model.save_pretrained(folder.parent / "first")
    RomeBertForSequenceClassification.from_pretrained(folder.parent / "first").save_pretrained(folder)


@pytest.mark.parametrize("save", [save_model, save_encoder, save_by_trainer, save_by_pipeline, save_what_was_loaded])
def test_every_way_of_saving_writes_the_closure_and_no_other_code(tmp_path, save):
    save(build(exit_policy=POLICY), tmp_path / "model")
    assert tuple(code_files(tmp_path / "model")) == CLOSURE
    written = {path.name for path in (tmp_path / "model").iterdir()} - set(CLOSURE)
    with_tokenizer = {"tokenizer.json", "tokenizer_config.json"} if save in (save_by_trainer, save_by_pipeline) else set()
    of_trainer = {"training_args.bin"} if save is save_by_trainer else set()  # pickled settings, which nothing here reads
    assert written - {"README.md"} == NOT_CODE | with_tokenizer | of_trainer
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP and config["custom_pipelines"] == CUSTOM_PIPELINES
    assert config["romebert_version"] == VERSION and config["exit_policy"] == POLICY


def test_auto_map_and_pipelines_name_what_is_there(folder):
    for entry in [*AUTO_MAP.values(), *(task["impl"] for task in CUSTOM_PIPELINES.values())]:
        module, name = entry.split(".")
        classes = [node.name for node in ast.parse((folder / f"{module}.py").read_text()).body if isinstance(node, ast.ClassDef)]
        assert name in classes and hasattr(modeling_romebert, name)
    assert {name for name in AUTO_MAP if not hasattr(sys.modules["transformers"], name)} == set()


def test_saved_code_is_this_package_s(folder):
    """The config's file is the class's own, not the alias beside the model, and names the other files at its end."""
    for name in CLOSURE:
        source = (ROOT / ("configuration" if name == "configuration_romebert.py" else "modeling_romebert") / name).read_text()
        saved = (folder / name).read_text()
        assert saved.startswith(source)
        if name != "configuration_romebert.py":
            assert saved == source
    # Older versions of transformers copy what the config's file imports itself, and nothing that those files import.
    named = get_relative_imports(folder / "configuration_romebert.py")
    assert {f"{module}.py" for module in named} | {"configuration_romebert.py"} == set(CLOSURE)


@pytest.mark.parametrize("name", CLOSURE)
def test_closure_imports_torch_transformers_and_itself_only(folder, name):
    modules = {Path(sibling).stem for sibling in CLOSURE}
    for node in ast.walk(ast.parse((folder / name).read_text())):
        if isinstance(node, ast.Import):
            roots = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            roots = {node.module.split(".")[0]}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 and node.module in modules, ast.unparse(node)
            continue
        else:
            continue
        assert roots <= sys.stdlib_module_names | {"torch", "transformers"}, ast.unparse(node)


def test_a_config_saved_alone_names_no_model(tmp_path):
    build().config.save_pretrained(tmp_path)
    assert tuple(code_files(tmp_path)) == ("configuration_romebert.py",)
    assert (tmp_path / "configuration_romebert.py").read_text() == (ROOT / "configuration/configuration_romebert.py").read_text()
    assert type(AutoConfig.from_pretrained(tmp_path)) is RomeBertConfig


# ---- where the package is not


@pytest.fixture(scope="module")
def report(folder, expected, tmp_path_factory) -> dict[str, str]:
    """Every check of examples/check_portability.py, by this interpreter with the package hidden."""
    assert set(expected["exit_layer"]) == {1, 3, 4}
    return check_portability.check(sys.executable, folder, tmp_path_factory.mktemp("report"))


def test_folder_loads_without_the_package(report):
    assert_all_pass(
        report,
        "the package is not installed",
        "AutoConfig loads the folder",
        "AutoModelForSequenceClassification: logits bit-equal, same exits",
        "AutoModel: hidden states bit-equal",
        "pipeline: same labels, scores and exits",
        "save, load, save, load: bit-equal, all code files",
        "Pipeline.save_pretrained: same results, all code files",
        'dtype="bfloat16"',
        'device_map="auto"',
        "attn_implementation eager and sdpa",
        "sharded checkpoint: bit-equal",
        "another num_labels with ignore_mismatched_sizes",
    )


def test_hub_cache_and_other_versions_load_without_the_package(report):
    assert_all_pass(
        report,
        "two versions of the code do not mix",
        "Hub cache, pinned revision: logits bit-equal, same exits",
        "Hub cache, pinned revision: pipeline",
        "Hub cache: main has its own code beside the pinned one",
        "Hub cache: saved as a folder, bit-equal, all code files",
    )


def test_checks_fail_on_other_code(folder, expected, tmp_path):
    """The checks themselves are checked: in a folder of another version, those that exits or code files enter fail."""
    given = {"folder": make_other_version(folder, tmp_path / "other"), "expected": expected, "closure": code_files(folder)}
    results = run_group(sys.executable, "without_package", tmp_path / "work", **given)
    untouched = ("the package is not installed", "AutoConfig loads the folder", "AutoModel: hidden states bit-equal")
    assert all(results[name] == "pass" for name in untouched)
    same_weights = "AutoModelForSequenceClassification: logits bit-equal, same exits"
    assert results[same_weights].startswith("AssertionError: exit_logits differ")
    assert results["Pipeline.save_pretrained: same results, all code files"].startswith("AssertionError: code files differ")
    for name in ('dtype="bfloat16"', 'device_map="auto"', "attn_implementation eager and sdpa", "sharded checkpoint: bit-equal"):
        assert "AssertionError" in results[name]


def test_a_process_that_dies_is_a_failure(tmp_path):
    assert run_group(sys.executable, "nothing", tmp_path) == {"the process of group 'nothing' ends well": "KeyError: 'nothing'"}


def test_reference_values_can_come_from_the_folder_itself(folder, expected, tmp_path):
    assert_all_pass(run_group(sys.executable, "reference", tmp_path, folder=folder), "the folder loads at all")
    found = json.loads((tmp_path / "expected.json").read_text())
    many = ("results", "results_by_policy")
    assert {name: value for name, value in found.items() if name not in many} == {
        name: value for name, value in expected.items() if name not in many
    }
    for name in many:
        same_results(found[name], expected[name])


# ---- where the package is


def test_installed_package_runs_no_code_of_the_folder(folder, expected, tmp_path):
    trapped = tmp_path / "model"
    shutil.copytree(folder, trapped)
    for name in CLOSURE:
        (trapped / name).write_text("raise SystemExit('code of the folder was run')\n")
    results = run_group(sys.executable, "with_package", tmp_path / "work", folder=trapped, expected=expected)
    assert_all_pass(results, "without trust_remote_code", "trust_remote_code=False", "trust_remote_code=True")


# ---- versions


def write_version(folder, version):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("romebert_version")
    path.write_text(json.dumps(config | ({} if version is None else {"romebert_version": version})))


def test_version_is_that_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == VERSION == RomeBertConfig().romebert_version


@pytest.mark.parametrize("version", [None, "0.0.1", VERSION, f"{VERSION.split('.')[0]}.999.0"])
def test_older_and_unmarked_folders_load_and_are_marked_when_saved_again(folder, tmp_path, version):
    shutil.copytree(folder, tmp_path / "old")
    write_version(tmp_path / "old", version)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "old")
    before = build(exit_policy=POLICY).state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    model.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["romebert_version"] == VERSION


def test_a_newer_major_version_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "new")
    newer = f"{int(VERSION.split('.')[0]) + 1}.0.0"
    write_version(tmp_path / "new", newer)
    message = rf"romebert_version='{newer}'.*newer major version.*{VERSION}.*pip install --upgrade romebert"
    for load in (
        AutoConfig.from_pretrained,
        RomeBertForSequenceClassification.from_pretrained,
        lambda folder: pipeline(TASK, model=str(folder)),
    ):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "new")


# ---- the script


def test_script_prints_a_table_and_tells_by_its_exit_code(folder, monkeypatch, capsys):
    arguments = ["--python", sys.executable, "--model_dir", str(folder)]
    monkeypatch.setattr(check_portability, "check", lambda *_: {"one": "pass", "another": "pass"})
    assert check_portability.main(arguments) == 0
    said = capsys.readouterr().out
    assert "| one     | pass   |" in said and "2 of 2 checks pass" in said and f"torch {torch.__version__}" in said
    monkeypatch.setattr(check_portability, "check", lambda *_: {"one": "pass", "another": "ValueError: no"})
    assert check_portability.main(arguments) == 1
    said = capsys.readouterr().out
    assert "| another | fail   |" in said and "ValueError: no" in said and "1 of 2 checks pass" in said


def test_script_builds_a_model_when_none_is_given(monkeypatch):
    monkeypatch.setattr(check_portability, "make_environment", lambda folder: sys.executable)
    results = {CLOSURE: {"code": "pass"}}
    monkeypatch.setattr(check_portability, "check", lambda _, folder, work: results[tuple(code_files(folder))])
    assert check_portability.main([]) == 0


def test_script_refuses_a_folder_that_is_not_ours(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        check_portability.main(["--model_dir", str(tmp_path)])
    assert "there is no modeling_romebert.py in it" in capsys.readouterr().err
