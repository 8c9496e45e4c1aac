"""The ASGI application of `unetpp view`: addresses, access and headers; what they answer is made elsewhere.

Addresses hold ids that the catalogue gave out, numbers and names of layers, never paths. Everything but a review is
read-only. On this machine the host's name is checked, so that no other web page can reach it by a name of its own;
elsewhere every request needs the token, once in the address and then in a cookie.

What is drawn of labels or said of them is asked for with the version that the page opened, and refused where the labels
are others by now: no tile of one model lies beside those of another, and no verdict is on labels that nobody saw.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import anyio
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unetpp.errors import ConfigError, UnetppError
from unetpp_workflows.viewer import corrections, review
from unetpp_workflows.viewer import tiles as cutting
from unetpp_workflows.viewer.cache import Cache
from unetpp_workflows.viewer.catalogue import Catalogue, Result
from unetpp_workflows.viewer.objects import ObjectFile, open_objects, readable

T = TypeVar("T")
STATIC = Path(__file__).parent / "static"
CACHE_BYTES = 2**27
MAX_BODY_BYTES = 2**18
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def create_app(
    outputs: Sequence[Path],
    *,
    hosts: Sequence[str] = ("localhost", "127.0.0.1", "::1", "[::1]"),
    token: str | None = None,
) -> Starlette:
    """Make the application for some output folders.

    Args:
        hosts: names under which it may be asked; ["*"] where a token guards it.
        token: that every request must show; None needs none.

    Raises:
        ConfigError: no result there, or the page was never built.
    """
    if not (STATIC / "index.html").is_file():
        raise ConfigError(
            "the viewer's page is not built: install npm (Debian: apt install npm), then run `make viewer` in the "
            "checkout; installed wheels hold it"
        )
    viewer = _Viewer(Catalogue(outputs))
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)), Middleware(_Guard, token=token)]
    return Starlette(routes=viewer.routes(), middleware=middleware, exception_handlers=_HANDLERS)


class _Viewer:
    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._tiles: Cache[bytes] = Cache(CACHE_BYTES, len)
        self._objects: Cache[ObjectFile | None] = Cache(4)
        # Decoding keeps a core busy: more threads than this only wait for each other.
        self._limit = anyio.CapacityLimiter(max(4, 2 * (os.cpu_count() or 1)))

    def routes(self) -> list[Route | Mount]:
        one = "/api/images/{id}"
        return [
            Route("/", self.page),
            Route("/api/images", self.images),
            Route(one, self.image),
            Route(one + "/tiles/{layer}/{z:int}/{row:int}/{col:int}", self.tile),
            Route(one + "/objects", self.objects),
            Route(one + "/reviews", self.reviews),
            Route(one + "/reviews", self.add_review, methods=["POST"]),
            Route(one + "/corrections.geojson", self.corrections),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]

    async def page(self, request: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})

    async def images(self, request: Request) -> Response:
        return JSONResponse(await self._thread(self._list))

    def _list(self) -> dict[str, Any]:
        results = self._catalogue.results()
        said = review.verdicts(results)
        return {"images": [{**result.entry(), "verdict": said.get(result.id)} for result in results]}

    async def image(self, request: Request) -> Response:
        result = await self._result(request)
        return JSONResponse(await self._thread(result.details))

    async def tile(self, request: Request) -> Response:
        # The image is the same whatever its labels are: no need to open it again for more of it, or for its thumbnail.
        of_labels = request.path_params["layer"] != "source"
        result = await (self._opened(request) if of_labels else self._result(request))
        make, media = self._tile_maker(request, result)
        place = {name: request.path_params[name] for name in ("layer", "z", "row", "col")}
        asked = (result.id, result.stamp, *place.values(), request.query_params.get("show"))
        # What is being computed changes from look to look; the picture and what is finished do not.
        kept = result.finished or place["layer"] == "source"
        body = await self._thread(lambda: self._tiles.get(asked, make) if kept else make())
        seconds = 3600 if result.finished else 5
        return Response(body, media_type=media, headers={"cache-control": f"private, max-age={seconds}"})

    def _tile_maker(self, request: Request, result: Result) -> tuple[Callable[[], bytes], str]:
        layer, _, plane = request.path_params["layer"].partition(".")
        z, row, col = (request.path_params[name] for name in ("z", "row", "col"))
        reader, classes = self._catalogue.reader(result), result.job.classes
        if layer == "source" and not plane:
            return lambda: cutting.encode_source(reader.source(z, row, col)), "image/jpeg"
        if layer == "labels" and not plane:
            shown = _shown(request, [info.value for info in classes if not info.background])
            return lambda: cutting.encode_labels(reader.labels(z, row, col), classes, shown), "image/png"
        if layer == "uncertainty" and not plane:
            return lambda: cutting.encode_uncertainty(reader.map("uncertainty", 0, z, row, col)), "image/png"
        if layer == "probabilities" and plane.isascii() and plane.isdigit() and int(plane) < len(classes):
            number = int(plane)
            color = classes[number].color
            return (
                lambda: cutting.encode_probability(reader.map("probabilities", number, z, row, col), color),
                "image/png",
            )
        raise HTTPException(404, "no such layer")

    async def objects(self, request: Request) -> Response:
        result = await self._opened(request)
        try:
            x0, y0, x1, y1 = (float(part) for part in request.query_params["box"].split(","))
        except (KeyError, ValueError):
            x0 = y0 = x1 = y1 = math.nan
        if not all(map(math.isfinite, (x0, y0, x1, y1))):
            raise HTTPException(400, "box is x0,y0,x1,y1 in level-0 pixels")
        found = await self._thread(lambda: self._find(result, (x0, y0, x1, y1)))
        return JSONResponse(found)

    def _find(self, result: Result, box: tuple[float, float, float, float]) -> dict[str, Any]:
        with readable(result):
            objects = self._objects.get((result.id, result.stamp), lambda: open_objects(result))
            if objects is None:
                note = "no file of this result can be searched: segment with --formats flatgeobuf"
                note = note if result.finished else "none before the image is finished"
                return {"type": "FeatureCollection", "features": [], "complete": True, "note": note}
            found = objects.within(box)
        return {"type": "FeatureCollection", "features": found.features, "complete": found.complete}

    async def reviews(self, request: Request) -> Response:
        result = await self._result(request)
        return JSONResponse({"reviews": await self._thread(lambda: review.current(result))})

    async def add_review(self, request: Request) -> Response:
        result = await self._opened(request)
        # A page of another origin cannot send this type without being asked for leave, which nobody gives here.
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise HTTPException(415, "a review is application/json")
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise HTTPException(403, "reviews come from the viewer's own page")
        try:
            statement = review.Statement.model_validate_json(await _body(request))
            stored = await self._thread(lambda: review.add(result, statement))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "review"
            raise HTTPException(422, f"{place}: {first['msg'].removeprefix('Value error, ')}") from None
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        return JSONResponse(stored, status_code=201)

    async def corrections(self, request: Request) -> Response:
        result = await self._result(request)
        found = await self._thread(lambda: corrections.collection(result))
        return JSONResponse(found, headers={"content-disposition": 'attachment; filename="corrections.geojson"'})

    async def _result(self, request: Request) -> Result:
        identity = request.path_params["id"]
        try:
            return await self._thread(lambda: self._catalogue.result(identity))
        except KeyError:
            raise HTTPException(404, "no such image") from None

    async def _opened(self, request: Request) -> Result:
        """Return the result whose version the request names, as long as it is the one on the disk."""
        result = await self._result(request)
        version = request.query_params.get("version")
        if version is None:
            raise HTTPException(400, f"version is missing; add the one that /api/images/{result.id} has to the address")
        if version != result.version:
            raise HTTPException(
                409,
                f"{result.name} was segmented anew or finished since it was opened here; open it again in the list, or "
                "reload the page",
            )
        return result

    async def _thread(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work, limiter=self._limit)


class _Guard:
    """Adds headers to every answer and, with a token, refuses requests that do not show it."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token
        # Browsers send a host's cookies to all of its ports: two viewers there need two names.
        self._cookie = f"unetpp_{hashlib.sha256((token or '').encode()).hexdigest()[:12]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        answer = self._refusal(Request(scope)) if self._token is not None else None
        await (answer or self._app)(scope, receive, with_headers)

    def _refusal(self, request: Request) -> Response | None:
        assert self._token is not None
        if _same(request.cookies.get(self._cookie, ""), self._token):
            return None
        if not _same(request.query_params.get("token", ""), self._token):
            return Response("the address needs its token: open the one that unetpp view printed\n", 401)
        rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
        answer = RedirectResponse(request.url.path + (f"?{urlencode(rest)}" if rest else ""), 303)
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
        return answer


def _same(shown: str, token: str) -> bool:
    return secrets.compare_digest(shown.encode(), token.encode())


def _shown(request: Request, default: Sequence[int]) -> frozenset[int]:
    text = request.query_params.get("show")
    if text is None:
        return frozenset(default)
    try:
        return frozenset(int(part) for part in text.split(".") if part)
    except ValueError:
        raise HTTPException(400, "show holds class values with dots between them") from None


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"a review has at most {MAX_BODY_BYTES} bytes")
    return body


async def _not_found(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "no such tile"}, status_code=404)


async def _failed(request: Request, error: Exception) -> Response:
    # The message may name a file of this machine: it stays in the server's own output.
    print(f"{request.url.path}: {error}", flush=True)
    return JSONResponse({"error": "failed; the terminal of unetpp view says why"}, status_code=500)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code)


_HANDLERS: dict[Any, Any] = {HTTPException: _refused, cutting.NoTileError: _not_found, UnetppError: _failed}
