"""What the two guards (of the page of `aha demo` and of `aha serve`) do alike with the answers of the application behind them."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

WRONG_SECRET_SECONDS = 1.0  # that a wrong password or token waits for its refusal, so that guessing is slow


def with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    """`send` that adds these headers to every answer that has none of the name, and takes out those that would let pages of other sites
    read it (Access-Control-*)."""

    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            answered = MutableHeaders(scope=message)
            for name in [name for name in answered if name.lower().startswith("access-control-")]:
                del answered[name]
            for name, value in headers.items():
                answered.setdefault(name, value)
        await send(message)

    return add
