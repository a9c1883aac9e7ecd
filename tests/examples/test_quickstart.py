"""The quickstart and its helpers on a tiny model and own texts, and the downloads' refusals."""

import hashlib
import json
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import quickstart
import torch
from support import assets, reviews
from support.run_folder import last_checkpoint, open_run_folder
from tiny import color, labelled, tiny_texts, write_rows
from transformers import TrainerState

ROOT = Path(__file__).parents[2]


def contents(folder: str) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


# ---- quickstart


@pytest.mark.slow
def test_quickstart_leaves_model_curve_and_results(quick_done):
    results = json.loads(Path("run/results.json").read_text())
    assert all(
        Path("run", name).stat().st_size > 0
        for name in ("results.svg", "curve.png", "exits.json", "exits.md", "model/model.safetensors")
    )
    assert sum(results["rows"].values()) == 60 and list(results["exits"]) == ["1", "2", "3", "4"]
    picture = "".join(ElementTree.parse("run/results.svg").getroot().itertext())
    assert all(sentence in picture for sentence in quickstart.SENTENCES) and "Where texts stop" in picture
    assert sum(results["stopped_after"].values()) == results["rows"]["test"]
    assert results["policy"] == json.loads(Path("run/model/config.json").read_text())["exit_policy"]
    assert (
        0.25 <= results["early_exit"]["cost"] <= 1
        and results["speedup_layers"] == 1 / results["early_exit"]["cost"]
    )
    assert results["full_depth"]["accuracy"] == results["exits"]["4"]
    assert quick_done.count("if all texts stop after layer") == 4
    assert quick_done.count("stopped after layer") == len(quickstart.SENTENCES)


@pytest.mark.slow
def test_second_quickstart_shows_the_first_and_touches_nothing(quick_done, quick, capsys):
    before, _ = contents("run"), capsys.readouterr()
    quick()
    said = capsys.readouterr().out
    assert contents("run") == before
    assert "finished run with these settings" in said and "| early exit |" in said
    assert said.count("stopped after layer") == len(quickstart.SENTENCES)


@pytest.mark.slow
def test_quickstart_that_was_stopped_goes_on_and_ends_the_same(quick, capsys):
    uninterrupted = quick("--epochs", "2")
    for path in ("run/results.json", "run/exits.json"):
        Path(path).unlink()
    resumed = quick("--epochs", "2")
    assert "continuing from" in capsys.readouterr().out
    assert {key: resumed[key] for key in ("exits", "policy", "area")} == {
        key: uninterrupted[key] for key in ("exits", "policy", "area")
    }


@pytest.mark.slow
def test_other_settings_are_refused(quick_done, quick):
    before = contents("run")
    with pytest.raises(SystemExit, match=r"quickstart\.seed: was 1, is 2"):
        quick("--seed", "2")
    assert contents("run") == before


def test_a_file_is_known_by_what_it_holds(here):
    """Before anything is read or trained."""
    write_rows("own.csv", [{"text": "a", "label": 1}])
    arguments = ["--dataset", "own.csv", "--output-dir", "run"]
    with pytest.raises(SystemExit, match="classification needs at least two"):
        quickstart.main(arguments)
    write_rows("own.csv", [{"text": "a", "label": 2}])
    with pytest.raises(SystemExit, match=r"files\.dataset: was '\w+', is '\w+'"):
        quickstart.main(arguments)


def test_folder_that_is_not_ours_is_refused(quick):
    Path("run").mkdir()
    Path("run/thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit, match="exists, and not as a run of this script"):
        quick()
    assert contents("run").keys() == {"run/thesis.tex"}


def test_half_written_checkpoint_is_passed_over(here):
    for step, complete in ((5, True), (10, False)):
        Path(f"run/checkpoint-{step}").mkdir(parents=True)
        torch.save({}, f"run/checkpoint-{step}/optimizer.pt")
        if complete:
            TrainerState().save_to_json(f"run/checkpoint-{step}/trainer_state.json")
    assert last_checkpoint("run") == "run/checkpoint-5"
    assert last_checkpoint("absent") is None


def test_run_folder_keeps_its_settings(here):
    assert open_run_folder("run", {"a": {"b": 1}}) == open_run_folder("run", {"a": {"b": 1}})
    with pytest.raises(SystemExit, match=r"a\.b: was 1, is 2"):
        open_run_folder("run", {"a": {"b": 2}})


# ---- texts


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("own.txt", [{"text": "a", "label": 1}], r"give an existing \.csv, \.tsv, \.json or \.jsonl file"),
        ("own.csv", [{"sentence": "a", "label": 1}], "has no column text; it has sentence, label"),
        (
            "own.jsonl",
            [{"text": "a", "label": 1}],
            r"the column label holds \['1'\]; classification needs at least two",
        ),
        (
            "own.jsonl",
            [{"text": "a", "label": 1}, {"text": "b", "label": 0}],
            "2 rows are too few: the split leaves nothing for",
        ),
        (
            "own.csv",
            [{"text": "a", "label": 3.5}, {"text": "b", "label": 4}],
            r"holds numbers such as 3\.5, .* examples/train_glue\.py",
        ),
    ],
)
def test_file_that_cannot_be_used(here, name, rows, message):
    with pytest.raises(SystemExit, match=message):
        reviews.load_file(write_rows(name, rows))


def test_rows_without_a_label_are_left_out_and_counted(here, capsys):
    rows = labelled(60, color) + labelled(5, lambda number: -100, seed=7)
    splits, names = reviews.load_file(write_rows("own.csv", rows))
    assert names == ["blue", "green", "red"] and sum(map(len, splits.values())) == 60
    assert "5 rows labelled -100 are left out" in capsys.readouterr().out


def test_split_is_by_text_alone_and_keeps_equal_texts_together():
    rows = [{"text": text, "label": 0} for text in tiny_texts(400, longest=3)]
    rows += [{**row, "text": row["text"].upper()} for row in rows]
    splits = {name: set(split["text"]) for name, split in reviews.split_by_hash(rows).items()}
    backwards = {name: set(split["text"]) for name, split in reviews.split_by_hash(rows[::-1]).items()}
    assert splits == backwards
    for name, texts in splits.items():
        others = set().union(*(other for key, other in splits.items() if key != name))
        assert not {text.lower() for text in texts} & {text.lower() for text in others}


def test_near_neutral_reviews_are_left_out_and_the_output_says_so(monkeypatch, capsys):
    texts = sorted({text for text in tiny_texts(200)})
    rated = [assets.Review(text, (number % 9 - 4) / 2) for number, text in enumerate(texts)]  # -2, -1.5 .. 2
    monkeypatch.setattr(reviews, "movie_reviews", lambda: rated)
    splits, names = reviews.load_splits(None)
    kept = {row["text"]: row["label"] for split in splits.values() for row in split}
    assert names == ["negative", "positive"]
    assert kept == {review.text: int(review.rating > 0) for review in rated if abs(review.rating) > 0.5}
    assert (
        f"{len(rated)} sentences; {len(rated) - len(kept)} with a mean rating within 0.5"
        in capsys.readouterr().out
    )


# ---- downloads


def archive(content: bytes, of: bytes) -> assets.Archive:
    return assets.Archive("thing==1", "thing-1.tar.gz", hashlib.sha256(of).hexdigest())


def pip_that_brings(content: bytes, monkeypatch) -> list[list[str]]:
    """Stands in for pip: 'downloads' content and records its commands."""
    commands = []

    def run(command, **_):
        commands.append(command)
        Path(command[command.index("--dest") + 1], "thing-1.tar.gz").write_bytes(content)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(assets.subprocess, "run", run)
    return commands


def test_download_is_by_hash_and_once(tmp_path, monkeypatch):
    commands = pip_that_brings(b"data", monkeypatch)
    thing = archive(b"data", of=b"data")
    assert assets.fetch(thing, tmp_path).read_bytes() == assets.fetch(thing, tmp_path).read_bytes() == b"data"
    assert len(commands) == 1 and {"--require-hashes", "--no-deps"} <= set(commands[0])


def test_archive_that_differs_is_refused_now_and_in_the_cache(tmp_path, monkeypatch):
    pip_that_brings(b"other", monkeypatch)
    for _ in range(2):
        with pytest.raises(
            SystemExit, match=r"thing-1\.tar\.gz: SHA-256 is .*, expected .*\. Not used; delete the file"
        ):
            assets.fetch(archive(b"other", of=b"data"), tmp_path)


def test_failed_download_says_what_pip_said(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stderr="no matching distribution")
    monkeypatch.setattr(assets.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match=r"(?s)could not download thing==1; .*no matching distribution"):
        assets.fetch(archive(b"", of=b""), tmp_path)
    assert list(tmp_path.iterdir()) == []
