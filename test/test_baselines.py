"""Baselines and policies: rows of TVSum and of a proactive table; a VLM behind a scripted server, a tiny random VLM, a tiny random SigLIP."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from paths import shared_fixture
from tiny_benchmarks import tiny_model, write_tvsum, write_video
from waiting import LONG

from aha.core.prediction import Prediction, score_rows, write_predictions
from aha.errors import UserError
from aha.eval import proactive, tvsum
from aha.eval.judge import address_of_model
from aha.scoring import baseline, speak, vlm


@pytest.fixture(scope="module")
def tvsum_root(tmp_path_factory):
    return write_tvsum(tmp_path_factory.mktemp("tvsum"))


@pytest.fixture(scope="module")
def po_root(tmp_path_factory):
    """Two questions of StreamingBench's layout on two videos of 12 seconds."""
    root = tmp_path_factory.mktemp("po")
    entries = []
    for i, truth in enumerate((7, 9)):
        write_video(root / "videos" / f"sample_{i}_proactive.mp4", 12, seed=i)
        question = {
            "task_type": "Proactive Output", "question": 'say "red" when it is red', "time_stamp": "00:00:02",
            "ground_truth_time_stamp": f"00:00:0{truth}", "ground_truth_output": "red",
        }  # fmt: skip
        entries.append({"time": "[0:00:00 - 0:00:12]", "questions": [question], "video_path": f"./videos/sample_{i}_proactive.mp4"})
    (root / "questions_proactive.json").write_text(json.dumps(entries))
    return root


def make(name, root, output, *flags, dataset="tvsum"):
    baseline.main([name, "--dataset", dataset, "--data_root", str(root), "--output", str(output), *map(str, flags)])
    return json.loads(output.read_text())


def test_rows_that_look_at_no_model(tvsum_root, po_root, tmp_path, capsys):
    for name in ("random", "uniform", "centre", "recency", "motion", "scene_change"):
        found = make(name, tvsum_root, tmp_path / f"{name}.json")
        scores = [[row["relevance_score"] for row in entry["debug_data"]] for entry in found]
        assert [len(row) for row in scores] == [8, 8, 8] and all(0 <= x <= 1 for row in scores for x in row)
        assert found[0]["true_frames_list"] == [5 * k for k in range(8)]
    assert make("random", tvsum_root, tmp_path / "again.json") == json.loads((tmp_path / "random.json").read_text())
    motion = json.loads((tmp_path / "motion.json").read_text())[0]["debug_data"]
    assert motion[0]["relevance_score"] == 0 and min(row["relevance_score"] for row in motion[1:]) > 0  # every second is another picture
    found = make("centre", po_root, tmp_path / "po.json", dataset="streamingbench_po")
    assert all("label-free" in entry["policy"] for entry in found) and [entry["question_id"] for entry in found] == ["0", "1"]

    capsys.readouterr()
    rows = [str(tmp_path / f"{name}.json") for name in ("motion", "recency")]
    args = [
        "--annotations",
        str(tvsum_root),
        "--predictions",
        rows[0],
        "--protocols",
        "corr_1fps",
        "--random_runs",
        "1",
        "--baselines",
        *rows,
    ]
    tvsum.main([*args, "--output", str(tmp_path / "metrics.json")])
    shown = capsys.readouterr().out
    assert "baseline motion" in shown and "this minus it" in shown
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    own, row = metrics["protocols"]["corr_1fps"]["kendall"], metrics["baselines"]["baseline recency"]["corr_1fps"]["kendall"]
    assert row["difference"]["mean"] == pytest.approx(own["mean"] - row["mean"]) and len(row["difference"]["interval"]) == 2
    assert metrics["baselines"]["baseline motion"]["corr_1fps"]["kendall"]["difference"]["mean"] == 0
    with pytest.raises(UserError, match="aha baseline NAME --dataset tvsum"):
        tvsum.evaluate(rows[0], tvsum_root, baselines=[str(tmp_path / "none.json")])


def test_titles_swapped_are_those_of_other_videos(tvsum_root, tmp_path):
    found = make("titles_swapped", tvsum_root, tmp_path / "swapped.json", *tiny_model())
    titles = {f"video{i}": f"A title of {category}" for i, category in enumerate(["VT", "GA", "MS"])}
    assert all(entry["query"] != titles[entry["video_uuid"]] and entry["query"] in titles.values() for entry in found)


# ---------------------------------------------------------------- a scripted server


class Server:
    """Speaks chat completions on 127.0.0.1; `script` says what call n gets: words, or a trouble."""

    def __init__(self, script):
        self.calls: list[dict] = []
        self.answered: list[str] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.calls)
                    outer.calls.append(body)
                what = script(number, body)
                if what == "hang":
                    self.rfile.read(1)  # until the client hangs up
                    return
                if what == "cut":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if what == 429:
                    self.send_response(429)
                    self.send_header("Retry-After", "0.01")
                    self.end_headers()
                    return
                data = json.dumps({"choices": [{"message": {"content": what}}]}).encode()
                with lock:
                    outer.answered.append(json.dumps(body["messages"], sort_keys=True))
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    made = vlm.EndpointVlm.__init__
    monkeypatch.setattr(vlm.EndpointVlm, "__init__", lambda self, url, model, timeout: made(self, url, model, timeout, first_wait=0.01))


def test_vlm_through_troubles_loses_nothing_and_asks_nothing_twice(po_root, tmp_path, capsys, monkeypatch):
    """The first question that is asked hangs, and is given up after 0.2 s; all others have their time, on any machine."""
    troubles, first, hung, lock = iter([429, "80 red", "cut", "80 red", "I cannot tell"]), [], [], threading.Lock()
    real = urllib.request.urlopen

    def ask(request, timeout):
        with lock:
            is_first = not first
            first.append(json.loads(request.data))
        return real(request, timeout=0.2 if is_first else timeout)

    def script(number, body):
        with lock:
            if body == first[0] and not hung:
                hung.append(number)
                return "hang"
            return next(troubles, "80 red")

    monkeypatch.setattr("urllib.request.urlopen", ask)
    cache = tmp_path / "replies.jsonl"
    with Server(script) as server:
        flags = ("--endpoint", server.url, "--model", "m", "--frames", "3", "--timeout", str(LONG), "--workers", "2", "--reply_cache", cache,
                 "--usd_per_call", "0.01", "--side", "32")  # fmt: skip
        baseline.main(["vlm", "--dataset", "streamingbench_po", "--data_root", str(po_root), *map(str, flags), "--dry_run"])
        assert "20 calls with 60 pictures of 32 x 32, $0.20" in capsys.readouterr().out and not server.calls
        found = make("vlm", po_root, tmp_path / "vlm.json", *flags, dataset="streamingbench_po")
        shown = capsys.readouterr()
        assert "1 replies of m at" in shown.err and "count 0" in shown.err
        assert len(server.answered) == len(set(server.answered)) == 20 and len(server.calls) == 23
        content = server.calls[-1]["messages"][1]["content"]
        assert [part["type"] for part in content] == ["image_url"] * 3 + ["text"]
        again = make("vlm", po_root, tmp_path / "again.json", *flags, dataset="streamingbench_po")
        assert again == found and len(server.calls) == 23 and "to ask: 0 calls" in capsys.readouterr().out
    assert [row["time"] for row in found[0]["debug_data"]] == list(range(2, 12))
    assert sum(len(entry["model_response_list"]) for entry in found) == 19
    assert {turn["content"] for entry in found for turn in entry["model_response_list"]} == {"red"}
    shown = proactive.evaluate("streamingbench_po", shared_file(po_root, tmp_path), po_root, baselines=[str(tmp_path / "vlm.json")])
    row = shown["baselines"]["baseline vlm"]["streamingbench_po_push_recall"]["recall@2s"]
    assert row["mean"] == 1 and row["difference"]["mean"] == -0.5


def shared_file(root, tmp_path):
    """Our replies: one of two in time."""
    file = tmp_path / "ours.jsonl"
    elements = [{"question_id": i, "model_response_list": [{"role": "assistant", "time": 7.5 - 4 * i, "content": "red"}]} for i in range(2)]
    file.write_text("\n".join(map(json.dumps, elements)))
    return file


def test_vlm_cut_off_in_the_middle_goes_on(tvsum_root, tmp_path):
    cache = tmp_path / "replies.jsonl"
    flags = ["--model", "m", "--frames", "1", "--workers", "1", "--side", "16", "--reply_cache", cache]
    with Server(lambda number, body: "42" if number < 10 else 429) as server:
        with pytest.raises(UserError, match="of video1 without a reply .* 10 replies so far are kept"):
            make("vlm", tvsum_root, tmp_path / "vlm.json", *flags, "--endpoint", server.url)
        assert not (tmp_path / "vlm.json").exists()
    cache.write_bytes(cache.read_bytes() + b'{"key": "cut o')
    with Server(lambda number, body: "43") as server:  # the same model, started again on another port: only the rest is asked
        found = make("vlm", tvsum_root, tmp_path / "vlm.json", *flags, "--endpoint", server.url.replace("127.0.0.1", "localhost"))
        assert len(server.calls) == 14 and len(found) == 3
        scores = [row["relevance_score"] for entry in found for row in entry["debug_data"]]
        assert scores == [0.42] * 10 + [0.43] * 14
        again = make("vlm", tvsum_root, tmp_path / "vlm.json", *flags, "--endpoint", server.url)
        assert len(server.calls) == 14 and again == found
        make("vlm", tvsum_root, tmp_path / "vlm.json", *flags[2:], "--model", "other", "--limit", "1", "--endpoint", server.url)
        assert len(server.calls) == 14 + 8  # another model's replies are others
        make("vlm", tvsum_root, tmp_path / "vlm.json", *flags, "--endpoint", server.url)
    metrics = tvsum.evaluate(tmp_path / "vlm.json", tvsum_root, protocols=["corr_1fps"], random_runs=1)
    assert metrics["videos"]["constant"] == ["video0", "video2"]
    assert address_of_model("https://api.example.com:8443/v1") == "https://api.example.com:8443/v1"
    for bad in ("127.0.0.1:8000/v1", "http://[::1"):
        with pytest.raises(UserError, match="no http"):
            vlm.EndpointVlm(bad, "m", 1.0)


@pytest.mark.parametrize(
    ("reply", "score", "words"),
    [
        ("80", 0.8, ""),
        ("80 red", 0.8, "red"),
        ("Score: 100% - now", 1.0, "now"),
        ("7", 0.07, ""),
        ("no", None, ""),
        ("", None, ""),
        ("999", None, ""),
    ],
)
def test_replies_are_read_from_the_cache(reply, score, words):
    assert vlm.read_reply(reply) == (score, words)


# ---------------------------------------------------------------- tiny random models


def tokenizer(folder, extra=()):
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(shared_fixture("reference/llava-onevision-qwen2-tiny-ov"))
    found.add_special_tokens({"additional_special_tokens": list(extra)})
    found.save_pretrained(folder)
    return found


@pytest.fixture(scope="module")
def tiny_siglip(tmp_path_factory):
    import torch
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    folder = tmp_path_factory.mktemp("siglip")
    words = tokenizer(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**size, "vocab_size": len(words), "max_position_embeddings": 16, "projection_size": 16},
        vision_config={**size, "image_size": 32, "patch_size": 16},
    )
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_vlm(tmp_path_factory):
    import torch
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        Qwen2Config,
    )

    folder = tmp_path_factory.mktemp("vlm")
    words = tokenizer(folder, ["<image>"])
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' }}{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}"
        "{% endfor %}\n{% endfor %}assistant:"
    )
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    text = Qwen2Config(vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                       num_key_value_heads=1)  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=words.convert_tokens_to_ids("<image>"))
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(pictures, words, patch_size=16, vision_feature_select_strategy="default", chat_template=template,
                   num_additional_image_tokens=1).save_pretrained(folder)  # fmt: skip
    return folder


def stands_as_a_row(name, tvsum_root, po_root, tmp_path, on_tvsum, on_po):
    """A baseline's files of both kinds of benchmark: their row beside another prediction, with the paired difference."""
    ours = tmp_path / "ours.json"
    make("centre", tvsum_root, ours)
    tables = (
        (tvsum.evaluate(ours, tvsum_root, protocols=["f1_official60"], random_runs=1, baselines=[str(on_tvsum)]), "f1_official60", "f1"),
        (
            proactive.evaluate("streamingbench_po", shared_file(po_root, tmp_path), po_root, baselines=[str(on_po)]),
            "streamingbench_po_push",
            "time_accuracy",
        ),
    )
    for shown, protocol, metric in tables:
        own, row = shown["protocols"][protocol][metric], shown["baselines"][f"baseline {name}"][protocol][metric]
        assert row["difference"]["mean"] == pytest.approx(own["mean"] - row["mean"]) and len(row["difference"]["interval"]) == 2


def test_tiny_random_siglip_is_a_row_of_both_tables(tiny_siglip, tvsum_root, po_root, tmp_path):
    found = make("siglip", tvsum_root, tmp_path / "a" / "siglip.json", "--model", tiny_siglip)
    scores = np.array([[row["relevance_score"] for row in entry["debug_data"]] for entry in found])
    assert scores.shape == (3, 8) and (scores > 0).all() and (scores < 1).all() and np.ptp(scores) > 0
    make("siglip", po_root, tmp_path / "b" / "siglip.json", "--model", tiny_siglip, dataset="streamingbench_po")
    stands_as_a_row("siglip", tvsum_root, po_root, tmp_path, tmp_path / "a" / "siglip.json", tmp_path / "b" / "siglip.json")
    with pytest.raises(UserError, match="cannot be loaded"):
        make("siglip", tvsum_root, tmp_path / "x.json", "--model", tmp_path / "none")


def test_tiny_random_vlm_by_transformers_is_a_row_of_both_tables(tiny_vlm, tvsum_root, po_root, tmp_path, capsys):
    cache = tmp_path / "replies.jsonl"
    flags = ("--model", tiny_vlm, "--frames", "2", "--side", "32", "--reply_cache", cache)
    found = make("vlm", tvsum_root, tmp_path / "a" / "vlm.json", *flags)
    assert [len(entry["debug_data"]) for entry in found] == [8, 8, 8] and len(cache.read_text().splitlines()) == 24
    make("vlm", po_root, tmp_path / "b" / "vlm.json", *flags, dataset="streamingbench_po")
    assert len(cache.read_text().splitlines()) == 24 + 20
    stands_as_a_row("vlm", tvsum_root, po_root, tmp_path, tmp_path / "a" / "vlm.json", tmp_path / "b" / "vlm.json")
    kept = cache.read_text().splitlines()
    cache.write_text("\n".join(kept[:20]) + "\n")
    capsys.readouterr()
    assert make("vlm", tvsum_root, tmp_path / "again.json", *flags) == found
    assert "20 of them kept from before; to ask: 4 calls" in capsys.readouterr().out


# ---------------------------------------------------------------- when to speak


def scored(file, peaks, count=12, high=0.9):
    """Frame scores at 1 fps that are high at the peaks."""
    elements = []
    for key, peak in enumerate(peaks):
        scores = [high if time == peak else 0.2 for time in range(count)]
        elements.append(
            Prediction.of_scores(f"v{key}", "q", 12.0, 1.0, range(count), score_rows(range(count), None, scores), question_id=str(key))
        )
    write_predictions(file, elements)
    return file


def test_policies_are_fitted_elsewhere_and_say_so(po_root, tmp_path, capsys):
    test, dev = scored(tmp_path / "test.json", (7, 9)), scored(tmp_path / "dev.json", (7, 9), high=0.8)
    dev_root = tmp_path / "dev"
    dev_root.mkdir()
    (dev_root / "questions_proactive.json").write_text((po_root / "questions_proactive.json").read_text())
    args = [str(test), "--benchmark", "streamingbench_po", "--annotations", str(po_root), "--output", str(tmp_path / "said.jsonl")]
    other = ["--fit", str(dev), "--fit_annotations", str(dev_root)]

    def run(*flags):
        speak.main([*args, *flags])
        shown = capsys.readouterr().out
        metrics = proactive.evaluate("streamingbench_po", tmp_path / "said.jsonl", po_root)
        assert any(note in shown for note in metrics["notes"])
        return shown, metrics["protocols"]["streamingbench_po_push"]["time_accuracy"]["mean"]

    shown, right = run("--policy", "threshold", *other)
    assert right == 1 and "fitted on" in shown and "dev.json (F1 1.000 there), held fixed" in shown
    assert run("--policy", "accumulated", *other)[1] <= 1
    shown, right = run("--policy", "budget", "--alarms_per_minute", "8")
    assert right == 1 and "label-free" in shown
    shown, right = run("--policy", "threshold", "--oracle")
    assert right == 1 and "THE TEST SET ITSELF (oracle, no result)" in shown
    assert run("--policy", "never")[1] == 0 and run("--policy", "always")[1] <= 0.5
    for flags, says in (
        (["--policy", "threshold"], "has a value to be fitted"),
        (["--policy", "threshold", "--fit", str(dev), "--fit_annotations", str(po_root)], "the test set itself"),
        (["--policy", "hold", *other], "no uncertainty|has none"),
        (["--policy", "budget", "--score_heads", "x"], "x is none of"),
    ):
        with pytest.raises(UserError, match=says):
            speak.main([*args, *flags])


def test_a_tiny_demo_set_is_one_set_in_three_layouts(tmp_path, monkeypatch):
    from aha.demo import proactive as demo

    drawn: list[str] = []
    monkeypatch.setattr(demo, "write_video", lambda plan, path: drawn.append(path.name))  # test_demo_dataset.py draws
    (one, two) = demo.make_set(tmp_path, 3, count=2)
    assert one.truth != two.truth or one.wanted != two.wanted
    found = [proactive.moments(name, tmp_path / place) for name, place in demo.NAMES.items()]
    assert all(set(moments) == {"0", "1"} and moments["0"].start == demo.ASKED for moments in found)
    assert [moments["0"].windows[0][1] for moments in found] == [one.truth] * 3
    assert one.wanted in one.question and drawn == ["sample_0_proactive.mp4", "sample_1_proactive.mp4"]
    with pytest.raises(UserError, match="other settings"):
        demo.make_set(tmp_path, 4, count=2)
