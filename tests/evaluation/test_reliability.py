"""Reliability by hand, and temperatures that are known."""

import numpy as np
import pytest
import torch
from tiny import build, tiny_rows, tiny_tokenizer

from modeling_romebert import calibrate
from modeling_romebert.evaluation.exit_logits import collect_exit_logits
from modeling_romebert.evaluation.reliability import (
    aurc,
    fit_temperature,
    plot_reliability,
    reliability,
    reliability_table,
)


def test_aurc_by_hand():
    """Surest first: right, wrong, right, so errors of 0, 1/2, 1/3 among the first one, two, three."""
    assert aurc(np.array([0.7, 0.9, 0.8]), np.array([True, True, False])) == pytest.approx(
        (1 / 2 + 1 / 3) / 3
    )


def test_temperature_that_made_the_logits_is_found():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20000, 3, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.05)
    (found,) = reliability((3 * logits)[:, None], labels, [4])
    assert found.ece > 0.1 and found.ece_scaled < 0.02
    (scaled,) = reliability(logits[:, None], labels, [4])
    assert scaled.aurc == pytest.approx(found.aurc, abs=0.01)


def test_calibrate_scales_the_exits_and_no_answer_changes():
    model, rows, tokenizer = build(num_labels=2), tiny_rows(100), tiny_tokenizer()
    before, _, _ = collect_exit_logits(model, rows, tokenizer, progress=False)
    found = calibrate(model, rows, tokenizer, temperature=True, max_drop=0.3, progress=False)
    after, _, _ = collect_exit_logits(model, rows, tokenizer, progress=False)
    ratio = before / after  # (N, E, C)
    assert found.num_examples == 80 and torch.allclose(ratio, ratio[:1, :, :1].expand_as(ratio), rtol=1e-3)
    assert not torch.allclose(ratio, torch.ones(()), rtol=0.05)
    with pytest.raises(ValueError, match="temperature=True needs ten rows or more"):
        calibrate(model, rows[:5], tokenizer, temperature=True, progress=False)


def test_table_and_plot(tmp_path):
    logits = torch.randn(200, 2, 2, generator=torch.Generator().manual_seed(1))
    found = reliability(logits, torch.zeros(200, dtype=torch.long), [1, 2])
    assert [sum(count for _, _, count in one.bins) for one in found] == [200, 200]
    assert reliability_table(found).count("\n") == 3
    plot_reliability(found, tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").stat().st_size > 1000
