"""Data for train_tokens.py: own files or a data set of the Hub -> rows of `tokens` and `labels`, checked,
with label ids.

Files are in CoNLL format (a word and its tag per line, in columns, and a blank line between sentences), or
JSON or JSONL with a list of words and a list of tags per row. Every flaw is said before any model loads.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from datasets import ClassLabel, Dataset, DatasetDict, load_dataset

from modeling_romebert.losses import IGNORED_LABEL
from support.table_files import Table, read_table, refuse_unlabelled

JSON_KINDS = (".json", ".jsonl")
COLUMN_KINDS = (".conll", ".conllu", ".iob", ".iob2", ".bio", ".txt", ".tsv")
TAG_COLUMNS = ("ner_tags", "tags", "labels", "pos_tags", "chunk_tags", "upos")  # as data sets call them
OUTSIDE = "O"
DOCUMENT = "-DOCSTART-"
SHUFFLE_SEED = 0  # of the samples that --max_train_samples and --max_eval_samples take: the same in every run
SPLITS = {"train_file": "train", "validation_file": "eval", "test_file": "test"}


class Sentences(NamedTuple):
    """Words and their tags, as they stand in a file, and where."""

    origin: str
    tokens: list[list[str]]
    tags: list[list[str]]
    lines: list[int] | None = None  # where each sentence begins, counted from 1

    def place(self, index: int) -> str:
        """The sentence with this index, for a message."""
        line = "" if self.lines is None else f" (line {self.lines[index]})"
        return f"{self.origin}: sentence {index + 1}{line}"


class TokenData(NamedTuple):
    """What a run trains and is judged on: rows of `tokens` and `labels`."""

    train: Dataset
    held_out: Dataset | None  # a tenth of train that calibration sees and training does not
    evaluation: dict[str, Dataset]  # by the prefix of its metrics
    names: list[str]  # tags by id


def data_files(data: Any) -> dict[str, str]:
    """The files given, by argument. Also the first check of the arguments.

    Raises:
        SystemExit: arguments that do not go together, or a file that is not there.
    """
    files = {name: getattr(data, name) for name in SPLITS if getattr(data, name) is not None}
    if bool(files) == (data.dataset_name is not None):
        raise SystemExit("give either --train_file and --validation_file, or --dataset_name of the Hub.")
    if missing := [f"--{name}" for name in ("train_file", "validation_file") if files and name not in files]:
        raise SystemExit(
            f"--{next(iter(files))} is given without {' and '.join(missing)}; training needs both."
        )
    for name, path in files.items():
        if Path(path).suffix.lower() not in JSON_KINDS + COLUMN_KINDS or not Path(path).is_file():
            raise SystemExit(
                f"--{name} {path}: give an existing file that ends in"
                f" {', '.join(COLUMN_KINDS + JSON_KINDS[:-1])} or {JSON_KINDS[-1]}."
            )
    return files


def load_tokens(data: Any) -> TokenData:
    """Rows of the files or of the data set, encoded, capped and, for calibration, with a tenth held out.

    Raises:
        SystemExit: rows that cannot be read, or cannot be used as they are.
    """
    files = data_files(data)
    if files:
        sources = {SPLITS[name]: read_sentences(f"--{name}", path, data) for name, path in files.items()}
    else:
        sources = _from_hub(data)
    train = sources.pop("train")
    names = _names(train)
    rows = _sample(_encoded(train, names), data.max_train_samples)
    evaluation = {
        prefix: _sample(_encoded(source, names), data.max_eval_samples) for prefix, source in sources.items()
    }
    for prefix, judged in evaluation.items():
        refuse_unlabelled(sources[prefix].origin, judged["labels"])
    held_out = None
    if data.calibrate_max_drop is not None:
        rows, held_out = _hold_out(rows)
    return TokenData(rows, held_out, evaluation, names)


# ---- files


def read_sentences(argument: str, path: str, data: Any) -> Sentences:
    """The sentences of a file; `data` says in which columns words and tags are."""
    if Path(path).suffix.lower() in JSON_KINDS:
        return _of_table(read_table(argument, path), data)
    origin = f"{argument} {path}"
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SystemExit(
            f"{origin} is not UTF-8: {error.reason} at byte {error.start}. Save it as UTF-8."
        ) from None
    sentences = parse_columns(
        origin, text, data.word_column, data.tag_column, is_conllu=Path(path).suffix.lower() == ".conllu"
    )
    if not sentences.tokens:
        raise SystemExit(f"{origin} holds no sentences.")
    return sentences


def parse_columns(
    origin: str, text: str, word_column: int = 0, tag_column: int = -1, is_conllu: bool = False
) -> Sentences:
    """A text in CoNLL format -> its sentences.

    Args:
        word_column, tag_column: counted from 0, or from the end with -1. Of CoNLL-U that would be 1 and 3.
        is_conllu: lines that begin with # are comments, and those of several or of empty words are left out.

    Raises:
        SystemExit: a line with too few columns.

    Example:
        >>> found = parse_columns("file", "-DOCSTART- O\\n\\nAnn B-PER\\nsings O\\n\\n. O\\n")
        >>> found.tokens, found.tags, found.lines
        ([['Ann', 'sings'], ['.']], [['B-PER', 'O'], ['O']], [3, 6])
    """
    tokens: list[list[str]] = []
    tags: list[list[str]] = []
    lines: list[int] = []
    begins = True
    needed = 1 + max(*(column if column >= 0 else -column - 1 for column in (word_column, tag_column)), 1)
    for number, line in enumerate(text.split("\n"), start=1):
        cells = line.rstrip("\r").split("\t") if "\t" in line else line.split()
        if not line.strip() or cells[0] == DOCUMENT:
            begins = True
            continue
        if is_conllu and (line.startswith("#") or not cells[0].isdigit()):
            continue
        if len(cells) < needed:
            raise SystemExit(
                f"{origin}: line {number} has {len(cells)} column{'s' * (len(cells) != 1)},"
                f" {line.strip()[:60]!r}: the word is expected in column {word_column} and its tag in column"
                f" {tag_column}, counted from 0. Say which with --word_column and --tag_column."
            )
        if begins:
            tokens.append([])
            tags.append([])
            lines.append(number)
            begins = False
        tokens[-1].append(cells[word_column])
        tags[-1].append(cells[tag_column])
    return Sentences(origin, tokens, tags, lines)


def _of_table(table: Table, data: Any) -> Sentences:
    """Rows of JSON with `tokens` and tags."""
    column = data.label_column or next((name for name in TAG_COLUMNS if name in table.columns), None)
    if "tokens" not in table.columns or column is None or column not in table.columns:
        raise SystemExit(
            f"{table.origin} needs a column tokens, with lists of words, and one of"
            f" {', '.join(TAG_COLUMNS)} (or --label_column), with lists of tags; {table.what_it_has()}"
        )
    for index, row in enumerate(table.rows):
        for name in ("tokens", column):
            if not isinstance(row.get(name), list):
                raise SystemExit(f"{table.place(index)} has {name} {row.get(name)!r}; give a list.")
        if wrong := [word for word in row["tokens"] if not isinstance(word, str)]:
            raise SystemExit(f"{table.place(index)} has the token {wrong[0]!r}, which is no text.")
    return Sentences(
        table.origin,
        [row["tokens"] for row in table.rows],
        [[str(tag) for tag in row[column]] for row in table.rows],
        table.lines,
    )


def _from_hub(data: Any) -> dict[str, Sentences]:
    name = data.dataset_name
    try:
        found = load_dataset(name, data.dataset_config_name)
    except (OSError, RuntimeError) as error:  # not there, or a script, which datasets no longer runs
        raise SystemExit(
            f"--dataset_name {name} cannot be loaded from the Hub ({error}). To train on files, give"
            " --train_file and --validation_file."
        ) from error
    assert isinstance(found, DatasetDict)
    splits = {"train": "train", "eval": "validation", "test": "test"}
    if missing := [split for split in ("train", "validation") if split not in found]:
        raise SystemExit(f"--dataset_name {name} has no split {missing[0]}; it has {', '.join(found)}.")
    return {
        prefix: of_dataset(f"{name} {split}", found[split], data.label_column)
        for prefix, split in splits.items()
        if split in found
    }


def of_dataset(origin: str, rows: Dataset, label_column: str | None = None) -> Sentences:
    """A data set with lists of `tokens`, and of tags as names or as ids with names."""
    column = label_column or next((name for name in TAG_COLUMNS if name in rows.column_names), None)
    if "tokens" not in rows.column_names or column not in rows.column_names:
        raise SystemExit(
            f"{origin} needs the column tokens and one of {', '.join(TAG_COLUMNS)} (or --label_column); it"
            f" has {', '.join(rows.column_names)}."
        )
    feature = getattr(rows.features[column], "feature", None)
    name_of = feature.int2str if isinstance(feature, ClassLabel) else str
    tags = [[name_of(tag) for tag in of_row] for of_row in rows[column]]
    return Sentences(origin, list(rows["tokens"]), tags)


# ---- labels and rows


def _names(train: Sentences) -> list[str]:
    """Tags of train in the order of their ids: O first, then by name."""
    found = {tag for tags in train.tags for tag in tags} - {str(IGNORED_LABEL)}
    names = sorted(found, key=lambda tag: (tag != OUTSIDE, tag))
    if len(names) < 2:
        what = f"the only tag is {names[0]!r}" if names else "there are no tags"
        raise SystemExit(f"{train.origin}: {what}; tagging needs at least two.")
    return names


def _encoded(sentences: Sentences, names: list[str]) -> Dataset:
    """Sentences -> `tokens` and `labels`; those without words are left out."""
    ids = {name: index for index, name in enumerate(names)} | {str(IGNORED_LABEL): IGNORED_LABEL}
    rows: dict[str, list[Any]] = {"tokens": [], "labels": []}
    for index, (tokens, tags) in enumerate(zip(sentences.tokens, sentences.tags, strict=True)):
        if len(tokens) != len(tags):
            raise SystemExit(
                f"{sentences.place(index)} has {len(tags)} tags for {len(tokens)} words; give one for each."
            )
        if unknown := [tag for tag in tags if tag not in ids]:
            raise SystemExit(
                f"{sentences.place(index)} has the tag {unknown[0]!r}, which training does not know. Known"
                f" are {', '.join(names)}."
            )
        if tokens:
            rows["tokens"].append(tokens)
            rows["labels"].append([ids[tag] for tag in tags])
    return Dataset.from_dict(rows)


def _sample(rows: Dataset, most: int | None) -> Dataset:
    return rows if most is None or most >= len(rows) else rows.shuffle(seed=SHUFFLE_SEED).select(range(most))


def _hold_out(rows: Dataset) -> tuple[Dataset, Dataset]:
    """Nine tenths and one tenth, by a hash of the words: the same for every seed, and equal sentences stay
    together.
    """
    hashes = [hashlib.sha256("\0".join(tokens).lower().encode()).hexdigest() for tokens in rows["tokens"]]
    held_out = [index for index, digest in enumerate(hashes) if int(digest, 16) % 10 == 0]
    rest = sorted(set(range(len(rows))) - set(held_out))
    if not held_out or not rest:
        raise SystemExit(
            f"{len(rows)} training rows are too few to hold out a tenth for --calibrate_max_drop."
        )
    return rows.select(rest), rows.select(held_out)
