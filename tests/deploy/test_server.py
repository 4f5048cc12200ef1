import asyncio
import importlib.util
import socket
from typing import Any

import pytest

if importlib.util.find_spec("uvicorn") is None:
    pytest.skip("Gradio is not installed", allow_module_level=True)

from mnist_lightning.deploy.server import Gate, listen, names_of


async def page(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


def status(gate: Gate, host: str, origin: str | None) -> int:
    """Status of the answer to a request for the page."""
    headers = [(b"host", host.encode()), *([(b"origin", origin.encode())] if origin else [])]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(gate(scope, None, send))  # type: ignore[arg-type]
    code: int = sent[0]["status"]
    return code


MACHINE = socket.gethostname()


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("192.0.2.1:7860", "http://192.0.2.1:7860", 200),
        ("[2001:db8::1]:7860", None, 200),
        (f"{MACHINE}:7860", f"http://{MACHINE}:7860", 200),
        ("localhost:7860", None, 200),
        ("evil.example", None, 403),
        ("192.0.2.1.evil.example", None, 403),
        ("192.0.2.1:7860", "http://evil.example", 403),
        ("192.0.2.1:7860", "http://192.0.2.2:7860", 403),
        ("", None, 403),
    ],
)
def test_a_server_for_other_machines_has_the_names_of_the_machine(host: str, origin: str | None, expected: int) -> None:
    with listen("0.0.0.0", 0) as listener:
        gate = Gate(page, "/", "/question", 9, *names_of(listener, "0.0.0.0"))
    assert status(gate, host, origin) == expected
