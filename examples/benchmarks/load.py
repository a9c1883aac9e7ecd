"""Load on a server of examples/serve.py: requests at times that do not depend on its answers, and what came
back.

In an open loop a slow server does not slow its callers down, as in life; a request's time counts from when it
was due, so that waiting for a connection is not forgotten. One text per request.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

import aiohttp

CONNECTIONS = 512
TIMEOUT = aiohttp.ClientTimeout(total=120)


@dataclass
class Answers:
    """What came back of a stream of requests.

    Args:
        sent: requests.
        seconds: of each answer with status 200, from when it was due.
        wrong: answers that are not the text's own.
        refused: other statuses.
        failed: requests without an answer.
        duration: from the first request to the last answer, in seconds.
    """

    sent: int = 0
    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    failed: int = 0
    duration: float = 0.0
    layers: int = 0  # run in all

    def summary(self) -> dict[str, Any]:
        """As JSON: milliseconds, and answers per second."""
        cuts = (
            quantiles(self.seconds, n=100, method="inclusive")
            if len(self.seconds) > 1
            else [float("nan")] * 99
        )
        return {
            "sent": self.sent,
            "answered": len(self.seconds),
            "wrong": self.wrong,
            "refused": {str(status): count for status, count in self.refused.items()},
            "failed": self.failed,
            "per_second": len(self.seconds) / self.duration if self.duration else 0.0,
            "mean_exit_layer": self.layers / len(self.seconds) if self.seconds else None,
            **{f"p{percent}_ms": 1000 * cuts[percent - 1] for percent in (50, 95, 99)},
        }


class Caller:
    """Sends texts to one server and holds the answers against what they should be.

    Args:
        address: of the server's `/classify`.
        texts: to send, in turn.
        labels: the right answer of each, by text.
    """

    def __init__(self, address: str, texts: Sequence[str], labels: dict[str, set[str]]):
        self.address, self.texts, self.labels = address, texts, labels

    def open_loop(self, rate: float, count: int, seed: int = 0, nuisance: bool = False) -> Answers:
        """Poisson arrivals: so many requests, `rate` of them per second on average.

        nuisance: beside them, clients that hang up and requests that are none, a tenth as many.
        """
        return asyncio.run(self._open_loop(rate, count, random.Random(seed), nuisance))

    def closed_loop(self, callers: int, count: int) -> Answers:
        """So many callers, each of which sends its next request when it has its answer."""
        return asyncio.run(self._closed_loop(callers, count))

    async def _open_loop(self, rate: float, count: int, chance: random.Random, nuisance: bool) -> Answers:
        answers, tasks = Answers(), set()
        async with self._session() as session:
            begin = due = time.perf_counter()
            for number in range(count):
                due += chance.expovariate(rate)
                if (pause := due - time.perf_counter()) > 0:
                    await asyncio.sleep(pause)
                tasks.add(asyncio.create_task(self._one(session, number, due, answers)))
                if nuisance and number % 10 == 0:
                    tasks.add(asyncio.create_task(self._nuisance(session, number)))
            await asyncio.gather(*tasks)
            answers.duration = time.perf_counter() - begin
        return answers

    async def _closed_loop(self, callers: int, count: int) -> Answers:
        answers, numbers = Answers(), iter(range(count))

        async def call(session: aiohttp.ClientSession) -> None:
            for number in numbers:
                await self._one(session, number, time.perf_counter(), answers)

        async with self._session() as session:
            begin = time.perf_counter()
            await asyncio.gather(*(call(session) for _ in range(callers)))
            answers.duration = time.perf_counter() - begin
        return answers

    async def _one(self, session: aiohttp.ClientSession, number: int, due: float, answers: Answers) -> None:
        text = self.texts[number % len(self.texts)]
        answers.sent += 1
        try:
            async with session.post(self.address, json={"inputs": text}) as response:
                result = await response.json()
        except (aiohttp.ClientError, asyncio.TimeoutError):
            answers.failed += 1
            return
        if response.status != 200:
            answers.refused[response.status] += 1
            return
        answers.seconds.append(time.perf_counter() - due)
        answers.layers += result["exit_layer"]
        answers.wrong += result["label"] not in self.labels[text]

    async def _nuisance(self, session: aiohttp.ClientSession, number: int) -> None:
        """A client that is killed while it waits, or one that sends nonsense, in turns."""
        if number % 20:
            async with session.post(self.address, data=b'{"inputs": ') as response:
                assert response.status == 400, response.status
            return
        call = asyncio.create_task(session.post(self.address, json={"inputs": self.texts[0]}))
        await asyncio.sleep(0.002)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS), timeout=TIMEOUT)
