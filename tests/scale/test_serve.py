"""examples/serve.py as people run it: a process that is asked over HTTP, annoyed, and told to end.

It needs the extra `serve`, and runs with `make test-scale`.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from scored import TEXTS, assert_as_score, expected

EXAMPLES = Path(__file__).parents[2] / "examples"
LIMITS = [
    "--threshold_limits",
    "0",
    "0.9",
    "--max_texts",
    "40",
    "--max_requests",
    "64",
    "--max_body",
    "20000",
]


class Server:
    """A server on a free port."""

    def __init__(self, model: str, *more: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [
            sys.executable,
            str(EXAMPLES / "serve.py"),
            "--model",
            model,
            "--port",
            str(self.port),
            *more,
        ]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=lambda: self.said.extend(self.process.stdout), daemon=True)
        self._reader.start()
        self._wait()

    def _wait(self) -> None:
        for _ in range(1200):
            assert self.process.poll() is None, self.said
            try:
                if self.get("/health") == b"ok":
                    return
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.1)
        raise AssertionError(f"the server did not come up: {self.said}")

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return answer.read()

    def post(self, content: object) -> tuple[int, object]:
        """Status, and the answer or the reason."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{self.port}/classify", body)
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["detail"]

    def metrics(self) -> dict:
        return json.loads(self.get("/metrics.json"))

    def end(self) -> None:
        """Kill what is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(model):
    server = Server(model, *LIMITS)
    yield server
    server.end()


def test_one_text_and_a_list(server, model):
    status, answer = server.post({"inputs": TEXTS[0]})
    assert status == 200
    assert_as_score([answer], expected(model, TEXTS[:1]))
    status, answers = server.post({"inputs": [*TEXTS[:20], {"text": TEXTS[0], "text_pair": TEXTS[1]}]})
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    assert_as_score(answers, expected(model, [*TEXTS[:20], pair]))


def test_a_request_chooses_its_threshold(server, model):
    for threshold in (0.0, 0.5, 0.9):
        request = {"inputs": TEXTS[:9], "parameters": {"exit_threshold": threshold}}
        wanted = expected(model, TEXTS[:9], exit_policy={"name": "entropy", "threshold": threshold})
        assert_as_score(server.post(request)[1], wanted)
    assert server.post({"inputs": "a", "parameters": {"exit_threshold": 0.95}})[0] == 422


def test_bad_requests_get_a_reason(server):
    for content, status, reason in (
        (b"{", 400, "the body is no JSON"),
        ({"inputs": ["good", 7]}, 422, "text 1 is '7', no text"),
        ({"inputs": ["a"] * 41}, 422, "this server takes 40 per request"),
        ({"inputs": "a" * 20_001}, 413, "larger than 20,000 bytes"),
        ({"inputs": "good " * 80, "parameters": {"truncation": False}}, 422, "it has 82 tokens"),
    ):
        found = server.post(content)
        assert found[0] == status and reason in found[1]
    assert server.post({"inputs": "good " * 80})[1]["truncated"] is True


def test_many_at_once_and_nuisances_between(server, model):
    """Every request is answered once and with its own result; clients that hang up leave nothing behind."""
    wanted = dict(zip(TEXTS, expected(model, TEXTS), strict=True))
    before = server.metrics()

    def hang_up(number: int) -> None:
        body = json.dumps({"inputs": TEXTS[number]}).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            client.sendall(head + (body if number % 2 else body[:5]))

    def ask(text: str) -> None:
        status, answer = server.post({"inputs": text})
        while status == 503:  # as it says
            time.sleep(0.05)
            status, answer = server.post({"inputs": text})
        assert status == 200, answer
        assert_as_score([answer], [wanted[text]])

    with ThreadPoolExecutor(24) as pool:
        asked = list(TEXTS)
        calls = [pool.submit(ask, text) for text in asked]
        calls += [pool.submit(hang_up, number) for number in range(20)]
        calls += [pool.submit(server.post, b"{") for _ in range(20)]
        for call in calls:
            call.result()
    for _ in range(100):
        after = server.metrics()
        if not after["queue"]["under_way"] and not after["inside"]:
            break
        time.sleep(0.1)
    assert after["queue"]["under_way"] == 0 and after["inside"] == 0
    answered = after["answered"] - before["answered"]
    assert len(asked) <= answered <= len(asked) + 10 and after["answered"] == after["texts"]
    assert after["requests"]["400"] - before["requests"].get("400", 0) >= 20
    assert sum(after["exits"].values()) == after["answered"] and 0 < after["cost"] <= 1
    assert set(after["latency_ms"]) == {"p50", "p95", "p99"}
    assert 'romebert_texts_total{exit_layer="1"}' in server.get("/metrics").decode()


@pytest.mark.parametrize("whom", ["the server", "all of its processes"])
def test_told_to_end_it_answers_what_it_has(model, whom):
    """SIGTERM while a slow request is under way: it is answered, new ones are not taken, and all is gone."""
    server = Server(model, *LIMITS, "--batch_tokens", "1")  # one text at a time
    try:
        with ThreadPoolExecutor(2) as pool:
            slow = pool.submit(server.post, {"inputs": [*TEXTS[:40]], "parameters": {"exit_threshold": 0.0}})
            while not server.metrics()["inside"]:
                time.sleep(0.005)
            (os.kill if whom == "the server" else os.killpg)(server.process.pid, signal.SIGTERM)
            status, answers = slow.result()
        assert status == 200 and len(answers) == 40 and {one["exit_layer"] for one in answers} == {4}
        assert server.process.wait(timeout=120) is not None
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            server.get("/health")
    finally:
        server.end()


def test_this_machine_alone_is_served_by_default():
    import serve

    assert serve.ServeArguments().host == "127.0.0.1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./no/where"], "--model ./no/where: "),
        (["--threshold_limits", "0.5"], "--threshold_limits 0.5: give the lowest and the highest"),
        (["--threshold_limits", "0.5", "0.1"], "--threshold_limits 0.5 0.1: give the lowest"),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(arguments, message):
    import serve

    with pytest.raises(SystemExit, match=message):
        serve.main(arguments)


def test_a_batch_that_fails_is_answered_and_the_next_one_runs(model, monkeypatch):
    """Without a server: the loop between its queues."""
    from queue import Empty, Queue

    from litserve.utils import LitAPIStatus
    from support.serving_metrics import ModelCounters
    from support.serving_worker import DepthApi, ModelSettings

    from modeling_romebert.early_exit import ActiveBatch

    class Transport:
        sent: list = []

        def send(self, item, consumer_id):
            self.sent.append((consumer_id, item))

    monkeypatch.setattr(signal, "signal", lambda *_: None)  # which `setup` sets for its process
    api, queue, transport = DepthApi(ModelSettings(model), ModelCounters([1, 2, 3, 4])), Queue(), Transport()
    api.setup("cpu")

    def turn(*requests):
        for uid, texts, *parameters in requests:
            queue.put((0, uid, 0.0, {"inputs": texts, "parameters": dict(*parameters)}))
        transport.sent.clear()
        for _ in range(10):
            api.loop.run(api, "cpu", 0, queue, transport, None, None)
            if api.is_idle and queue.empty():
                break
        return {uid: (data, status) for _, (uid, (data, status, *_)) in transport.sent}

    with monkeypatch.context() as patch:
        patch.setattr(ActiveBatch, "step", lambda batch: 1 / 0)
        failed = turn(("a", "good"), ("b", ["bad", "good"]))
        assert {uid: status for uid, (_, status) in failed.items()} == dict.fromkeys("ab", LitAPIStatus.ERROR)
        assert b"the model failed: division by zero" in failed["a"][0]
    own, api.model.config.exit_policy = api.model.config.exit_policy, {"name": "patience", "patience": 2}
    found = turn(("e", "good", {"exit_threshold": 1.5}), ("f", "good"))
    api.model.config.exit_policy = own
    assert (found["e"][1], found["f"][1]) == (LitAPIStatus.ERROR, LitAPIStatus.OK)
    assert b"patience=1.5" in found["e"][0]
    found = turn(("c", "good"), ("d", ["bad", "good"]))
    assert found["c"][1] == found["d"][1] == LitAPIStatus.OK
    for uid, texts in (("c", ["good"]), ("d", ["bad", "good"])):
        answers = found[uid][0] if uid == "d" else [found[uid][0]]
        assert_as_score(answers, expected(model, texts))
    with pytest.raises(Empty):
        queue.get_nowait()
