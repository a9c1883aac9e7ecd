"""A saved folder is complete, keeps what its user added, and says of which version it is."""

import ast
import configparser
import importlib.util
import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import check_portability
import pytest
import torch
import transformers
from saved_and_loaded import told
from support.portability_checks import (
    TASK,
    USERS_PIPELINE,
    code_files,
)
from tiny import build, tiny_rows, tiny_tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline
from transformers.dynamic_module_utils import get_relative_imports
from transformers.pipelines import PIPELINE_REGISTRY

import modeling_romebert
from modeling_romebert import (
    EarlyExitPipeline,
    RomeBertConfig,
    RomeBertForSequenceClassification,
    RomeBertModel,
    RomeBertTrainer,
    RomeBertTrainingArguments,
)
from modeling_romebert.configuration_romebert import VERSION
from modeling_romebert.hub import AUTO_MAP, CLOSURE, CUSTOM_PIPELINES, OF_CONFIG

ROOT = Path(__file__).parents[2]
POLICY = {"name": "entropy", "threshold": 0.7}
# What a folder must hold besides code, by what wrote it; a tokenizer and training_args.bin may be there too.
NOT_CODE = {"config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved model, whose texts leave at several depths, with its tokenizer."""
    return check_portability.save_tiny_model(tmp_path_factory.mktemp("saved") / "model")


# ---- what is written


def save_model(model, folder):
    model.save_pretrained(folder)


def save_encoder(model, folder):
    RomeBertModel(model.config).save_pretrained(folder)


def save_by_trainer(model, folder):
    arguments = RomeBertTrainingArguments(
        output_dir=str(folder.parent / "run"), use_cpu=True, report_to="none"
    )
    RomeBertTrainer(
        model, arguments, train_dataset=tiny_rows(4), processing_class=tiny_tokenizer()
    ).save_model(str(folder))


def save_by_pipeline(model, folder):
    pipeline(TASK, model=model, tokenizer=tiny_tokenizer()).save_pretrained(folder)


def save_what_was_loaded(model, folder):
    model.save_pretrained(folder.parent / "first")
    RomeBertForSequenceClassification.from_pretrained(folder.parent / "first").save_pretrained(folder)


@pytest.mark.parametrize(
    "save", [save_model, save_encoder, save_by_trainer, save_by_pipeline, save_what_was_loaded]
)
def test_every_way_of_saving_writes_the_closure_and_no_other_code(tmp_path, save):
    save(build(exit_policy=POLICY), tmp_path / "model")
    assert tuple(code_files(tmp_path / "model")) == CLOSURE
    written = {path.name for path in (tmp_path / "model").iterdir()} - set(CLOSURE)
    with_tokenizer = (
        {"tokenizer.json", "tokenizer_config.json"} if save in (save_by_trainer, save_by_pipeline) else set()
    )
    of_trainer = (
        {"training_args.bin"} if save is save_by_trainer else set()
    )  # pickled settings, which nothing here reads
    assert written - {"README.md"} == NOT_CODE | with_tokenizer | of_trainer
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP and config["custom_pipelines"] == CUSTOM_PIPELINES
    assert config["romebert_version"] == VERSION and config["exit_policy"] == POLICY


def test_auto_map_and_pipelines_name_what_is_there(folder):
    for entry in [*AUTO_MAP.values(), *(task["impl"] for task in CUSTOM_PIPELINES.values())]:
        module, name = entry.split(".")
        classes = [
            node.name
            for node in ast.parse((folder / f"{module}.py").read_text()).body
            if isinstance(node, ast.ClassDef)
        ]
        assert name in classes and hasattr(modeling_romebert, name)
    assert {name for name in AUTO_MAP if not hasattr(sys.modules["transformers"], name)} == set()


def test_saved_code_is_this_package_s(folder):
    """The config's file is the class's own, not the alias beside the model, and names the other files at its
    end.
    """
    for name in CLOSURE:
        source = (ROOT / ("configuration" if name in OF_CONFIG else "modeling_romebert") / name).read_text()
        saved = (folder / name).read_text()
        assert saved.startswith(source)
        if name != "configuration_romebert.py":
            assert saved == source
    # Older versions of transformers copy what the config's file imports itself, and nothing that those files
    # import.
    named = get_relative_imports(folder / "configuration_romebert.py")
    assert {f"{module}.py" for module in named} | {"configuration_romebert.py"} == set(CLOSURE)


@pytest.mark.parametrize("name", CLOSURE)
def test_closure_imports_what_transformers_needs_and_itself_only(folder, name):
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
        assert roots <= sys.stdlib_module_names | {"numpy", "torch", "transformers"}, ast.unparse(node)


def test_a_config_saved_alone_names_no_model(tmp_path):
    build().config.save_pretrained(tmp_path)
    assert tuple(code_files(tmp_path)) == OF_CONFIG
    assert (tmp_path / "configuration_romebert.py").read_text() == (
        ROOT / "configuration/configuration_romebert.py"
    ).read_text()
    assert type(AutoConfig.from_pretrained(tmp_path)) is RomeBertConfig


# ---- what a user adds

USERS_MODEL = """
from modeling_romebert import RomeBertConfig, RomeBertForSequenceClassification


class MineConfig(RomeBertConfig):
    model_type = "mine"


class Mine(RomeBertForSequenceClassification):
    config_class = MineConfig
"""
SHOUT = {"impl": "shouting.ShoutingPipeline", "pt": ["AutoModelForSequenceClassification"], "type": "text"}


def config_of(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.fixture
def shouting(tmp_path, monkeypatch):
    """A model that a user's own pipeline, registered and in a file of its own, has saved."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "shouting.py").write_text(USERS_PIPELINE)
    monkeypatch.syspath_prepend(tmp_path / "lib")
    monkeypatch.setattr(PIPELINE_REGISTRY, "supported_tasks", dict(PIPELINE_REGISTRY.supported_tasks))
    own = importlib.import_module("shouting").ShoutingPipeline
    PIPELINE_REGISTRY.register_pipeline(
        "shout", own, pt_model=AutoModelForSequenceClassification, type="text"
    )
    pipeline("shout", model=build(exit_policy=POLICY), tokenizer=tiny_tokenizer()).save_pretrained(
        tmp_path / "shouting"
    )
    return tmp_path / "shouting"


@pytest.mark.parametrize("save", [None, save_model, save_by_trainer, save_by_pipeline])
def test_a_user_s_pipeline_stays_beside_ours(shouting, tmp_path, save):
    folder = shouting
    if save is not None:
        folder = tmp_path / "model"
        save(RomeBertForSequenceClassification.from_pretrained(shouting), folder)
        tiny_tokenizer().save_pretrained(folder)
    assert config_of(folder)["custom_pipelines"] == CUSTOM_PIPELINES | {"shout": SHOUT}
    assert config_of(folder)["auto_map"] == AUTO_MAP
    assert set(code_files(folder)) == {*CLOSURE, "shouting.py"}
    assert (
        type(pipeline(TASK, model=str(folder))) is EarlyExitPipeline
    )  # ours needs no trust, a user's own does
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        pipeline("shout", model=str(folder))
    shout = pipeline("shout", model=str(folder), trust_remote_code=True)
    assert (
        shout("good")[0]["label"].endswith("!")
        and shout.model.config.custom_pipelines["shout"]["impl"] == SHOUT["impl"]
    )
    shout.save_pretrained(tmp_path / "again")  # the library has put classes where their names were
    assert config_of(tmp_path / "again")["custom_pipelines"] == CUSTOM_PIPELINES | {"shout": SHOUT}


def test_a_user_s_model_and_config_stay_named_beside_ours(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(USERS_MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("mine")
    model = mine.Mine(mine.MineConfig.from_dict(build().config.to_dict()))
    model.config.auto_map = {
        "AutoModelForTokenClassification": "tags.Tagger",
        "AutoTokenizer": ["words.Words", None],
    }
    model.save_pretrained(tmp_path / "first")
    users = {
        **model.config.auto_map,
        "AutoConfig": "mine.MineConfig",
        "AutoModelForSequenceClassification": "mine.Mine",
    }
    assert (
        config_of(tmp_path / "first")["auto_map"] == AUTO_MAP | users
        and config_of(tmp_path / "first")["model_type"] == "mine"
    )
    assert set(code_files(tmp_path / "first")) == {*CLOSURE, "mine.py"}  # all that ours name
    assert (
        (tmp_path / "first" / "configuration_romebert.py")
        .read_text()
        .startswith((ROOT / "configuration/configuration_romebert.py").read_text())
    )
    loaded = mine.Mine.from_pretrained(tmp_path / "first")
    assert type(loaded.config) is mine.MineConfig
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())
    loaded.save_pretrained(tmp_path / "again")
    assert config_of(tmp_path / "again")["auto_map"] == AUTO_MAP | users
    assert code_files(tmp_path / "again") == code_files(tmp_path / "first")


def test_code_that_is_named_and_not_there_is_told(tmp_path):
    model = build()
    model.config.custom_pipelines = {
        "shout": SHOUT,
        "whisper": {**SHOUT, "impl": "user/name--whispering.Whisper"},
    }
    with told() as said:
        model.save_pretrained(tmp_path)
    assert [line for line in said if "names" in line] == [
        f"config.json names shouting.ShoutingPipeline, and there is no shouting.py in {tmp_path}. Copy it"
        " there."
    ]


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}])
def test_a_folder_tells_its_task(folder, tmp_path, trust):
    save_by_trainer(build(), tmp_path / "trained")
    for saved in (folder, tmp_path / "trained"):
        classify = pipeline(model=str(saved), **trust)
        assert type(classify) is EarlyExitPipeline and classify.task == TASK
        assert type(pipeline(TASK, model=str(saved), config=classify.model.config)) is EarlyExitPipeline


# ---- versions


def test_an_older_transformers_is_told_which_version_is_needed(folder, monkeypatch):
    """It runs this file first, and alone: all else has to come from its text."""
    monkeypatch.setattr(transformers, "__version__", "4.57.6")
    monkeypatch.delattr(transformers, "PreTrainedConfig", raising=False)
    source = importlib.util.spec_from_file_location(
        "configuration_alone", folder / "configuration_romebert.py"
    )
    with pytest.raises(
        ImportError,
        match=r"needs transformers 5 or newer, and 4\.57\.6 is installed here: pip install --upgrade",
    ):
        source.loader.exec_module(importlib.util.module_from_spec(source))


def write_version(folder, version):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("romebert_version")
    path.write_text(json.dumps(config | ({} if version is None else {"romebert_version": version})))


def test_version_is_that_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: configuration.configuration_romebert.VERSION"
    assert RomeBertConfig().romebert_version == VERSION


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
    assert (
        "| one     | pass   |" in said
        and "2 of 2 checks pass" in said
        and f"torch {version('torch')}" in said
    )
    monkeypatch.setattr(check_portability, "check", lambda *_: {"one": "pass", "another": "ValueError: no"})
    assert check_portability.main(arguments) == 1
    said = capsys.readouterr().out
    assert "| another | fail   |" in said and "ValueError: no" in said and "1 of 2 checks pass" in said


def test_script_builds_a_model_when_none_is_given(monkeypatch):
    monkeypatch.setattr(check_portability, "make_environment", lambda folder: sys.executable)
    results = {CLOSURE: {"code": "pass"}}
    monkeypatch.setattr(
        check_portability, "check", lambda _, folder, work: results[tuple(code_files(folder))]
    )
    assert check_portability.main([]) == 0


def test_script_refuses_a_folder_that_is_not_ours(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        check_portability.main(["--model_dir", str(tmp_path)])
    assert "there is no modeling_romebert.py in it" in capsys.readouterr().err
