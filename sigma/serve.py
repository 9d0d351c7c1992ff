"""A server of what trained models recommend: ``python -m sigma.serve run=<folder> [run=<folder>]``.

``/`` is a page to try them on, ``/docs`` describes the interface. Histories that come within a few
milliseconds of each other are scored together. Needs the extra ``serve``.
"""

import argparse
import asyncio
import gc
import hmac
import ipaddress
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from sigma.errors import UserError, excerpt
from sigma.models.sigma import SigmaLayer
from sigma.recommender import Recommender
from sigma.runs.messages import explained
from sigma.runs.trust import packages

try:
    import prometheus_client as prometheus
    import uvicorn
    from fastapi import FastAPI, Query, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import FileResponse, JSONResponse, Response
    from starlette.exceptions import HTTPException
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from sigma.batcher import Answers, Batcher, Question
except ImportError as missing:
    raise SystemExit(
        f"error: sigma.serve needs a package that is not here ({missing.name}); install the extra: "
        "pip install -e '.[serve]'"
    ) from None

PAGE = Path(__file__).with_name("serve.html")
MOST_BYTES = 1 << 20  # of a request's body
TOKEN = "SIGMA_TOKEN"
PATHS = ("/", "/recommend", "/items", "/runs", "/health", "/metrics", "/docs", "/openapi.json")


def described(recommender: Recommender) -> dict[str, Any]:
    """What ``/runs`` says of a run."""
    config: Any = recommender.run.config
    layer: Any = next(iter(getattr(recommender.model, "layers", ())), None)
    flips = isinstance(layer, SigmaLayer) and layer.partial_flip
    return {
        "model": str(config.model.get("name")),
        "dataset": recommender.data.name,
        "seed": config.seed,
        "items": len(recommender.items),
        "max_length": recommender.data.max_length,
        "r": int(layer.r) if flips else None,  # items that the flip keeps in place
    }


class Search:
    """Looks for items by id or title, the most popular first."""

    def __init__(self, recommender: Recommender) -> None:
        self.names, self.titles = recommender.items.to_numpy(), recommender.titles
        titles = np.empty(0) if self.titles is None else self.titles
        self.plain = np.array([str(title).casefold() for title in titles], dtype=str)
        counts = recommender.counts.cpu().numpy()
        self.order = np.argsort(-counts, kind="stable")

    def __call__(self, text: str, limit: int) -> list[dict[str, Any]]:
        """Items whose id is the text, or whose title holds it; all of them without a text."""
        fits = np.full(len(self.names), not text) | (self.names == text)
        if text and self.titles is not None:
            fits |= np.char.find(self.plain, text.casefold()) >= 0
        places = self.order[fits[self.order]][:limit]
        titles = [None] * len(places) if self.titles is None else self.titles[places]
        pairs = zip(self.names[places], titles, strict=True)
        return [{"item": name, "title": title} for name, title in pairs]


def sentence(error: RequestValidationError) -> str:
    """What is wrong with a request, and where."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    if first["type"] == "json_invalid":
        return f"The body is not JSON: {first['ctx']['error']}."
    return f"{excerpt(place, 80) or 'The body'}: {excerpt(first['msg'], 200)}."


class Server:
    """The application around some recommenders, by name.

    Args:
        token: that requests must bear; None for none.
    """

    def __init__(self, recommenders: dict[str, Recommender], token: str | None = None) -> None:
        self.recommenders, self.token = recommenders, token
        self.searches = {name: Search(of) for name, of in recommenders.items()}
        self.metrics = prometheus.CollectorRegistry()
        sizes = prometheus.Histogram(
            "sigma_batch_histories",
            "Histories scored together",
            ["run"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self.metrics,
        )
        self.batchers = {name: Batcher(of, sizes.labels(name)) for name, of in recommenders.items()}
        self.seconds = prometheus.Histogram(
            "sigma_request_seconds",
            "Time to answer",
            ["path", "status"],
            buckets=(0.002, 0.005, 0.01, 0.02, 0.04, 0.1, 0.3, 1, 3),
            registry=self.metrics,
        )
        self.app = FastAPI(
            title="SIGMA", summary="What trained models recommend", lifespan=self.lifespan
        )
        self.app.add_middleware(self.guarded)
        self.app.exception_handler(RequestValidationError)(self.refused)
        self.app.exception_handler(HTTPException)(self.refused)
        add = self.app.add_api_route
        add("/recommend", self.recommend, methods=["POST"], response_model=Answers)
        add("/items", self.items)
        add("/runs", self.runs)
        add("/health", self.health)
        add("/metrics", self.measured, include_in_schema=False)
        add("/", self.page, include_in_schema=False)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Score while the server runs; it ends when all requests are answered."""
        with ThreadPoolExecutor(1) as pool:
            tasks = [asyncio.create_task(b.run(pool)) for b in self.batchers.values()]
            yield
            for task in tasks:
                task.cancel()

    def guarded(self, app: ASGIApp) -> ASGIApp:
        """The application behind ``objection``, and measured.

        It is plain ASGI: Starlette's ``BaseHTTPMiddleware`` took two thirds of a request's time.
        """

        async def guard(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return await app(scope, receive, send)
            start, status = time.perf_counter(), 500

            async def noted(message: Message) -> None:
                nonlocal status
                status = message.get("status", status)
                await send(message)

            try:
                await (self.objection(Request(scope)) or app)(scope, receive, noted)
            finally:
                path = scope["path"] if scope["path"] in PATHS else "other"
                self.seconds.labels(path, status).observe(time.perf_counter() - start)

        return guard

    def objection(self, request: Request) -> Response | None:
        """The answer to who has no token, and to what is too large."""
        length = request.headers.get("content-length", "")
        open_to_all = self.token is None or request.url.path in ("/", "/health")
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not open_to_all and not hmac.compare_digest(given.encode(), str(self.token).encode()):
            return refusal(401, "This server wants a token: Authorization: Bearer <token>.")
        if request.method == "POST" and not length.isdigit():
            return refusal(411, "Say the body's length: Content-Length.")
        if length.isdigit() and int(length) > MOST_BYTES:
            return refusal(413, f"The body has more than {MOST_BYTES:,} bytes; ask in parts.")
        return None

    async def refused(self, request: Request, reason: Exception) -> Response:
        """One sentence for what cannot be answered."""
        if isinstance(reason, RequestValidationError):
            return refusal(422, sentence(reason))
        assert isinstance(reason, HTTPException)
        return refusal(reason.status_code, f"{reason.detail}.")

    def name_of(self, run: str | None) -> str:
        """The run that is asked, by default the first."""
        name = run or next(iter(self.recommenders))
        if name not in self.recommenders:
            raise HTTPException(422, f"run: there is no {excerpt(name)}; GET /runs lists them")
        return name

    async def recommend(self, question: Question) -> Response:
        """What comes next after each history."""
        name = self.name_of(question.run)
        results = await self.batchers[name].ask(question)
        return JSONResponse({"run": name, "results": results})

    async def items(
        self,
        q: Annotated[str, Query(max_length=200)] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        run: str | None = None,
    ) -> Response:
        """Items whose id is, or whose title holds, what is searched for; the popular ones first."""
        search = self.searches[self.name_of(run)]
        return JSONResponse(await asyncio.to_thread(search, q, limit))

    async def runs(self) -> Response:
        """The runs that answer, and what they are."""
        return JSONResponse({name: described(of) for name, of in self.recommenders.items()})

    async def health(self) -> Response:
        """Whether the server answers."""
        return JSONResponse({"status": "ok", "runs": list(self.recommenders)})

    async def measured(self) -> Response:
        return Response(prometheus.generate_latest(self.metrics), media_type="text/plain")

    async def page(self) -> Response:
        return FileResponse(PAGE)


def refusal(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)


def loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listener(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        UserError: another program has the port, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = excerpt(getattr(error, "strerror", None) or error)
        raise UserError(
            f"host={excerpt(host)} port={port} cannot be had ({reason}); give another, such as "
            "port=8001."
        ) from None


def names_of(runs: Sequence[Path], recommenders: Sequence[Recommender]) -> list[str]:
    """What the runs are called: by their model, of several of one model by their folder."""
    models = [str(recommender.run.config.model.get("name")) for recommender in recommenders]
    folders = [run.resolve().name for run in runs]
    names = [m if models.count(m) == 1 else f for m, f in zip(models, folders, strict=True)]
    return [n if names.count(n) == 1 else f"{n} {i}" for i, n in enumerate(names, 1)]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m sigma.serve", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--run", type=Path, action="append", required=True, help="a run's folder; may come again")
    add("--path", help="the raw data, where it does not lie any more where it was")
    add("--allow", default="", help="packages of your own, parted by commas")
    add("--device", default="auto", help="cpu or cuda")
    add("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    add("--port", type=int, default=8000)
    typed = parser.parse_args([a if a.startswith("-") else f"--{a}" for a in arguments])
    token = os.environ.get(TOKEN) or None
    with explained():
        address = listener(typed.host, typed.port)
        options = (typed.path, typed.device, packages(typed.allow))
        recommenders = [Recommender.load(run, *options) for run in typed.run]
        server = Server(
            dict(zip(names_of(typed.run, recommenders), recommenders, strict=True)), token
        )
    if token is None and not loopback(typed.host):
        print(f"Anyone who reaches {typed.host} may ask; set {TOKEN} for a bearer token.")
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))  # one is left for the requests
    gc.collect()
    gc.freeze()  # to look through half a million objects for garbage would stop all requests
    place = f"http://{typed.host}:{address.getsockname()[1]}"
    print(f"Serving {', '.join(server.recommenders)}: {place}", flush=True)
    config = uvicorn.Config(server.app, log_level="warning", timeout_graceful_shutdown=30)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[address])


if __name__ == "__main__":
    main(sys.argv[1:])
