"""The Gradio page of `aha demo`.

    aha demo                        # http://127.0.0.1:7860, the embedded demo model
    aha demo --llm_pretrained BASE --lora_pretrained ADAPTER

Every browser tab has a `Visitor` of its own, found by the session hash that Gradio sends with each event and closed when the tab is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import gradio as gr

from aha.api import DEMO_NOTE, Highlighter
from aha.core.fusion import Fusion
from aha.errors import UserError
from aha.highlights.online import OnlineSettings
from aha.highlights.result import Options
from aha.web.curve import CSS, SEEK_SCRIPT, curve_html, log_html, moments_html
from aha.web.examples import write_examples
from aha.web.session import Limits, Turns, Visitor, without_folder

POLL_SECONDS = 0.5


class Visitors:
    """Who is there, by session hash. `root` holds every temporary file and is removed at the end."""

    def __init__(self, model: Highlighter, limits: Limits, root: Path):
        self.model, self.limits, self.root = model, limits, root
        self._turns = Turns()
        self._lock = threading.Lock()
        self._all: dict[str, Visitor] = {}
        self._used: Counter[Path] = Counter()  # visitors that look at an upload; equal files are stored once

    def use(self, video: Path, by: int) -> None:
        """An upload is looked at by one visitor more (1) or less (-1); what nobody looks at is deleted. Examples stay."""
        with self._lock:
            self._used[video] += by
            unused = self._used[video] <= 0 and self.root / "uploads" in video.parents
            if unused:
                del self._used[video]
        if unused:
            video.unlink(missing_ok=True)

    def of(self, session_hash: str) -> Visitor:
        with self._lock:
            if session_hash not in self._all:
                self._all[session_hash] = Visitor(self.model, self._turns, self.root, self.limits, self.use)
            return self._all[session_hash]

    def leave(self, session_hash: str) -> None:
        with self._lock:
            visitor = self._all.pop(session_hash, None)
        if visitor is not None:
            visitor.close()

    def close(self) -> None:
        for session_hash in list(self._all):
            self.leave(session_hash)
        shutil.rmtree(self.root, ignore_errors=True)


def build_page(visitors: Visitors, examples: list[tuple[str, str]]) -> gr.Blocks:
    """The page as gradio.Blocks."""
    note = DEMO_NOTE if visitors.model.is_demo else visitors.model.note
    limits = visitors.limits

    def options_of(share, alpha, beta, epsilon, threshold, information, change) -> Options:
        return Options(
            fusion=Fusion(alpha, beta, epsilon, threshold), budget=share / 100,
            online=OnlineSettings(information_threshold=information or None, change_threshold=change or None),
        )  # fmt: skip

    def visitor_of(request: gr.Request) -> Visitor:
        return visitors.of(request.session_hash)

    def shown(visitor: Visitor, *sliders: float) -> tuple[Any, ...]:
        result = visitor.result(options_of(*sliders))
        duration = visitor.info.duration if visitor.info else 1.0
        pause = gr.Button("Go on" if visitor.paused else "Pause", interactive=visitor.video is not None and not visitor.finished)
        late = visitor.info.late if visitor.info else 0.0
        return visitor.status, curve_html(result, duration, late), moments_html(result, late), log_html(visitor.answers), pause

    def start(request: gr.Request, video: str | None, query: str, *sliders: float) -> tuple[Any, ...]:
        visitor = visitor_of(request)
        try:
            if not video:
                raise UserError("there is no video yet; upload one or pick an example.")
            visitor.start(video, query)
        except UserError as error:
            raise gr.Error(without_folder(str(error), Path(video)) if video else str(error), print_exception=False) from error
        return (*shown(visitor, *sliders), visitor.version, gr.DownloadButton(visible=False), gr.DownloadButton(visible=False))

    def poll(request: gr.Request, seen: int, *sliders: float) -> tuple[Any, ...]:
        visitor = visitor_of(request)
        version = visitor.version
        if version == seen and not visitor.error:
            return (gr.skip(),) * 6
        return (*shown(visitor, *sliders), version)

    def slide(request: gr.Request, *sliders: float) -> tuple[Any, ...]:
        return shown(visitor_of(request), *sliders)

    def pause(request: gr.Request) -> None:
        visitor = visitor_of(request)
        visitor.pause(not visitor.paused)

    def ask(request: gr.Request, text: str) -> str:
        try:
            visitor_of(request).ask(text)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return ""

    def make_files(request: gr.Request, *sliders: float) -> tuple[Any, Any]:
        try:
            reel, report = visitor_of(request).files(options_of(*sliders))
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return gr.DownloadButton("Download reel", value=reel, visible=True), gr.DownloadButton(
            "Download report", value=report, visible=True
        )

    def leave(request: gr.Request) -> None:
        visitors.leave(request.session_hash)

    with gr.Blocks(title="Aha!", analytics_enabled=False, delete_cache=(600, 7200)) as page:
        gr.Markdown(f"# Aha!\nSay what to look for; the video is watched frame by frame and scored as it goes.\n\n*{note}*")
        with gr.Row():
            with gr.Column(scale=3):
                video = gr.Video(
                    label=f"Video (at most {limits.megabytes:g} MB and {limits.minutes:g} minutes)",
                    sources=["upload"],
                    elem_id="aha-video",
                    height=360,
                )
                query = gr.Textbox(label="What to look for", elem_id="aha-query", max_lines=3)
                with gr.Row():
                    start_button = gr.Button("Start", variant="primary", elem_id="aha-start")
                    pause_button = gr.Button("Pause", interactive=False, elem_id="aha-pause")
                curve = gr.HTML(curve_html(None, 1.0), js_on_load=SEEK_SCRIPT, elem_id="aha-curve")
                status = gr.Textbox(label="Status", interactive=False, elem_id="aha-status", max_lines=3)
                with gr.Row():
                    question = gr.Textbox(label="Ask while it runs", elem_id="aha-question", max_lines=3, scale=4)
                    ask_button = gr.Button("Ask", elem_id="aha-ask", scale=1)
                log = gr.HTML("", elem_id="aha-log")
                if examples:
                    gr.Examples([[path, text] for path, text in examples], [video, query], label="Examples", cache_examples=False)
            with gr.Column(scale=2):
                gr.Markdown("### Moments")
                moments = gr.HTML(moments_html(None), js_on_load=SEEK_SCRIPT, elem_id="aha-moments")
                files_button = gr.Button("Make reel and report", elem_id="aha-files")
                with gr.Row():
                    reel_download = gr.DownloadButton("Download reel", visible=False, elem_id="aha-reel")
                    report_download = gr.DownloadButton("Download report", visible=False, elem_id="aha-report")
                share = gr.Slider(1, 100, 15, step=1, label="Length of the reel (% of the video)", elem_id="aha-share")
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
        sliders = [share, alpha, beta, epsilon, threshold, information, change]
        panel = [status, curve, moments, log, pause_button]
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        start_button.click(start, [video, query, *sliders], [*panel, seen, reel_download, report_download], **quiet)
        query.submit(start, [video, query, *sliders], [*panel, seen, reel_download, report_download], **quiet)
        pause_button.click(pause, **quiet)
        ask_button.click(ask, question, question, **quiet)
        question.submit(ask, question, question, **quiet)
        for slider in sliders:
            slider.change(slide, sliders, panel, trigger_mode="always_last", **quiet)
        files_button.click(make_files, sliders, [reel_download, report_download], show_progress="minimal", api_visibility="private")
        gr.Timer(POLL_SECONDS).tick(poll, [seen, *sliders], [*panel, seen], trigger_mode="once", concurrency_limit=None, **quiet)
        page.unload(leave)
    return page


def launch(model: Highlighter, limits: Limits, host: str, port: int, block: bool = True):
    """Serve the page; returns (Visitors, page) when `block` is off. Raises UserError where the port is taken."""
    root = Path(tempfile.mkdtemp(prefix="aha-demo-"))
    # Uploads go into our folder, and nothing is sent anywhere.
    uploads_before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(root / "uploads")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    visitors = Visitors(model, limits, root)
    (root / "examples").mkdir()
    page = build_page(visitors, write_examples(root / "examples"))
    try:
        page.queue(default_concurrency_limit=8).launch(
            server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, max_file_size=int(limits.megabytes * 1_000_000),
            allowed_paths=[str(root)], css=CSS, show_error=True, footer_links=[], ssr_mode=False, share=False,
        )  # fmt: skip
    except OSError as error:
        visitors.close()
        if uploads_before is not None:  # another page of this process goes on
            os.environ["GRADIO_TEMP_DIR"] = uploads_before
        raise UserError(f"port {port} on {host} is taken; choose another with --port.") from error
    print(f"Aha! demo on {page.local_url} (Ctrl-C ends it)", flush=True)
    if not block:
        return visitors, page
    try:
        page.block_thread()
    finally:
        visitors.close()
    return None


def run_demo(args: argparse.Namespace, model: Highlighter) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # temporary files are removed then too
    launch(model, Limits(args.max_megabytes, args.max_minutes), args.host, args.port)
