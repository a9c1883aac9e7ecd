"""Rows of a token classifier's dataset: lists of words with a label each -> tokens, as it is trained and
judged.

A word's label is that of its first piece; its other pieces and special tokens have -100. What a label means
is in token_labels.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from transformers.utils import logging

from ..configuration_romebert import plain
from ..losses import IGNORED_LABEL
from ..pretrained import inner_model
from ..text_batcher import with_truncation
from ..text_items import each
from ..token_spans import NO_WORD
from .checks import check_length
from .labels import LABEL_COLUMNS, say_ignored, take_class_names
from .token_labels import TokenLabelReader

logger = logging.get_logger(__name__)


class TokenRows(NamedTuple):
    """A dataset's rows as a token classifier takes them."""

    inputs: list[
        dict[str, Any]
    ]  # N of them: input_ids, word_ids (-1 for none) and what else the tokenizer gives
    labels: (
        list[list[int]] | None
    )  # of each row's tokens, -100 where there is none; None where a row has none
    ignored: int  # rows that were left out: none of their tokens has a label


def tokenize_words(
    tokenizer: Any,
    texts: Sequence[Sequence[str]],
    labels: Sequence[Sequence[int]] | None = None,
    max_length: int | None = None,
    first_row: int = 0,
) -> dict[str, list[Any]]:
    """Lists of words, and a class id for each -> columns that a token classifier is trained on.

    Args:
        tokenizer: a fast one, which knows the words of its pieces.
        texts: of N rows.
        labels: -100 for words without one; `None`: no column of labels.
        max_length: tokens that longer rows are cut to.
        first_row: number of the first row, for messages.

    Returns: Columns of N lists: what the tokenizer gives, `word_ids` (-1 for special tokens), and `labels`,
        each word's at its first piece and else -100.

    Raises:
        ValueError: a slow tokenizer, another number of labels than of words, or a word that the tokenizer
            makes no piece of.

    Example:
        >>> columns = tokenize_words(tokenizer, [["Ann", "sings"]], [[1, 0]])  # doctest: +SKIP
        >>> columns["labels"], columns["word_ids"]  # doctest: +SKIP
        ([[-100, 1, 0, -100]], [[-1, 0, 1, -1]])
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer, a {type(tokenizer).__name__}, does not tell which word a piece is of; use a"
            " fast one."
        )
    columns: dict[str, list[Any]] = {"word_ids": []}
    if labels is not None:
        columns["labels"] = []
    if not texts:
        return columns
    settings = {"truncation": max_length is not None, "max_length": max_length, "is_split_into_words": True}
    encoded = tokenizer([list(words) for words in texts], **settings)
    for index, words in enumerate(texts):
        where = f"row {first_row + index}"
        of_tokens = encoded.word_ids(index)
        kept = [word for word in of_tokens if word is not None]
        was_cut = bool(encoded.encodings[index].overflowing)
        present = set(kept)
        for number, word in enumerate(words):
            if number not in present and not (was_cut and number > max(kept, default=-1)):
                raise ValueError(
                    f"{where}: the tokenizer makes no token of word {number}, {word!r}, so there is nothing"
                    " to label. Leave such words out of tokens and labels alike."
                )
        columns["word_ids"].append([NO_WORD if word is None else word for word in of_tokens])
        if labels is not None:
            if len(labels[index]) != len(words):
                raise ValueError(
                    f"{where} has {len(labels[index])} labels for {len(words)} words; give one for each."
                )
            before = [None, *of_tokens[:-1]]
            columns["labels"].append(
                [
                    IGNORED_LABEL if word is None or word == previous else labels[index][word]
                    for word, previous in zip(of_tokens, before, strict=True)
                ]
            )
    return {**{name: encoded[name] for name in tokenizer.model_input_names if name in encoded}, **columns}


def read_token_rows(
    model: Any, dataset: Iterable[dict[str, Any]], tokenizer: Any, needs_labels: bool = True
) -> TokenRows:
    """Read, and tokenise where needed, a dataset of a token classifier.

    Args:
        dataset: rows with `tokens`, a list of words, and one of `labels` for each (ids or names); or with
            `input_ids` and `labels` of tokens, as in training, and best with `word_ids`.
        needs_labels: whether rows must have labels. Where they need none, one row without leaves all without.

    Raises:
        ValueError: no rows, or rows without labels or inputs, or with some that the model cannot take.
    """
    if isinstance(dataset, Mapping):
        raise ValueError(
            f"the dataset is a {type(dataset).__name__}; give one of its splits:"
            f" {', '.join(map(str, dataset))}."
        )
    romebert = inner_model(model)
    take_class_names(romebert.config, dataset, "the dataset")
    read = TokenLabelReader(romebert.config)
    limit = with_truncation(tokenizer, romebert.max_tokens, {})["max_length"]
    special = set(tokenizer.all_special_ids)
    inputs, all_labels, rows, cut, all_labelled = [], [], 0, 0, True
    for index, row in enumerate(each(dataset)):
        where = f"row {index}"
        if not isinstance(row, Mapping) or not {"tokens", "input_ids"} & row.keys():
            raise ValueError(
                f"{where} is no dict with tokens (words) or input_ids, and labels: {str(row)[:80]}."
            )
        rows += 1
        row, labels = plain(dict(row)), None  # of a dataset in torch's or numpy's format too
        if needs_labels or any(row.get(name) is not None for name in LABEL_COLUMNS):
            _, labels = read.of_row(row, where)
            if not read.classes_of(labels):
                if needs_labels:
                    continue
                labels = None
        if "input_ids" not in row:
            columns = tokenize_words(
                tokenizer, [row["tokens"]], None if labels is None else [labels], limit, first_row=index
            )
            one = {name: column[0] for name, column in columns.items()}
            labels = one.pop("labels", None)
            cut += max(one["word_ids"], default=NO_WORD) + 1 < len(row["tokens"])
        else:
            one = {name: row[name] for name in tokenizer.model_input_names if name in row}
            words = row.get("word_ids")
            one["word_ids"] = _words_of(one["input_ids"], labels, special) if words is None else words
        one.pop("attention_mask", None)
        check_length(one["input_ids"], romebert.max_tokens, where)
        all_labelled = all_labelled and labels is not None
        inputs.append(one)
        all_labels.append(labels)
    if not inputs:
        found = f"in every row the labels are {IGNORED_LABEL}" if rows else "the dataset has no rows"
        raise ValueError(f"{found}, so there is nothing to evaluate.")
    say_ignored(rows - len(inputs), rows, "the dataset")
    if cut:
        logger.warning(f"{cut} of {len(inputs)} rows were longer than {limit} tokens and were cut.")
    return TokenRows(inputs, all_labels if all_labelled else None, rows - len(inputs))  # type: ignore[arg-type]


def _words_of(ids: Sequence[int], labels: Sequence[int] | None, special: set[int]) -> list[int]:
    """Words of tokens by what is labelled: a token without a label goes on with the word before it.

    Example:
        >>> _words_of([2, 7, 8, 9, 3], [-100, 1, -100, 0, -100], {2, 3})
        [-1, 0, 0, 1, -1]
    """
    words, word = [], NO_WORD
    for index, token in enumerate(ids):
        if token in special and (labels is None or labels[index] == IGNORED_LABEL):
            words.append(NO_WORD)
            continue
        begins = labels is None or labels[index] != IGNORED_LABEL
        word += begins
        words.append(word)
    return words
