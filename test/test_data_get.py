"""TVSum annotations without a download, and `aha.data.get tvsum` from a small server: good, cut off, another file, not there."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import pytest
from paths import REPO, shared_fixture

from aha.data import get
from aha.errors import UserError
from aha.eval import annotations
from aha.eval.annotations import SHIPPED, find_tvsum, read_tvsum

MAT = shared_fixture("eval/ydata-tvsum50.mat").read_bytes()


def other_opinions() -> bytes:
    """The same file, in which one person likes one frame more."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "other.mat"
        path.write_bytes(MAT)
        with h5py.File(path, "r+") as file:
            scores = file[file["tvsum50/user_anno"][0, 0]]
            scores[0, 0] = 5 if scores[0, 0] < 5 else 1
        return path.read_bytes()


OTHER_OPINIONS = other_opinions()


class Server(BaseHTTPRequestHandler):
    """Sends `body`; of the first answer only `first` bytes. Keeps what was asked for."""

    body, first, status, ranges = MAT, None, 200, True

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if self.status != 200:
            self.send_error(self.status)
            return
        if start >= len(self.body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.body) - start))
        self.end_headers()
        end = self.first if self.first is not None and len(self.server.asked) == 1 else None
        self.wfile.write(self.body[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    servers = []

    def start(**settings) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Kind", (Server,), settings))
        server.asked = []
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(get, "SOURCE", f"http://127.0.0.1:{server.server_port}/ydata-tvsum50.mat")
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def run(root: Path) -> None:
    get.main(["tvsum", "--root", str(root)])


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if not path.name.startswith("."))


def test_what_is_fetched_is_what_ships(tmp_path, serve, capsys):
    serve()
    run(tmp_path)
    assert visible(tmp_path) == ["tvsum", "ydata-tvsum50-anno.tsv", "ydata-tvsum50-info.tsv"]
    assert len(list((tmp_path / "tvsum").iterdir())) == 2 and capsys.readouterr().out.count("wrote ") == 2
    info = tmp_path / "tvsum" / "ydata-tvsum50-info.tsv"
    assert info.read_bytes() == SHIPPED.with_name("ydata-tvsum50-info.tsv").read_bytes()
    fetched, shipped = read_tvsum(tmp_path / "tvsum"), read_tvsum(SHIPPED)
    assert list(fetched) == list(shipped) and all((fetched[i].user_scores == shipped[i].user_scores).all() for i in shipped)


def test_a_cut_connection_goes_on_where_it_stopped(tmp_path, serve):
    server = serve(first=300_000)
    with pytest.raises(UserError, match=rf"ended after 300,000 of {len(MAT):,} bytes; give the same command again"):
        run(tmp_path)
    assert visible(tmp_path) == ["tvsum"]
    run(tmp_path)
    assert server.asked == [None, "bytes=300000-"] and len(read_tvsum(tmp_path / "tvsum")) == 50


def test_a_download_that_was_whole_when_the_command_was_killed(tmp_path, serve):
    serve()
    (tmp_path / "tvsum").mkdir()
    (tmp_path / "tvsum" / ".ydata-tvsum50.part").write_bytes(MAT)
    run(tmp_path)
    assert len(read_tvsum(tmp_path / "tvsum")) == 50


def test_a_server_without_ranges_sends_it_all_again(tmp_path, serve):
    serve(first=300_000, ranges=False)
    with pytest.raises(UserError, match="ended after"):
        run(tmp_path)
    run(tmp_path)
    assert len(read_tvsum(tmp_path / "tvsum")) == 50


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"body": MAT[: len(MAT) // 2]}, "is not the file it was .*cannot be read"),
        ({"body": OTHER_OPINIONS}, "is not the file it was .anno: sha256"),
        ({"status": 404}, r"answers 404 Not Found; .*tvsum50_ver_1_1\.tgz"),
    ],
)
def test_another_file_and_no_file_write_nothing(tmp_path, serve, settings, said):
    serve(**settings)
    for _ in range(2):
        with pytest.raises(UserError, match=said) as error:
            run(tmp_path)
        assert "\n" not in str(error.value) and not list(tmp_path.rglob("*.*"))


def test_offline_is_one_sentence(tmp_path, serve):
    server = serve()
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="cannot be fetched .*when the network is there"):
        run(tmp_path)


def test_the_hashes_are_those_of_the_files_that_ship():
    assert hashlib.sha256(gzip.decompress(SHIPPED.read_bytes())).hexdigest() == get.SHA256["anno"]
    assert hashlib.sha256(SHIPPED.with_name("ydata-tvsum50-info.tsv").read_bytes()).hexdigest() == get.SHA256["info"]


def test_find_tvsum(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_tvsum() == SHIPPED
    assert find_tvsum("given.tsv") == Path("given.tsv")
    folder = Path("datasets/tvsum/ydata-tvsum50-v1_1/data")
    folder.mkdir(parents=True)
    assert find_tvsum() == find_tvsum("datasets/tvsum") == SHIPPED  # the videos only
    (folder / "ydata-tvsum50-anno.tsv").touch()
    assert find_tvsum() == find_tvsum("datasets") == folder / "ydata-tvsum50-anno.tsv"
    monkeypatch.setattr(annotations, "SHIPPED", tmp_path / "removed")
    (folder / "ydata-tvsum50-anno.tsv").unlink()
    with pytest.raises(UserError, match=r"python -m aha\.data\.get tvsum"):
        find_tvsum()


def test_tvsum_is_evaluated_with_nothing_downloaded_from_any_folder(tmp_path):
    command = [sys.executable, "-m", "aha.eval.tvsum", "--predictions", str(shared_fixture("eval/tvsum_pred_noisy.json"))]
    environment = {**os.environ, "PYTHONPATH": f"{REPO}:{REPO / 'LLaVA_NeXT'}", "AHA_CACHE": str(tmp_path / "cache")}
    flags = ["--protocols", "corr_full", "--random_runs", "1", "--output", "metrics.json"]
    done = subprocess.run([*command, *flags], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "metrics.json").read_text())["protocols"]["corr_full"]["kendall"]["mean"]
    golden = json.loads(shared_fixture("eval/tvsum_golden.json").read_text())
    assert found == pytest.approx(golden["predictors"]["noisy"]["corr_full"]["kendall"]["mean"], abs=1e-9)
