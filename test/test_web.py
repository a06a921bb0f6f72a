"""The page of `aha demo`, driven in headless Chromium: two visitors at the same time, nothing mixed, nothing left behind."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from highlights_media import make_video
from page_client import API, Tab, free_port
from paths import shared_fixture

from aha.api import Highlighter, load
from aha.errors import UserError
from aha.highlights.online import OnlineSettings
from aha.highlights.result import Options
from aha.web.limits import Limits
from aha.web.session import Turns, Visitor


@pytest.fixture(scope="module")
def model() -> Highlighter:
    return load(shared_fixture("reference/llava-onevision-qwen2-tiny-ov"), shared_fixture("reference/aha-adapter"), device="cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    for name, seconds in (("first", 12), ("second", 8)):
        make_video(folder / f"{name}.mp4", seconds=seconds, size=(128, 96))
    (folder / "broken.mp4").write_bytes((folder / "first.mp4").read_bytes()[:3000])
    return {path.stem: path for path in folder.iterdir()}


def wait_for(condition, seconds: float = 30.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return value


# ---- without a browser ----


@pytest.fixture
def visitor(model, tmp_path):
    visitor = Visitor(model, Turns(), tmp_path, Limits(megabytes=1, minutes=0.5, fps=2), lambda path, by: None)
    yield visitor
    visitor.close()


def test_a_visitor_scores_pauses_asks_and_gets_files(visitor, videos):
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
    few = visitor.result(Options(budget=0.1, online=OnlineSettings(information_threshold=2.0)))
    many = visitor.result(Options(budget=0.6))
    assert few.reel_seconds < many.reel_seconds and visitor.track().frames_F.tolist() == frames_before
    reel, report = visitor.files(Options(budget=0.3))
    assert Path(reel).stat().st_size > 1000 and Path(report).read_text().startswith("<!DOCTYPE html>")
    folder = visitor.folder
    visitor.close()
    assert not folder.exists()


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
            time.sleep(0.02)
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
def browsers(tmp_path, monkeypatch):
    """A function that opens one more Chromium with a profile of its own."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium chromium-driver)")
    opened = []

    def open_one():
        number = len(opened)
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (
            "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
            "disable-component-update", "disable-sync", "window-size=1300,1400", f"user-data-dir={tmp_path / f'profile{number}'}",
        ):  # fmt: skip
            options.add_argument(f"--{flag}")
        downloads = tmp_path / f"downloads{number}"
        downloads.mkdir()
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        opened.append(browser)
        return browser, downloads

    yield open_one
    for browser in opened:
        browser.quit()


def find(browser, selector: str):
    return wait_for(lambda: browser.find_elements("css selector", selector))[0]


def upload(browser, address: str, video: Path, query: str) -> None:
    browser.get(address)
    find(browser, "#aha-start")
    find(browser, "#aha-video input[type=file]").send_keys(str(video))
    find(browser, "#aha-video video")
    find(browser, "#aha-query textarea").send_keys(query)
    find(browser, "#aha-start").click()


def status(browser) -> str:
    return find(browser, "#aha-status textarea").get_attribute("value")


def frames_on_curve(browser) -> int:
    return browser.execute_script("return +(document.querySelector('#aha-curve svg')?.dataset.frames || 0)")


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
    first.execute_script(clicked)
    player = "return document.querySelector('#aha-video video').currentTime"
    wait_for(lambda: abs(first.execute_script(player) - 9.0) < 0.3)
    assert second.execute_script(player) < 1.0

    find(first, "#aha-question textarea").send_keys("what is it?")
    find(first, "#aha-ask").click()
    wait_for(lambda: "what is it?" in find(first, "#aha-log").text and "model:" in find(first, "#aha-log").text)
    assert "what is it?" not in find(second, "#aha-log").text

    before = find(first, "#aha-curve svg").get_attribute("outerHTML")
    share = find(first, "#aha-share input[type=number]")
    share.clear()
    share.send_keys("80\t")
    wait_for(lambda: find(first, "#aha-curve svg").get_attribute("outerHTML") != before)
    assert frames_on_curve(first) == 24  # the same scores, other thresholds

    find(first, "#aha-files").click()
    for button, name in (("#aha-reel", "reel.mp4"), ("#aha-report", "report.html")):
        find(first, button).click()
        wait_for(lambda name=name: (downloads / name).exists() and (downloads / name).stat().st_size > 1000)
    folders = {visitor.folder for visitor in visitors._all.values()}
    assert len(folders) == 2

    second.get("about:blank")  # leaving
    wait_for(lambda: len(visitors._all) == 1 and sum(folder.exists() for folder in folders) == 1, 40)
    assert "Done" in status(first)


def test_a_broken_upload_is_told_and_the_page_goes_on(page, browsers, videos, tmp_path):
    address, _ = page
    browser, _ = browsers()

    def says(*words: str) -> bool:
        text = browser.find_element("tag name", "body").text
        return any(word in text for word in words)

    browser.get(address)
    find(browser, "#aha-start").click()
    wait_for(lambda: says("no video yet"))
    large = tmp_path / "large.mp4"
    large.write_bytes(videos["first"].read_bytes() + b"\0" * 2_000_000)
    find(browser, "#aha-video input[type=file]").send_keys(str(large))
    wait_for(lambda: says("maximum allowed size"))
    upload(browser, address, videos["broken"], "x")
    wait_for(lambda: says("damaged", "cut off"))
    assert not says(str(page[1].root))  # where the server keeps its files is nobody's business
    example = find(browser, ".gallery-item, table tr.tr-body, .example")
    browser.execute_script("arguments[0].click()", example)  # a message may lie over it
    wait_for(lambda: "red" in find(browser, "#aha-query textarea").get_attribute("value").lower())
    wait_for(lambda: "red_things" in find(browser, "#aha-video video").get_attribute("src"))
    browser.execute_script("document.querySelector('#aha-start').click()")
    wait_for(lambda: frames_on_curve(browser) > 0)


def test_an_uploaded_page_and_a_picture_do_not_run(page, browsers, videos, tmp_path):
    """Scripts behind the first bytes of a video, under every name: the address of the file is a download, and nothing is run."""
    address, _ = page
    browser, downloads = browsers()
    script = b"<html><svg xmlns='http://www.w3.org/2000/svg'><script>document.title = 'owned'; window.name = 'owned'</script></svg></html>"
    with Tab(address) as tab:
        for name in ("page.html", "picture.svg", "page.xhtml"):
            assert "is no video" in tab.upload(script, name).text
        paths = [
            tab.upload(videos["first"].read_bytes() + script + bytes([n]), name).json()[0]
            for n, name in enumerate(("page.html", "picture.svg"))
        ]
    for path in paths:
        browser.get(address)
        find(browser, "#aha-start")
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
    browser, _ = browsers()
    browser.get(f"file://{tmp_path / 'report.html'}")
    assert 'a "red" <star> & more' in browser.find_element("tag name", "h1").text
    wait_for(lambda: browser.execute_script("return player.readyState >= 1 && Math.abs(player.duration - 12) < 0.2"))
    browser.execute_script(
        "const b = timeline.getBoundingClientRect();"
        "timeline.dispatchEvent(new MouseEvent('click', {bubbles: true, clientX: b.left + 0.5 * b.width, clientY: b.top + 9}))"
    )
    wait_for(lambda: abs(browser.execute_script("return player.currentTime") - 6) < 0.2)
    moments = browser.find_elements("css selector", ".moment")
    assert len(moments) == 2 and all(
        browser.execute_script("return arguments[0].querySelector('img').naturalWidth", m) > 0 for m in moments
    )
    moments[0].click()
    start = result.highlights[0].start
    wait_for(lambda: start - 0.2 <= browser.execute_script("return player.currentTime") <= result.highlights[0].end + 0.5)
