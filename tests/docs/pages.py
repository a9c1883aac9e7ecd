"""Runs a page of the documentation: its Python blocks in order, each against the output that it shows."""

import contextlib
import io
import re
from pathlib import Path
from typing import NamedTuple


class Block(NamedTuple):
    """A Python block, the line where it begins, and the text block that follows it."""

    line: int
    code: str
    output: str | None


def blocks(page: str) -> list[Block]:
    """Text of a page -> its Python blocks. A text block belongs to the Python block right before it."""
    found = []
    pattern = r"^```python\n(.*?)^```\n(?:\n^```text\n(.*?)^```$)?"
    for match in re.finditer(pattern, page, flags=re.DOTALL | re.MULTILINE):
        found.append(Block(page.count("\n", 0, match.start()) + 2, match[1], match[2]))
    return found


def run(path: Path) -> dict:
    """Run all blocks of a page in one namespace -> the namespace.

    Raises:
        AssertionError: a block prints something else than the page shows.
    """
    names: dict = {"__name__": "__page__"}
    for block in blocks(path.read_text(encoding="utf-8")):
        code = "\n" * (block.line - 1) + block.code  # tracebacks name the line of the page
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(compile(code, str(path), "exec"), names)
        check_output(said.getvalue(), block.output, f"{path.name}, line {block.line}")
    return names


def check_output(said: str, shown: str | None, where: str) -> None:
    """Compare line by line; `...` in the page stands for any text within a line.

    What the library logs while it trains is left out of the comparison.
    """
    said = re.sub(r"^\{'(loss|train_|eval_).*\n", "", said, flags=re.MULTILINE)
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    expected = [line.rstrip() for line in (shown or "").splitlines() if line.strip()]
    fits = len(lines) == len(expected) and all(
        re.fullmatch(".*".join(map(re.escape, wanted.split("..."))), line)
        for wanted, line in zip(expected, lines, strict=True)
    )
    if not fits:
        raise AssertionError("\n".join([f"{where} shows", *expected, "and its code prints", *lines]))
