"""examples/score_daft.py and score_ray.py: the rows of `score`, whatever happens to a worker.

They need the extra `distributed`, and run with `make test-scale`.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from scored import TEXTS, assert_as_score, expected
from tiny import tiny_texts, write_rows

EXAMPLES = Path(__file__).parents[2] / "examples"
MANY = tiny_texts(6000)
SCRIPTS = {"daft": "score_daft.py", "ray": "score_ray.py"}
# What the command line of a worker holds.
WORKERS = {"daft": "daft.execution.udf_worker", "ray": "ray::MapWorker"}


def start(script: str, model: str, *more: str) -> subprocess.Popen:
    """The script on in.csv with two workers of one thread each."""
    command = [sys.executable, str(EXAMPLES / SCRIPTS[script]), "--model", model, "--input", "in.csv"]
    command += ["--output", "out.parquet", "--keep", "id", "--batch_rows", "256", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def workers_of(process: subprocess.Popen, script: str) -> list[int]:
    """Of a running script: the processes that hold the model."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                commands[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                status = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(status[1])

    def descends(one: int) -> bool:
        while one > 1:
            if one == process.pid:
                return True
            one = parents.get(one, 0)
        return False

    return [one for one, command in commands.items() if WORKERS[script] in command and descends(one)]


def write_input(texts: list[str]) -> None:
    write_rows("in.csv", [{"id": f"{number:05}", "text": text} for number, text in enumerate(texts)])


@pytest.mark.parametrize("script", SCRIPTS)
def test_rows_are_those_of_score(model, here, script):
    texts = [*TEXTS, "NA", 'a "quoted",\nfilm', "007"]
    write_input(texts)
    said, _ = (process := start(script, model, "--batch_rows", "64")).communicate(timeout=500)
    assert process.returncode == 0, said
    rows = pq.read_table("out.parquet").to_pylist()
    assert [row["id"] for row in rows] == [f"{number:05}" for number in range(len(texts))]
    assert_as_score(rows, expected(model, texts))
    assert f"{len(texts)} rows are in out.parquet." in said


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_worker_that_is_killed_costs_no_row(model, here, script):
    """SIGKILL of one of two workers as soon as the first rows have come back."""
    write_input(MANY)
    process = start(script, model, "--shard_rows", "500")
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.append(process.stdout.read()), daemon=True)
    reader.start()
    while not Path("out.parquet.run/shard-000000.parquet").exists():
        assert process.poll() is None, said
        time.sleep(0.01)
    victims = workers_of(process, script)
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    assert process.wait(timeout=500) == 0, said
    reader.join()
    rows = pq.read_table("out.parquet").to_pylist()
    assert [row["id"] for row in rows] == [f"{number:05}" for number in range(len(MANY))]
    assert_as_score(rows, expected(model, MANY))
    if script == "daft":
        assert "going on there with new ones" in said[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_wrong_is_told_without_a_traceback(model, here, script):
    module = pytest.importorskip(SCRIPTS[script].removesuffix(".py"))
    write_input(TEXTS[:3])
    for arguments, message in (
        (["--input", "absent.csv"], "--input absent.csv: there is no such file"),
        (["--input", "in.xlsx"], "--input in.xlsx: give .csv, .tsv"),
        (["--text_column", "review"], "has no column review; it has id, text"),
        (["--keep", "label"], "--keep label: the output has columns of that name"),
        (["--model", "./no/where"], "--model ./no/where: "),
    ):
        given = {"--model": model, "--input": "in.csv", "--output": "out.parquet"}
        given |= {arguments[0]: arguments[1]}
        with pytest.raises(SystemExit, match=message):
            module.main([part for pair in given.items() for part in pair])
