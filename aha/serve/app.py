"""The routes of `aha serve`: sessions over HTTP and WebSocket; /docs is their page, /openapi.json their description.

    POST   /sessions                  {"query": "a red star", "source": "rtsp://..."}; without a source the client sends pictures
    WS     /sessions/ID/live          binary: pictures in; text out: scores and events, as they are decided
    POST   /sessions/ID/frames        a picture, for those without a WebSocket
    GET    /sessions/ID/messages      scores and events after number `after`, waiting for one if there is none
    POST   /sessions/ID/ask           {"text": "..."}
    POST   /sessions/ID/suspend       and /resume
    DELETE /sessions/ID               its summary
    GET    /metrics, /healthz

FastAPI reads the annotations of the routes, so they are not put off (no `from __future__ import annotations`).
"""

import asyncio
import contextlib
import json
import re
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Header, HTTPException, Query, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field

import aha
from aha.api import LONGEST_QUERY
from aha.core.hosts import Hosts
from aha.errors import UserError
from aha.serve.engine import Refused
from aha.serve.guard import Guard, check_address
from aha.serve.limits import CANNOT_READ, GONE, SHUTS, TEXT_BYTES, WRONG_IN_A_ROW
from aha.serve.sessions import Session, Sessions

LONGEST_WAIT = 30.0  # seconds that a request for messages waits
DESCRIPTION = """Streams in, scores and events out (aha serve).

Beside the requests below there is a WebSocket, `/sessions/ID/live?after=N`. In: pictures (binary messages),
`{"time": seconds of the next picture}`, `{"ask": "a question"}`, `{"finish": true}`. Out: messages as those of `/sessions/ID/messages`."""
NAME = r"[A-Za-z0-9_-]{8,64}"


class NewSession(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    query: str | None = Field(None, max_length=LONGEST_QUERY, description="what to look for, in plain words")
    source: str | None = Field(
        None, max_length=2000, description="address to read from (rtsp://, http://); none: the client sends pictures"
    )
    frame_fps: float | None = Field(None, gt=0, description="frames a second that are scored; of pictures: as many as the client sends")
    raw_size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = Field(
        None, description="width and height of bare RGB pictures, row by row; none: pictures are JPEG or PNG"
    )
    max_alerts_per_hour: float | None = Field(None, gt=0, description="at most so many highlights in an hour")
    live: bool | None = Field(
        None,
        description="frames that come too fast are dropped, the oldest first; if false the sender waits. Default: true, but for files, "
        "which are played at their own speed if true",
    )


class Question(BaseModel):
    text: str = Field(max_length=LONGEST_QUERY)


class About(BaseModel):
    id: str
    state: str = Field(description="open, suspended or ended")
    query: str | None
    source: str | None
    frame_fps: float
    raw_size: tuple[int, int] | None
    frames: int = Field(description="scored so far")
    time: float = Field(description="seconds of the stream at the last of them")
    behind: float = Field(description="seconds from the arrival of the last frame to its score")
    dropped: int = Field(description="frames that came faster than they were scored")
    messages: int = Field(description="number of the newest message")


class Answers(BaseModel):
    answers: list[str] = Field(description="none before the first frame")


class Messages(BaseModel):
    messages: list[dict[str, Any]] = Field(description='each with its number "n" and "event": score, segment, highlight, say, ..., end')
    missed: int = Field(description="messages that are gone, because they were not read in time")
    over: bool = Field(description="no other will come")


def create_app(sessions: Sessions, hosts: Hosts, token: str | None) -> FastAPI:

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sessions.loop = asyncio.get_running_loop()
        caretaker = asyncio.create_task(sessions.look_after())
        yield
        caretaker.cancel()
        await sessions.close_all()

    app = FastAPIOffline(
        title="Aha!", version=aha.__version__, description=DESCRIPTION, lifespan=lifespan,
        redoc_url=None, dependencies=[Depends(HTTPBearer(auto_error=False))] if token else [],
    )  # fmt: skip
    app.add_middleware(Guard, limits=sessions.limits, metrics=sessions.metrics, hosts=hosts, token=token)

    @app.exception_handler(UserError)
    async def told(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, error.status if isinstance(error, Refused) else 422)

    def found(id: str) -> Session:
        session = sessions.find(id) if re.fullmatch(NAME, id) else None
        if session is None:
            raise HTTPException(404, "there is no such session here; it may have ended.")
        session.touch()
        return session

    Found = Annotated[Session, Depends(found)]

    # ---- sessions ----

    @app.post("/sessions", status_code=201, response_model=About)
    async def create(
        new: NewSession,
        x_session_id: Annotated[str | None, Header(pattern=f"^{NAME}$", description="id of your choice, never used before")] = None,
    ) -> Any:
        """A new session. Under Ray Serve the header decides the replica: send it with every request of the session."""
        if new.source is not None:
            await asyncio.to_thread(check_address, new.source, sessions.limits.allow_local_sources)
        session = await sessions.create(x_session_id or uuid.uuid4().hex, **new.model_dump())
        return session.about()

    @app.get("/sessions", response_model=list[About])
    async def list_all() -> Any:
        return [session.about() for session in sessions.all.values()]

    @app.get("/sessions/{id}", response_model=About)
    async def about(session: Found) -> Any:
        return session.about()

    @app.post("/sessions/{id}/frames", status_code=202, openapi_extra={"requestBody": {"content": {"image/jpeg": {}, "image/png": {}}}})
    async def frame(session: Found, request: Request, time: Annotated[float | None, Query(ge=0)] = None) -> dict[str, Any]:
        """A picture (JPEG, PNG, or bare RGB of raw_size), at `time` seconds; `dropped` counts those that came too fast."""
        fits = await session.send(await request.body(), time)
        return {"fits": fits, "dropped": session.now()["dropped"]}

    @app.get("/sessions/{id}/messages", responses={200: {"model": Messages}})
    async def messages(
        session: Found, after: Annotated[int, Query(ge=0)] = 0, wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT)] = 0.0
    ) -> Response:
        session.connections += 1
        try:
            await session.outbox.wait(after, wait)
        finally:
            session.connections -= 1
            session.touch()
        found, missed, at = session.outbox.after(after)
        sessions.metrics.missed += missed
        over = session.outbox.over and session.outbox.last == at
        texts = ", ".join(text for _, text in found)
        return Response(f'{{"messages": [{texts}], "missed": {missed}, "over": {json.dumps(over)}}}', media_type="application/json")

    @app.post("/sessions/{id}/ask", response_model=Answers)
    async def ask(session: Found, question: Annotated[Question, Body()]) -> Any:
        """A question: the model answers from what it has seen, and scores by it from now on."""
        return {"answers": await sessions.ask(session, question.text)}

    @app.post("/sessions/{id}/suspend", response_model=About)
    async def suspend(session: Found) -> Any:
        """Its place is free for others; what waits to be scored is dropped."""
        await sessions.suspend(session)
        return session.about()

    @app.post("/sessions/{id}/resume", response_model=About)
    async def resume(session: Found) -> Any:
        await sessions.resume(session)
        return session.about()

    @app.delete("/sessions/{id}")
    async def close(session: Found) -> dict[str, Any]:
        """The summary, after what was sent is scored. Its last messages can be read for a while."""
        return await sessions.close(session)

    # ---- one session, both ways ----

    @app.websocket("/sessions/{id}/live")
    async def live(socket: WebSocket, id: str, after: int = 0) -> None:
        """Pictures and questions in, scores and events out; several may listen."""
        await socket.accept()
        try:
            session = found(id)
        except HTTPException as error:
            await socket.close(GONE, error.detail)
            return
        session.connections += 1
        tasks = [asyncio.create_task(tell(socket, session, after)), asyncio.create_task(hear(socket, session))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                with contextlib.suppress(RuntimeError, OSError, WebSocketDisconnect):  # it hung up in the middle of a message
                    code, reason = task.result()
                    await socket.close(code, reason)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            session.connections -= 1
            session.touch()

    async def tell(socket: WebSocket, session: Session, number: int) -> tuple[int, str]:
        """What the session has to say, at the speed of who listens."""
        while True:
            found, missed, number = session.outbox.after(number)
            if missed:
                sessions.metrics.missed += missed
                await socket.send_text(json.dumps({"event": "missed", "count": missed}))
            for _, text in found:
                await socket.send_text(text)
            if not found and session.outbox.over:
                return SHUTS, "the session has ended"
            await session.outbox.wait(number)

    async def hear(socket: WebSocket, session: Session) -> tuple[int, str]:
        """Pictures, each at the moment that {"time": seconds} before it says; {"ask": "..."}; {"finish": true}: no more pictures."""
        wrong, due = 0, None
        while (message := await socket.receive())["type"] != "websocket.disconnect":
            session.touch()
            try:
                if (picture := message.get("bytes")) is not None:
                    await session.send(picture, due)
                    due = None
                else:
                    kind, value = said(message.get("text") or "")
                    if kind == "time":
                        due = value
                    elif kind == "finish":
                        session.finish()
                    else:
                        await sessions.ask(session, value)
                wrong = 0
            except UserError as error:
                wrong += 1
                if wrong == WRONG_IN_A_ROW:
                    return CANNOT_READ, f"{wrong} messages in a row could not be taken"
                await socket.send_text(json.dumps({"event": "error", "text": str(error)}))
        return SHUTS, ""

    # ---- the server ----

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(sessions.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/healthz")
    async def health() -> dict[str, Any]:
        if not sessions.engine.runs:
            raise HTTPException(503, "the engine has ended.")
        return {"ok": True, "open": sessions.open}

    return app


def said(text: str) -> tuple[str, Any]:
    """("time", seconds), ("ask", question) or ("finish", True) of a message. Raises UserError."""
    try:
        value = json.loads(text) if len(text) <= TEXT_BYTES else None
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and len(value) == 1:
        ((kind, content),) = value.items()
        if kind == "ask" and isinstance(content, str):
            return kind, content
        if kind == "time" and isinstance(content, (int, float)) and not isinstance(content, bool) and 0 <= content < 1e9:
            return kind, float(content)
        if kind == "finish" and content is True:
            return kind, content
    raise UserError('a message is a picture (binary), {"time": seconds of the next picture}, {"ask": "a question"} or {"finish": true}.')
