"""table_files.py: files as people have them are read right, or refused with file, row, line and what
to do.
"""

import csv
import json
from pathlib import Path

import pytest
import train_glue
from datasets import Dataset
from support import glue_data, reviews
from support.table_files import read_table

pytestmark = pytest.mark.usefixtures("here")


def read(name: str, content: bytes):
    """-> texts, labels"""
    Path(name).write_bytes(content)
    table = read_table("--dataset", name)
    return table.texts("text"), table.labels()


TABLE = 'text,label\na film,pos\n"a ""b"", c\nd",neg\n'
READ = (["a film", 'a "b", c\nd'], ["pos", "neg"])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("plain.csv", TABLE.encode(), READ),
        ("PLAIN.CSV", TABLE.encode(), READ),
        ("mark.csv", TABLE.encode("utf-8-sig"), READ),
        ("utf-16.csv", TABLE.encode("utf-16"), READ),
        ("utf-16-be.csv", b"\xfe\xff" + TABLE.encode("utf-16-be"), READ),
        ("utf-32.csv", TABLE.encode("utf-32"), READ),
        ("windows.csv", b'text,label\r\na film,pos\r\n"a ""b"", c\nd",neg\r\n', READ),
        ("mac.csv", b'text,label\ra film,pos\r"a ""b"", c\nd",neg\r', READ),
        ("semicolon.csv", b"text;label\na, film;pos\nb;neg\n", (["a, film", "b"], ["pos", "neg"])),
        ("quoted.csv", b'"label";"text"\n"pos";"a, film"\n', (["a, film"], ["pos"])),
        ("tab.csv", b"text\tlabel\na, film\tpos\n", (["a, film"], ["pos"])),
        ("tab.tsv", b"text\tlabel\na, film\tpos\n", (["a, film"], ["pos"])),
        ("blanks.csv", b" text , label\n a film , pos \n\n  \nb,pos\n", ([" a film ", "b"], ["pos", "pos"])),
        (
            "words.csv",
            b"text,label\nNA,null\nnan,None\nnull,N/A\n",
            (["NA", "nan", "null"], ["null", "None", "N/A"]),
        ),
        (
            "index.csv",
            b",text,label\n0,a,pos\n1,b,neg\n",
            (["a", "b"], ["pos", "neg"]),
        ),  # as pandas writes it
        ("long.csv", b"text,label\n" + b"a" * 200_000 + b",pos\n", (["a" * 200_000], ["pos"])),
        (
            "numbers.jsonl",
            b'{"text": 12, "label": 1}\n\n{"label": true, "text": "\xc3\xa9\\u2028"}',
            (["12", "é\u2028"], [1, True]),
        ),
        ("mark.json", b'\xef\xbb\xbf [{"text": "a",\n "label": " x "}]', (["a"], ["x"])),
    ],
)
def test_what_has_one_meaning_is_read(name, content, expected):
    limit = csv.field_size_limit()
    assert read(name, content) == expected
    assert csv.field_size_limit() == limit  # it is the process's


A = b'{"text": "a", "label": 1}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", b"PK", r"a\.xlsx: give an existing \.csv, \.tsv, \.json or \.jsonl file"),
        (
            "zipped.csv",
            b"PK\x03\x04\x14\x00\x06",
            r"zipped\.csv: line 1 holds a NUL character: it is no text",
        ),
        ("nul.csv", b"text,label\na\0,pos\n", r"nul\.csv: line 2 holds a NUL character"),
        (
            "no-mark.csv",
            TABLE.encode("utf-16-le"),
            r"line 1 holds a NUL character: .* UTF-16 without its mark\. Save it as UTF-8",
        ),
        (
            "latin.csv",
            "text,label\nb,pos\nun café noir,neg\n".encode("latin-1"),
            r"latin\.csv: line 3 is not UTF-8: byte 0xe9 after 'un caf'\. .* iconv -f LATIN1 -t UTF-8",
        ),
        ("cut.csv", TABLE.encode("utf-16")[:-1], r"cut\.csv begins as utf-16 and goes on otherwise"),
        ("empty.csv", b"", r"empty\.csv is empty"),
        ("blank.jsonl", b"\n \n", r"blank\.jsonl is empty"),
        ("header.csv", b"text,label\r\n", r"header\.csv holds a header and no rows"),
        ("none.json", b"[]", r"none\.json holds no rows"),
        (
            "more.csv",
            b"text,label\na,pos\nb, c,neg\n",
            r"more\.csv: row 2 \(line 3\) has 3 cells, .* 2 \(text, label\)\. A cell with a ',' .* quotes",
        ),
        ("less.csv", b'text,label\n"a\nb",pos\n\nc\n', r"less\.csv: row 2 \(line 5\) has 1 cells"),
        (
            "open.csv",
            b'text,label\na,pos\n"b,neg\nc,pos\n',
            r"open\.csv: the row that begins in line 3 cannot be read .* A cell that begins with a quote",
        ),
        (
            "quote.csv",
            b'text,label\n"a" film,pos\n',
            r"quote\.csv: the row that begins in line 2 cannot be read",
        ),
        (
            "twice.csv",
            b"text,label,label\na,b,c\n",
            r"more than one column 'label': its header is text, label, label",
        ),
        (
            "no-text.csv",
            b"text,label\na,pos\n,neg\n  ,neg\n",
            r"row 2 \(line 3\) has no text, and 1 other rows have none\. Fill what is missing",
        ),
        (
            "no-label.csv",
            b"text,label\na,pos\nb,\n",
            r"no-label\.csv: row 2 \(line 3\) has no label\. Fill what is missing, or delete",
        ),
        ("null.jsonl", A + b'{"text": null, "label": 1}\n', r"null\.jsonl: row 2 \(line 2\) has no text"),
        ("missing.jsonl", A + b'\n{"text": "b"}\n', r"missing\.jsonl: row 2 \(line 3\) has no label"),
        ("nan.jsonl", A + b'{"text": "b", "label": NaN}\n', r"nan\.jsonl: row 2 \(line 2\) has no label"),
        (
            "broken.jsonl",
            A + b'{"text": "b", \n',
            r"broken\.jsonl: line 2 is no JSON \(Expecting .* character 15\): '\{\"text\": "
            r"\"b\",'\. Each line holds",
        ),
        ("number.jsonl", A + b"3\n", r"number\.jsonl: row 2 \(line 2\) is '3', no object with named columns"),
        (
            "list.jsonl",
            A + b'{"text": ["a", "b"], "label": 1}\n',
            r"row 2 \(line 2\) has text \['a', 'b'\]; give one text per row",
        ),
        (
            "twice.jsonl",
            A + b'{"text": "a", "label": 1, "label": 2}\n',
            r"line 2 is no JSON \(it has the key 'label' more than once\)",
        ),
        (
            "half.jsonl",
            b'{"text": "a \\ud83d", "label": 1}\n',
            r"row 1 \(line 1\) has half a character in its text",
        ),
        (
            "columns.json",
            b'{"text": ["a"],\n "label": [1]}',
            r"columns\.json: line 1 is no JSON .* one list of objects",
        ),
        ("broken.json", b'[{"text": "a"},\n{]', r"broken\.json is no JSON: .* line 2 column 2"),
    ],
)
def test_what_has_no_one_meaning_is_refused(name, content, message):
    with pytest.raises(SystemExit, match=message):
        read(name, content)


def test_both_examples_read_the_same():
    """The quickstart's --dataset and train_glue.py's files."""
    rows = [f"text {number},{(' pos', 'neg ')[number % 2]}" for number in range(60)]
    Path("own.csv").write_text("\n".join(["text,label", *rows]))
    splits, names = reviews.load_file("own.csv")
    data = train_glue.parse(["--train_file", "own.csv", "--validation_file", "own.csv", "--use_cpu"])[1]
    glue = glue_data.load_glue(data)
    assert names == glue.names == ["neg", "pos"]
    quick = {row["text"]: row["label"] for split in splits.values() for row in split}
    assert (
        quick
        == dict(zip(glue.train["text"], glue.train["label"], strict=True))
        == {f"text {n}": 1 - n % 2 for n in range(60)}
    )
    Path("own.csv").write_text("\n".join(["text,label", *rows, ",pos"]))
    for load in (lambda: reviews.load_file("own.csv"), lambda: glue_data.load_glue(data)):
        with pytest.raises(SystemExit, match=r"own\.csv: row 61 \(line 62\) has no text"):
            load()


def test_classes_are_told(capsys):
    rows = [{"text": f"text {number}", "label": ("pos", "neg", "Pos")[number % 3]} for number in range(60)]
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reviews.load_file("own.jsonl")
    assert "60 rows: 20 'Pos', 20 'neg', 20 'pos'" in capsys.readouterr().out


def test_file_without_a_header():
    Path("own.csv").write_text("a film,pos\nthe plot,neg\n")
    with pytest.raises(
        SystemExit,
        match=r"no column text, label; it has a film, pos\. The first line of the file names the columns\.",
    ):
        reviews.load_file("own.csv")


def test_files_written_by_datasets_are_read_back():
    """Texts with everything that needs quoting."""
    texts = ['"', '""a"', "a\nb", "a\r\nb", ",", ";", "'", "é\u2028\u00a0x", "\\", "NA", "#", '{"a": 1}']
    dataset = Dataset.from_dict({"text": texts, "label": ["x", "y"] * 6})
    dataset.to_csv("own.csv")
    dataset.to_json("own.jsonl")
    for name in ("own.csv", "own.jsonl"):
        assert read(name, Path(name).read_bytes()) == (texts, ["x", "y"] * 6)
