"""The app's HTTP server: limits what strangers may request, how much they may send, and how long they may wait."""

import asyncio
import logging
import re
import socket
from ipaddress import ip_address
from threading import Thread
from time import sleep

import uvicorn
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

_MAX_CONNECTIONS = 64  # far below the usual limits of open files, 256 and 1024
_REQUEST_SECONDS = 5  # until a connection has sent the headers of a request
_ANSWER_SECONDS = 60  # from then until the answer is sent
_SECURITY = [
    # Gradio compiles its templates.
    ("content-security-policy", "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "same-origin"),
]


class Gate:
    """ASGI middleware that blocks all requests except for files of the page and questions.

    Questions are answered one at a time, so their memory does not add up.

    Args:
        app: ASGI app behind the gate.
        files: Regular expression of the paths of the page's files.
        endpoint: Path that takes questions: POST requests with JSON.
        max_bytes: Size limit of a question.
        names: Host names, in lower case, by which browsers may address the server.
        any_address: Whether browsers may also address it by any IP address.
    """

    def __init__(
        self, app: ASGIApp, files: str, endpoint: str, max_bytes: int, names: set[str], any_address: bool
    ) -> None:
        self.app = app
        self.files = re.compile(files)
        self.endpoint = endpoint
        self.max_bytes = max_bytes
        self.names = names
        self.any_address = any_address
        self.turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers it with an error."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif problem := self._problem(scope):
            await problem(scope, receive, send)
        elif scope["method"] != "POST":
            await self.app(scope, receive, send)
        elif (body := await self._body(receive)) is None:
            await self._too_large()(scope, receive, send)
        else:
            messages = [{"type": "http.request", "body": body}]

            async def replay() -> Message:
                return messages.pop() if messages else await receive()

            async with self.turn:
                await self.app(scope, replay, send)

    def _problem(self, scope: Scope) -> PlainTextResponse | None:
        """The answer to a request whose head is enough to refuse it."""
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        length = headers.get("content-length", "")
        if not self._is_addressed(headers):
            return PlainTextResponse("the Host or Origin header names another server", 403)
        if method in ("GET", "HEAD") and ".." not in path and self.files.fullmatch(path):
            return None
        if (method, path, headers.get("content-type")) != ("POST", self.endpoint, "application/json"):
            return PlainTextResponse("not found", 404)
        return None if length.isdecimal() and int(length) <= self.max_bytes else self._too_large()

    def _too_large(self) -> PlainTextResponse:
        return PlainTextResponse(f"a request must state its length, at most {self.max_bytes} bytes", 413)

    def _is_addressed(self, headers: Headers) -> bool:
        """Whether the browser addressed this server, and from its own page. Foreign names may lead to our address."""
        host = headers.get("host", "").lower()
        parts = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::\d+)?", host)
        name = (parts[1] or parts[2]) if parts else ""
        is_ours = name in self.names or (self.any_address and _is_address(name))
        return is_ours and headers.get("origin", f"http://{host}").lower() in (f"http://{host}", f"https://{host}")

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body, or None if it breaks off or is too large, whatever length the request states."""
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if message["type"] == "http.disconnect" or len(body) > self.max_bytes:
                return None
        return bytes(body)


class _Connection(H11Protocol):
    """A connection that is closed if it idles, sends too slowly, or is the oldest idle one of too many."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > _MAX_CONNECTIONS:
            oldest = min(self.connections, key=lambda one: (one.is_answered(), one.since))  # type: ignore[union-attr]
            self.connections.discard(oldest)
            oldest.transport.abort()

    def is_answered(self) -> bool:
        """Whether a whole request has arrived and waits for its answer."""
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.timer.cancel()
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.timer.cancel()

    def _await_request(self) -> None:
        self.since = self.loop.time()
        self.timer = self.loop.call_later(_REQUEST_SECONDS, self._await_answer)

    def _await_answer(self) -> None:
        is_sending = self.transport.get_write_buffer_size() > 0
        if self.cycle is None or (self.cycle.response_complete and not is_sending):
            self.transport.close()
        else:
            self.timer = self.loop.call_later(_ANSWER_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Answers garbage without a body, which has no type to guess."""
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()


class Server(uvicorn.Server):
    """A server in a thread.

    Args:
        app: ASGI app.
        listener: Bound socket.

    Attributes:
        thread: Thread that serves.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            log_level="error",
            access_log=False,
            server_header=False,
            headers=_SECURITY,
            backlog=16,  # the number of connections that asyncio accepts before it closes any
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self.thread = Thread(target=self.run, args=([listener],), daemon=True)
        self.thread.start()
        while not self.started and self.thread.is_alive():
            sleep(0.01)
        listener.listen(1024)  # the number of connections that wait; uvicorn takes one number for both

    def close(self) -> None:
        """Stops the server within two seconds; requests that are not answered by then fail."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # such requests are no errors
        self.should_exit = True
        self.thread.join(timeout=2)


def listen(host: str, port: int) -> socket.socket:
    """Binds a socket.

    Args:
        host: Name or address.
        port: TCP port.

    Raises:
        OSError: If the address is unknown or in use.
    """
    family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def names_of(listener: socket.socket, host: str) -> tuple[set[str], bool]:
    """Finds the names by which browsers may address a server.

    A page of another site can reach this server if its name leads to our address (DNS rebinding), but browsers then
    send that name. A name in the form of an IP address cannot lead elsewhere, so a server for other machines takes any.

    Args:
        listener: Bound socket.
        host: Host that the user asked for.

    Returns:
        Names in lower case, and whether any IP address will do, too.
    """
    names = {"localhost", "127.0.0.1", "::1", host.lower()}
    if ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback:
        return names, False
    machine = socket.gethostname().lower()
    short = machine.partition(".")[0]
    return names | {machine, short, f"{short}.local"}, True


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
