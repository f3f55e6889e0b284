"""The application: its paths, and how errors are answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

import foveate
from foveate.serve.answers import Wording, event, usage
from foveate.serve.errors import ApiError
from foveate.serve.gate import Gate
from foveate.serve.jobs import Done, Event, Job, Piece, late
from foveate.serve.schema import ChatRequest, ErrorBody
from foveate.serve.service import Service

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 405, 413, 422, 429, 500, 503, 504)
}


def build_app(service: Service) -> FastAPI:
    """Return the application of a service; its shutdown ends the service."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close, service.settings.seconds)

    app = FastAPI(title="foveate", version=foveate.__version__, lifespan=lifespan, responses=ERRORS)
    app.add_middleware(Gate, service=service)
    _handle_errors(app)

    state: dict[int | str, dict[str, Any]] = {503: {"description": "It does not."}}

    @app.get("/health", responses=state)
    async def health() -> Response:
        """Say whether the process can answer at all."""
        return _state(not service.worker.broken)

    @app.get("/ready", responses=state)
    async def ready() -> Response:
        """Say whether new requests are taken."""
        return _state(not service.worker.broken and not service.closing)

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """Return the counters for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the model."""
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Return the model."""
        if name != service.settings.served_name:
            raise ApiError(404, "this server has no such model", "model_not_found", param="model")
        return _model(service)

    kinds: dict[str, Any] = {"application/json": {}, "text/event-stream": {}}

    @app.post("/v1/chat/completions", responses={200: {"description": "An answer.", "content": kinds}})
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a chat."""
        return await answer(service, body, request)

    return app


async def answer(service: Service, body: ChatRequest, request: Request) -> Response:
    """Answer a chat.

    Raises
    ------
    ApiError
        Something is wrong with the request, or it could not be answered.
    """
    arrived = time.monotonic()
    limit = service.settings.seconds
    try:
        prompt, pruner = await asyncio.wait_for(service.read(body), limit)
    except TimeoutError:
        raise late() from None
    events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
    jobs = service.jobs(body, prompt, pruner, arrived, lambda number, one: events.put_nowait((number, one)))
    wording = Wording(
        f"chatcmpl-{request.state.request_id}", body.model, service.batches.tokenizer, bool(body.logprobs)
    )
    gone = asyncio.create_task(_disconnected(request.receive))
    handed = False
    try:
        for job in jobs:
            service.worker.submit(job)
        if not body.stream:
            done: dict[int, Done] = {}
            while len(done) < len(jobs):
                number, found = await _next(events, gone, arrived + limit)
                if isinstance(found, ApiError):
                    raise found
                if isinstance(found, Done):
                    done[number] = found
            answers = [done[number] for number in range(len(jobs))]
            pruning = service.choices.describe(pruner) | {"skipped": answers[0].pruned.skipped}
            return JSONResponse(wording.whole(answers, usage(len(prompt.ids), answers), pruning))
        first = await _next(events, gone, arrived + limit)  # what fails before the first token has a status of its own
        if isinstance(first[1], ApiError):
            raise first[1]
        counted = bool(body.stream_options and body.stream_options.include_usage)
        pruning = service.choices.describe(pruner)
        stream = _stream(wording, first, events, jobs, len(prompt.ids), pruning, counted)
        handed = True
        return _EventStream(stream, jobs, limit - (time.monotonic() - arrived), service)
    except _Gone:
        service.metrics.cancelled.inc()
        return Response(status_code=499)
    finally:
        gone.cancel()
        if not handed:
            for job in jobs:
                job.cancel()


async def _stream(
    wording: Wording,
    first: tuple[int, Event],
    events: asyncio.Queue[tuple[int, Event]],
    jobs: list[Job],
    prompt_tokens: int,
    pruning: dict[str, Any],
    counted: bool,
) -> AsyncIterator[str]:
    """Yield the events of a streamed answer."""
    done: dict[int, Done] = {}
    for number in range(len(jobs)):
        yield wording.chunk(number, {"role": "assistant", "content": ""})
    number, found = first
    while True:
        if isinstance(found, Piece):
            yield wording.chunk(number, {"content": found.text}, scores=found.scores)
        elif isinstance(found, Done):
            done[number] = found
            told = pruning | {"skipped": found.pruned.skipped, "visual_tokens": usage(0, [found])["visual_tokens"]}
            yield wording.chunk(number, {}, found.reason, foveate=told)
        else:
            yield event(found.body())
            return
        if len(done) == len(jobs):
            break
        number, found = await events.get()
    if counted:
        yield wording.last(usage(prompt_tokens, [done[number] for number in range(len(jobs))]))
    yield "data: [DONE]\n\n"


class _EventStream(Response):
    """Server-sent events; ends its jobs when the client goes away, or reads too slowly for the time limit."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], jobs: list[Job], seconds: float, service: Service) -> None:
        super().__init__(headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self.events, self.jobs, self.seconds, self.service = events, jobs, seconds, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def pump() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for one in self.events:
                await send({"type": "http.response.body", "body": one.encode("utf-8", "replace"), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        tasks = [asyncio.create_task(pump()), asyncio.create_task(_disconnected(receive))]
        try:
            await asyncio.wait(tasks, timeout=max(self.seconds, 0.0) + 1, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not tasks[0].done():
                self.service.metrics.cancelled.inc()
            for job in self.jobs:
                job.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Gone(Exception):
    """The client went away."""


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _next(events: asyncio.Queue[tuple[int, Event]], gone: asyncio.Task[None], until: float) -> tuple[int, Event]:
    """Return the next event.

    Raises
    ------
    _Gone
        The client went away before.
    ApiError
        It was not there in time: the worker looks at those that wait between batches only.
    """
    getting = asyncio.create_task(events.get())
    try:
        left = max(until - time.monotonic(), 0.0)
        await asyncio.wait([getting, gone], timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            return getting.result()
        if gone.done():
            raise _Gone
        raise late()
    finally:
        getting.cancel()


def _model(service: Service) -> dict[str, Any]:
    usual = service.choices.choose(None)
    return {
        "id": service.settings.served_name,
        "object": "model",
        "created": service.started,
        "owned_by": "foveate",
        "foveate": service.choices.describe(usual) | {"methods": service.choices.methods},
    }


def _state(good: bool) -> Response:
    return JSONResponse({"status": "ok" if good else "unavailable"}, 200 if good else 503)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def own(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]  # its message and place, never the value
        place, message = ".".join(str(step) for step in first["loc"][1:] if len(str(step)) <= 64)[:200], first["msg"]
        if first["type"] == "json_invalid":
            place, message = "", "the body is not valid JSON"
        wrong = ApiError(400, f"{place}: {message}" if place else message, "invalid_request", param=place or None)
        return JSONResponse(wrong.body(), wrong.status)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        wrong = error.__cause__  # of a body that is too large
        if not isinstance(wrong, ApiError):
            wrong = ApiError(error.status_code, str(error.detail), "http_error")
        return JSONResponse(wrong.body(), wrong.status, dict(error.headers or {}))
