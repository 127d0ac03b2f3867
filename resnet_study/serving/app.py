"""Models on 127.0.0.1: a page to try them, and the same answers as JSON with an OpenAPI description. Needs the extra `serve`.

make_app(models)      the application, for any ASGI server
listen(port)          takes a port, before the models are loaded
serve(models, ...)    runs it until Ctrl-C

An image is the body of the request as it is, so nothing of it touches a disk. What arrives is limited: bytes, pixels, seconds, and how
many are in memory at a time; others wait for their turn.
"""

import asyncio
import socket

import fastapi
import fastapi.exceptions
import uvicorn
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from resnet_study import devices
from resnet_study.errors import UsageError, one_line
from resnet_study.reports.page import render_page
from resnet_study.serving.served_model import MOST_PIXELS, ModelError, ServedModel
from resnet_study.strings import as_text

HOST = "127.0.0.1"
_LARGEST_UPLOAD = 20_000_000  # bytes
_SECONDS_TO_ARRIVE = 30
_ARRIVING = 16  # images in memory
_COMPUTING = 4  # images that are decoded and answered at a time; one of 16 bits may take 1.3 GB


class Guess(BaseModel):
    class_name: str
    probability: float = Field(description="0..1")


class Head(BaseModel):
    name: str = Field(description="empty for a model with one head")
    guesses: list[Guess] = Field(description="the most likely first")
    heat: str | None = Field(description="Grad-CAM of the first guess, laid over the image; a data URI")


class Neighbour(BaseModel):
    class_name: str
    place: int = Field(description="in the training part, 0-based")
    similarity: float = Field(description="cosine of the features before the classifier, -1..1")
    source: str = Field(description="the image, a data URI")


class Answer(BaseModel):
    model: str
    problem: str | None = Field(
        None, description="why this model could not answer, while others could; it then has no heads"
    )
    milliseconds: float | None = Field(
        None, description="time of the forward pass, with that of waiting for other requests"
    )
    heads: list[Head] = []
    seen: str | None = Field(None, description="the image as the network gets it, a data URI; with details")
    neighbours: list[Neighbour] | None = Field(None, description="the nearest training images; with details")


class Answers(BaseModel):
    answers: list[Answer] = Field(description="one of each model")


class Model(BaseModel):
    name: str
    runtime: str
    input_shape: tuple[int, int, int] = Field(description="height, width, channels")
    class_names: dict[str, list[str]] = Field(description="of each head")
    neighbours: int = Field(description="training images that are searched for the nearest")


class Problem(BaseModel):
    detail: str = Field(description="one line: what was expected, what was received, what to do")


_PROBLEMS = {
    400: "no image that can be read", 404: "no such model", 408: "the image took too long to arrive",
    403: "a page of another site asks", 413: "the image has too many bytes", 415: "a form in the place of an image", 422: "a parameter that cannot be used", 500: "no model could answer",
}  # fmt: skip
_BODY = {
    "required": True,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    "description": f"the bytes of one image file, at most {_LARGEST_UPLOAD:,}, with at most {MOST_PIXELS:,} pixels",
}


def make_app(models: list[ServedModel]) -> fastapi.FastAPI:
    """The application: `/` the page, `/api/models`, `/api/predict`, `/openapi.json`.

    Args:
        models: each answers about every image.
    """
    # The pages of FastAPI that show a description load their scripts from elsewhere.
    app = fastapi.FastAPI(title="resnet-study", description="Trained models that classify images.", docs_url=None, redoc_url=None)  # fmt: skip
    # A page of a stranger that has its own name lead to this machine is not answered.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    arriving, computing = asyncio.Semaphore(_ARRIVING), asyncio.Semaphore(min(_COMPUTING, devices.count_cores()))
    page = render_page(
        "serve.html", {}, title="Try a model", name=", ".join(model.name for model in models), models=models
    )
    page = as_text(page)  # names of files need not be text

    @app.exception_handler(fastapi.exceptions.RequestValidationError)
    def refuse_parameters(_request, error):
        found = error.errors()[0]
        return JSONResponse(
            {"detail": f"{'.'.join(map(str, found['loc']))}: {found['msg']}, received {found.get('input')!r}"}, 422
        )

    @app.exception_handler(Exception)
    def tell_failure(_request, error):
        return JSONResponse({"detail": as_text(f"the program failed: {one_line(error)}; see its terminal")}, 500)

    @app.get("/", response_class=HTMLResponse, summary="A page to try the models")
    def show_page():
        return HTMLResponse(page, headers={"Content-Security-Policy": "frame-ancestors 'none'"})

    @app.get("/api/models", summary="What the models are")
    def list_models() -> list[Model]:
        counts = [each.neighbours.count if each.neighbours else 0 for each in models]
        return [
            Model(
                name=each.name,
                runtime=each.runtime,
                input_shape=each.input_shape,
                class_names=each.class_names,
                neighbours=count,
            )
            for each, count in zip(models, counts, strict=True)
        ]

    @app.post(
        "/api/predict",
        summary="What the models say of one image",
        responses={status: {"model": Problem, "description": text} for status, text in _PROBLEMS.items()},
        openapi_extra={"requestBody": _BODY},
    )
    async def predict(
        request: fastapi.Request,
        model: str | None = fastapi.Query(None, description="name of one model; without it all answer"),
        top: int = fastapi.Query(5, ge=1, le=1000, description="classes to name"),
        details: bool = fastapi.Query(
            False, description="tell what the network saw, heat maps and nearest training images, too"
        ),
    ) -> Answers:
        asked = [each for each in models if model in (None, each.name)]
        try:
            _check(request, models, model, asked)
        except fastapi.HTTPException:
            # Who is answered without having sent all sees a reset connection instead.
            await _receive(request, keeps=False)
            raise
        async with arriving:
            content = await _receive(request)
            async with computing:
                answers = [await run_in_threadpool(_answer, each, content, top, details) for each in asked]
        if all(answer.get("problem") for answer in answers):
            raise fastapi.HTTPException(500, answers[0]["problem"])
        return {"answers": answers}

    return app


def _check(request, models, model, asked):
    """Refuses what is not answered, whatever its image."""
    if not asked:
        raise fastapi.HTTPException(
            404, f"model must be {' or '.join(each.name for each in models)}, received {model!r}"
        )
    if unknown := sorted(set(request.query_params) - {"model", "top", "details"}):
        raise fastapi.HTTPException(422, f"parameters are model, top and details, received {unknown[0]}; leave it out")
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        raise fastapi.HTTPException(
            415,
            "expected the bytes of an image as the body, received a form; send them as curl --data-binary @FILE does",
        )
    # A browser says so where a page of a stranger asks.
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise fastapi.HTTPException(403, "pages of other sites are not answered; open the page of this program")


def _answer(model, content, top, details):
    """What one model says of an image, or why it could not answer."""
    try:
        return model.answer(content, top, details)
    except UsageError as error:
        raise fastapi.HTTPException(400, as_text(" ".join(str(error).split()))) from error
    except ModelError as error:
        return {"model": model.name, "problem": as_text(" ".join(str(error).split()))}


async def _receive(request, keeps: bool = True) -> bytes:
    """The body of a request, received to its end; where it is not kept, b""."""
    content, received = bytearray(), 0
    try:
        async with asyncio.timeout(_SECONDS_TO_ARRIVE):
            async for piece in request.stream():
                received += len(piece) if keeps else 0
                if keeps and received <= _LARGEST_UPLOAD:
                    content += piece
    except TimeoutError:
        raise fastapi.HTTPException(
            408, f"the image did not arrive within {_SECONDS_TO_ARRIVE} s; send it again"
        ) from None
    except ClientDisconnect:
        raise fastapi.HTTPException(400, "the image is cut off: its sender has gone; send it again") from None
    if received > _LARGEST_UPLOAD:
        raise fastapi.HTTPException(413, f"the image has more than {_LARGEST_UPLOAD:,} bytes; give a smaller one")
    return bytes(content)


def listen(port: int) -> socket.socket:
    """A socket on a port of 127.0.0.1, 0 = any that is free. Raises UsageError where it is taken."""
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise UsageError(f"port {port} cannot be used ({one_line(error)}); give another --port, 0 for any") from error


def serve(models: list[ServedModel], listening: socket.socket) -> None:
    """Answers until Ctrl-C.

    Args:
        models: see `make_app`.
        listening: of `listen`.
    """
    address = f"http://{HOST}:{listening.getsockname()[1]}"
    print(f"try the model at {address}, described in {address}/openapi.json; Ctrl-C ends it", flush=True)
    uvicorn.Server(uvicorn.Config(make_app(models), log_level="warning", timeout_graceful_shutdown=2)).run(
        sockets=[listening]
    )
