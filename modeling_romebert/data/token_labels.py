"""What a dataset's labels mean to a token classifier: one list per row, with an entry for each token.

    class id, whole number as a float, name that the config knows -> class id; -100 -> none

An entry is read by the rule for single labels of texts (labels.py), and refused with its row and token.
`reader_for` gives the reader that fits a model.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ..configuration_romebert import ProblemType
from .labels import Label, LabelReader


class TokenLabelReader(LabelReader):
    """Labels of tokens as a dataset holds them -> class ids, -100 for tokens without one; see `LabelReader`.

    Example:
        >>> from modeling_romebert import RomeBertConfig
        >>> read = TokenLabelReader(RomeBertConfig(id2label={0: "O", 1: "B-PER"}))
        >>> read(["O", "B-PER", -100, 1.0], "row 0")
        [0, 1, -100, 1]
        >>> read("O", "row 7")
        Traceback (most recent call last):
            ...
        ValueError: row 7 has the label 'O'; a token classifier takes a list with one label per token.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        self.problem_type = ProblemType.SINGLE_LABEL.value  # of each token

    def __call__(self, value: Any, where: str) -> Any:
        """A list, array or tensor of labels -> class ids and -100."""
        if isinstance(value, Tensor | np.ndarray):
            value = value.tolist()
        if not isinstance(value, list | tuple):
            raise ValueError(
                f"{where} has the label {value!r}; a token classifier takes a list with one label per token."
            )
        read = super().__call__
        known: dict[Any, Label] = {}  # few labels occur often
        found = []
        for index, one in enumerate(value):
            if not isinstance(one, str | int) or isinstance(one, bool):
                found.append(read(one, f"{where}, token {index}"))
                continue
            if one not in known:
                known[one] = read(one, f"{where}, token {index}")
            found.append(known[one])
        return found

    def of_row(self, row: Mapping[str, Any], where: str) -> tuple[str, Any]:
        """As `LabelReader.of_row`.

        Raises:
            ValueError: also where there are more or fewer labels than tokens.
        """
        column, labels = super().of_row(row, where)
        tokens = row.get("input_ids")
        if tokens is not None and len(tokens) != len(labels):  # type: ignore[arg-type]
            raise ValueError(
                f"{where} has {len(labels)} labels for {len(tokens)} tokens; give one for each piece"  # type: ignore[arg-type]
                " that the tokenizer makes, -100 for special tokens (and, as is usual, for all pieces of a"
                " word but the first)."
            )
        return column, labels


def reader_for(config: Any) -> LabelReader:
    """The reader of a model's labels, by its config."""
    return TokenLabelReader(config) if config.classifies_tokens else LabelReader(config)
