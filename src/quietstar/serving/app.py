"""The web application: its endpoints and error handlers."""

import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from transformers import PreTrainedTokenizerBase

import quietstar
from quietstar.serving.answers import Answer, event, to_json
from quietstar.serving.arguments import ServeArguments
from quietstar.serving.engine import Engine
from quietstar.serving.events import Events
from quietstar.serving.faults import RequestError
from quietstar.serving.guard import Guard, allowed_hosts, answer_of
from quietstar.serving.intake import Intake
from quietstar.serving.pages import Pages
from quietstar.serving.problems import Fault, first_problem
from quietstar.serving.protocol import ChatRequest, CompletionRequest, ResponsesRequest, ThoughtRequest, supported
from quietstar.serving.responses import ResponsesAnswer
from quietstar.serving.unread import CloseUnread

BODIES: dict[str, type[BaseModel]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/thoughts": ThoughtRequest,
}
OPEN_PATHS = ("/", "/healthz", "/favicon.ico")
ENDPOINTS = (*BODIES, "/v1/models", "/", "/healthz", "/metrics", "/openapi.json")


def make_app(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, settings: ServeArguments, name: str = "quietstar"
) -> FastAPI:
    """Return the application for an engine, which the caller starts and stops.

    The tokenizer is a separate copy of the engine's, since two threads may not use the same one at once.
    """
    name = settings.model_name or name
    app = FastAPI(
        title="quietstar",
        version=quietstar.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a path with a slash too many gets 404, as other wrong paths do
        responses={422: {"model": Fault, "description": "and every other status from 400 on"}},
    )
    intake = Intake(engine, tokenizer, settings, name, partial(random.Random(settings.seed).getrandbits, 32))
    pages = Pages()
    _add_middleware(app, engine, settings)
    _add_handlers(app)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await write(body, request)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await write(body, request)

    @app.post("/v1/responses")
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        return await write(body, request)

    async def write(body: CompletionRequest | ChatRequest | ResponsesRequest, request: Request) -> Response:
        job = await run_in_threadpool(intake.job, body)
        answer: Answer | ResponsesAnswer
        if isinstance(body, ResponsesRequest):
            answer = ResponsesAnswer(job, name, body)
        else:
            answer = Answer(job, name, isinstance(body, ChatRequest), body.wants_usage)
        events = Events(engine, job, request)
        if body.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(_chunks(events, answer), media_type="text/event-stream", headers=headers)
        async for written in events:
            answer.take(written)
        return _json(answer.whole())

    @app.post("/v1/thoughts")
    async def thoughts(body: ThoughtRequest, request: Request) -> Response:
        question = await run_in_threadpool(intake.question, body)
        events = Events(engine, lambda: question.answer(engine.model, engine.served.tokenizer), request)
        (answer,) = [each async for each in events]
        engine.metrics.tokens("prompt", len(question.token_ids))
        engine.metrics.tokens("thought", len(answer["thought"]["ids"]))
        return _json(answer)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_info(engine, settings, name)]}

    @app.get("/v1/models/{requested:path}")
    async def model(requested: str) -> dict[str, Any]:
        if requested != name:
            raise RequestError(404, f"unknown model {requested[:60]!r}; give {name!r}", code="model_not_found")
        return _model_info(engine, settings, name)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> Response:
        status = "ok" if engine.is_alive else "the engine has stopped"
        return JSONResponse({"status": status, "model": name}, 200 if engine.is_alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(engine.metrics.page(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def front() -> Response:
        return pages.front()

    @app.get("/static/{requested}", include_in_schema=False)
    async def static(requested: str) -> Response:
        return pages.file(requested)

    @app.get("/favicon.ico", include_in_schema=False)
    async def favicon() -> Response:
        return Response(status_code=204)

    return app


async def _chunks(events: Events, answer: Answer | ResponsesAnswer) -> AsyncGenerator[bytes, None]:
    async for body in _bodies(events, answer):
        yield event(body)
    yield answer.closing


async def _bodies(events: Events, answer: Answer | ResponsesAnswer) -> AsyncGenerator[dict[str, Any], None]:
    try:
        for body in answer.begin():
            yield body
        async with aclosing(aiter(events)) as all_written:
            async for written in all_written:
                for body in answer.take(written):
                    yield body
        for body in answer.end():
            yield body
    except RequestError as fault:
        for body in answer.fail(fault):
            yield body


def _json(body: dict[str, Any]) -> Response:
    return Response(to_json(body), media_type="application/json")


def _model_info(engine: Engine, settings: ServeArguments, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "quietstar",
        "n_ahead": engine.n_ahead,
        "max_n_ahead": engine.max_n_ahead,
        "think": settings.think,
        "context": engine.context,
        "max_prompt_tokens": engine.max_prompt_tokens(engine.n_ahead),
        "max_tokens": settings.max_tokens,
        "max_n": settings.most_texts,
    }


def _add_middleware(app: FastAPI, engine: Engine, settings: ServeArguments) -> None:
    app.add_middleware(
        Guard,
        metrics=engine.metrics,
        endpoints=ENDPOINTS,
        open_paths=OPEN_PATHS,
        open_folder="/static/",
        api_key=settings.api_key(),
        hosts=allowed_hosts(settings.host),
        max_bytes=settings.max_request_bytes,
    )
    if settings.cors_origin:  # outside the guard, as preflight requests have no key
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origin, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(CloseUnread)


def _add_handlers(app: FastAPI) -> None:
    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        body = BODIES.get(request.url.path)
        message, param = first_problem(error.errors(), supported(body) if body else ())
        return answer_of(RequestError(422, message, param=param))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        messages = {
            400: "the body is nested too deeply; send fewer levels of lists and objects",  # the guard checks the rest
            404: "unknown path; see /openapi.json",
            405: "method not allowed for this path; see /openapi.json",
        }
        message = messages.get(error.status_code, str(error.detail))
        return answer_of(RequestError(error.status_code, message, headers=dict(error.headers or {})))

    async def request_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return answer_of(error)

    for kind, handler in {
        RequestValidationError: invalid,
        HTTPException: http_error,
        RequestError: request_error,
    }.items():
        app.add_exception_handler(kind, handler)
