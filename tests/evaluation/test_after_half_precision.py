"""After a training in bf16 everything is measured with the weights as they are saved: the autocast that the
training left in the model takes no part.
"""

import torch
from tiny import assert_same_results, build, tiny_rows, tiny_texts, tiny_tokenizer
from tiny_tokens import build_tokens, piece_tokenizer, tagged
from transformers import pipeline

from modeling_romebert import RomeBertTrainer, RomeBertTrainingArguments
from modeling_romebert.data.token_rows import read_token_rows, tokenize_words
from modeling_romebert.evaluation.exit_logits import collect_exit_logits
from modeling_romebert.evaluation.token_outcomes import TokenOutcomes
from modeling_romebert.pretrained import inner_model

TEXTS = tiny_texts(60, seed=5)


def trained(model, folder, rows, tokenizer):
    """The model, or what is around it, after three steps in bf16."""
    arguments = RomeBertTrainingArguments(
        str(folder / "run"), max_steps=3, learning_rate=1e-2, bf16=True, report_to="none", use_cpu=True
    )
    trainer = RomeBertTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert "_original_forward" in vars(trainer.model)  # else there is nothing to see here
    return trainer.model


def reloaded(model, folder):
    model.save_pretrained(folder / "saved")
    return type(model).from_pretrained(folder / "saved").eval()


def adapted(model):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))


def test_a_text_classifier(tmp_path):
    tokenizer = tiny_tokenizer()
    model = trained(build(), tmp_path, tiny_rows(32), tokenizer)
    again = reloaded(model, tmp_path)
    rows = [{"text": text, "label": len(text) % 2} for text in TEXTS]
    measured, expected = (collect_exit_logits(one, rows, tokenizer, progress=False) for one in (model, again))
    assert torch.equal(measured.exit_logits, expected.exit_logits)
    classify, of_saved = (
        pipeline("early-exit-classification", model=one, tokenizer=tokenizer) for one in (model, again)
    )
    assert [classify(text) for text in TEXTS[:9]] == [of_saved(text) for text in TEXTS[:9]]
    assert_same_results([classify(text)[0] for text in TEXTS[:9]], classify(TEXTS[:9]))


def test_with_adapters(tmp_path):
    tokenizer = tiny_tokenizer()
    model = trained(adapted(build()), tmp_path, tiny_rows(32), tokenizer)
    rows = [{"text": text, "label": 0} for text in TEXTS]
    measured, expected = (
        collect_exit_logits(one, rows, tokenizer, progress=False).exit_logits
        for one in (model, inner_model(model))
    )
    assert torch.equal(measured, expected)


def test_a_token_classifier(tmp_path):
    tokenizer, rows = piece_tokenizer(), tagged(24)
    columns = tokenize_words(tokenizer, [row["tokens"] for row in rows], [row["labels"] for row in rows], 64)
    inputs = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    model = trained(build_tokens(), tmp_path, inputs, tokenizer)
    measured, expected = (
        TokenOutcomes(one, read_token_rows(one, rows, tokenizer), tokenizer, progress=False).exit_logits
        for one in (model, reloaded(model, tmp_path))
    )
    assert torch.equal(measured, expected)
