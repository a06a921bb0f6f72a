"""The Gradio page of `aha demo`.

    aha demo                        # http://127.0.0.1:7860, the embedded demo model
    aha demo --llm_pretrained BASE --lora_pretrained ADAPTER

Every browser tab has a `Visitor` of its own, found by the session hash that Gradio sends with each event and closed when the tab is.
"""

from __future__ import annotations

import argparse
import html
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from aha.api import Highlighter
from aha.core.fusion import Fusion
from aha.core.heads import HEADS
from aha.core.hosts import check_secret, listen, shown_host
from aha.demo.examples import write_examples
from aha.errors import UserError
from aha.highlights.online import OnlineSettings
from aha.highlights.result import Options
from aha.web.curve import CSS, SEEK_SCRIPT, curve_html, evidence_html, log_html, moments_html, reel_html
from aha.web.guard import API, Guard
from aha.web.limits import Limits
from aha.web.session import Speaking, Visitor, without_folder
from aha.web.visitors import Visitors

POLL_SECONDS = 0.5
SCORE_OF = {head.name: head.score for head in HEADS}  # as the page calls it -> as Speaking does
MAX_WAITING = 400  # events of all visitors
GONE = ("This visit has ended, as the browser was not heard of; press Start to watch again.", *[gr.skip()] * 5, -1)
PASSWORD = "AHA_PASSWORD"  # environment variable, as the next one
GRADIO_FOLDER = "GRADIO_TEMP_DIR"


def build_page(visitors: Visitors, examples: list[tuple[str, str]]) -> gr.Blocks:
    """The page as gradio.Blocks."""
    about_demo = " It knows only simple coloured shapes: for real videos start `aha demo --model NAME`." if visitors.model.is_demo else ""
    limits = visitors.limits

    def options_of(share, alpha, beta, epsilon, threshold, information, change, force, which) -> tuple[Options, int]:
        options = Options(
            fusion=Fusion(alpha, beta, epsilon, threshold), budget=share / 100, force=bool(force),
            online=OnlineSettings(information_threshold=information or None, change_threshold=change or None),
        )  # fmt: skip
        return options, int(which or 0)

    @contextmanager
    def told(video: str | None = None) -> Iterator[None]:
        """What a visitor did wrong is shown to it. Gradio takes the message for HTML."""
        try:
            yield
        except UserError as error:
            message = without_folder(str(error), Path(video)) if video else str(error)
            raise gr.Error(html.escape(message, quote=False), print_exception=False) from error

    def session_of(request: gr.Request) -> str:
        return request.session_hash or ""

    def visitor_of(request: gr.Request) -> Visitor:
        visitor = visitors.find(session_of(request))
        if visitor is None:
            raise UserError("there is no video yet; upload one or pick an example, and press Start.")
        return visitor

    def shown(visitor: Visitor, *sliders: float) -> tuple[Any, ...]:
        result = visitor.result(*options_of(*sliders))
        duration = visitor.info.duration if visitor.info else 1.0
        pause = gr.Button("Go on" if visitor.paused else "Pause", interactive=visitor.video is not None and not visitor.finished)
        late = visitor.info.late if visitor.info else 0.0
        return (
            visitor.status, evidence_html(result.evidence if result else None, result is not None),
            curve_html(result, duration, late, visitor.picture), moments_html(result, late, visitor.picture), log_html(visitor.answers),
            pause,
        )  # fmt: skip

    def start(request: gr.Request, video: str | None, queries: str, *values: Any) -> tuple[Any, ...]:
        *sliders, prob, total, heads, forget, fps = values
        with told(video):
            if not video:
                raise UserError("there is no video yet; upload one or pick an example.")
            speaking = Speaking(prob or None, total or None, tuple(SCORE_OF.get(head, head) for head in heads), bool(forget), fps)
            visitor = visitors.start(session_of(request), Path(video), queries, speaking)
            names = [(query if len(query) <= 60 else query[:59] + "…", number) for number, query in enumerate(visitor.queries)]
            which = gr.Radio(names, value=0, visible=len(names) > 1)
            hidden = gr.DownloadButton(visible=False)
            return (*shown(visitor, *sliders[:-1], 0), visitor.version, which, "", hidden, hidden)

    def poll(request: gr.Request, seen: int, *sliders: float) -> tuple[Any, ...]:
        visitor = visitors.find(session_of(request))
        if visitor is None:
            return GONE if seen >= 0 else (gr.skip(),) * 7
        version = visitor.version
        if version == seen and not visitor.error:
            return (gr.skip(),) * 7
        with told():
            return (*shown(visitor, *sliders), version)

    def slide(request: gr.Request, *sliders: float) -> tuple[Any, ...]:
        visitor = visitors.find(session_of(request))
        if visitor is None:
            return (gr.skip(),) * 6
        with told():
            visitor.touched = time.monotonic()
            return shown(visitor, *sliders)

    def pause(request: gr.Request) -> None:
        with told():
            visitor = visitor_of(request)
            visitor.pause(not visitor.paused)

    def ask(request: gr.Request, text: str, which: float) -> str:
        with told():
            visitor_of(request).ask(text, int(which or 0))
            return ""

    def make_files(request: gr.Request, *sliders: float) -> tuple[Any, Any, Any]:
        with told():
            visitor, (options, which) = visitor_of(request), options_of(*sliders)
            reel, report = visitor.files(options, which)
        address = None if reel is None else f"{API}/file={reel}"
        player = reel_html(address, visitor.queries[min(which, len(visitor.queries) - 1)])
        download = gr.DownloadButton("Download reel", value=reel, visible=reel is not None)
        return player, download, gr.DownloadButton("Download report", value=report, visible=True)

    def leave(request: gr.Request) -> None:
        visitors.leave(session_of(request))

    with gr.Blocks(title="Aha!", analytics_enabled=False) as page:
        gr.Markdown(
            "# Aha!\nSay what to look for; the video is watched frame by frame and scored as it goes.\n\n"
            f"Model: **{html.escape(visitors.model.name)}**.{about_demo}",
            elem_id="aha-model",
        )
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                video = gr.Video(
                    label=f"Video (at most {limits.megabytes:g} MB and {limits.minutes:g} minutes)",
                    sources=["upload"],
                    elem_id="aha-video",
                    height=360,
                )
                query = gr.Textbox(
                    label=f"What to look for (one query a line, at most {limits.queries})", elem_id="aha-query", lines=2, max_lines=4
                )
                with gr.Row():
                    start_button = gr.Button("Start", variant="primary", elem_id="aha-start", min_width=120)
                    pause_button = gr.Button("Pause", interactive=False, elem_id="aha-pause", min_width=120)
                which = gr.Radio(
                    [(str(n + 1), n) for n in range(limits.queries)], value=0, label="Shown", visible=False, elem_id="aha-which"
                )
                evidence = gr.HTML("", elem_id="aha-evidence")
                curve = gr.HTML(curve_html(None, 1.0), js_on_load=SEEK_SCRIPT, elem_id="aha-curve")
                status = gr.Textbox(label="Status", interactive=False, elem_id="aha-status", lines=2, max_lines=3)
                with gr.Row():
                    question = gr.Textbox(label="Ask while it runs", elem_id="aha-question", max_lines=3, scale=4, min_width=180)
                    ask_button = gr.Button("Ask", elem_id="aha-ask", scale=1, min_width=80)
                log = gr.HTML("", elem_id="aha-log")
                if examples:
                    gr.Examples(
                        [[path, text] for path, text in examples],
                        [video, query],
                        label="Examples",
                        cache_examples=False,
                        elem_id="aha-examples",
                    )
            with gr.Column(scale=2, min_width=300):
                gr.Markdown("### Moments")
                moments = gr.HTML(moments_html(None), js_on_load=SEEK_SCRIPT, elem_id="aha-moments")
                force = gr.Checkbox(False, label="Choose moments where none is clear, too", elem_id="aha-force")
                share = gr.Slider(1, 100, 15, step=1, label="Length of the reel (% of the video)", elem_id="aha-share")
                files_button = gr.Button("Make reel and report", elem_id="aha-files")
                reel = gr.HTML("", elem_id="aha-reel-player")
                with gr.Row():
                    reel_download = gr.DownloadButton("Download reel", visible=False, elem_id="aha-reel", min_width=120)
                    report_download = gr.DownloadButton("Download report", visible=False, elem_id="aha-report", min_width=120)
                with gr.Accordion("When the model speaks by itself (from the next Start on)", open=False, elem_id="aha-speaking"):
                    prob = gr.Slider(0, 2, 0, step=0.01, label="a frame's scores are above (0 = never)", elem_id="aha-prob")
                    total = gr.Slider(
                        0, 60, 0, step=0.5, label="scores since the last reply add up to more than (0 = never)", elem_id="aha-sum"
                    )
                    heads = gr.CheckboxGroup(list(SCORE_OF), value=["informative"], label="scores of", elem_id="aha-heads")
                    forget = gr.Checkbox(False, label="forget its own replies", elem_id="aha-forget")
                    fps = gr.Slider(0.5, limits.most_fps, limits.fps, step=0.5, label="frames a second that are watched", elem_id="aha-fps")
                with gr.Accordion("Weights of the score", open=False):
                    gr.Markdown("score = alpha · informative + beta · relevance − epsilon · max(0, variance − threshold)")
                    alpha = gr.Slider(-2, 2, 0, step=0.05, label="alpha")
                    beta = gr.Slider(-2, 2, 1, step=0.05, label="beta")
                    epsilon = gr.Slider(-2, 5, 0, step=0.05, label="epsilon")
                    threshold = gr.Slider(0, 1, 0, step=0.01, label="threshold (variance)")
                with gr.Accordion("When a segment ends", open=False):
                    default = OnlineSettings()
                    information = gr.Slider(0, 40, default.information_threshold, step=0.5, label="sum of informative scores (0 = never)")
                    change = gr.Slider(0, 100, default.change_threshold, step=1, label="change of evidence (0 = never)")
        seen = gr.State(-1)
        sliders: list[Any] = [share, alpha, beta, epsilon, threshold, information, change, force, which]
        panel = [status, evidence, curve, moments, log, pause_button]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        begun = [video, query, *sliders, prob, total, heads, forget, fps]
        start_button.click(start, begun, [*panel, seen, which, reel, reel_download, report_download], **quiet)
        pause_button.click(pause, **quiet)
        ask_button.click(ask, [question, which], question, **quiet)
        question.submit(ask, [question, which], question, **quiet)
        for slider in sliders:
            slider.change(slide, sliders, panel, trigger_mode="always_last", **quiet)
        files_button.click(make_files, sliders, [reel, reel_download, report_download], show_progress="minimal", api_visibility="private",
                           concurrency_limit=2)  # fmt: skip
        gr.Timer(POLL_SECONDS).tick(poll, [seen, *sliders], [*panel, seen], trigger_mode="once", concurrency_limit=None, **quiet)
        page.unload(leave)
    return page


class Server:
    """The page, served by a thread of its own. close() ends it and removes every file."""

    def __init__(self, visitors: Visitors, app: Guard, address: str, listening: socket.socket, folder_before: str | None):
        self.visitors, self.address, self._folder_before = visitors, address, folder_before
        config = uvicorn.Config(
            app, log_level="warning", server_header=False, use_colors=False, timeout_graceful_shutdown=1, limit_concurrency=1000
        )
        self._uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self._uvicorn.run, args=([listening],), name="aha-server", daemon=True)
        self.thread.start()
        while not self._uvicorn.started and self.thread.is_alive():
            time.sleep(0.02)

    def close(self) -> None:
        self._uvicorn.should_exit = True
        self.thread.join()
        self.visitors.close()
        if self._folder_before is not None:  # another page of this process goes on
            os.environ[GRADIO_FOLDER] = self._folder_before


def take_port(host: str, port: int, password: str | None) -> socket.socket:
    """A socket that holds the port until `launch` serves on it. Raises UserError where the port is taken, and where others could use the
    page without a password."""
    check_secret(host, password, "password", PASSWORD, "page")
    return listen(host, port)


def launch(
    model: Highlighter, limits: Limits, hosts: Sequence[str], port: int, password: str | None = None, taken: socket.socket | None = None
) -> Server:  # fmt: skip
    """Serve the page on the address hosts[0]; browsers may call it by this address, by localhost and by the other names in `hosts`.

    taken: the socket of `take_port`, where the caller has it already; otherwise it is taken here, with the same errors."""
    host = hosts[0]
    listening = taken if taken is not None else take_port(host, port, password)
    root = Path(tempfile.mkdtemp(prefix="aha-demo-")).resolve()
    # Uploads and results lie in our folder, and nothing is sent anywhere.
    folder_before, os.environ[GRADIO_FOLDER] = os.environ.get(GRADIO_FOLDER), str(root)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    visitors = Visitors(model, limits, root)
    (root / "examples").mkdir()
    page = build_page(visitors, write_examples(root / "examples")).queue(default_concurrency_limit=8, max_size=MAX_WAITING)
    page.has_launched = True  # Gradio looks only then whether a file that a request names is one of ours; guard.py looks as well
    page.state_session_capacity = 8 * limits.visitors
    served = gr.mount_gradio_app(
        FastAPI(openapi_url=None), page, "/", server_name=host, server_port=port, max_file_size=limits.upload_bytes, css=CSS,
        show_error=False, footer_links=[], run_history=False, ssr_mode=False, enable_monitoring=False, mcp_server=False, pwa=False,
    )  # fmt: skip
    return Server(visitors, Guard(served, visitors, hosts, password), f"http://{shown_host(host)}:{port}", listening, folder_before)


def run_demo(args: argparse.Namespace, load: Callable[[], Highlighter]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # temporary files are removed then too
    limits = Limits(args.max_megabytes, args.max_minutes, visitors=args.max_visitors)
    password = os.environ.get(PASSWORD)
    taken = take_port(args.host[0], args.port, password)  # what is wrong is said before the model is loaded
    server = launch(load(), limits, args.host, args.port, password, taken)
    print(f"Aha! demo on {server.address} (Ctrl-C ends it)", flush=True)
    try:
        while server.thread.is_alive():
            server.thread.join(1.0)
    finally:
        server.close()
