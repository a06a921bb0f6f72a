"""What the page of `aha demo` promises against strangers (instructions/security.md): uploads, files, names, Hosts, passwords, quotas, visitors."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from highlights_media import make_video
from paths import shared_fixture
from playlists import SUFFIXES, Opened, counting_server, mp4_with_data_elsewhere, texts

pytest.importorskip("gradio", reason="gradio is not installed")

from page_client import API, SLIDERS, Tab, files_below
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from waiting import free_port, wait_for

from aha.api import Highlighter, load
from aha.errors import UserError
from aha.video.library import index_videos
from aha.web import visitors
from aha.web.guard import Guard
from aha.web.limits import Limits
from aha.web.page import Server, launch
from aha.web.uploads import Uploads

LIMITS = Limits(megabytes=1, minutes=0.5, pixels=640 * 480, visitors=6, running=6, idle_seconds=3600.0)  # longer than any test
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>document.title = "owned"</script></svg>'
PAGE = b"<!DOCTYPE html><script>document.title = 'owned'</script>"


@pytest.fixture(scope="module")
def model() -> Highlighter:
    return load(shared_fixture("reference/llava-onevision-qwen2-tiny-ov"), shared_fixture("reference/aha-adapter"), device="cpu")


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    make_video(path, seconds=4, size=(128, 96))
    return path.read_bytes()


@pytest.fixture(scope="module")
def page(model):
    visitors.SWEEP_SECONDS = 0.5
    server = launch(model, LIMITS, ["127.0.0.1", "aha.example.org"], free_port())
    yield server
    server.close()
    visitors.SWEEP_SECONDS = 5.0
    assert not server.visitors.root.exists()


def empty(page: Server) -> None:
    """Everybody leaves."""
    for name in list(page.visitors._all):
        page.visitors.leave(name)
    for path in list(page.visitors.uploads._files):
        page.visitors.uploads.use(path, 0)


@pytest.fixture
def tab(page):
    with Tab(page.address) as tab:
        yield tab
    empty(page)


@pytest.fixture
def hours_pass(page):
    """A function after which all that was last heard of before it is long ago: who is not connected has left at the next sweep."""

    def pass_by() -> None:
        with page.visitors._lock:
            for name in page.visitors._seen:
                page.visitors._seen[name] -= 2 * LIMITS.idle_seconds

    return pass_by


def another(video: bytes, number: int) -> bytes:
    """The same video in a file of its own: its end is one unused box more."""
    return video + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big")


# ---- uploads and files ----


def test_what_is_no_video_is_refused_at_once_and_leaves_nothing(page, tab):
    before = files_below(page.visitors.root)
    for name, contents in {
        "page.html": PAGE, "page.mp4": PAGE, "picture.svg": SVG, "picture.mp4": SVG, "list.mp4": b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        "archive.mp4": b"PK\x03\x04" + bytes(2000), "picture.png": b"\x89PNG\r\n\x1a\n" + bytes(2000), "empty.mp4": b"", "script.mp4": b"#!/bin/sh\n",
    }.items():  # fmt: skip
        answer = tab.upload(contents, name)
        assert answer.status_code == 400 and ("is no video" in answer.text or "is a playlist" in answer.text), (name, answer.text)
        assert answer.text.count("\n") == 0 and answer.headers["content-type"].startswith("text/plain")
    assert files_below(page.visitors.root) == before


def test_two_files_at_once_and_uploads_without_a_length_are_refused(page, tab, video):
    before = files_below(page.visitors.root)
    two = tab.http.post(f"{API}/upload", files=[("files", ("a.mp4", video)), ("files", ("b.html", PAGE))])
    assert (two.status_code, two.text) == (400, "one video at a time, please.")

    def endless():
        yield b"--b\r\nContent-Disposition: form-data; name=files; filename=a.mp4\r\n\r\n"
        for _ in range(50):
            yield bytes(100_000)

    with contextlib.suppress(Exception):  # the server may close before all is sent
        assert (
            tab.http.post(f"{API}/upload", content=endless(), headers={"content-type": "multipart/form-data; boundary=b"}).status_code
            == 411
        )
    assert files_below(page.visitors.root) == before
    assert not page.visitors.uploads._coming


def test_files_are_downloads_whatever_their_name(page, tab, video):
    for name in ("page.html", "picture.svg", "clip.mp4", "page.xhtml"):
        path = tab.upload(another(video, len(name)), name).json()[0]
        for headers in ({}, {"Range": "bytes=0-99"}):
            answer = tab.http.get(f"{API}/file={path}", headers=headers)
            assert answer.status_code == (206 if headers else 200)
            assert answer.headers["content-disposition"].startswith("attachment") and answer.headers["content-type"] == "video/mp4"
            assert answer.headers["x-content-type-options"] == "nosniff" and "sandbox" in answer.headers["content-security-policy"]
        assert answer.content == video[:100]


def test_results_are_downloads_and_the_last_ones_replace_those_before(page, tab, video):
    path = tab.upload(video).json()[0]
    assert "data" in tab.start(path)
    visitor = page.visitors._all[tab.session]
    wait_for(lambda: visitor.finished)
    for _ in range(2):
        tab.join(tab.function("aha-files"), [50, *SLIDERS[1:]])
        shown, reel, report = tab.ended()[0]["data"]
        assert reel["value"]["path"] in shown
        assert {path.split("/")[0] for path in files_below(visitor.folder)} == {Path(reel["value"]["path"]).parent.name}
    answer = tab.http.get(f"{API}/file={report['value']['path']}")
    assert answer.headers["content-type"] == "application/octet-stream" and "attachment" in answer.headers["content-disposition"]
    assert answer.text.startswith("<!DOCTYPE html>") and 'filename="report.html"' in answer.headers["content-disposition"]


def test_no_other_file_of_the_server_is_served_or_taken(page, tab, tmp_path, video):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(video)
    (page.visitors.root / "link.mp4").symlink_to(secret)
    root = page.visitors.root
    names = [str(secret), f"{root}/../{tmp_path.name}/secret.mp4", f"{root}/link.mp4", "/etc/passwd", "../../etc/passwd", f"{root}", "/proc/self/environ",
             f"file://{secret}", "http://127.0.0.1/x.mp4", "https://example.org/x.mp4", "%2fetc%2fpasswd", "//etc/passwd", "aha/__init__.py"]  # fmt: skip
    function = tab.function("aha-start")
    for name in names:
        assert tab.http.get(f"{API}/file={name}").status_code == 404, name
        answer = tab.join(function, tab.start_data(name))
        assert answer.status_code == 403 and "not uploaded here" in answer.text, name
    (root / "link.mp4").unlink()


def test_only_the_routes_of_the_page_are_open(page, tab):
    for method, path in [
        ("POST", "/vibe-edit/"), ("GET", "/vibe-code/"), ("POST", "/process_recording"), ("GET", "/proxy=http://127.0.0.1/"), ("POST", "/component_server"),
        ("GET", "/stream/a/b/c/playlist.m3u8"), ("GET", "/openapi.json"), ("GET", "/runs"), ("GET", "/deep_link"), ("POST", "/call/start"),
        ("PUT", "/upload"), ("DELETE", "/queue/join"), ("GET", "/file/etc/passwd"), ("POST", "/run/start"),
    ]:  # fmt: skip
        assert tab.http.request(method, f"{API}{path}").status_code == 404, path
    for path in ("/monitoring", "/login", "/docs", "/openapi.json", "/logout"):
        assert tab.http.get(path).status_code == 404, path
    assert tab.join(0, ["x" * 300_000]).status_code == 413
    assert tab.http.post(f"{API}/queue/join", content=b"{").status_code == 400
    assert tab.http.post(f"{API}/queue/join", content=b"[]").status_code == 400


def test_no_playlist_gets_in_as_upload_or_through_a_data_set(page, tab, tmp_path, video):
    """More than 200 files each; pipes and plain files: test_video_containers.py."""
    canary = tmp_path / "canary.mp4"
    canary.write_bytes(video)
    folder = tmp_path / "set"
    folder.mkdir()
    before = files_below(page.visitors.root)
    uploads, names = 0, []
    with counting_server(video) as (address, asked):
        opened = Opened(canary)
        for number, target in enumerate((str(canary), "../canary.mp4", f"file:{canary}", f"{address}/canary.mp4")):
            for kind, text in texts(target).items():
                for suffix in SUFFIXES:
                    name = f"{number} {kind}{suffix}"
                    (folder / name).write_bytes(text.encode())
                    names.append(name)
                    if number % 2 == 0:
                        assert tab.upload(text.encode(), name).status_code == 400
                        uploads += 1
        index = index_videos(folder, paths=names, workers=1, report=False)
        elsewhere = tab.upload(mp4_with_data_elsewhere(video, str(canary), "alis"))
        answer = tab.start(elsewhere.json()[0])
        assert "error" in answer and "Traceback" not in str(answer)
        assert (opened.count(), asked) == (0, [])
        opened.close()
    assert uploads >= 200 and len(index) >= 500 and not any(entry["valid"] for entry in index.values())
    empty(page)
    assert files_below(page.visitors.root) - before <= {str(Path(elsewhere.json()[0]).relative_to(page.visitors.root))}


def test_names_of_strangers_are_no_markup_and_no_path(page, tab, video):
    broken = video[:2000]
    for name in (
        "<img src=x onerror=alert(1)>.mp4",
        "../../../evil.mp4",
        "$(touch evil);`x`.mp4",
        "a\nb.mp4",
        "-rf.mp4",
        "x" * 300 + ".mp4",
    ):
        answer = tab.upload(broken, name)
        if answer.status_code != 200:
            continue
        path = Path(answer.json()[0])
        assert page.visitors.root in path.parents and path.parent.parent == page.visitors.root and "<" not in path.name
        error = tab.start(str(path))["error"]
        assert "<" not in error and str(page.visitors.root) not in error and "\n" not in error, error


# ---- who may ask ----


def test_hosts_origins_and_no_cors(page):
    port = page.address.rsplit(":", 1)[1]

    def status(path="/config", method="GET", **headers):
        with Tab(page.address) as tab:
            answer = tab.http.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        assert not any(name.startswith("access-control-") for name in answer.headers)
        return answer.status_code

    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "aha.example.org", "AHA.example.org:443", "[::1]:80", "localhost."):
        assert status(Host=host) == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "aha.example.org.evil", "evil@localhost", "localhost:80:80", "", "192.168.1.5"):
        assert status(Host=host) == 421, host
    assert status(Origin=page.address) == 200 and status(Origin="https://aha.example.org") == 200
    for origin in ("http://evil.example", "null", f"http://localhost.evil:{port}", "http://127.0.0.1:9", "http://localhost:9"):
        for path, method in (("/config", "GET"), (f"{API}/upload", "POST"), (f"{API}/queue/join", "POST"), ("/config", "OPTIONS")):
            assert status(path, method, Origin=origin) == 403, (origin, path)
    assert status(sec_fetch_site="cross-site", sec_fetch_mode="no-cors") == 403
    assert status("/", sec_fetch_site="cross-site", sec_fetch_mode="navigate") == 200  # a link


def test_other_machines_need_a_password(model, tmp_path, monkeypatch):
    monkeypatch.setattr("aha.web.guard.WRONG_SECRET_SECONDS", 0.1)
    for hosts in (["0.0.0.0"], ["::"], ["192.0.2.7"], ["my-server"]):
        with pytest.raises(UserError, match=r"set a password .*AHA_PASSWORD"):
            launch(model, LIMITS, hosts, free_port())
    guard = Guard(PlainTextResponse("the page"), SimpleNamespace(root=tmp_path), ["0.0.0.0", "aha.example.org"], "pass:wörd")
    http = TestClient(guard, base_url="http://192.0.2.7:7860")
    assert http.get("/").status_code == 401 and "Basic" in http.get("/").headers["www-authenticate"]
    for given, status in (("x:pass:wörd", 200), ("pass:wörd", 401), ("x:", 401), ("x:pass:word", 401)):
        head = {"Authorization": "Basic " + base64.b64encode(given.encode()).decode()}
        assert http.get("/config", headers=head).status_code == status, given
        assert http.get("/config", headers={**head, "Host": "evil.example"}).status_code == 421
        assert http.get("/config", headers={**head, "Host": "aha.example.org"}).status_code == status
    assert http.get("/config", headers={"Authorization": "Basic %%%"}).status_code == 401
    assert http.post(f"{API}/upload", files={"files": ("a.mp4", b"x")}).status_code == 401


# ---- starts, visitors, quotas ----


def scoring_threads() -> int:
    return sum(thread.name.startswith("aha-visitor_") or thread.name.startswith("aha-visitor-") for thread in threading.enumerate())


def test_eight_starts_at_once_are_one_job(page, tab, video):
    path = tab.upload(video).json()[0]
    before, function = scoring_threads(), tab.function("aha-start")
    with ThreadPoolExecutor(8) as pool:
        joined = list(pool.map(lambda _: tab.join(function, tab.start_data(path)).status_code, range(8)))
    assert joined == [200] * 8
    ended = tab.ended(8)
    assert sum("data" in output for output in ended) >= 1 and all(
        "data" in output or "starting a video already" in output["error"] for output in ended
    )
    assert scoring_threads() == before + 1
    visitor = page.visitors._all[tab.session]
    wait_for(lambda: visitor.finished)
    assert len(visitor.track()) == 8 and visitor.error is None
    assert "data" in tab.start(path, "something else")  # and the tab is not broken
    wait_for(lambda: visitor.finished and visitor.queries == ["something else"])


def test_visitors_without_a_heartbeat_are_freed(page, hours_pass, video):
    """Forty of them: as many as may come in do, the others are told so, and all are gone when they were not heard of for long."""
    tabs = [Tab(page.address) for _ in range(40)]
    path, function = tabs[0].upload(video).json()[0], tabs[0].function("aha-start")
    outputs = []
    for tab in tabs:
        assert tab.join(function, tab.start_data(path)).status_code == 200
        outputs += tab.ended()
    refused = [output["error"] for output in outputs if "error" in output]
    assert 40 - len(refused) == LIMITS.visitors and all("people are here already" in error for error in refused)
    hours_pass()
    wait_for(lambda: not page.visitors._all and scoring_threads() == 0 and not page.visitors._seen)
    wait_for(lambda: not any(page.visitors.folders.iterdir()) and not Path(path).exists())
    for tab in tabs:
        tab.http.close()


def test_a_visitor_whose_heartbeat_goes_on_stays_and_an_idle_tab_loses_its_thread(page, hours_pass, tab, video):
    path = tab.upload(video).json()[0]
    assert "data" in tab.start(path)
    visitor = page.visitors._all[tab.session]
    with tab.http.stream("GET", f"{API}/heartbeat/{tab.session}") as heartbeat, Tab(page.address) as other:
        lines = heartbeat.iter_lines()
        next(lines)
        wait_for(lambda: visitor.finished)
        assert "data" in other.start(path)
        hours_pass()
        wait_for(lambda: other.session not in page.visitors._all, what="the one without a heartbeat has left")
        assert tab.session in page.visitors._all and visitor._thread is not None
        visitor.touched -= LIMITS.idle_minutes * 60
        wait_for(lambda: visitor._thread is None)
        assert visitor.track() is not None and visitor.status.startswith("Done")
        with pytest.raises(UserError, match="start it again"):
            visitor.ask("still there?")
    wait_for(lambda: tab.session not in page.visitors._connections, what="the heartbeat has ended")
    hours_pass()
    wait_for(lambda: tab.session not in page.visitors._all)


def test_quotas_are_one_sentence_each(page, tab, video, tmp_path):
    def one_sentence(text: str, words: str) -> None:
        assert words in text and "\n" not in text.strip() and "Traceback" not in text and str(page.visitors.root) not in text, text

    one_sentence(tab.upload(video + bytes(2_000_000)).text, "more than the 1 MB that this page takes")
    large = tmp_path / "large.mp4"
    make_video(large, seconds=1, fps=2, size=(1280, 720), sound=False)
    one_sentence(tab.start(tab.upload(large.read_bytes()).json()[0])["error"], "has pictures of 1280x720 pixels")
    long = tmp_path / "long.mp4"
    make_video(long, seconds=35, fps=2, size=(64, 64), sound=False)
    one_sentence(tab.start(tab.upload(long.read_bytes()).json()[0])["error"], "0.6 minutes, more than the 0.5")
    path = tab.upload(video).json()[0]
    tab.start(path)
    visitor = page.visitors._all[tab.session]
    visitor.pause(True)
    with page.visitors._turns.turn():  # nobody is answered now
        for _ in range(LIMITS.questions + 2):
            tab.join(tab.function("aha-ask"), ["what is it?", 0])
        errors = [output["error"] for output in tab.ended(LIMITS.questions + 2) if "error" in output]
    one_sentence(errors[0], "questions wait already")
    others = [Tab(page.address) for _ in range(LIMITS.visitors)]
    one_sentence([other.start(path) for other in others][-1].get("error", ""), "people are here already")
    rest = (900_000 - len(video)) * b"\0"
    told = [tab.upload(another(video, 100 + number) + rest).text for number in range(6)]
    one_sentence(told[-1], "more than the 3 MB that one visitor may have")
    for other in others:
        other.http.close()


def test_uploads_of_all_visitors_together_and_unused_ones(tmp_path):
    uploads = Uploads(tmp_path, Limits(megabytes=1, idle_minutes=0.0))
    for number in range(20):
        uploads.admit(f"visitor {number}", 1_000_000)
    with pytest.raises(UserError, match="holds its 20 MB of uploads already"):
        uploads.admit("one more", 1_000_000)
    stored = tmp_path / "contents" / "a.mp4"
    stored.parent.mkdir()
    stored.write_bytes(bytes(10))
    (tmp_path / "tmpbroken").write_bytes(bytes(10))
    uploads.settle("visitor 0", 1_000_000, [stored, Path("/etc/passwd"), tmp_path / "missing"])
    uploads.use(stored, 1)
    time.sleep(0.02)
    uploads.sweep()
    assert stored.exists() and not (tmp_path / "tmpbroken").exists()
    uploads.use(stored, -1)
    assert not stored.exists() and not stored.parent.exists() and Path("/etc/passwd").exists()
    uploads.admit("one more", 1_000_000)
