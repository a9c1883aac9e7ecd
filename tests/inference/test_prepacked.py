"""Prepacked layers give what the model's own give, live for one pass, and never answer with old weights."""

import copy

import pytest
import torch
from tiny import assert_same_results, build, spread_exits, tiny_rows, tiny_texts, tiny_tokenizer
from torch import nn
from transformers import AlbertConfig, BertConfig, RobertaConfig, pipeline

from modeling_romebert import (
    RomeBertTrainer,
    RomeBertTrainingArguments,
    cpu,
    evaluate_exits,
    multi_exit,
    score,
)
from modeling_romebert.cpu import PrepackedLinear, can_prepack

ENTROPY = {"name": "entropy", "threshold": 0.6}
TEXTS = tiny_texts(60, seed=3)
TOKENIZER = tiny_tokenizer()


@pytest.fixture(autouse=True)
def on_this_processor(monkeypatch):
    """Weights are prepacked here, for however few tokens."""
    monkeypatch.setattr(cpu, "PAYS_ON", (torch.backends.cpu.get_cpu_capability(),))
    monkeypatch.setattr(multi_exit, "PREPACKING_TOKENS", 0)


@pytest.fixture
def made(monkeypatch):
    """How many linear layers were prepacked."""
    counted, make = [], PrepackedLinear.__init__
    monkeypatch.setattr(
        PrepackedLinear, "__init__", lambda self, linear: counted.append(1) or make(self, linear)
    )
    return counted


def fresh():
    return spread_exits(build(exit_pooling="mean", exit_policy=ENTROPY), TEXTS)


def scored(model):
    return list(score(model, TOKENIZER, TEXTS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_torch_s(bias, dtype):
    if not can_prepack(dtype):
        dtype = torch.float32  # a processor without bfloat16
    torch.manual_seed(0)
    linear, states = nn.Linear(48, 96, bias=bias, dtype=dtype), torch.randn(2, 5, 48, dtype=dtype)
    with torch.no_grad():
        found = PrepackedLinear(linear)(states)
        torch.testing.assert_close(
            found, linear(states), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5
        )


@pytest.mark.parametrize("family", [BertConfig, RobertaConfig, AlbertConfig])
def test_scoring_gives_the_same_and_leaves_the_model_as_it_is(family, made, monkeypatch):
    model = spread_exits(build(family, exit_pooling="mean", exit_policy=ENTROPY), TEXTS)
    modules, state = list(model.modules()), copy.deepcopy(model.state_dict())
    found = scored(model)
    linears = sum(type(module) is nn.Linear for module in model.backbone.encoder.modules())
    # Layers only; one that is applied several times once.
    assert len(made) == linears - (family is AlbertConfig)
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
    assert all(torch.equal(state[name], weight) for name, weight in model.state_dict().items())
    monkeypatch.setattr(cpu, "PAYS_ON", ())
    assert_same_results(found, scored(model))


def test_hooks_of_layers_run_and_watched_linears_stay():
    model, seen = fresh(), []
    model.layers[0].register_forward_pre_hook(lambda *_: seen.append("layer"))
    model.layers[1].output.dense.register_forward_hook(lambda *_: seen.append("linear"))
    scored(model)
    assert {"layer", "linear"} == set(seen)


# ---- weights that change


def fused_adamw(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    model(**TOKENIZER(TEXTS[0], return_tensors="pt"), labels=torch.tensor([0])).loss.backward()
    optimizer.step()


def trainer(model, tmp_path):
    arguments = RomeBertTrainingArguments(
        str(tmp_path), max_steps=4, learning_rate=0.02, report_to="none", use_cpu=True
    )
    RomeBertTrainer(
        model, arguments, train_dataset=tiny_rows(32, classes=3), processing_class=TOKENIZER
    ).train()


def data_of_an_average(model):
    for weight in model.parameters():
        weight.data.mul_(0.5).add_(
            torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)), alpha=0.2
        )


def new_storage(model):
    for weight in model.parameters():
        weight.data = weight.data * 1.5 + 0.05


def one_element(model):
    model.layers[0].output.dense.weight.data[3, 5] += 50.0


def state_dict(model):
    model.load_state_dict({name: weight * 1.5 + 0.05 for name, weight in model.state_dict().items()})


def other_module(model):
    torch.manual_seed(7)
    model.layers[1].intermediate.dense = nn.Linear(32, 64)
    model.layers[1].intermediate.dense.weight.data.mul_(20)


def lora(model):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(target_modules=["query", "value"], init_lora_weights=False))
    for name, weight in adapted.named_parameters():
        if "lora" in name:
            weight.data.mul_(5)
    adapted.merge_adapter()


@pytest.mark.parametrize(
    "change",
    [fused_adamw, trainer, data_of_an_average, new_storage, one_element, state_dict, other_module, lora],
)
def test_no_pass_answers_with_old_weights(change, made, tmp_path, monkeypatch):
    model = fresh()
    classify = pipeline("early-exit-classification", model=model, tokenizer=TOKENIZER)
    before = classify(TEXTS)
    assert made
    change(model, tmp_path) if change is trainer else change(model)
    found, alone = classify(TEXTS), [classify(text)[0] for text in TEXTS]
    rows = [{"text": text, "label": 0} for text in TEXTS]
    accuracy = evaluate_exits(model, rows, TOKENIZER, progress=False).exits[-1]
    monkeypatch.setattr(cpu, "PAYS_ON", ())
    expected = scored(copy.deepcopy(model))
    assert found != before
    assert_same_results(found, expected)
    assert_same_results(alone, expected)
    full_depth = [
        one["label"] == model.config.id2label[0] for one in score(model, TOKENIZER, TEXTS, exit_policy=False)
    ]
    assert accuracy == pytest.approx(sum(full_depth) / len(TEXTS))


@pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor"
)  # and still used
def test_a_pipeline_leaves_layers_that_can_be_quantized():
    model = fresh()
    pipeline("early-exit-classification", model=model, tokenizer=TOKENIZER)(TEXTS)
    linears = sum(type(module) is nn.Linear for module in model.modules())
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    int8 = [
        module for module in quantized.modules() if isinstance(module, torch.ao.nn.quantized.dynamic.Linear)
    ]
    assert len(int8) == linears
    assert len(scored(quantized)) == len(TEXTS)
