"""An ASGI application that says in its answer's head what it was asked; uvicorn runs it as a program of its own."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Message = Mapping[str, Any]


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Reads the body to its end, and counts it."""
    if scope["type"] != "http":
        return
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    said = [
        (b"content-length", b"0"),
        (b"x-method", scope["method"].encode()),
        (b"x-target", scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")),
        (b"x-length", b"%d" % length),
    ]
    said += [(b"x-host", value) for name, value in scope["headers"] if name == b"host"]
    await send({"type": "http.response.start", "status": 200, "headers": said})
    await send({"type": "http.response.body", "body": b""})
