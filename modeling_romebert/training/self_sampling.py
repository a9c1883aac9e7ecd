"""Self-sampling: the second stage of training a token classifier whose tokens halt (TOKEE, Li et al., arXiv
2105.13878, section 3.3).

At full depth no state is ever copied, and with halting most are. So the second stage trains on states as
halting leaves them: each text's tokens halt where the first stage's model would have let them, with a window
and a threshold drawn for the text. Some texts of a batch run every layer, and some are as eager as it gets,
so that neither end is forgotten. An exit is trained on the tokens that get to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..confidence import log_probabilities, normalized_entropy
from ..configuration_romebert import ProblemType
from ..losses import IGNORED_LABEL
from ..pretrained import forward_of, inner_model
from ..token_spans import NO_WORD, halting
from .trainer import RomeBertTrainer


@dataclass
class SelfSampling:
    """How eagerly tokens halt in training.

    Args:
        windows: the smallest and the largest odd window that are drawn, in tokens.
        thresholds: the smallest and the largest threshold of normalised entropy.
        full_depth: share of a batch's texts that run every layer.
        eager: share that halts with the smallest window and the largest threshold.

    Raises:
        ValueError: ranges or shares that mean nothing.
    """

    windows: Sequence[int] = (5, 15)
    thresholds: Sequence[float] = (0.01, 0.25)
    full_depth: float = 0.25
    eager: float = 0.125

    def __post_init__(self) -> None:
        low, high = self.windows
        if not (1 <= low <= high and low % 2 and high % 2):
            raise ValueError(
                f"windows={tuple(self.windows)}: give two odd numbers from 1, the smaller first."
            )
        low_threshold, high_threshold = self.thresholds
        if not 0 <= low_threshold <= high_threshold <= 1:
            raise ValueError(
                f"thresholds={tuple(self.thresholds)}: give two numbers in 0..1, the smaller first."
            )
        if not (self.full_depth >= 0 and self.eager >= 0 and self.full_depth + self.eager <= 1):
            raise ValueError(
                f"full_depth={self.full_depth} and eager={self.eager} are shares of a batch, and add up to at"
                " most 1."
            )

    def draw(self, rows: int) -> tuple[Tensor, Tensor]:
        """For each of b rows a window (b,) and a threshold (b,), by torch's generator; 0 lets nobody halt."""
        low, high = self.windows
        windows = low + 2 * torch.randint((high - low) // 2 + 1, (rows,))
        smallest, largest = self.thresholds
        thresholds = smallest + (largest - smallest) * torch.rand(rows)
        kind = torch.rand(rows)
        eager = kind < self.eager
        thresholds = torch.where(kind >= 1 - self.full_depth, 0.0, torch.where(eager, largest, thresholds))
        return torch.where(eager, low, windows), thresholds


def halt_layers(
    entropy: Tensor,
    words: Tensor,
    mask: Tensor,
    exit_layers: Sequence[int],
    windows: Tensor,
    thresholds: Tensor,
) -> Tensor:
    """Where tokens halt: the layers (B, T) that each runs.

    Args:
        entropy (B, E, T): normalised, of each token at each exit.
        words (B, T): of each token, `NO_WORD` for none.
        mask (B, T): 1 for attended tokens; the others run every layer.
        windows, thresholds: (B,), of each row.

    Example:
        >>> entropy = torch.tensor([[[0.0, 0.9, 0.0], [0.0, 0.0, 0.0]]])  # one row, two exits, three words
        >>> halt_layers(entropy, torch.tensor([[0, 1, 2]]), torch.ones(1, 3), [1, 2],
        ...             torch.tensor([1]), torch.tensor([0.5])).tolist()
        [[1, 2, 1]]
    """
    mask = mask.bool()
    counts = mask.sum(dim=1)  # (B,)
    of_tokens = entropy.transpose(1, 2)[mask]  # (n, E)
    window, threshold = windows.repeat_interleave(counts), thresholds.repeat_interleave(counts)  # (n,) each
    active = torch.ones(len(of_tokens), dtype=torch.bool)
    layers = torch.full((len(of_tokens),), exit_layers[-1])
    for index, layer in enumerate(exit_layers[:-1]):
        sure = of_tokens[:, index] < threshold
        halts = halting(sure, active, words[mask], counts.tolist(), window)
        layers[halts] = layer
        active = active & ~halts
    placed = torch.full(mask.shape, exit_layers[-1])
    placed[mask] = layers
    return placed


class SelfSamplingTrainer(RomeBertTrainer):
    """A `RomeBertTrainer` whose steps see tokens halt as `first_stage` lets them.

    Args:
        first_stage: a trained `RomeBertForTokenClassification`. It says where tokens halt, and stays as it
            is; `model` starts from the same weights.
        sampling: how eagerly.

    The objective is `"joint"`. Evaluation runs every layer. Rows of `train_dataset` have `word_ids`, as those
    of `tokenize_words` (data/token_rows.py).

    Raises:
        TypeError, ValueError: models or an objective that do not go together; see `RomeBertTrainer`.
    """

    default_head_rate = 1.0  # its heads are trained already

    def __init__(
        self, *args: Any, first_stage: Any, sampling: SelfSampling | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sampling = sampling or SelfSampling()
        self.first_stage = inner_model(first_stage)
        for name, model in {"model": self.romebert, "first_stage": self.first_stage}.items():
            if not model.config.classifies_tokens:
                raise TypeError(
                    f"{name} is a {type(model).__name__}; self-sampling is for token classifiers."
                )
        if self.first_stage is self.romebert:
            raise ValueError("first_stage is the model that is trained; load it a second time.")
        if self.first_stage.exit_layers != self.romebert.exit_layers:
            raise ValueError(
                f"first_stage has exits after layers {self.first_stage.exit_layers}, and the model after"
                f" {self.romebert.exit_layers}; they have to be the same."
            )
        self.first_stage.requires_grad_(False).eval()

    def _check_settings(self) -> None:
        super()._check_settings()
        if self.args.objective != "joint":
            raise ValueError(
                f"objective={self.args.objective!r}: the second stage trains each exit on the tokens that get"
                " to it, which is objective='joint'."
            )
        if self.compute_loss_func is not None:
            raise ValueError(
                "compute_loss_func is given, and the second stage counts only the tokens that get to an exit,"
                " which the function does not know: leave it out."
            )

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `RomeBertTrainer.compute_loss`; in training tokens halt."""
        if self.model.training and self._run is not None:
            inputs = {**inputs, "halt_layers": self._sampled(inputs)}
        return super().compute_loss(model, inputs, *args, **kwargs)

    @torch.no_grad()
    def _sampled(self, inputs: dict[str, Any]) -> Tensor:
        """(B, T): layers that each token of a batch runs."""
        if "word_ids" not in inputs:
            raise ValueError(
                "the batch has no word_ids; make the rows of train_dataset with tokenize_words"
                " (modeling_romebert.data.token_rows)."
            )
        ids = inputs["input_ids"]
        self.first_stage.to(ids.device)
        seen = {
            name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs
        }
        exit_logits = forward_of(self.first_stage)(**seen).exit_logits  # (B, E, T, C)
        shape = exit_logits.shape[:-1]
        log_p = log_probabilities(exit_logits.flatten(0, 2), ProblemType.SINGLE_LABEL)
        entropy = normalized_entropy(log_p).view(shape).cpu()
        mask = inputs.get("attention_mask", torch.ones_like(ids)).cpu()
        words = inputs["word_ids"].cpu().where(mask.bool(), torch.tensor(NO_WORD))
        windows, thresholds = self.sampling.draw(len(ids))
        return halt_layers(entropy, words, mask, self.romebert.exit_layers, windows, thresholds).to(
            ids.device
        )

    def _losses_of_exits(self, outputs: Any, labels: Tensor, inputs: dict[str, Any], *args: Any) -> Any:
        """(E,): of each exit on the tokens that get to it."""
        if "halt_layers" not in inputs or self._run is None:
            return super()._losses_of_exits(outputs, labels, inputs, *args)
        losses = []
        for logits, layer in zip(outputs.exit_logits.unbind(1), self.romebert.exit_layers, strict=True):
            here = labels.where(inputs["halt_layers"] >= layer, IGNORED_LABEL)
            losses.append(
                self._run.exit_loss.task_losses(logits.unsqueeze(1), here, self.romebert.problem_type)
            )
        return torch.cat(losses)
