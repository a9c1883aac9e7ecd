"""What a caller may give as texts, on any engine: strings, pairs, and what yields them."""

from collections.abc import Iterator, Mapping
from typing import Any


def text_and_pair(item: Any) -> tuple[str, str | None]:
    """A text, or `{"text", "text_pair"}` -> both, the second `None` where there is none.

    Raises:
        TypeError: it is neither.
    """
    parts = item if isinstance(item, dict) else {"text": item}
    text, pair = parts.get("text"), parts.get("text_pair")
    if (
        isinstance(text, str)
        and (pair is None or isinstance(pair, str))
        and parts.keys() <= {"text", "text_pair"}
    ):
        return text, pair or None  # as in the stock pipeline, an empty one is none
    raise TypeError(
        f"cannot classify {item!r} of type {type(item).__name__}: give a string, or for a pair of texts"
        ' {"text": ..., "text_pair": ...}, or a list of either.'
    )


def not_unicode(text: str, pair: str | None) -> TypeError | None:
    """Why a text, or the second one of a pair, has no UTF-8; `None` where it has one."""
    try:
        f"{text}{pair or ''}".encode()
    except UnicodeEncodeError as error:
        return TypeError(
            f"it is not Unicode: {error.reason} at character {error.start}. Decode it with errors='replace'."
        )
    return None


def each(texts: Any) -> Iterator[Any]:
    """Iterate, also over datasets that only know a length and their items."""
    if hasattr(texts, "__iter__"):
        yield from texts
    else:
        yield from (texts[index] for index in range(len(texts)))


def refuse_one_text(texts: Any) -> None:
    """Raise a TypeError for what is iterated over in other things than texts: the letters of a text, the keys
    of a dict, the column names of a table.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(
            f"texts is one {type(texts).__name__}: give a list of texts, or what else yields them."
        )
    if isinstance(texts, Mapping) or hasattr(texts, "columns"):
        raise TypeError(
            f"texts is one {type(texts).__name__}, which yields the names of its parts: give the one that"
            ' holds the texts, as in table["text"].'
        )
