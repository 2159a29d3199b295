"""What stands before every request of the page: whose it may be, what it may carry, how it leaves.

Gradio's own limits hold for the page's script only; these hold for whatever comes.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import itertools
import json
import os
import re
import socket
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response

from vidllm.errors import InputError

from .arguments import short
from .events import ARRIVED
from .host import Host
from .uploads import FULL, Uploads

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_API = "/gradio_api/"
#: What the page's script posts beside uploads; all else that Gradio would take is not offered.
_EVENTS, _CONTROLS = ("queue/join", "run/predict"), ("cancel", "reset")
_NAMED = re.compile(r"(?:run|api|call|call/v2)/([^/]+)/?")
_MOST_JSON = 262_144
#: Beside the bytes of a file: what a form says of it.
_FORM = 16_384
_INLINE = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.S)
# Gradio's HTML component compiles its template, which is "unsafe-eval"; inline scripts run only
# where they are the page's own, by their hashes.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval' {scripts}; "
    "style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors {above}"
)
_FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"


class Refused(Exception):
    """A request that is not served, with its status and a line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


class Gate:
    """The limits of a page's requests.

    Args:
        host: the model and its visitors. uploads: their files.
        names: under which the page is reached, beside addresses and this machine's own names.
    """

    def __init__(self, host: Host, uploads: Uploads, names: tuple[str, ...]) -> None:
        self.host, self.uploads = host, uploads
        space = os.environ.get("SPACE_HOST", "")
        given = (*names, *host.settings.hosts, *space.split(","))
        self.named = {name.strip().lower() for name in given if name.strip()}
        self.own = {"localhost", "", socket.gethostname().lower()}
        self.framed = "'self' https://huggingface.co" if space else "'self'"
        self.page: gr.Blocks | None = None
        self._arrivals = itertools.count(1)

    def middleware(self, app: Any) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """The application behind the gate."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            out = _Answer(send, scope["path"], self.framed)
            try:
                await self._serve(app, scope, receive, out)
            except Refused as no:
                await self._refuse(no, scope, receive, out)

        return serve

    async def _refuse(self, no: Refused, scope: Scope, receive: Receive, out: _Answer) -> None:
        if out.begun:
            return
        json_wanted = not scope["path"].endswith("/upload")
        told: Response = PlainTextResponse(no.line, no.status)
        if json_wanted and scope["method"] == "POST":
            told = JSONResponse({"detail": no.line, "error": no.line}, no.status)
        await told(scope, receive, out)

    async def _serve(self, app: Any, scope: Scope, receive: Receive, out: _Answer) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        self.check_origin(headers, scope["method"])
        name = path.split(_API, 1)[1].strip("/") if _API in path else ""
        if name.startswith(("proxy=", "file=http:", "file=https:")):
            raise Refused(403, "this page fetches nothing from elsewhere")
        if scope["method"] == "POST":
            if name == "upload":
                await self._upload(app, scope, receive, out)
                return
            body = await _whole(receive, headers)
            self.check_post(name, body)
            scope[ARRIVED] = next(self._arrivals)
            receive = _again(body, receive)
        if name.startswith("heartbeat/"):
            with self.host.sessions.present(name.split("/")[1]):
                await app(scope, receive, out)
            return
        await app(scope, receive, out)

    def check_origin(self, headers: Headers, method: str) -> None:
        """Raise `Refused` for a host that is not the page's, and for a change from another page."""
        host = headers.get("host", "")
        name = (urlsplit(f"//{host}").hostname or "").lower()
        if not (name in self.own or name in self.named or _address(name)):
            raise Refused(
                403, f"this page is not served as {short(name)}: start it with --allow-host"
            )
        if method in ("GET", "HEAD", "OPTIONS"):
            return
        origin = headers.get("origin")
        if origin is None:
            foreign = headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
        else:
            found = urlsplit(origin)
            foreign = found.netloc.lower() != host.lower() and found.hostname not in self.named
        if foreign:
            raise Refused(403, "another site's page may not use this one")

    def check_post(self, name: str, body: bytes) -> None:
        """Raise `Refused` for an event that the page does not offer, or with wrong inputs."""
        named = _NAMED.fullmatch(name)
        if name in _CONTROLS:
            return
        if name not in _EVENTS and named is None:
            raise Refused(404, "this page takes no such request")
        try:
            told = json.loads(body)
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict) or not isinstance(told.get("data", []), list):
            raise Refused(400, "an event is a JSON object with a list of inputs, data")
        functions: Mapping[Any, Any] = {} if self.page is None else self.page.fns
        if name in _EVENTS:
            number, visit = told.get("fn_index"), told.get("session_hash")
            known = isinstance(number, int) and not isinstance(number, bool)
            function = functions.get(number) if known else None
            if function is None:
                raise Refused(400, f"the page has no event {short(number)}")
            if not isinstance(visit, str) or not 1 <= len(visit) <= 64:
                raise Refused(400, "session_hash must be a text of 1 to 64 characters")
        else:
            wanted = named[1] if named else ""
            public = (
                f for f in functions.values()
                if f.api_name == wanted and f.api_visibility == "public"
            )  # fmt: skip
            function = next(public, None)
            if function is None:
                raise Refused(404, "the page offers no such call: use the Python API of vidllm")
        self.check_inputs(function.inputs, told.get("data", []))

    def check_inputs(self, components: Sequence[Any], data: Sequence[Any]) -> None:
        """Raise `Refused` where an input is not what its component gives."""
        if len(data) != len(components):
            raise Refused(400, f"the event has {len(components)} inputs, got {len(data)}")
        for component, value in zip(components, data, strict=True):
            name = getattr(component, "label", None) or "an input"
            if isinstance(component, gr.Slider):
                right = isinstance(value, (int, float)) and not isinstance(value, bool)
                wanted = f"a number from {component.minimum:g} to {component.maximum:g}"
                right = right and component.minimum <= value <= component.maximum
            elif isinstance(component, (gr.Textbox, gr.Dropdown)):
                right, wanted = isinstance(value, str), "a text"
            elif isinstance(component, gr.Video):
                right = value is None or (
                    isinstance(value, dict) and isinstance(value.get("path"), str)
                )
                wanted = "an uploaded file, or null"
            else:
                continue
            if not right:
                raise Refused(400, f"{name}: this must be {wanted}, got {short(value)}")

    async def _upload(self, app: Any, scope: Scope, receive: Receive, out: _Answer) -> None:
        most = self.host.settings.upload_bytes
        told = Headers(scope=scope).get("content-length", "")
        size = int(told) if told.isascii() and told.isdigit() and len(told) < 19 else most + _FORM
        line = f"the file is larger than the {most / 1e6:g} MB that this page takes"
        if size > most + _FORM:
            raise Refused(413, line)
        came = 0

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > size:
                raise Refused(413, line)
            return message

        try:
            with self.uploads.coming(size):
                await app(scope, counted, out)
        except InputError as no:
            raise Refused(507, str(no)) from None
        except OSError as error:
            if error.errno not in FULL:
                raise
            traceback.print_exception(error, limit=1)
            raise Refused(507, "the server has no room for this file: try again later") from error


class _Answer:
    """`send` with the headers of the page; HTML is held back until its scripts are known."""

    def __init__(self, send: Send, path: str, framed: str) -> None:
        self._send, self._framed, self.begun = send, framed, False
        self._file = f"{_API}file=" in path
        self._page: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "same-origin"
            html = headers.get("content-type", "").startswith("text/html")
            if html and not self._file:
                self._page = message
                return
            policy = _FILE_POLICY if self._file else _POLICY.format(scripts="", above=self._framed)
            headers["Content-Security-Policy"] = policy
        elif self._page is not None:
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            hashes = " ".join(
                f"'sha256-{_digest(script)}'" for script in _INLINE.findall(self._body)
            )
            MutableHeaders(scope=self._page)["Content-Security-Policy"] = _POLICY.format(
                scripts=hashes, above=self._framed
            )
            await self._send(self._page)
            self._page = None
            message = {**message, "body": self._body}
        await self._send(message)


def _digest(script: bytes) -> str:
    # As a browser reads it: line ends are normalised before a script is hashed.
    plain = script.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return base64.b64encode(hashlib.sha256(plain).digest()).decode()


async def _whole(receive: Receive, headers: Headers) -> bytes:
    body, line = b"", "the request is too long"
    if headers.get("content-length", "0").isdigit() and int(headers.get("content-length", 0)) > (
        _MOST_JSON
    ):
        raise Refused(413, line)
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _MOST_JSON:
            raise Refused(413, line)
        if not message.get("more_body"):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def give() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return give


def _address(name: str) -> bool:
    """Whether a host is a number: no other site's name can lead to it."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
