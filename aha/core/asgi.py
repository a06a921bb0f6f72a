"""What the two guards (of the page of `aha demo` and of `aha serve`) do alike with the answers of the application behind them.

Plain ASGI, since the web framework is an optional package.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

WRONG_SECRET_SECONDS = 1.0  # that a wrong password or token waits for its refusal, so that guessing is slow


def with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    """`send` that adds these headers to every answer that has none of the name, and takes out those that would let pages of other sites
    read it (Access-Control-*)."""
    ours = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]

    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(name, value) for name, value in message.get("headers", ()) if not name.lower().startswith(b"access-control-")]
            there = {name.lower() for name, _ in kept}
            message = {**message, "headers": [*kept, *((name, value) for name, value in ours if name not in there)]}
        await send(message)

    return add
