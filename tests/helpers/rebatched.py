"""Rows of a padded batch through the scheduler that puts batches together anew."""

import torch

from modeling_romebert.cpu import open_workers
from modeling_romebert.early_exit import ActiveBatch
from modeling_romebert.exit_policies import as_policy
from modeling_romebert.rebatching import Scheduler


def texts_of(ids, mask):
    """Rows of a padded batch as a tokenizer gives them."""
    return [
        {"input_ids": row[: int(length)].tolist()} for row, length in zip(ids, mask.sum(dim=1), strict=True)
    ]


def active(model, rows, texts, policy):
    """Some texts as a batch before the first layer."""
    started = as_policy(policy).start(len(model.exit_layers), model.problem_type, model.exit_layers)
    return ActiveBatch(
        model.encoder(pad_token_id=1), list(rows), None, started, texts=[texts[row] for row in rows]
    )


def run(model, texts, policy, batch_tokens, workers=1, batch_rows=None):
    """logits (B, C) and exit layers (B,) of all rows, in their order."""
    lengths = [len(text["input_ids"]) for text in texts]
    begin = lambda rows: active(model, rows, texts, policy)  # noqa: E731
    with open_workers(workers) as several:
        scheduler = Scheduler(
            range(len(texts)),
            lengths,
            begin,
            batch_tokens,
            batch_rows,
            not model.adapter.packs,
            several.count,
        )
        found = []
        for batch, exited in several.run(ActiveBatch.step, scheduler.schedule):
            scheduler.put_back(batch)
            if exited is not None:
                found.append(exited)
    rows = [row for one in found for row in one.rows]
    assert sorted(rows) == list(range(len(texts)))
    order = torch.tensor(rows).argsort()
    return torch.cat([one.logits for one in found])[order], torch.tensor(
        [one.layer for one in found for _ in one.rows]
    )[order]


@torch.no_grad()
def run_tokens(model, texts, policy, batch_tokens, workers=1):
    """Logits (t, C) and exit layers (t,) of every row of a token classifier, in their order."""
    lengths = [len(text["input_ids"]) for text in texts]
    started = as_policy(policy)

    def begin(rows):
        fresh = started.start(len(model.exit_layers), model.problem_type, model.exit_layers)
        of_rows = [texts[row] for row in rows]
        made = model.encoder(pad_token_id=1)
        return model.active_batch(made, list(rows), None, fresh, texts=of_rows)

    with open_workers(workers) as several:
        scheduler = Scheduler(
            *(range(len(texts)), lengths, begin, batch_tokens),
            padded=not model.adapter.packs,
            workers=several.count,
        )
        found = {}
        for batch, exited in several.run(ActiveBatch.step, scheduler.schedule):
            scheduler.put_back(batch)
            if exited is not None:
                found |= {row: (logits, layers) for row, logits, layers in exited.per_row()}
    assert sorted(found) == list(range(len(texts)))
    return [found[row] for row in range(len(texts))]
