"""The config nests its backbone's, says where exits are, and refuses what fits no model."""

import json
import logging

import numpy as np
import pytest
import torch
from modeling_romebert.configuration.setting_checks import FAMILIES
from saved_and_loaded import content
from tiny import tiny_backbone
from transformers import (
    AutoConfig,
    BartConfig,
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    FNetConfig,
    GPT2Config,
    LlamaConfig,
    RobertaConfig,
    T5Config,
    XLMRobertaConfig,
)
from transformers.utils import logging as transformers_logging

from modeling_romebert import RomeBertConfig, RomeBertForSequenceClassification, make_policy
from modeling_romebert.backbones import ADAPTERS

PLAIN = [BertConfig, RobertaConfig, XLMRobertaConfig, CamembertConfig]
SMALL = {
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
}


@pytest.fixture
def no_warning(caplog):
    """Fails a test during which transformers warns."""
    transformers_logging.enable_propagation()
    yield
    transformers_logging.disable_propagation()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


# ---- building one


def test_defaults():
    config = RomeBertConfig()
    assert config.model_type == "romebert"
    assert content(config.backbone_config) == content(BertConfig())
    assert (config.exit_layers, config.exit_pooling, config.exit_policy) == (list(range(1, 13)), "cls", None)
    assert (config.distillation_weight, config.distillation_temperature) == (0.5, 1.0)
    assert (config.distillation_reduction, config.teacher) == ("batchmean", "last")
    assert (config.exit_weights, config.exit_scale) == ("uniform", 0.1)
    assert (config.num_labels, config.problem_type) == (2, None)


def test_arguments_of_bert_build_the_backbone():
    config = RomeBertConfig(**SMALL, num_labels=3, hidden_dropout_prob=0.2)
    assert isinstance(config.backbone_config, BertConfig)
    assert config.backbone_config.to_dict() == BertConfig(**SMALL, hidden_dropout_prob=0.2).to_dict()
    assert config.exit_layers == [1, 2, 3, 4]
    assert config.num_labels == 3 and config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


@pytest.mark.parametrize("family", PLAIN)
def test_backbone_config_as_an_object_or_a_dict(family):
    backbone = tiny_backbone(family)
    by_object, by_dict = RomeBertConfig(backbone), RomeBertConfig(backbone_config=backbone.to_dict())
    assert by_object.backbone_config is backbone
    assert type(by_dict.backbone_config) is family
    assert by_dict.to_dict() == by_object.to_dict()


def test_a_backbone_dict_without_model_type_is_bert():
    assert (
        RomeBertConfig({"num_hidden_layers": 3}).backbone_config.to_dict()
        == BertConfig(num_hidden_layers=3).to_dict()
    )


def test_the_backbone_s_sizes_answer():
    config = RomeBertConfig(tiny_backbone(initializer_range=0.3))
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (4, 32, 4)
    assert (config.vocab_size, config.initializer_range) == (100, 0.3)
    config.vocab_size = 120  # what resize_token_embeddings does
    assert config.backbone_config.vocab_size == config.vocab_size == 120


def test_configs_share_no_lists():
    layers = [1, 4]
    config = RomeBertConfig(tiny_backbone(), exit_layers=layers)
    layers.append(9)
    assert config.exit_layers == [1, 4]


# ---- exit layers


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [1, 2, 3, 4]),
        ([], [4]),
        ([4], [4]),
        ([2], [2, 4]),
        ([1, 3], [1, 3, 4]),
        ((1, 4), [1, 4]),
        ([1, 2, 3, 4], [1, 2, 3, 4]),
    ],
)
def test_the_last_layer_always_has_an_exit(given, expected):
    assert RomeBertConfig(tiny_backbone(), exit_layers=given).exit_layers == expected


@pytest.mark.parametrize(
    ("exit_layers", "message"),
    [
        ([0, 2], r"exit_layers=\[0, 2\]: layers are counted from 1 to 4, the depth of this backbone"),
        ([2, 5], r"exit_layers=\[2, 5\]: layers are counted from 1 to 4"),
        ([-1], r"exit_layers=\[-1\]: layers are counted from 1 to 4"),
        ([3, 1], r"exit_layers=\[3, 1\]: give each layer once, in increasing order: \[1, 3\]"),
        ([1, 2, 2], r"exit_layers=\[1, 2, 2\]: give each layer once, in increasing order: \[1, 2\]"),
        ([True, 2], r"exit_layers=\[True, 2\]: layers are whole numbers"),
        ([1.0, 2], r"exit_layers=\[1\.0, 2\]: layers are whole numbers"),
        (["1"], r"exit_layers=\['1'\]: layers are whole numbers"),
        (2, "exit_layers=2: give a list of layers"),
        ("all", "exit_layers='all': give a list of layers"),
    ],
)
def test_exit_layers_that_do_not_exist(exit_layers, message):
    with pytest.raises(ValueError, match=message):
        RomeBertConfig(tiny_backbone(), exit_layers=exit_layers)


# ---- other errors


def test_unknown_pooling():
    with pytest.raises(ValueError, match="exit_pooling='max' is unknown; choose from cls, mean"):
        RomeBertConfig(exit_pooling="max")


@pytest.mark.parametrize(
    ("backbone", "given", "message"),
    [
        (
            tiny_backbone(),
            {"hidden_size": 16},
            "hidden_size=16 belongs to the backbone.*backbone_config.*says 32",
        ),
        (
            tiny_backbone(DistilBertConfig),
            {"n_layers": 2},
            "n_layers=2 belongs to the backbone.*backbone_config.*says 4",
        ),
        (
            tiny_backbone(DistilBertConfig),
            {"num_hidden_layers": 2},
            "num_hidden_layers=2 belongs to the backbone.*says 4",
        ),
    ],
)
def test_backbone_argument_given_twice(backbone, given, message):
    with pytest.raises(ValueError, match=message):
        RomeBertConfig(backbone, **given)
    with pytest.raises(ValueError, match=message):
        RomeBertConfig(backbone.to_dict(), **given)
    assert RomeBertConfig(backbone, num_hidden_layers=4).num_hidden_layers == 4  # nor does it contradict


@pytest.mark.parametrize(
    ("backbone", "problem"),
    [
        (FNetConfig(), "model_type='fnet' is not supported"),
        ({"model_type": "nobert"}, "model_type='nobert' is not supported"),
        (GPT2Config(), "model_type='gpt2' is a decoder, and exits need an encoder"),
        (LlamaConfig(), "model_type='llama' is a decoder, and exits need an encoder"),
        (T5Config(), "model_type='t5' is an encoder-decoder, and exits need an encoder alone"),
        (BartConfig(), "model_type='bart' is an encoder-decoder, and exits need an encoder alone"),
    ],
)
def test_unsupported_backbone_is_refused_by_name(backbone, problem, tmp_path):
    """... wherever it comes from, with the supported ones and the recipe."""
    message = rf"{problem}.*; choose from {', '.join(FAMILIES)}\..*backbones\.py tells how to add a family"
    as_dict = backbone if isinstance(backbone, dict) else backbone.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(as_dict))
    for given in (backbone, as_dict, str(tmp_path)):
        with pytest.raises(ValueError, match=message):
            RomeBertConfig.from_backbone(given)
    with pytest.raises(ValueError, match=message):
        RomeBertConfig(backbone_config=backbone)


def test_every_family_has_an_adapter():
    assert tuple(ADAPTERS) == FAMILIES


@pytest.mark.parametrize("family", [BertConfig, RobertaConfig])
def test_decoder_is_refused(family):
    with pytest.raises(
        ValueError, match=rf"backbone_config is a decoder \({family.model_type}, is_decoder=True\)"
    ):
        RomeBertForSequenceClassification(RomeBertConfig(tiny_backbone(family, is_decoder=True)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exit_policy": {"name": "oracle"}}, "exit policy 'oracle' is unknown; choose from entropy"),
        ({"exit_policy": {"name": "entropy", "threshold": 3}}, r"threshold=3 is not in 0\.\.1"),
        ({"teacher": "first"}, "teacher='first' is unknown; choose from last, next"),
        ({"distillation_weight": 2.0}, r"distillation_weight=2\.0 is not in 0\.\.1"),
    ],
)
def test_settings_without_meaning_fail_when_the_model_is_built(settings, message):
    with pytest.raises(ValueError, match=message):
        RomeBertForSequenceClassification(RomeBertConfig(tiny_backbone(), **settings))


# ---- keeping one

OURS = {
    "exit_layers": [2, 3],
    "exit_pooling": "mean",
    "exit_policy": {"name": "vote", "thresholds": [1.0, 1.5, 0.0]},
    "distillation_weight": 0.5,
    "distillation_temperature": 2.0,
    "distillation_reduction": "mean",
    "teacher": "next",
    "exit_weights": "depth",
    "exit_scale": 0.3,
}
TASK = {"id2label": {0: "bad", 1: "good", 2: "fair"}, "label2id": {"bad": 0, "good": 1, "fair": 2}}
MULTI = "multi_label_classification"


@pytest.mark.parametrize(("old", "scale"), [("sum", 1.0), ("mean", 1 / 3)])
def test_exit_reduction_of_version_0_1_is_read_as_exit_scale(old, scale, tmp_path, caplog):
    config = RomeBertConfig(**SMALL)
    config.save_pretrained(tmp_path)
    stored = {name: value for name, value in config.to_dict().items() if name != "exit_scale"}
    (tmp_path / "config.json").write_text(json.dumps({**stored, "exit_reduction": old}))
    transformers_logging.enable_propagation()
    read = RomeBertConfig.from_pretrained(tmp_path)
    transformers_logging.disable_propagation()
    assert f"exit_reduction='{old}' is called exit_scale={scale:.4g} now (with 4 exits)." in caplog.text
    assert read.exit_scale == scale and "exit_reduction" not in read.to_dict()
    # what is asked for beside it counts, under either name
    assert RomeBertConfig.from_pretrained(tmp_path, exit_scale=0.5).exit_scale == 0.5
    assert RomeBertConfig.from_pretrained(tmp_path, exit_reduction="mean").exit_scale == 1 / 3
    assert RomeBertConfig(**SMALL, exit_layers=[2], exit_reduction="mean").exit_scale == 1.0


def test_unknown_exit_reduction_says_what_it_is_called_now():
    with pytest.raises(ValueError, match="exit_reduction='max' is unknown; it was 'sum' or 'mean', and is"):
        RomeBertConfig(**SMALL, exit_reduction="max")


@pytest.mark.parametrize("settings", [{}, OURS, {**OURS, **TASK, "problem_type": MULTI}])
@pytest.mark.parametrize("family", PLAIN)
def test_round_trip(family, settings, tmp_path, no_warning):
    config = RomeBertConfig(tiny_backbone(family), **settings)
    config.save_pretrained(tmp_path)
    for loaded in (RomeBertConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is RomeBertConfig and type(loaded.backbone_config) is family
        assert content(loaded) == content(config)
        assert content(loaded.backbone_config) == content(config.backbone_config)
        assert all(
            getattr(loaded, name) == value for name, value in settings.items() if name != "exit_layers"
        )
        assert loaded.exit_layers == ([2, 3, 4] if settings else [1, 2, 3, 4])


def test_round_trip_of_the_default(tmp_path):
    RomeBertConfig().save_pretrained(tmp_path)
    loaded = RomeBertConfig.from_pretrained(tmp_path)
    assert content(loaded) == content(RomeBertConfig()) and content(loaded.backbone_config) == content(
        BertConfig()
    )


def test_from_dict_leaves_its_argument_alone():
    for given in (RomeBertConfig(tiny_backbone()).to_dict(), tiny_backbone().to_dict()):
        before = json.dumps(given, default=str)
        RomeBertConfig.from_dict(given, exit_layers=[2], hidden_dropout_prob=0.7)
        assert json.dumps(given, default=str) == before


def test_from_dict_of_ours_without_a_backbone_is_bert():
    config = RomeBertConfig.from_dict(
        {"model_type": "romebert", **SMALL, "exit_layers": [2]}, hidden_dropout_prob=0.3
    )
    assert config.backbone_config.to_dict() == BertConfig(**SMALL, hidden_dropout_prob=0.3).to_dict()
    assert config.exit_layers == [2, 4]


def test_auto_config_builds_ours():
    config = AutoConfig.for_model("romebert", **SMALL, exit_layers=[1])
    assert type(config) is RomeBertConfig and config.exit_layers == [1, 4]


# ---- plain encoder configs


@pytest.mark.parametrize("family", PLAIN)
def test_a_plain_encoder_s_config_is_nested(family, tmp_path, no_warning):
    plain = tiny_backbone(family)
    plain.save_pretrained(tmp_path)
    for config in (RomeBertConfig.from_pretrained(tmp_path), RomeBertConfig.from_dict(plain.to_dict())):
        assert config.model_type == "romebert" and type(config.backbone_config) is family
        assert content(config.backbone_config) == content(plain)
        assert config.exit_layers == [1, 2, 3, 4]


def test_labels_of_a_plain_config_are_kept(tmp_path, no_warning):
    BertConfig(
        **SMALL, **TASK, problem_type=MULTI, architectures=["BertForSequenceClassification"]
    ).save_pretrained(tmp_path)
    config = RomeBertConfig.from_pretrained(tmp_path)
    assert (config.id2label, config.label2id, config.problem_type) == (*TASK.values(), MULTI)
    assert config.num_labels == 3
    assert config.architectures is None  # it names the class that the file was written for


def test_overrides_go_to_the_level_they_belong_to(tmp_path, no_warning):
    tiny_backbone(RobertaConfig).save_pretrained(tmp_path / "plain")
    RomeBertConfig(tiny_backbone(RobertaConfig), exit_layers=[1, 2]).save_pretrained(tmp_path / "ours")
    for name in ("plain", "ours"):
        config, unused = RomeBertConfig.from_pretrained(
            tmp_path / name,
            exit_layers=[3],
            exit_pooling="mean",
            teacher="next",
            hidden_dropout_prob=0.4,
            classifier_dropout=0.2,
            num_labels=5,
            problem_type=MULTI,
            something_else=1,
            return_unused_kwargs=True,
        )
        assert (config.exit_layers, config.exit_pooling, config.teacher) == ([3, 4], "mean", "next")
        assert (config.num_labels, config.problem_type) == (5, MULTI)
        assert (config.backbone_config.hidden_dropout_prob, config.backbone_config.classifier_dropout) == (
            0.4,
            0.2,
        )
        assert type(config.backbone_config) is RobertaConfig
        assert unused == {"something_else": 1}
        assert "hidden_dropout_prob" not in vars(config)


def test_fewer_layers_of_a_plain_config(tmp_path):
    tiny_backbone().save_pretrained(tmp_path)
    config = RomeBertConfig.from_pretrained(tmp_path, num_hidden_layers=2)
    assert (config.num_hidden_layers, config.exit_layers) == (2, [1, 2])


@pytest.mark.parametrize(
    ("policy", "stored"),
    [
        ({"name": "entropy", "threshold": np.float32(0.25)}, {"name": "entropy", "threshold": 0.25}),
        (
            {"name": "entropy", "thresholds": torch.tensor([0.25, 0.5])},
            {"name": "entropy", "thresholds": [0.25, 0.5]},
        ),
        (make_policy("vote", threshold=1.5), {"name": "vote", "threshold": 1.5}),
    ],
    ids=str,
)
@pytest.mark.parametrize("when", ["in the constructor", "later"])
def test_exit_policy_is_stored_in_plain_numbers(tmp_path, policy, stored, when):
    config = RomeBertConfig(exit_policy=policy if when == "in the constructor" else None, num_hidden_layers=2)
    config.exit_policy = policy
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["exit_policy"] == stored
    assert RomeBertConfig.from_pretrained(tmp_path).exit_policy == stored
    assert json.loads(config.to_json_string())["exit_policy"] == stored
