"""The application: its paths, its answers, its errors and its metrics."""

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException

from hub_release.serving.online.batches import Batches, FullError
from hub_release.serving.online.limits import LimitedBody
from hub_release.serving.online.options import Limits
from hub_release.serving.online.protocol import (
    ClassifyRequest,
    Parameters,
    PredictRequest,
    Score,
    logit,
    ranked,
    texts_of,
)
from modeling.infer.package import PackageSettings

logger = logging.getLogger(__name__)

_FIELDS = {name for kind in (ClassifyRequest, PredictRequest, Parameters) for name in kind.model_fields}
"""What an error may name: other keys are the client's."""
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Model:
    """What is served.

    Attributes:
        name: what clients know it by.
        about: how it is computed.
        version: of the project that serves, or that exported the package.
        settings: the package's.
        classify: texts → probabilities, float32 [N, L].
        workers: how many threads may call it at once.
    """

    name: str
    about: str
    version: str
    settings: PackageSettings
    classify: Callable[[list[str]], np.ndarray]
    workers: int


class Answers:
    """What each path answers.

    Args:
        model: what is served.
        limits: what a client may ask for.
        batches: computes.
        registry: the metrics.
    """

    def __init__(self, model: Model, limits: Limits, batches: Batches, registry: CollectorRegistry) -> None:
        self.model, self.limits, self.batches, self.registry = model, limits, batches, registry
        self.labels = model.settings.emotion_labels

    async def classify(self, asked: ClassifyRequest) -> list[list[Score]]:
        """The labels of each text with their probabilities, highest first; one text gets a list with one entry."""
        return await self._ranked(texts_of(asked.inputs), asked.parameters or Parameters())

    async def predict(self, asked: PredictRequest) -> list[Score] | list[list[Score]]:
        """The labels of a text, or of each of several, with their probabilities, highest first."""
        found = await self._ranked(texts_of(asked.inputs), Parameters())
        for score in (score for scores in found for score in scores if asked.raw_scores):
            score["score"] = logit(score["score"])
        return found[0] if isinstance(asked.inputs, str) else found

    async def health(self) -> str:
        """Is it ready?"""
        return "ok"

    async def info(self) -> dict[str, Any]:
        """The model and the limits, with the names of text-embeddings-inference."""
        ids = {str(index): label for index, label in enumerate(self.labels)}
        return {
            "model_id": self.model.name,
            "model_type": {"classifier": {"id2label": ids, "label2id": {label: int(i) for i, label in ids.items()}}},
            "computed": self.model.about,
            "thresholds": self.model.settings.decision_thresholds,
            "max_client_batch_size": self.limits.texts,
            "max_batch_requests": self.limits.batch,
            "max_waiting_texts": self.limits.waiting,
            "max_characters": self.limits.characters,
            "max_body_bytes": self.limits.body_bytes,
            "version": self.model.version,
        }

    async def metrics(self) -> PlainTextResponse:
        """For Prometheus."""
        return PlainTextResponse(generate_latest(self.registry), media_type="text/plain; version=0.0.4")

    async def _ranked(self, texts: list[str], parameters: Parameters) -> list[list[Score]]:
        rows = await self._probabilities(texts)
        return [ranked(text, row, self.model.settings, parameters) for text, row in zip(texts, rows, strict=True)]

    async def _probabilities(self, texts: list[str]) -> np.ndarray:
        most = self.limits
        if len(texts) > most.texts:
            raise HTTPException(413, f"{len(texts):,} texts, more than {most.texts:,}. Remedy: send fewer at once")
        for index, text in enumerate(texts):
            if len(text) > most.characters:
                size = f"{len(text):,} characters, more than {most.characters:,}"
                raise HTTPException(413, f"text {index} has {size}. Remedy: send its parts")
        if not texts:
            return np.zeros((0, len(self.labels)), np.float32)
        try:
            return await self.batches.submit(texts)
        except FullError:
            raise
        except Exception as error:
            logger.exception("a batch could not be classified")
            raise HTTPException(500, f"{type(error).__name__}. Remedy: see the server's log") from None


def create_application(model: Model, limits: Limits) -> Any:
    """An ASGI application that serves a model."""
    registry = CollectorRegistry()
    sizes = Histogram("batch_texts", "Texts of a batch.", buckets=_SIZES, registry=registry)
    waiting = Gauge("waiting_texts", "Texts that wait.", registry=registry)
    batches = Batches(model.classify, limits.batch, limits.waiting, model.workers, sizes.observe)
    waiting.set_function(lambda: batches.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batches.start()
        yield
        await batches.stop()

    app = FastAPI(title=model.name, version=model.version, lifespan=lifespan)
    answers = Answers(model, limits, batches, registry)
    app.post("/", summary="Text classification of the Inference API")(answers.classify)
    app.post("/predict", summary="Text classification of text-embeddings-inference")(answers.predict)
    app.get("/health", response_class=PlainTextResponse)(answers.health)
    app.get("/info")(answers.info)
    app.get("/metrics", response_class=PlainTextResponse)(answers.metrics)
    _count_requests(app, registry)
    _answer_errors(app)
    return LimitedBody(app, limits.body_bytes, limits.body_seconds)


def _count_requests(app: FastAPI, registry: CollectorRegistry) -> None:
    """Metrics of requests by path; paths that do not exist are one, so that clients cannot make up metrics."""
    requests = Counter("requests", "Requests by path and status.", ["path", "status"], registry=registry)
    seconds = Histogram("request_seconds", "Seconds of a request.", ["path"], registry=registry)
    known = {getattr(route, "path", "") for route in app.routes}

    @app.middleware("http")
    async def count(request: Request, call: Callable[[Request], Any]) -> Response:
        began = time.perf_counter()
        response: Response = await call(request)
        path = request.url.path if request.url.path in known else "other"
        requests.labels(path, response.status_code).inc()
        seconds.labels(path).observe(time.perf_counter() - began)
        return response


def _answer_errors(app: FastAPI) -> None:
    """Errors as text-embeddings-inference has them. They never repeat what a client sent."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"][1:] if part in _FIELDS) or "the body"
        why = f'{place}: {problem["msg"]}. Remedy: send {{"inputs": "a text"}}, as /docs describes'
        return JSONResponse({"error": why, "error_type": "validation"}, 422)

    @app.exception_handler(FullError)
    async def full(_: Request, error: FullError) -> JSONResponse:
        why = f"too many texts wait. Remedy: ask again after {error.seconds} s"
        return JSONResponse({"error": why, "error_type": "overloaded"}, 429, {"Retry-After": str(error.seconds)})

    @app.exception_handler(HTTPException)
    async def failed(_: Request, error: HTTPException) -> JSONResponse:
        kind = "backend" if error.status_code >= 500 else "validation"
        return JSONResponse({"error": error.detail, "error_type": kind}, error.status_code, error.headers)
