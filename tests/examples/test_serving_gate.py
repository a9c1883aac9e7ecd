"""What examples/serve.py lets in, refuses with a reason, and counts; without a server."""

import asyncio
import json

import pytest
from support import serving_gate
from support.serving_gate import Gate, Limits, Refused, Traffic, checked
from support.serving_metrics import ModelCounters, as_prometheus, metrics

LIMITS = Limits(requests=2, body=200, texts=3, characters=40, thresholds=(0.1, 0.5))


def body_of(content) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode()


@pytest.mark.parametrize(
    "content",
    [
        {"inputs": "good"},
        {"inputs": ["good", {"text": "good", "text_pair": "film"}], "parameters": {}},
        {"inputs": {"text": "good"}, "parameters": {"exit_threshold": 0.1, "truncation": False}},
        {"inputs": ["a"] * 3, "parameters": {"exit_threshold": 0.5}},
        {"inputs": ""},
    ],
)
def test_what_is_let_in(content):
    assert checked(body_of(content), LIMITS) == content


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"{", 400, "the body is no JSON"),
        (b"\xff", 400, "the body is no JSON"),
        (b"", 400, "the body is no JSON"),
        (["good"], 422, "send an object"),
        ({"text": "good"}, 422, "send an object"),
        ({"inputs": "good", "more": 1}, 422, "send an object"),
        ({"inputs": []}, 422, "inputs is an empty list"),
        ({"inputs": ["a"] * 4}, 422, "inputs has 4 texts; this server takes 3 per request"),
        ({"inputs": ["a", 7]}, 422, "text 1 is '7', no text"),
        ({"inputs": None}, 422, "text 0 is 'None', no text"),
        ({"inputs": {"text": "a", "label": 1}}, 422, "text 0 is .*, no text"),
        ({"inputs": {"text_pair": "a"}}, 422, "text 0 is .*, no text"),
        ({"inputs": "a" * 41}, 422, "text 0 has 41 characters; this server takes 40"),
        ({"inputs": {"text": "a" * 21, "text_pair": "b" * 20}}, 422, "text 0 has 41 characters"),
        ({"inputs": "a", "parameters": {"top_k": 1}}, 422, "parameters takes exit_threshold and truncation"),
        ({"inputs": "a", "parameters": {"truncation": 1}}, 422, "truncation=1: give true or false"),
        (
            {"inputs": "a", "parameters": {"exit_threshold": 0.6}},
            422,
            "exit_threshold=0.6 is not within 0.1 to 0.5",
        ),
        ({"inputs": "a", "parameters": {"exit_threshold": True}}, 422, "exit_threshold=True is not within"),
        (b'{"inputs": "a", "parameters": {"exit_threshold": NaN}}', 422, "exit_threshold=nan is not within"),
    ],
)
def test_what_is_refused(content, status, reason):
    with pytest.raises(Refused, match=reason) as refused:
        checked(body_of(content), LIMITS)
    assert refused.value.status == status


def test_thresholds_are_the_owners_unless_allowed():
    with pytest.raises(Refused, match="the threshold is the owner's choice"):
        checked(body_of({"inputs": "a", "parameters": {"exit_threshold": 0.3}}), Limits())


# ---- as middleware


class App:
    """Behind the gate: answers when told to, with what it was sent."""

    def __init__(self):
        self.bodies, self.go = [], asyncio.Event()

    async def __call__(self, scope, receive, send):
        if scope["path"] == serving_gate.PATH:
            assert dict(scope["headers"])[b"content-type"] == b"application/json"
            message = await receive()
            assert not message["more_body"]
            self.bodies.append(message["body"])
            await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


async def call(gate, content=b"", path=serving_gate.PATH, parts=1, leaves=False):
    """A request in so many parts -> status and headers of the answer, and its reason."""
    size = -(-len(content) // parts)
    chunks = [content[size * part : size * (part + 1)] for part in range(parts)]
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages[-1]["more_body"] = False
    if leaves:
        messages = [{"type": "http.disconnect"}]
    sent = []

    async def receive():
        return messages.pop(0) if messages else await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"text/plain")]
    await gate({"type": "http", "path": path, "method": "POST", "headers": headers}, receive, send)
    if not sent:
        return None, {}, ""
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"] or b"{}").get("detail", "")


GOOD = body_of({"inputs": "good"})


def run(scenario):
    """A scenario with an app and its gate -> what was counted."""

    async def all_of_it():
        app, traffic = App(), Traffic()
        await scenario(app, Gate(app, LIMITS, traffic))
        return traffic

    return asyncio.run(all_of_it())


def test_a_full_server_tells_others_to_come_again():
    async def scenario(app, gate):
        calls = [asyncio.create_task(call(gate, GOOD)) for _ in range(2)]
        await asyncio.sleep(0)
        status, headers, reason = await call(gate, GOOD)
        assert (status, headers[b"retry-after"]) == (503, b"1") and "2 requests are under way" in reason
        assert (await call(gate, path="/health"))[0] == 200  # others pass
        app.go.set()
        assert [status for status, _, _ in await asyncio.gather(*calls)] == [200, 200]
        assert (await call(gate, GOOD, parts=3))[0] == 200
        assert app.bodies == [GOOD] * 3

    traffic = run(scenario)
    assert traffic.statuses == {200: 3, 503: 1}
    assert (traffic.under_way, traffic.most_under_way) == (0, 2)
    assert traffic.percentiles().keys() == {"p50", "p95", "p99"}


def test_bad_requests_do_not_reach_the_model_and_leave_no_trace():
    async def scenario(app, gate):
        app.go.set()
        assert (await call(gate, b"x" * 201, parts=3))[0] == 413
        assert (await call(gate, b"x" * 10))[0] == 400
        assert await call(gate, GOOD, leaves=True) == (None, {}, "")
        assert app.bodies == []

    traffic = run(scenario)
    assert traffic.statuses == {413: 1, 400: 1, serving_gate.GONE: 1} and traffic.under_way == 0
    assert traffic.percentiles() is None


def test_a_body_that_does_not_come(monkeypatch):
    monkeypatch.setattr(serving_gate, "BODY_SECONDS", 0.01)

    async def scenario(app, gate):
        async def receive():
            await asyncio.sleep(60)

        sent = []

        async def send(message):
            sent.append(message)

        await gate(
            {"type": "http", "path": serving_gate.PATH, "method": "POST", "headers": []}, receive, send
        )
        assert sent[0]["status"] == 408 and (b"connection", b"close") in sent[0]["headers"]

    assert run(scenario).statuses == {408: 1}


# ---- metrics


def test_metrics_add_up():
    counters, traffic = ModelCounters([1, 2, 4]), Traffic()
    for layer in (1, 1, 1, 4):
        counters.exited(layer)
    counters.joined(5)
    counters.stepped(1)
    for seconds in (0.1, 0.2, 0.3):
        traffic.begin()
        traffic.end(200, seconds)
    found = metrics(traffic, LIMITS, counters)
    assert found["exits"] == {"1": 3, "2": 0, "4": 1} and found["exit_shares"]["1"] == 0.75
    assert found["cost"] == pytest.approx((3 * 1 + 4) / (4 * 4))
    assert (found["texts"], found["answered"], found["inside"], found["steps"]) == (5, 4, 1, 1)
    assert found["latency_ms"]["p50"] == pytest.approx(200)
    text = as_prometheus(json.loads(json.dumps(found)))
    assert 'romebert_texts_total{exit_layer="1"} 3' in text and "romebert_requests_under_way 0" in text
    assert (
        'romebert_latency_seconds{percentile="50"} 0.2' in text
        and "# TYPE romebert_texts_total counter" in text
    )


def test_a_server_that_has_answered_nothing():
    found = metrics(Traffic(), LIMITS, ModelCounters([1, 2]))
    assert (
        found["cost"] is None and found["latency_ms"] is None and found["exit_shares"] == {"1": 0.0, "2": 0.0}
    )
    assert "nan" not in as_prometheus(found)
