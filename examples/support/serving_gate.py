"""What a request has to get past before it waits for the model: limits on requests under way, on the size of
its body, on number and length of its texts, and on the threshold that it may choose.

Everything is refused here with a reason, in the server's own process; the model sees what is left. What
passes is counted, for the metrics.
"""

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

PATH = "/classify"
BODY_SECONDS = 10.0  # in which a body has to arrive
LATENCIES = 10_000  # of the last requests are kept
GONE = 499  # counted where a client left before its body was there
PARAMETERS = ("exit_threshold", "truncation")
Message = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What the owner of a server allows.

    Args:
        requests: under way at once; one more is told to come again.
        body: bytes.
        texts: of a request.
        characters: of a text, its second included.
        thresholds: the lowest and the highest that a request may choose; `None`: none may.
    """

    requests: int = 256
    body: int = 2**20
    texts: int = 64
    characters: int = 20_000
    thresholds: tuple[float, float] | None = None


class Refused(Exception):
    """A request that is not let in: an HTTP status, and the reason in words."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


def checked(body: bytes, limits: Limits) -> dict[str, Any]:
    """A body -> its request.

    Raises:
        Refused: it is no JSON, no request, or beyond a limit.

    Example:
        >>> checked(b'{"inputs": "A delight."}', Limits())
        {'inputs': 'A delight.'}
    """
    try:
        request = json.loads(body)
    except ValueError as error:
        raise Refused(400, f'the body is no JSON ({error}); send {{"inputs": "a text"}}.') from None
    if not isinstance(request, dict) or not {"inputs"} <= request.keys() <= {"inputs", "parameters"}:
        raise Refused(422, 'send an object {"inputs": ..., "parameters": {...}}; parameters may be left out.')
    inputs = request["inputs"]
    texts = inputs if isinstance(inputs, list) else [inputs]
    if not texts:
        raise Refused(422, "inputs is an empty list: give a text, or a list of texts.")
    if len(texts) > limits.texts:
        raise Refused(422, f"inputs has {len(texts)} texts; this server takes {limits.texts} per request.")
    for number, item in enumerate(texts):
        _check_text(number, item, limits.characters)
    _check_parameters(request.get("parameters", {}), limits)
    return request


def _check_text(number: int, item: Any, characters: int) -> None:
    parts = item if isinstance(item, dict) else {"text": item}
    texts = [parts.get("text"), parts.get("text_pair", "")]
    if not parts.keys() <= {"text", "text_pair"} or not all(isinstance(text, str) for text in texts):
        raise Refused(
            422,
            f"text {number} is {str(item)[:60]!r}, no text: give a string, or for a pair"
            ' {"text": ..., "text_pair": ...}.',
        )
    if (length := sum(map(len, texts))) > characters:
        raise Refused(422, f"text {number} has {length:,} characters; this server takes {characters:,}.")


def _check_parameters(parameters: Any, limits: Limits) -> None:
    if not isinstance(parameters, dict) or not parameters.keys() <= {*PARAMETERS}:
        raise Refused(422, f"parameters takes {' and '.join(PARAMETERS)}.")
    if not isinstance(parameters.get("truncation", True), bool):
        raise Refused(422, f"truncation={parameters['truncation']!r}: give true or false.")
    if "exit_threshold" not in parameters:
        return
    threshold = parameters["exit_threshold"]
    if limits.thresholds is None:
        raise Refused(
            422, "exit_threshold: on this server the threshold is the owner's choice; leave it out."
        )
    low, high = limits.thresholds
    is_number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    if not is_number or not low <= threshold <= high:
        raise Refused(
            422, f"exit_threshold={threshold!r} is not within {low:g} to {high:g}, this server's limits."
        )


class Traffic:
    """Requests that were let in or refused, as the server's process counts them."""

    def __init__(self) -> None:
        self.under_way, self.most_under_way = 0, 0
        self.statuses: Counter[int] = Counter()
        self._seconds: deque[float] = deque(maxlen=LATENCIES)

    def begin(self) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)

    def end(self, status: int, seconds: float) -> None:
        """A request that was let in is answered."""
        self.under_way -= 1
        self.statuses[status] += 1
        if status == 200:
            self._seconds.append(seconds)

    def percentiles(self) -> dict[str, float] | None:
        """Milliseconds of the last answered requests; `None` before there are two."""
        if len(self._seconds) < 2:
            return None
        cuts = quantiles(self._seconds, n=100, method="inclusive")
        return {f"p{percent}": 1000 * cuts[percent - 1] for percent in (50, 95, 99)}


class Gate:
    """ASGI middleware that lets requests for `PATH` through to the model, or refuses them; others pass.

    Args:
        app: what is behind it.
        limits: of the owner.
        traffic: to count in.
    """

    def __init__(self, app: Any, limits: Limits, traffic: Traffic):
        self.app, self.limits, self.traffic = app, limits, traffic

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self.app(scope, receive, send)
        elif self.traffic.under_way >= self.limits.requests:
            self.traffic.statuses[503] += 1
            many = f"{self.limits.requests} requests are under way; come again in a moment."
            await _answer(send, Refused(503, many))
        else:
            await self._let_in(scope, receive, send)

    async def _let_in(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Read and check a request, pass it on, and count it under way until it is answered."""
        begin, status = time.perf_counter(), GONE

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self.traffic.begin()
        try:
            body = await asyncio.wait_for(_body(receive, self.limits.body), BODY_SECONDS)
            if body is not None:
                checked(body, self.limits)
                await self.app(_as_json(scope), _again(body, receive), watched)
        except asyncio.TimeoutError:
            await _answer(watched, Refused(408, f"the body took longer than {BODY_SECONDS:g} seconds."))
        except Refused as refused:
            await _answer(watched, refused)
        finally:
            self.traffic.end(status, time.perf_counter() - begin)


def _as_json(scope: Mapping[str, Any]) -> dict[str, Any]:
    """The same request with the content type of JSON, which its body was found to be."""
    headers = [header for header in scope["headers"] if header[0] != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", b"application/json")]}


def _again(body: bytes, receive: Any) -> Callable[[], Awaitable[Message]]:
    """A body that was read -> what gives it once more, and then what comes behind it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


async def _body(receive: Any, most: int) -> bytes | None:
    """The body of a request; `None` where the client has gone.

    Raises:
        Refused: it is larger than `most` bytes.
    """
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise Refused(413, f"the body is larger than {most:,} bytes, this server's limit.")
        if not message.get("more_body"):
            return b"".join(parts)


async def _answer(send: Callable[[Message], Awaitable[None]], refused: Refused) -> None:
    content = json.dumps({"detail": refused.reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if refused.status == 503:
        headers.append((b"retry-after", b"1"))
    if refused.status in (408, 413):  # the rest of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
