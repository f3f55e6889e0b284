"""A model that answers: prompts, pruning, the worker and its counters, put together."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from foveate.measure.loading import LoadedModel
from foveate.pruners.base import Pruner
from foveate.serve.batch import Batches
from foveate.serve.errors import bad
from foveate.serve.jobs import Event, Job
from foveate.serve.joining import check_joins
from foveate.serve.metrics import Metrics
from foveate.serve.prompts import Prompt, Prompts
from foveate.serve.pruning import Choices
from foveate.serve.sampling import Sampling
from foveate.serve.schema import ChatRequest
from foveate.serve.settings import Settings
from foveate.serve.worker import Worker

MOST_STOPS, LONGEST_STOP = 4, 256


class Service:
    """Answers requests with one model.

    Parameters
    ----------
    loaded
        The model and its processor.
    settings
        The operator's.

    Raises
    ------
    FoveateError
        The settings do not fit the model.
    """

    def __init__(self, loaded: LoadedModel, settings: Settings) -> None:
        self.loaded, self.settings = loaded, settings
        self.choices = Choices(loaded.model, settings)
        self.prompts = Prompts(loaded, settings)
        self.batches = Batches(self.prompts)
        if settings.join:
            check_joins(loaded.model, self.batches.config)
        self.running: dict[str, int] = {}  # requests by key or address
        self.metrics = Metrics(lambda: self.worker.queue, lambda: sum(self.running.values()))
        self.worker = Worker(
            self.batches,
            settings.max_batch,
            settings.window,
            settings.join,
            self.metrics.batch_done,
            self.metrics.batch_failed,
        )
        self.closing = False
        self.started = int(time.time())
        # images are read beside the event loop; those of URLs wait most of the time
        self._readers = ThreadPoolExecutor(max_workers=16 if settings.urls else 4, thread_name_prefix="foveate-read")

    async def read(self, request: ChatRequest) -> tuple[Prompt, Pruner | None]:
        """Return what a request's prompt is, and how it is pruned.

        Raises
        ------
        ApiError
            Something in it is wrong or not allowed.
        """
        self._check(request)

        def work() -> tuple[Prompt, Pruner | None]:
            self.choices.choose(request.foveate)  # what is refused anyway costs nothing more
            prompt = self.prompts.read(request)
            return prompt, self.choices.choose(request.foveate, prompt.visual)

        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    def jobs(
        self,
        request: ChatRequest,
        prompt: Prompt,
        pruner: Pruner | None,
        arrived: float,
        send: Callable[[int, Event], None],
    ) -> list[Job]:
        """Return the `n` jobs of a request.

        Parameters
        ----------
        request, prompt, pruner
            As read.
        arrived
            When the request came, by `time.monotonic`.
        send
            Takes a choice's number and its events, in the event loop's thread.
        """
        loop = asyncio.get_running_loop()
        sampling = self._sampling(request)
        stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
        longest = request.max_completion_tokens or request.max_tokens or self.settings.max_new_tokens

        def sender(number: int) -> Callable[[Any], None]:
            def from_worker(event: Any) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(send, number, event)

            return from_worker

        return [
            Job(
                prompt=prompt,
                pruner=pruner,
                sampling=Sampling(sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed + number),
                stop=tuple(stop),
                max_new=min(longest, self.prompts.context - len(prompt.ids)),
                top=(request.top_logprobs or 0) if request.logprobs else None,
                streams=bool(request.stream),
                expires=arrived + self.settings.seconds,
                send=sender(number),
            )
            for number in range(request.n or 1)
        ]

    def close(self, seconds: float | None = None) -> bool:
        """Answer what waits, then end; whether that was done in time."""
        self.closing = True
        self._readers.shutdown(wait=False, cancel_futures=True)
        return self.worker.close(seconds)

    def _sampling(self, request: ChatRequest) -> Sampling:
        """Return how tokens are drawn; what is not said is as the model's own generation config has it."""
        own = self.loaded.model.generation_config
        draws = bool(own.do_sample)
        temperature = own.temperature if draws and own.temperature is not None else float(draws)
        return Sampling(
            float(temperature if request.temperature is None else request.temperature),
            float(request.top_p if request.top_p is not None else (own.top_p if draws and own.top_p else 1.0)),
            request.top_k if request.top_k is not None else ((own.top_k or 0) if draws else 0),
            secrets.randbits(62) if request.seed is None else request.seed,
        )

    def _check(self, request: ChatRequest) -> None:
        limits = self.settings
        if request.model != limits.served_name:
            raise bad(f"this server has the model {limits.served_name!r}", "model", "model_not_found")
        for name in ("max_tokens", "max_completion_tokens"):
            if (getattr(request, name) or 0) > limits.max_new_tokens:
                raise bad(f"{limits.max_new_tokens} new tokens are allowed", name)
        if (request.n or 1) > limits.max_choices:
            raise bad(f"n is at most {limits.max_choices} here", "n")
        stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
        if len(stop) > MOST_STOPS or not all(0 < len(one) <= LONGEST_STOP for one in stop):
            raise bad(f"stop is up to {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters", "stop")
        if request.top_logprobs is not None and not request.logprobs:
            raise bad("top_logprobs needs logprobs", "top_logprobs")
        if request.stream_options is not None and not request.stream:
            raise bad("stream_options needs stream", "stream_options")
