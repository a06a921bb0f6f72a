"""Secrets that a command is given stand nowhere afterwards: not in events, errors, logs, the process list, nor in any file of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from highlights_media import make_video
from paths import REPO, shared_fixture
from playlists import counting_server
from training_data import write_tvsum

from aha.core.addresses import shown_address, without_secrets
from aha.errors import UserError
from aha.watch.sources import check_file

PLANTED = ("S3cretPw", "T0kenInQuery", "hf_PlantedHubToken", "PlantedWandbKey", "PlantedOpenAI", "PlantedPagePassword")


def environment(**more: str) -> dict[str, str]:
    paths = f"{REPO}{os.pathsep}{REPO / 'LLaVA_NeXT'}"
    return {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


@pytest.mark.parametrize("address, shown", [
    ("http://bob:12/34@host/x", "http://host/x"),
    ("http://bob:S3@cretPw@host:8080/a/b?T0kenInQuery", "http://host:8080/a/b"),
    ("bob:S3cretPw@cam:554/live?x=1", "cam:554/live"),
    ("rtsp://S3cretPw@cam", "rtsp://cam"),
    ("srt://host:9000?passphrase=S3cretPw&mode=caller", "srt://host:9000"),
    ("http://h:8443/@user/x", "http://h:8443/@user/x"),
    ("http://h:8443/a@b/c", "http://b/c"),  # in doubt less is shown
    ("a film: part 2.mp4", "a film: part 2.mp4"), ("C:\\me@home\\x.mp4", "C:\\me@home\\x.mp4"),
])  # fmt: skip
def test_addresses_are_shown_without_secrets_in_doubt_too(address, shown):
    assert shown_address(address) == shown
    if shown != address:
        told = without_secrets(f"cannot open {address}: 401 for the login {address.split('@h')[0].split('//')[-1]}", address)
        assert "S3cretPw" not in told and "S3@cretPw" not in told and shown in told


def test_a_file_that_looks_like_an_address_keeps_its_name(tmp_path):
    named = tmp_path / "a:b@c.mp4"
    named.write_bytes(b"")
    assert shown_address(str(named)) == str(named)


def test_an_address_without_its_scheme_is_no_file_and_keeps_its_password():
    with pytest.raises(UserError) as told:
        check_file("bob:S3cretPw@127.0.0.1/x?token=T0kenInQuery")
    assert "127.0.0.1/x does not exist" in str(told.value) and not any(secret in str(told.value) for secret in PLANTED)


def test_watch_shows_no_password_in_events_errors_tracebacks_and_the_process_list(tmp_path):
    """The process list is read while the command runs; one address answers, one refuses."""
    video = tmp_path / "a.ts"
    make_video(video, seconds=3, fps=10, container="mpegts", size=(128, 96), sound=False)
    command = [sys.executable, "-m", "aha", "watch"]
    model = ["--llm_pretrained", str(shared_fixture("reference/llava-onevision-qwen2-tiny-ov"))]
    model += ["--lora_pretrained", str(shared_fixture("reference/aha-adapter")), "--query", "a red star"]
    with counting_server(video.read_bytes(), "video/mp2t") as (served, _):
        good = served.replace("http://", "http://bob:S3cretPw@") + "/live.ts?token=T0kenInQuery"
        for source, code in ((good, 0), ("http://bob:S3cretPw@127.0.0.1:9/live.ts?token=T0kenInQuery", 2)):
            arguments = [*command, source, *model, "--reconnect_attempts", "1", "--debug"]
            with (tmp_path / "log").open("w+") as log:
                process = subprocess.Popen(
                    arguments, env=environment(), cwd=REPO, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                )
                lines, end, stopped = [], time.monotonic() + 600, False
                while process.poll() is None:
                    assert time.monotonic() < end, "it does not end"
                    lines.append(Path(f"/proc/{process.pid}/cmdline").read_bytes().decode())
                    if not stopped and '"event": "lost"' in (tmp_path / "log").read_text():
                        process.send_signal(signal.SIGINT)  # a stream without an end is read again and again
                        stopped = True
                    time.sleep(0.2)
                log.seek(0)
                text = log.read()
            assert process.returncode == code, text
            assert ('"source": "http://127.0.0.1' in text) if code == 0 else "Traceback" in text
            assert not [secret for secret in PLANTED if secret in text], text
            shown = [line for line in lines if line][-1]
            assert not any(secret in shown for secret in PLANTED), shown


@pytest.mark.slow
def test_no_file_of_a_training_run_holds_a_secret(tmp_path):
    """A run with secrets in the environment and on the command line, and everything that it wrote: adapter, card, settings, logs, wandb."""
    home = tmp_path / "home"
    home.mkdir()
    data = write_tvsum(tmp_path / "data", videos=3, seconds=3)
    secrets = {"WANDB_API_KEY": "PlantedWandbKey".ljust(40, "0"), "OPENAI_API_KEY": "PlantedOpenAI", "AHA_PASSWORD": "PlantedPagePassword"}
    base, adapter = shared_fixture("reference/llava-onevision-qwen2-tiny-ov"), shared_fixture("reference/mmduet-adapter")
    for number, token in enumerate((["--hub_token", PLANTED[2]], [f"--hub_token={PLANTED[2]}"], [f"--hub-token={PLANTED[2]}"])):
        written = tmp_path / f"run{number}"
        arguments = [
            sys.executable, "-m", "aha.train", "--llm_pretrained", str(base), "--lora_pretrained", str(adapter), "--dataset_config", str(data),
            "--output_dir", str(written / "out"), "--max_steps", "1", "--disable_tqdm", "True", "--report_to", "wandb", "--fold", "-1", *token,
        ]  # fmt: skip
        run = subprocess.run(
            arguments, env=environment(WANDB_MODE="offline", HF_TOKEN="hf_PlantedHubToken", HOME=str(home), **secrets), cwd=REPO,
            capture_output=True, text=True,
        )  # fmt: skip
        texts = {"console": run.stdout + run.stderr}
        texts |= {
            str(path): path.read_bytes().decode(errors="replace")
            for place in (written, home)
            for path in place.rglob("*")
            if path.is_file()
        }
        found = [(name, secret) for name, text in texts.items() for secret in PLANTED if secret in text]
        assert not found, found
        if run.returncode == 0:
            assert any("wandb" in name and name.endswith(".wandb") for name in texts)
        else:
            assert run.returncode == 2 and "token" in texts["console"], texts["console"]
