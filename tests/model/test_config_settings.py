"""A setting lives in one place and may be written on either level, at any time; labels and token ids are what
the model has.
"""

import copy
import pickle

import pytest
import torch
from families import FAMILIES, families
from huggingface_hub.errors import StrictDataclassFieldValidationError
from saved_and_loaded import content
from tiny import CLASSES, build, padded_batch, tiny_backbone, tiny_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    PreTrainedConfig,
    RobertaConfig,
)

from modeling_romebert import (
    RomeBertConfig,
    RomeBertForSequenceClassification,
    RomeBertModel,
    evaluate_exits,
    score,
)
from modeling_romebert.pipeline_romebert import EarlyExitPipeline

# Settings of some family that may be written to anything of their type; others are bound to each other, as
# sizes are.
WRITTEN = {
    bool: lambda value: not value,
    int: lambda value: value + 3,
    float: lambda value: value + 0.125,
    str: lambda _: "relu",
}


def settings_of(config):
    """Names of the settings that a family's config adds to those of any config, aliases included, and other
    values for them.
    """
    names = (
        (vars(config).keys() | config.attribute_map.keys()) - vars(PreTrainedConfig()).keys() - {"is_decoder"}
    )
    values = {name: getattr(config, name) for name in sorted(names)}
    return {name: WRITTEN[type(value)](value) for name, value in values.items() if type(value) in WRITTEN}


def accepted(config, name, value):
    """Whether a config takes a value: a family may be strict about it."""
    try:
        setattr(config, name, value)
    except (ValueError, StrictDataclassFieldValidationError):
        return False
    return True


# ---- one place


@families
def test_a_setting_is_written_on_either_level(family):
    """... as on a config of the family's own, which also says what it refuses."""
    settings, tried = settings_of(family.backbone()), 0
    for name, value in settings.items():
        stock, ours, below = (
            family.backbone(),
            RomeBertConfig(family.backbone()),
            RomeBertConfig(family.backbone()),
        )
        if not accepted(stock, name, value):
            assert not accepted(ours, name, value)
            continue
        tried += 1
        setattr(ours, name, value)
        setattr(below.backbone_config, name, value)
        for config in (ours, below):
            assert (
                getattr(config, name)
                == getattr(config.backbone_config, name)
                == getattr(stock, name)
                == value
            )
            assert hasattr(config, name) and name not in vars(config)
            assert content(config.backbone_config) == content(stock)
            assert (
                copy.deepcopy(config).to_dict()
                == pickle.loads(pickle.dumps(config)).to_dict()
                == config.to_dict()
            )
            assert config.to_dict()["backbone_config"][stock.attribute_map.get(name, name)] == value
            assert name not in config.to_dict() and name not in config.to_diff_dict()
    assert tried >= 12


@families
def test_written_settings_are_saved_and_given_ones_win(family, tmp_path):
    stock = family.backbone()
    settings = {name: value for name, value in settings_of(stock).items() if accepted(stock, name, value)}
    settings = {
        name: value
        for name, value in settings.items()
        if not isinstance(value, int) or isinstance(value, bool)
    }
    assert len(settings) >= 5
    config = RomeBertConfig(family.backbone())
    config.save_pretrained(tmp_path / "before")
    config.update(settings)
    config.save_pretrained(tmp_path / "after")
    for loaded in (
        RomeBertConfig.from_pretrained(tmp_path / "after"),
        AutoConfig.from_pretrained(tmp_path / "after"),
        AutoConfig.from_pretrained(tmp_path / "before", **settings),
        RomeBertConfig.from_dict(RomeBertConfig(family.backbone()).to_dict(), **settings),
        RomeBertConfig.from_dict(RomeBertConfig(family.backbone()).to_dict() | settings),
        RomeBertConfig.from_backbone(family.backbone(), **settings),
    ):
        assert {name: getattr(loaded, name) for name in settings} == settings
        assert content(loaded.backbone_config) == content(config.backbone_config)


def test_a_model_obeys_what_was_written():
    """The stock model is the oracle: a setting that is ignored shows in its numbers."""
    written = {
        "hidden_act": "relu",
        "layer_norm_eps": 0.5,
        "hidden_dropout_prob": 0.0,
        "classifier_dropout": 0.25,
    }
    config = RomeBertConfig(tiny_backbone(), num_labels=CLASSES)
    for name, value in written.items():
        setattr(config, name, value)
    model, (ids, mask) = RomeBertForSequenceClassification(config).eval(), padded_batch()
    stock = BertModel(tiny_backbone(**written), add_pooling_layer=False).eval()
    stock.load_state_dict(model.backbone.state_dict())
    with torch.no_grad():
        states = model(ids, mask, output_hidden_states=True).hidden_states
        expected = stock(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert all(torch.equal(one, other) for one, other in zip(states, expected, strict=True))
    assert {head.dropout.p for head in model.exits.values()} == {0.25}
    assert model.backbone.embeddings.dropout.p == 0.0
    assert model.config.backbone_config is model.backbone.config


@pytest.mark.parametrize(
    ("name", "default", "value"),
    [
        ("dtype", None, torch.bfloat16),
        ("output_hidden_states", False, True),
        ("output_attentions", False, True),
        ("return_dict", True, False),
        ("chunk_size_feed_forward", 0, 2),
        ("tie_last_hidden_states", None, False),
    ],
)
def test_settings_of_every_config_live_in_the_backbone_s(name, default, value, tmp_path):
    def bert(**settings):
        return BertConfig(**settings, attn_implementation="eager")

    assert getattr(RomeBertConfig(bert()), name, None) == default
    above, below = RomeBertConfig(bert()), RomeBertConfig(bert())
    setattr(above, name, value)
    setattr(below.backbone_config, name, value)
    built = [above, below, RomeBertConfig(bert(**{name: value})), RomeBertConfig(bert(), **{name: value})]
    above.save_pretrained(tmp_path)
    # the attention is no part of a file
    built.append(RomeBertConfig.from_pretrained(tmp_path, attn_implementation="eager"))
    for config in built:
        assert getattr(config, name) == getattr(config.backbone_config, name) == value


def test_attention_named_on_either_level():
    for ours, below in (("eager", None), (None, "eager")):
        config = RomeBertConfig(tiny_backbone(attention=None))
        config._attn_implementation = ours
        if below:
            config.backbone_config._attn_implementation = below
        assert config._attn_implementation == config.backbone_config._attn_implementation == "eager"
        model = RomeBertForSequenceClassification(config)
        assert model.config._attn_implementation == model.backbone.config._attn_implementation == "eager"
        model.set_attn_implementation("sdpa")
        assert model.config._attn_implementation == model.backbone.config._attn_implementation == "sdpa"


def test_a_setting_of_nobody_stays_here_and_what_is_not_there_is_no_attribute():
    config = RomeBertConfig(tiny_backbone())
    config.note = "mine"
    assert vars(config)["note"] == "mine" and not hasattr(config.backbone_config, "note")
    assert RomeBertConfig.from_dict(config.to_dict()).note == "mine"
    with pytest.raises(AttributeError, match="'RomeBertConfig' object has no attribute 'nonsense'"):
        _ = config.nonsense


def test_a_shallow_copy_is_a_config_of_its_own():
    config = RomeBertConfig(tiny_backbone())
    other = copy.copy(config)
    other.hidden_dropout_prob, other.num_hidden_layers, other.exit_pooling = 0.5, 2, "mean"
    assert (config.hidden_dropout_prob, config.exit_layers, config.exit_pooling) == (0.1, [1, 2, 3, 4], "cls")
    assert (other.hidden_dropout_prob, other.exit_layers, other.exit_pooling) == (0.5, [1, 2], "mean")


def test_another_backbone_is_checked_when_it_is_written(tmp_path):
    config = RomeBertConfig(tiny_backbone())
    config.backbone_config = tiny_backbone(RobertaConfig, num_hidden_layers=2).to_dict()
    assert type(config.backbone_config) is RobertaConfig and config.exit_layers == [1, 2]
    with pytest.raises(ValueError, match="model_type='gpt2' is a decoder"):
        config.backbone_config = {"model_type": "gpt2"}
    with pytest.raises(ValueError, match="exit_pooling='max' is unknown"):
        config.exit_pooling = "max"
    config.save_pretrained(tmp_path)
    part = RomeBertConfig.from_pretrained(tmp_path, backbone_config={"layer_norm_eps": 0.5})
    assert (type(part.backbone_config), part.layer_norm_eps, part.hidden_size) == (RobertaConfig, 0.5, 32)
    whole = RomeBertConfig.from_pretrained(tmp_path, backbone_config=tiny_backbone().to_dict())
    assert type(whole.backbone_config) is BertConfig and whole.exit_layers == [1, 2, 3, 4]


# ---- exits follow the depth


@pytest.mark.parametrize(
    ("exit_layers", "depth", "expected"),
    [
        (None, 2, [1, 2]),
        (None, 6, [1, 2, 3, 4, 5, 6]),
        ([2], 6, [2, 6]),
        ([1, 3], 3, [1, 3]),
        ([1, 3], 2, [1, 2]),
        ([4], 1, [1]),
    ],
)
@pytest.mark.parametrize("family", [FAMILIES[0], FAMILIES[6], FAMILIES[-1]], ids=lambda family: family.name)
def test_exits_follow_the_depth(family, exit_layers, depth, expected, tmp_path):
    stock = family.backbone()
    for name in {"num_hidden_layers", stock.attribute_map.get("num_hidden_layers", "num_hidden_layers")}:
        above, below = (RomeBertConfig(family.backbone(), exit_layers=exit_layers) for _ in range(2))
        setattr(above, name, depth)
        setattr(below.backbone_config, name, depth)
        for config in (above, below):
            assert config.exit_layers == config.to_dict()["exit_layers"] == expected
        setattr(above, name, 4)
        assert above.exit_layers == RomeBertConfig(family.backbone(), exit_layers=exit_layers).exit_layers
    RomeBertConfig(family.backbone(), exit_layers=exit_layers).save_pretrained(tmp_path)
    assert RomeBertConfig.from_pretrained(tmp_path, num_hidden_layers=depth).exit_layers == expected


def test_exits_and_depth_written_together():
    config = RomeBertConfig(tiny_backbone())
    config.update({"exit_layers": [5], "num_hidden_layers": 6})
    assert config.exit_layers == [5, 6]
    with pytest.raises(ValueError, match=r"exit_layers=\[7\]: layers are counted from 1 to 6"):
        config.exit_layers = [7]
    model = RomeBertForSequenceClassification(config)
    assert list(model.exits) == ["5", "6"] and len(model.layers) == 6


# ---- what the model makes of it


@torch.no_grad()
def test_outputs_asked_for_on_the_config():
    ids, mask = padded_batch()
    stock = BertModel(tiny_backbone(attention="eager")).eval()
    classifier = build(attention="eager")
    encoder = RomeBertModel(RomeBertConfig(tiny_backbone(attention="eager"))).eval()
    for model, inputs in ((classifier, (ids, mask)), (encoder, (ids,))):
        assert model(*inputs).hidden_states is None and model(*inputs).attentions is None
        model.config.output_hidden_states = model.config.output_attentions = True
        assert len(model(*inputs).hidden_states) == 5 and len(model(*inputs).attentions) == 4
        every = model(*inputs).hidden_states
        for indices, there in (([0, 2, -1], {0, 2, 4}), ([3, 99], {3}), (-2, {3}), ([], set())):
            some = model(*inputs, output_hidden_states=indices).hidden_states
            if model is encoder:  # passes on what this version of the stock model gives
                expected = stock(ids, output_hidden_states=indices).hidden_states
                assert [one is None for one in some or ()] == [one is None for one in expected or ()]
            else:
                assert {index for index, one in enumerate(some or ()) if one is not None} == there
                assert all(torch.equal(some[index], every[index]) for index in there)
        model.config.return_dict = False
        assert isinstance(model(*inputs), tuple)


def test_a_config_s_dtype_is_that_of_a_loaded_model_not_of_one_built_from_it():
    """As in stock models; in no case is the encoder of another type than its exits."""
    config = RomeBertConfig(tiny_backbone(dtype="bfloat16"))
    model = RomeBertForSequenceClassification(config)
    assert {weight.dtype for weight in model.parameters()} == {
        torch.float32
    } and config.dtype == torch.bfloat16
    model = AutoModelForSequenceClassification.from_config(config)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


@torch.no_grad()
def test_a_padding_token_written_later_moves_no_positions():
    """A Trainer writes its tokenizer's on the config.

    RoBERTa counts positions from the one that it was built with.
    """
    model, (ids, mask) = build(RobertaConfig, exit_policy=None), padded_batch()
    policy = {"name": "entropy", "threshold": 0.6}
    texts = ["the film was good", "a dull plot"]
    before, scored = (
        model(ids, mask, exit_policy=policy),
        list(score(model, tiny_tokenizer(), texts, exit_policy=policy)),
    )
    model.config.pad_token_id = 0
    after = model(ids, mask, exit_policy=policy)
    assert torch.equal(after.logits, before.logits) and torch.equal(after.exit_layer, before.exit_layer)
    assert list(score(model, tiny_tokenizer(), texts, exit_policy=policy)) == scored


# ---- labels


@pytest.mark.parametrize(
    "id2label",
    [
        {1: "bad", 2: "good"},
        {0: "bad", 2: "good"},
        {-1: "bad", 0: "good"},
        {"bad": 0, "good": 1},
        {},
        ["bad", "good"],
        {0: "a", "0": "b"},
    ],
    ids=str,
)
def test_ids_of_labels_that_no_model_gives(id2label, tmp_path):
    told = (
        r"id2label=.*: give a dict from ids to labels, and count the ids from 0 without gaps, such as \{0: '"
    )
    with pytest.raises(ValueError, match=told):
        RomeBertConfig(tiny_backbone(), id2label=id2label)
    config = RomeBertConfig(tiny_backbone())
    with pytest.raises(ValueError, match=told):
        config.id2label = id2label
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=told):
        RomeBertConfig.from_pretrained(tmp_path, id2label=id2label)
    tiny_backbone().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=told):
        RomeBertForSequenceClassification.from_pretrained(tmp_path, id2label=id2label)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"num_labels": 3, "id2label": {0: "a", 1: "b"}},
            r"num_labels=3 and id2label=\{0: 'a', 1: 'b'\} with 2 labels",
        ),
        (
            {"num_labels": 1, "id2label": {0: "a", 1: "b"}},
            r"num_labels=1 and id2label=.* with 2 labels contradict",
        ),
        (
            {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}},
            r"id2label=.* and label2id=.* contradict",
        ),
        ({"num_labels": 3, "label2id": {"a": 0, "b": 1}}, r"num_labels=3 and id2label=.* with 2 labels"),
    ],
)
def test_labels_that_contradict_each_other(settings, told):
    with pytest.raises(ValueError, match=told):
        RomeBertConfig(tiny_backbone(), **settings)
    with pytest.raises(ValueError, match=told):
        RomeBertConfig.from_dict(tiny_backbone().to_dict(), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"id2label": {0: "bad", 1: "good", 2: "fair"}},
        {"id2label": {"2": "fair", "0": "bad", "1": "good"}},
        {"label2id": {"bad": 0, "fair": 2, "good": 1}},
        {
            "num_labels": 3,
            "id2label": {0: "bad", 1: "good", 2: "fair"},
            "label2id": {"bad": 0, "good": 1, "fair": 2},
        },
    ],
)
def test_labels_by_any_of_their_names(settings, tmp_path):
    written = RomeBertConfig(tiny_backbone())
    written.num_labels = settings.get("num_labels", 3)
    if "id2label" in settings:
        written.id2label = settings["id2label"]
    plain = tiny_backbone()
    plain.save_pretrained(tmp_path)
    built = [
        RomeBertConfig(tiny_backbone(), **settings),
        RomeBertConfig.from_pretrained(tmp_path, **settings),
    ]
    for config in [*built, *([written] if "id2label" in settings else [])]:
        assert list(config.id2label.items()) == [(0, "bad"), (1, "good"), (2, "fair")]
        assert config.label2id == {"bad": 0, "good": 1, "fair": 2} and config.num_labels == 3


def test_labels_of_the_backbone_s_config_come_along(tmp_path):
    names = {0: "bad", 1: "good", 2: "fair"}
    for backbone in (tiny_backbone(id2label=names), tiny_backbone(num_labels=3, id2label=names).to_dict()):
        config = RomeBertConfig(backbone)
        assert config.id2label == names and RomeBertConfig(backbone, num_labels=5).num_labels == 5
        config.num_labels = 2
        config.save_pretrained(tmp_path)
        assert (
            RomeBertConfig.from_pretrained(tmp_path).num_labels == 2
        )  # a file that names no labels means the library's two


def test_a_number_of_labels_that_is_there_keeps_their_names(tmp_path):
    names = {0: "bad", 1: "good", 2: "fair"}
    RomeBertConfig(tiny_backbone(), id2label=names).save_pretrained(tmp_path)
    assert RomeBertConfig.from_pretrained(tmp_path, num_labels=3).id2label == names
    assert RomeBertConfig.from_pretrained(tmp_path, num_labels=2).id2label == {0: "LABEL_0", 1: "LABEL_1"}


# ---- tokens beyond the vocabulary


def ways_in(model, tokenizer, texts):
    """Every way in which a text comes to a model."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    rows = [{"text": text, "label": 0} for text in texts]
    policy = {"name": "entropy", "threshold": 0.6}
    encoder = RomeBertModel(model.config, model.backbone)
    pipe = EarlyExitPipeline(model=model, tokenizer=tokenizer)
    return {
        "model": lambda: model(**batch),
        "one": lambda: model(**tokenizer(texts[-1], return_tensors="pt"), exit_policy=policy),
        "policy": lambda: model(**batch, exit_policy=policy),
        "attentions": lambda: model(**batch, output_attentions=True),
        "encoder": lambda: encoder(**batch),
        "training": lambda: model.train()(
            **batch, labels=torch.zeros(len(texts), dtype=torch.long)
        ).loss.backward(),
        "score": lambda: list(score(model, tokenizer, texts)),
        "score with a policy": lambda: list(score(model, tokenizer, texts, exit_policy=policy)),
        "pipeline": lambda: pipe(texts),
        "pipeline, one": lambda: pipe(texts[-1]),
        "evaluate": lambda: evaluate_exits(model, rows, tokenizer),
    }


@pytest.mark.parametrize(
    "way",
    [
        *("model", "one", "policy", "attentions", "encoder", "training", "score", "score with a policy"),
        *("pipeline", "pipeline, one", "evaluate"),
    ],
)
@pytest.mark.parametrize("family", [BertConfig, RobertaConfig], ids=["bert", "roberta"])
def test_tokens_added_without_room_for_them(family, way):
    tokenizer, model = (
        tiny_tokenizer(),
        build(backbone=tiny_backbone(family, attention="eager")),
    )  # its vocabulary has 100
    tokenizer.add_tokens([f"word{index}" for index in range(len(tokenizer), 101)])
    texts = ["a good film", "the plot was word100"]
    told = (
        r"input_ids contain 100, but the model's vocabulary has 100 "
        r"tokens.*resize_token_embeddings\(len\(tokenizer\)\)"
    )
    with pytest.raises(ValueError, match=told):
        ways_in(model, tokenizer, texts)[way]()
    model.resize_token_embeddings(len(tokenizer))
    ways_in(model, tokenizer, texts)[way]()


def test_negative_ids_and_ids_that_another_tokenizer_made():
    model = build()
    for ids, told in (
        ([[2, -1, 3]], "contain -1,.*0 to 99"),
        ([[2, 30521, 3]], "contain 30521,.*own tokenizer"),
    ):
        with pytest.raises(ValueError, match=told):
            model(torch.tensor(ids))
    with pytest.raises(IndexError):  # not of the ids, so not explained away
        model(torch.tensor([[2, 3]]), token_type_ids=torch.tensor([[0, 9]]))


def test_ids_on_another_device_are_not_looked_at():
    """It would wait for the device."""
    from modeling_romebert.input_checks import check_token_ids

    beyond = torch.full((2, 3), 10**6)
    check_token_ids(build(), beyond.to("meta"))
    with pytest.raises(ValueError, match="contain 1000000"):
        check_token_ids(build(), beyond)
