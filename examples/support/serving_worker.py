"""The model's process of a server: requests -> texts -> layers, new ones joining at each step -> answers.

LitServe starts the process, and carries requests and answers between it and the server. The order in which
texts run is that of `ContinuousBatcher`; here are requests, which may hold several texts.
"""

import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import litserve as ls
from fastapi import HTTPException
from litserve.loops.base import LitLoop
from litserve.utils import LitAPIStatus, LoopResponseType

from modeling_romebert import ContinuousBatcher
from modeling_romebert.exit_policies import ExitPolicy
from support.labelling import chosen_policy, open_classifier
from support.serving_gate import PATH
from support.serving_metrics import ModelCounters

logger = logging.getLogger(__name__)

IDLE_SECONDS = 1.0  # between looks for a request where there is nothing to do
POLICIES = 128  # thresholds of requests that are remembered


@dataclass
class ModelSettings:
    """What the model's process opens, and how it runs.

    Args:
        model: folder.
        exit_threshold: of requests that choose none, in place of the calibrated one.
        batch_tokens: see `ContinuousBatcher`.
        dtype, threads: see `open_classifier`.
    """

    model: str
    exit_threshold: float | None = None
    batch_tokens: int | None = None
    dtype: str | None = None
    threads: int | None = None


@dataclass
class Request:
    """One that is not answered yet: the results of its texts so far."""

    address: Any  # where the answer goes
    tickets: list[int]
    is_list: bool
    results: dict[int, Any] = field(default_factory=dict)

    @property
    def answer(self) -> Any:
        ordered = [self.results[ticket] for ticket in self.tickets]
        return ordered if self.is_list else ordered[0]


class DepthApi(ls.LitAPI):
    """A classifier behind `PATH`: takes requests at any time, and answers each when its last text has left.

    Args:
        settings: of the model.
        counters: in shared memory.
    """

    def __init__(self, settings: ModelSettings, counters: ModelCounters):
        super().__init__(api_path=PATH, loop=DepthLoop())
        self.settings, self.counters = settings, counters

    def setup(self, device: str) -> None:
        settings = self.settings
        self.model, self.tokenizer = open_classifier(settings.model, settings.dtype, settings.threads, device)
        self.policy_of = lru_cache(maxsize=POLICIES)(self._policy_of)
        self.begin_anew()
        for number in (signal.SIGTERM, signal.SIGINT):  # which may reach every process of a server at once
            signal.signal(number, self._stop)
        self.is_stopping = False

    def _stop(self, number: int, frame: Any) -> None:
        """Told to end: answer what is there first (see `DepthLoop`)."""
        self.is_stopping = True

    def begin_anew(self) -> list[Any]:
        """Forget every request -> where their answers would have gone."""
        addresses = list({id(one): one.address for one in getattr(self, "_requests", {}).values()}.values())
        self._batcher = ContinuousBatcher(self.model, self.tokenizer, batch_tokens=self.settings.batch_tokens)
        self._own = self._batcher.checked(chosen_policy(self.model.config, self.settings.exit_threshold))
        self._requests: dict[int, Request] = {}  # by ticket
        return addresses

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """As it came: the gate has checked it. An annotation would be read by FastAPI."""
        return request

    def predict(self, inputs: Any) -> Any:
        raise NotImplementedError("DepthLoop takes requests and steps.")

    @property
    def is_idle(self) -> bool:
        return not len(self._batcher)

    def take(self, address: Any, request: dict[str, Any]) -> None:
        """Let the texts of a request in.

        Raises:
            HTTPException: a text does not fit the model, or the threshold its exit policy (422).
        """
        inputs, parameters = request["inputs"], dict(request.get("parameters", {}))
        texts = inputs if isinstance(inputs, list) else [inputs]
        threshold = parameters.pop("exit_threshold", None)
        try:
            policy = self._own if threshold is None else self.policy_of(threshold)
            tickets = self._batcher.add(texts, policy, **parameters)
        except (TypeError, ValueError) as error:
            raise HTTPException(422, str(error)) from None
        taken = Request(address, tickets, isinstance(inputs, list))
        self._requests.update(dict.fromkeys(tickets, taken))
        self.counters.joined(len(tickets))

    def step(self) -> Iterator[tuple[Any, Any]]:
        """Run one batch to its next exit -> addresses and answers of the requests that are complete then."""
        if self.is_idle:
            return
        for ticket, result in self._batcher.step():
            request = self._requests.pop(ticket)
            request.results[ticket] = result
            if result["exit_layer"] is not None:
                self.counters.exited(result["exit_layer"])
            if len(request.results) == len(request.tickets):
                yield request.address, request.answer
        self.counters.stepped(len(self._batcher))

    def _policy_of(self, threshold: float) -> ExitPolicy:
        return self._batcher.checked(chosen_policy(self.model.config, threshold))


class DepthLoop(LitLoop):
    """Between two steps of the model, takes what has come; after each, sends what is answered.

    LitServe's own continuous loop sleeps when no text leaves at a step, and answers as streams; this one does
    neither.
    """

    def run(
        self,
        lit_api: DepthApi,
        device: str,
        worker_id: int,
        request_queue: Any,
        transport: Any,
        workers_setup_status: Any,
        callback_runner: Any,
    ) -> None:
        """What LitServe calls over and over."""

        def send(address: Any, answer: Any) -> None:
            queue, uid = address
            self.put_response(transport, queue, uid, answer, LitAPIStatus.OK, LoopResponseType.REGULAR)

        def send_error(address: Any, error: Exception) -> None:
            queue, uid = address
            self.put_error_response(transport, queue, uid, error, LoopResponseType.REGULAR)

        arrived = list(self._arrived(request_queue, lit_api.is_idle))
        if lit_api.is_stopping and lit_api.is_idle and not arrived:
            os._exit(0)  # all that came is answered; at once, as its threads would wait for each other
        for queue, uid, _, request in arrived:
            try:
                lit_api.take((queue, uid), request)
            except HTTPException as error:
                send_error((queue, uid), error)
        try:
            for address, answer in lit_api.step():
                send(address, answer)
        except Exception as error:  # whatever it is, nobody may wait for ever, and the next texts may do
            logger.exception("A batch failed; the requests that were under way are answered with an error.")
            for address in lit_api.begin_anew():
                send_error(address, HTTPException(500, f"the model failed: {error}"))

    def _arrived(self, request_queue: Any, wait: bool) -> Iterator[Any]:
        """Requests that are there; where there is nothing else to do, also the first one that comes."""
        if wait and (one := self.get_request(request_queue, timeout=IDLE_SECONDS)) is not None:
            yield one
        # Nobody else takes any. Asking an empty queue for one would cost an exception in another process.
        for _ in range(request_queue.qsize()):
            yield request_queue.get()
