"""The page of `aha demo`, driven in headless Chromium: two visitors at the same time, nothing mixed, nothing left behind."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from chromium import chromium
from eval_data import write_predictions, write_tvsum
from highlights_media import make_video
from page_client import API, Page, Tab
from paths import shared_fixture
from waiting import free_port, wait_for

from aha.api import Highlighter, load
from aha.core.clock import clock
from aha.core.fusion import RELEVANCE, Fusion
from aha.core.prediction import read_predictions
from aha.errors import UserError
from aha.eval.annotations import read_tvsum
from aha.highlights.online import OnlineSettings
from aha.highlights.result import Options
from aha.web.limits import Limits
from aha.web.session import Turns, Visitor


@pytest.fixture(scope="module")
def model() -> Highlighter:
    model = load(shared_fixture("reference/llava-onevision-qwen2-tiny-ov"), shared_fixture("reference/aha-adapter"), device="cpu")
    model.name = "the tiny model"
    return model


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    for name, seconds in (("first", 12), ("second", 8)):
        make_video(folder / f"{name}.mp4", seconds=seconds, size=(128, 96))
    (folder / "broken.mp4").write_bytes((folder / "first.mp4").read_bytes()[:3000])
    return {path.stem: path for path in folder.iterdir()}


# ---- without a browser ----


@pytest.fixture
def visitor(model, tmp_path):
    visitor = Visitor(model, Turns(), tmp_path, Limits(megabytes=1, minutes=0.5, fps=2), lambda path, by: None)
    yield visitor
    visitor.close()


def test_the_demo_model_says_that_a_video_is_not_of_its_world(visitor, videos, monkeypatch):
    monkeypatch.setattr(visitor.model, "is_demo", True)
    visitor.start(str(videos["second"]), "a red star")
    assert "WARNING: second.mp4 shows something else than coloured shapes" in visitor.status
    monkeypatch.setattr(visitor.model, "is_demo", False)
    visitor.start(str(videos["second"]), "a red star")
    assert "WARNING" not in visitor.status


def test_a_visitor_scores_pauses_asks_and_gets_files(visitor, videos):
    with visitor.turns.turn():  # nothing is scored before it is paused
        visitor.start(str(videos["first"]), "a red star")
        visitor.pause(True)
    visitor.ask("what was that?")
    wait_for(lambda: visitor.answers)
    seen = len(visitor.track())
    time.sleep(0.3)
    assert len(visitor.track()) == seen < 24 and visitor.status.startswith("Paused")
    visitor.pause(False)
    wait_for(lambda: visitor.finished)
    assert len(visitor.track()) == 24 and visitor.track().duration == 12
    assert [who for _, who, _ in visitor.answers] == ["you", "model"]
    frames_before = visitor.track().frames_F.tolist()
    few = visitor.result(Options(budget=0.1, force=True, online=OnlineSettings(information_threshold=2.0)))
    many = visitor.result(Options(budget=0.6, force=True))
    assert few.reel_seconds < many.reel_seconds and visitor.track().frames_F.tolist() == frames_before
    reel, report = visitor.files(Options(budget=0.3, force=True))
    assert Path(reel).stat().st_size > 1000 and Path(report).read_text().startswith("<!DOCTYPE html>")
    folder = visitor.folder
    visitor.close()
    assert not folder.exists()


def test_the_page_says_the_evidence_that_a_command_says(visitor, model, videos):
    """Of each query by its own variations, two of which are the same here and one is a visitor's query."""
    queries = ["a red star", "a blue star", "no word of a kind"]
    visitor.start(str(videos["second"]), "\n".join(queries))
    wait_for(lambda: visitor.finished)
    encoded = model.encode(videos["second"], fps=2)
    unrelated = model.unrelated(encoded)
    for which, query in enumerate(queries):
        said = visitor.result(Options(fusion=Fusion(alpha=3)), which).evidence
        expected = model.query(encoded, query, unrelated=unrelated).evidence
        assert (said.strength, said.level) == pytest.approx((expected.strength, expected.level), abs=1e-5)
    assert len(visitor._rows) == 3 + len(model.unrelated_queries) + 3  # a blue, a yellow and a red star


def test_limits_are_told_clearly(visitor, videos, tmp_path):
    with pytest.raises(UserError, match="nothing is scored|no video"):
        visitor.ask("anyone there?")
    long = tmp_path / "long.mp4"
    make_video(long, seconds=35, fps=2, size=(64, 64), sound=False)
    with pytest.raises(UserError, match=r"0\.6 minutes, more than the 0\.5"):
        visitor.start(str(long), "x")
    large = tmp_path / "large.mp4"
    large.write_bytes(videos["first"].read_bytes() + b"\0" * 2_000_000)
    with pytest.raises(UserError, match="2 MB, more than the 1 MB"):
        visitor.start(str(large), "x")
    for query in ("", "x" * 10_000):
        with pytest.raises(UserError, match="query"):
            visitor.start(str(videos["first"]), query)


def test_a_crash_in_one_visitor_leaves_the_other(model, videos, tmp_path, monkeypatch):
    turns, limits = Turns(), Limits(fps=2)
    one = Visitor(model, turns, tmp_path, limits, lambda path, by: None)
    other = Visitor(model, turns, tmp_path, limits, lambda path, by: None)

    def explode(session, batch):
        with turns.turn():
            raise RuntimeError("out of memory")

    monkeypatch.setattr(one, "_push", explode)
    one.start(str(videos["first"]), "a")
    other.start(str(videos["second"]), "b")
    wait_for(lambda: other.finished)
    wait_for(lambda: one.error)
    assert "RuntimeError" in one.error and "out of memory" not in one.error and one.status.startswith("Error")  # that is in the log
    assert other.error is None and len(other.track()) == 16
    with pytest.raises(UserError):
        one.ask("still there?")
    one.close(), other.close()


def test_turns_are_given_in_order():
    turns, order, threads = Turns(), [], []
    with turns.turn():
        for number in range(5):
            threads.append(threading.Thread(target=lambda n=number: _take(turns, order, n)))
            threads[-1].start()
            wait_for(lambda n=number: turns._next == n + 2, what="it has asked for its turn, after the one that is served now")
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def _take(turns: Turns, order: list[int], number: int) -> None:
    with turns.turn():
        order.append(number)


# ---- in the browser ----


@pytest.fixture(scope="module")
def page(model):
    """The served page: its address and its visitors."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    os.environ["GRADIO_HEARTBEAT_INTERVAL"] = "1"  # a closed tab is noticed after a second, not after 15
    from aha.web.page import launch

    server = launch(model, Limits(megabytes=1, minutes=5, fps=2), ["127.0.0.1"], port := free_port())
    with pytest.raises(UserError, match="--port"):
        launch(model, Limits(), ["127.0.0.1"], port)
    yield server.address, server.visitors
    server.close()
    assert not server.visitors.root.exists()


@pytest.fixture
def browsers(tmp_path):
    """A function that opens one more Chromium with a profile of its own."""
    with chromium(tmp_path) as open_one:
        yield open_one


def upload(page: Page, address: str, video: Path, queries: str) -> None:
    page.open(address)
    page.send("#aha-video input[type=file]", str(video))
    page.wait("#aha-video video")
    page.fill("#aha-query textarea", queries)
    page.click("#aha-start")


def status(page: Page) -> str:
    return page.value("#aha-status textarea")


def frames_on_curve(page: Page) -> int:
    return page.script("return +(document.querySelector('#aha-curve svg')?.dataset.frames || 0)")


def test_two_visitors_upload_seek_and_download(page, browsers, videos):
    address, visitors = page
    (first, downloads), (second, _) = browsers(), browsers()
    upload(first, address, videos["first"], "a red star")
    upload(second, address, videos["second"], "a blue ring")
    wait_for(lambda: frames_on_curve(first) > 0)
    wait_for(lambda: "Done" in status(first) and "Done" in status(second))
    wait_for(lambda: (frames_on_curve(first), frames_on_curve(second)) == (24, 16))  # 2 a second of 12 and of 8 seconds: not mixed

    clicked = "const s = document.querySelector('#aha-curve svg'), b = s.getBoundingClientRect();"
    clicked += "s.dispatchEvent(new MouseEvent('click', {bubbles: true, clientX: b.left + 0.75 * b.width, clientY: b.top + 20}))"
    first.script(clicked)
    wait_for(lambda: abs(first.read("#aha-video video", "currentTime") - 9.0) < 0.3)
    assert second.read("#aha-video video", "currentTime") < 1.0
    cursor = "return +document.querySelector('#aha-curve .cursor').getAttribute('x1')"
    wait_for(lambda: 720 < first.script(cursor) < 780)  # of 1000
    drawn = "const done = arguments[0]; let times = 0; const seen = new MutationObserver(found => { times += found.length });"
    drawn += "seen.observe(document.querySelector('#aha-curve .cursor'), {attributes: true}); setTimeout(() => done(times), 1000);"
    wait_for(lambda: first.browser.execute_async_script(drawn) == 0, what="a second without drawing: the video has come to rest")

    first.fill("#aha-question textarea", "what is it?")
    first.click("#aha-ask")
    wait_for(lambda: "what is it?" in first.read("#aha-log") and "model:" in first.read("#aha-log"))
    assert "what is it?" not in second.read("#aha-log")

    if not first.read("#aha-force input", "checked"):  # random weights see nothing anywhere, or something
        first.click("#aha-force input")
    wait_for(lambda: first.script("return document.querySelectorAll('#aha-moments button').length") > 0)
    before = first.read("#aha-curve svg", "outerHTML")
    first.fill("#aha-share input[type=number]", "80", "\t")
    wait_for(lambda: first.read("#aha-curve svg", "outerHTML") != before)
    assert frames_on_curve(first) == 24 and 720 < first.script(cursor) < 780  # the same scores and place, other thresholds

    first.click("#aha-files")
    first.wait("#aha-reel-player video")
    wait_for(lambda: first.read("#aha-reel-player video", "duration"))  # it plays where it is
    first.script("document.querySelector('#aha-reel-player video').play()")
    wait_for(lambda: first.read("#aha-reel-player video", "currentTime") > 0.1)
    for button, name in (("#aha-reel", "reel.mp4"), ("#aha-report", "report.html")):
        first.click(button)
        wait_for(lambda name=name: (downloads / name).exists() and (downloads / name).stat().st_size > 1000)
    folders = {visitor.folder for visitor in visitors._all.values()}
    assert len(folders) == 2

    second.browser.get("about:blank")  # leaving
    wait_for(lambda: len(visitors._all) == 1 and sum(folder.exists() for folder in folders) == 1, 40)
    assert "Done" in status(first)


def test_a_broken_upload_is_told_and_the_page_goes_on(page, browsers, videos, tmp_path):
    address, _ = page
    tab, _ = browsers()

    def says(*words: str) -> bool:
        text = tab.text()
        return any(word in text for word in words)

    tab.open(address)
    tab.click("#aha-start")
    wait_for(lambda: says("no video yet"))
    large = tmp_path / "large.mp4"
    large.write_bytes(videos["first"].read_bytes() + b"\0" * 2_000_000)
    tab.send("#aha-video input[type=file]", str(large))
    wait_for(lambda: says("maximum allowed size"))
    upload(tab, address, videos["broken"], "x")
    wait_for(lambda: says("damaged", "cut off"))
    assert not says(str(page[1].root))  # where the server keeps its files is nobody's business
    tab.click(".gallery-item, table tr.tr-body, .example")
    wait_for(lambda: "red" in tab.value("#aha-query textarea").lower())
    wait_for(lambda: "red_things" in (tab.read("#aha-video video", "src") or ""))
    tab.click("#aha-start")
    wait_for(lambda: frames_on_curve(tab) > 0)


def test_several_queries_thumbnails_hover_and_a_model_that_speaks(page, browsers, videos):
    address, visitors = page
    tab, _ = browsers()
    upload(tab, address, videos["second"], "a red star")  # scored, and then again with other settings
    assert "the tiny model" in tab.read("#aha-model")
    tab.click("#aha-speaking button")
    tab.fill("#aha-prob input[type=number]", "0.01", "\t")
    tab.fill("#aha-fps input[type=number]", "4", "\t")
    tab.click("#aha-forget input")
    tab.fill("#aha-query textarea", "a red star\na blue ring")
    tab.click("#aha-start")
    wait_for(lambda: "Done: 32 frames" in status(tab))  # 4 a second of 8 seconds
    (visitor,) = [v for v in visitors._all.values() if v.queries == ["a red star", "a blue ring"]]
    assert visitor.speaking.threshold == 0.01 and visitor.speaking.forget and visitor.fps == 4.0
    wait_for(lambda: "model (a red star):" in tab.read("#aha-log") and "model (a blue ring):" in tab.read("#aha-log"))
    wait_for(lambda: "clear" in tab.read("#aha-evidence") and "unrelated queries" in tab.read("#aha-evidence"))
    tab.click("#aha-force input")
    pictures = "return [...document.querySelectorAll('#aha-moments img, .aha-strip img')].map(i => i.naturalWidth)"
    wait_for(lambda: len(tab.script(pictures)) > 10 and all(tab.script(pictures)))
    curve = tab.read("#aha-curve svg polyline[data-name=score]", "outerHTML")
    tab.click("#aha-which label:nth-of-type(2) input")
    wait_for(lambda: tab.read("#aha-curve svg polyline[data-name=score]", "outerHTML") != curve)
    moved = "const s = document.querySelector('#aha-curve svg'), b = s.getBoundingClientRect();"
    moved += "s.dispatchEvent(new PointerEvent('pointermove', {bubbles: true, clientX: b.left + b.width / 2, clientY: b.top + 20}));"
    said = tab.script(moved + "return document.querySelector('.aha-tip').textContent").split("\n")
    row = visitor.track(1)
    assert said[0] == "0:04" and said[1].startswith("score ")
    assert float(said[2].removeprefix("relevance ")) == pytest.approx(row.relevance_F[16], abs=0.011)
    tab.fill("#aha-query textarea", "a\nb\nc\nd\ne")
    tab.click("#aha-start")
    wait_for(lambda: "5 queries are more than the 4" in tab.text())


def test_an_uploaded_page_and_a_picture_do_not_run(page, browsers, videos, tmp_path):
    """Scripts behind the first bytes of a video, under every name: the address of the file is a download, and nothing is run."""
    address, _ = page
    shown, downloads = browsers()
    browser = shown.browser
    script = b"<html><svg xmlns='http://www.w3.org/2000/svg'><script>document.title = 'owned'; window.name = 'owned'</script></svg></html>"
    with Tab(address) as tab:
        for name in ("page.html", "picture.svg", "page.xhtml"):
            assert "is no video" in tab.upload(script, name).text
        paths = [
            tab.upload(videos["first"].read_bytes() + script + bytes([n]), name).json()[0]
            for n, name in enumerate(("page.html", "picture.svg"))
        ]
    for path in paths:
        shown.open(address)
        browser.execute_script("location.href = arguments[0]", f"{address}{API}/file={path}")
        wait_for(lambda path=path: (downloads / Path(path).name).exists())
        assert browser.title == "Aha!" and browser.execute_script("return window.name") == ""
        framed = "const f = document.createElement('iframe'); f.src = arguments[0]; document.body.append(f); window.f = f"
        browser.execute_script(framed, f"{address}{API}/file={path}")
        time.sleep(0.5)
        assert browser.execute_script("try { return f.contentDocument.title } catch { return 'out of reach' }") in ("", "out of reach")


def test_the_report_seeks_on_a_click_without_any_server(model, videos, browsers, tmp_path):
    from aha.highlights.result import write_result

    encoded = model.encode(videos["first"], fps=2)
    result = model.query(encoded, 'a "red" <star> & more', top=2)
    write_result(result, videos["first"], tmp_path, frame_fps=2, note=model.note)
    shown, _ = browsers()
    shown.open(f"file://{tmp_path / 'report.html'}", "#timeline")
    assert 'a "red" <star> & more' in shown.read("h1")
    wait_for(lambda: shown.script("return player.readyState >= 1 && Math.abs(player.duration - 12) < 0.2"))
    at = "const b = timeline.getBoundingClientRect(), at = {bubbles: true, clientX: b.left + 0.5 * b.width, clientY: b.top + 9};"
    shown.script(at + "timeline.dispatchEvent(new MouseEvent('click', at))")
    wait_for(lambda: abs(shown.script("return player.currentTime") - 6) < 0.2)
    wait_for(lambda: abs(shown.script("return cursor.getAttribute('x1') - x(6)")) < 20)
    shown.script(at + "timeline.dispatchEvent(new PointerEvent('pointermove', at))")
    half = int(np.argmin(np.abs(result.track.times_F - 6)))
    assert f"0:06  score {result.fused_F[half]:.2f}" in shown.read("#tip")
    pictures = shown.script("return [...document.querySelectorAll('.moment img, #strip img')].map(i => i.naturalWidth)")
    assert len(pictures) == 2 + 12 and all(pictures) and shown.script("return document.querySelectorAll('.moment').length") == 2
    ticks = shown.script("return [...document.querySelectorAll('#clocks span')].map(s => s.textContent)")
    assert ticks == ["0:00", "0:02", "0:04", "0:06", "0:08", "0:10", "0:12"]
    shown.click(".moment")
    start = result.highlights[0].start
    wait_for(lambda: start - 0.2 <= shown.script("return player.currentTime") <= result.highlights[0].end + 0.5)


def test_the_evaluation_report_says_values_under_the_mouse(browsers, tmp_path):
    from aha.eval import tvsum

    videos = write_tvsum(tmp_path, n_videos=2)
    write_predictions(tmp_path / "predictions.json", videos)
    tvsum.main([*map(str, ["--predictions", tmp_path / "predictions.json", "--annotations", tmp_path / "demo-anno.tsv", "--report", tmp_path,
                           "--random_runs", 1])])  # fmt: skip
    prediction = next(iter(read_predictions(tmp_path / "predictions.json")))
    samples, video = prediction.samples(RELEVANCE), read_tvsum(tmp_path / "demo-anno.tsv")[prediction.video_id]
    shown, _ = browsers()
    shown.open(f"file://{tmp_path / 'report.html'}", ".plot")
    move = """const plot = document.querySelector('.plot'), values = JSON.parse(plot.dataset.values);
        const box = plot.querySelector('img').getBoundingClientRect(), share = values.left + arguments[0] * (values.right - values.left);
        const at = {bubbles: true, clientX: box.left + share * box.width, clientY: box.top + 20};
        plot.querySelector('img').dispatchEvent(new PointerEvent('pointermove', at));
        return plot.querySelector('.tip').hidden ? null : plot.querySelector('.tip').textContent"""
    places, values = tvsum.place(samples, video)
    half = values[np.searchsorted(places / video.fps, video.length_s * 0.501, side="right") - 1]
    said = shown.script(move, 0.501).splitlines()
    assert said[0] == clock(video.length_s * 0.501) and float(said[1].removeprefix("prediction ")) == pytest.approx(half, rel=1e-3)
    assert said[2].startswith("their mean ") and len(said) == 3
    assert shown.script(move, -0.02) is None and shown.script(move, 1.01) is None  # beside the axis nothing is said


def test_pages_fit_a_phone(page, model, videos, browsers, tmp_path):
    """390 pixels wide: nothing is wider than the screen, and text is not shrunk to fit."""
    from aha.highlights.index import write_index
    from aha.highlights.result import write_result

    address, _ = page
    result = model.query(model.encode(videos["second"], fps=2), "a_query_without_a_single_space_" * 6, top=3)
    write_result(result, videos["second"], tmp_path / "one", frame_fps=2, note=model.note)
    write_index(tmp_path, [(videos["second"], tmp_path / "one")], {tmp_path / "broken.mp4": "it is damaged " * 20})
    tab, _ = browsers()
    for where, part in (
        (f"file://{tmp_path / 'one' / 'report.html'}", "#timeline"), (f"file://{tmp_path / 'index.html'}", "section"), (address, "#aha-start"),
    ):  # fmt: skip
        screen = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        tab.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        tab.open(where, part)
        assert "width=device-width" in tab.read("meta[name=viewport]", "content"), where
        widths = tab.script("return [window.innerWidth, document.documentElement.scrollWidth, document.body.scrollWidth]")
        assert widths == [390, 390, 390], (where, widths)
