"""Plain checkpoints of every kind load with their trunk exactly, quietly; our own load as they were saved."""

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_and_loaded import assert_same_weights, told
from tiny import LAYERS, build, padded_batch, tiny_backbone
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    CamembertConfig,
    CamembertForMaskedLM,
    FNetConfig,
    FNetModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)
from transformers.utils import logging as library_logging

from modeling_romebert import RomeBertConfig, RomeBertForSequenceClassification, RomeBertModel

# class, config, prefix of the trunk in its checkpoint, and whether that has a pooler
PLAIN = [
    (BertModel, BertConfig, "", True),
    (BertForMaskedLM, BertConfig, "bert.", False),
    (BertForPreTraining, BertConfig, "bert.", True),
    (BertForSequenceClassification, BertConfig, "bert.", True),
    (RobertaModel, RobertaConfig, "", True),
    (RobertaForMaskedLM, RobertaConfig, "roberta.", False),
    (XLMRobertaModel, XLMRobertaConfig, "", True),
    (CamembertForMaskedLM, CamembertConfig, "roberta.", False),
]
plain = pytest.mark.parametrize(
    ("stock", "family", "prefix", "has_pooler"), PLAIN, ids=[row[0].__name__ for row in PLAIN]
)


def save_plain(folder, stock=BertModel, family=BertConfig, **settings):
    torch.manual_seed(1)
    stock(tiny_backbone(family, **settings)).save_pretrained(folder)
    return folder, load_file(folder / "model.safetensors")


def rewrite(folder, weights):
    save_file(
        {name: weight.contiguous() for name, weight in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def assert_trunk(model, weights, prefix=""):
    """The model's trunk is what the checkpoint holds, and all of it."""
    trunk = model.backbone.state_dict()
    assert len(trunk) == 5 + 16 * LAYERS
    for name, weight in trunk.items():
        assert torch.equal(weight, weights[prefix + name]), name


# ---- plain checkpoints


@pytest.mark.parametrize("verbosity", [logging.WARNING, logging.INFO, logging.ERROR])
@plain
def test_plain_checkpoint(tmp_path, stock, family, prefix, has_pooler, verbosity):
    folder, weights = save_plain(tmp_path, stock, family)
    before = library_logging.get_verbosity()
    library_logging.set_verbosity(verbosity)
    try:
        with told() as said:
            model = RomeBertForSequenceClassification.from_pretrained(folder)
        assert library_logging.get_verbosity() == verbosity
    finally:
        library_logging.set_verbosity(before)
    assert said == []
    assert_trunk(model, weights, prefix)
    assert not model.training and model.config.exit_layers == [1, 2, 3, 4]
    assert model.config.backbone_config.model_type == family.model_type
    for head in model.exits.values():
        pretrained = weights.get(f"{prefix}pooler.dense.weight")
        assert (pretrained is not None) == has_pooler
        if has_pooler:
            assert torch.equal(head.pooler.dense.weight, pretrained)
            assert torch.equal(head.pooler.dense.bias, weights[f"{prefix}pooler.dense.bias"])
        else:
            assert (
                not head.pooler.dense.bias.any() and 0.05 < head.pooler.dense.weight.std() < 0.2
            )  # initializer_range is 0.1


@plain
@pytest.mark.slow
def test_plain_checkpoint_computes_what_the_stock_model_does(tmp_path, stock, family, prefix, has_pooler):
    folder, _ = save_plain(tmp_path, stock, family)
    ids, mask = padded_batch()
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder)(ids, attention_mask=mask).last_hidden_state
        output = RomeBertForSequenceClassification.from_pretrained(folder)(
            ids, mask, output_hidden_states=True
        )
        alone = RomeBertModel.from_pretrained(folder)(ids, attention_mask=mask).last_hidden_state
    assert torch.equal(output.hidden_states[-1], expected) and torch.equal(alone, expected)


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_names_of_old_checkpoints(tmp_path, prefix):
    """Checkpoints of 2018 call the weight and bias of LayerNorm gamma and beta."""
    folder, weights = save_plain(tmp_path, BertForPreTraining if prefix else BertModel)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): torch.randn_like(weight)
        for name, weight in weights.items()
    }
    assert old.keys() != weights.keys()
    rewrite(folder, old)
    with told() as said:
        model = RomeBertForSequenceClassification.from_pretrained(folder)
    assert said == []
    assert_trunk(
        model,
        {name.replace("gamma", "weight").replace("beta", "bias"): weight for name, weight in old.items()},
        prefix,
    )


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_state_dict_with_and_without_prefix(tmp_path, prefix):
    folder, weights = save_plain(tmp_path)
    rewrite(folder, {prefix + name: weight for name, weight in weights.items()})
    model = RomeBertForSequenceClassification.from_pretrained(folder)
    assert_trunk(model, weights)
    assert torch.equal(model.exits["1"].pooler.dense.weight, weights["pooler.dense.weight"])


def test_poolers_are_copies_with_memory_of_their_own(tmp_path):
    folder, weights = save_plain(tmp_path)
    model = RomeBertForSequenceClassification.from_pretrained(folder)
    storages = {head.pooler.dense.weight.data_ptr() for head in model.exits.values()}
    assert len(storages) == LAYERS and model.backbone.pooler is None
    with torch.no_grad():
        model.exits["1"].pooler.dense.weight.zero_()
    assert torch.equal(model.exits["2"].pooler.dense.weight, weights["pooler.dense.weight"])


def test_mean_pooling_leaves_the_pooler_behind(tmp_path):
    folder, weights = save_plain(tmp_path)
    with told() as said:
        model = RomeBertForSequenceClassification.from_pretrained(folder, exit_pooling="mean")
    assert said == [] and not any("pooler" in name for name in model.state_dict())
    assert_trunk(model, weights)


def test_classifiers_are_new_and_follow_the_seed(tmp_path):
    folder, weights = save_plain(tmp_path, BertForSequenceClassification)

    def load(seed):
        torch.manual_seed(seed)
        return RomeBertForSequenceClassification.from_pretrained(folder)

    first, again, other = load(3), load(3), load(4)
    assert_same_weights(first, again)
    assert not torch.equal(first.exits["1"].classifier.weight, other.exits["1"].classifier.weight)
    everyone = torch.stack([head.classifier.weight for head in first.exits.values()])
    assert 0.05 < everyone.std() < 0.2  # initializer_range is 0.1
    assert not torch.equal(everyone[0], everyone[1]) and not torch.equal(
        everyone[-1], weights["classifier.weight"]
    )
    assert not any(head.classifier.bias.any() for head in first.exits.values())


def test_settings_as_keyword_arguments(tmp_path):
    folder, weights = save_plain(tmp_path)
    names = {index: name for index, name in enumerate("abcde")}
    model, info = RomeBertForSequenceClassification.from_pretrained(
        folder,
        exit_layers=[2, 4],
        num_labels=5,
        id2label=names,
        label2id={},
        hidden_dropout_prob=0.0,
        output_loading_info=True,
    )
    assert (
        list(model.exits) == ["2", "4"] and model.num_labels == model.exits["2"].classifier.out_features == 5
    )
    assert model.config.id2label == names and model.config.backbone_config.hidden_dropout_prob == 0.0
    assert info["missing_keys"] == set()
    assert_trunk(model, weights)


def test_a_config_of_one_s_own_is_used_and_left_as_it_is(tmp_path):
    folder, weights = save_plain(tmp_path)
    config = RomeBertConfig(tiny_backbone(), exit_layers=[3], num_labels=7)
    before = config.to_dict()
    model = RomeBertForSequenceClassification.from_pretrained(folder, config=config, dtype=torch.bfloat16)
    assert list(model.exits) == ["3", "4"] and model.num_labels == 7
    assert config.to_dict() == before and model.config is not config
    assert_trunk(model, {name: weight.to(torch.bfloat16) for name, weight in weights.items()})


def test_labels_of_the_checkpoint_are_kept(tmp_path):
    names = {"id2label": {0: "bad", 1: "good", 2: "so so"}, "label2id": {"bad": 0, "good": 1, "so so": 2}}
    folder, _ = save_plain(
        tmp_path, BertForSequenceClassification, **names, problem_type="multi_label_classification"
    )
    model = RomeBertForSequenceClassification.from_pretrained(folder)
    assert (model.config.id2label, model.config.label2id) == (names["id2label"], names["label2id"])
    assert model.config.problem_type == "multi_label_classification"


def test_missing_trunk_weights_are_told(tmp_path):
    folder, weights = save_plain(tmp_path)
    del (
        weights["encoder.layer.1.output.dense.weight"],
        weights["pooler.dense.bias"],
        weights["pooler.dense.weight"],
    )
    rewrite(folder, weights)
    with told() as said:
        RomeBertForSequenceClassification.from_pretrained(folder)
    assert len(said) == 1
    assert "has no weights for encoder.layer.1.output.dense.weight; they are newly initialized" in said[0]


@pytest.mark.parametrize("of_ours", [True, False])
def test_dtype_and_attention_are_respected(tmp_path, of_ours):
    (build() if of_ours else BertModel(tiny_backbone())).save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, "bfloat16"):
        model = RomeBertForSequenceClassification.from_pretrained(
            tmp_path, dtype=dtype, attn_implementation="eager"
        )
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        configs = (model.config, model.config.backbone_config, model.backbone.config)
        assert {config._attn_implementation for config in configs} == {"eager"}
        assert {config.dtype for config in configs} == {torch.bfloat16}
    assert len(model(torch.tensor([[5, 6]]), output_attentions=True).attentions) == LAYERS


@pytest.mark.parametrize("of_ours", [True, False])
def test_model_and_backbone_share_one_config(tmp_path, of_ours):
    (build() if of_ours else BertModel(tiny_backbone())).save_pretrained(tmp_path)
    model = RomeBertForSequenceClassification.from_pretrained(tmp_path)
    assert model.config.backbone_config is model.backbone.config
    model.resize_token_embeddings(105)
    assert model.backbone.config.vocab_size == model.config.vocab_size == 105


def test_unsupported_family(tmp_path):
    FNetModel(
        FNetConfig(hidden_size=8, num_hidden_layers=1, intermediate_size=8, vocab_size=10)
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model_type='fnet' is not supported; choose from bert, roberta"):
        RomeBertForSequenceClassification.from_pretrained(tmp_path)


# ---- checkpoints of ours


@pytest.mark.parametrize("loader", [RomeBertForSequenceClassification, AutoModelForSequenceClassification])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("family", [BertConfig, RobertaConfig], ids=lambda family: family.model_type)
def test_round_trip(tmp_path, family, pooling, loader):
    policy = {"name": "entropy", "thresholds": [0.1, 0.2, 0.3]}
    model = build(family, exit_pooling=pooling, exit_layers=[1, 3, 4], exit_policy=policy)
    model.save_pretrained(tmp_path)
    with told() as said:
        loaded = loader.from_pretrained(tmp_path)
    assert said == [] and type(loaded) is RomeBertForSequenceClassification and not loaded.training
    assert_same_weights(loaded, model)
    assert (loaded.config.exit_layers, loaded.config.exit_policy) == ([1, 3, 4], policy)
    ids, mask = padded_batch()
    with torch.no_grad():
        assert torch.equal(loaded(ids, mask).exit_logits, model(ids, mask).exit_logits)


def test_what_started_from_a_plain_checkpoint_is_saved_whole(tmp_path):
    folder, _ = save_plain(tmp_path / "plain")
    model = RomeBertForSequenceClassification.from_pretrained(folder, num_labels=4)
    with torch.no_grad():
        for index, head in enumerate(model.exits.values()):
            head.pooler.dense.weight.fill_(index)  # the pretrained pooler must not come back
    model.save_pretrained(tmp_path / "ours")
    assert str(tmp_path) not in (tmp_path / "ours" / "config.json").read_text()
    assert_same_weights(RomeBertForSequenceClassification.from_pretrained(tmp_path / "ours"), model)


def test_auto_model_gives_the_encoder_alone(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    with told() as said:
        encoder = AutoModel.from_pretrained(tmp_path)
    assert said == [] and type(encoder) is RomeBertModel
    assert_same_weights(encoder.backbone, model.backbone)


def test_state_dict_of_ours(tmp_path):
    model = build()
    loaded = RomeBertForSequenceClassification.from_pretrained(
        None, config=model.config, state_dict=model.state_dict()
    )
    assert_same_weights(loaded, model)


def test_only_safetensors_are_written(tmp_path):
    build().save_pretrained(tmp_path)
    weights = sorted(path.name for path in tmp_path.iterdir() if path.suffix not in (".json", ".py", ".md"))
    assert weights == ["model.safetensors"]


def test_exits_may_be_left_out(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    loaded = RomeBertForSequenceClassification.from_pretrained(tmp_path, exit_layers=[2, 4])
    ids, mask = padded_batch()
    with torch.no_grad():
        assert torch.equal(loaded(ids, mask).exit_logits, model(ids, mask).exit_logits[:, [1, 3]])


@pytest.mark.parametrize(
    ("policy", "fewer", "expected"),
    [
        ({"thresholds": [0.1, 0.2, 0.3, 0.4]}, {"exit_layers": [2, 4]}, {"thresholds": [0.2, 0.4]}),
        ({"thresholds": [0.1, 0.2, 0.3, 0.4]}, {"num_hidden_layers": 2}, {"thresholds": [0.1, 0.2]}),
        ({"threshold": 0.5, "ask_exits": [1, 2]}, {"exit_layers": [2, 4]}, {"ask_exits": [2]}),
        ({"threshold": 0.5, "ask_exits": [1, 3]}, {"num_hidden_layers": 2, "exit_layers": [2]}, None),
        ({"threshold": 0.5}, {"exit_layers": [2, 4]}, {"threshold": 0.5}),
    ],
    ids=str,
)
def test_a_policy_is_of_the_exits_that_are_loaded(tmp_path, policy, fewer, expected):
    policy = {"name": "entropy", **policy}
    build(exit_policy=policy).save_pretrained(tmp_path)
    model = RomeBertForSequenceClassification.from_pretrained(tmp_path, **fewer)
    with torch.no_grad():
        model(*padded_batch(), exit_policy=model.config.exit_policy)
    assert model.config.exit_policy == {**policy, **(expected or {"ask_exits": [2]})}
    given = {"name": "confidence", "thresholds": [0.5] * len(model.exit_layers)}
    model = RomeBertForSequenceClassification.from_pretrained(tmp_path, **fewer, exit_policy=given)
    assert model.config.exit_policy == given


def test_first_layers_end_at_an_exit(tmp_path):
    build(exit_layers=[2, 4]).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"It has exits after \[2, 4\].* let num_hidden_layers end at one of these"
    ):
        RomeBertForSequenceClassification.from_pretrained(tmp_path, num_hidden_layers=3)


def test_exits_may_not_be_added(tmp_path):
    build(exit_layers=[2, 4]).save_pretrained(tmp_path)
    message = (
        r"no weights for exits\.1\.classifier\.bias, .*exits\.1\.pooler.*; "
        r"exit_layers=\[1, 2, 4\].*plain encoder checkpoint"
    )
    with pytest.raises(ValueError, match=message):
        RomeBertForSequenceClassification.from_pretrained(tmp_path, exit_layers=[1, 2, 4])


@pytest.mark.parametrize(
    ("saved", "asked", "message"),
    [
        ("cls", "mean", "exit_pooling='mean' is asked for"),
        ("mean", "cls", r"no weights for exits\.1\.pooler.*exit_pooling='cls'"),
    ],
)
def test_pooling_may_not_change(tmp_path, saved, asked, message):
    build(exit_pooling=saved).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        RomeBertForSequenceClassification.from_pretrained(tmp_path, exit_pooling=asked)


# ---- sentence encoders


@pytest.mark.parametrize(
    ("content", "pooling", "told"),
    [
        ('{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}', "cls", True),
        ('{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}', "mean", False),
        ('{"pooling_mode_mean_tokens": false, "pooling_mode_cls_token": true}', "cls", False),
        ("{", "cls", False),
    ],
)
def test_a_sentence_encoder_whose_first_token_was_not_trained_is_told(
    tmp_path, caplog, content, pooling, told
):
    save_plain(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(content)
    RomeBertForSequenceClassification.from_pretrained(tmp_path, exit_pooling=pooling)
    assert ("is a sentence encoder that is read as the mean of all tokens" in caplog.text) is told
