"""MAGQA in-span score and its judge, offline: a scripted judge behind a real HTTP connection on localhost."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.request
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import shared_fixture
from waiting import LONG

from aha.errors import UserError
from aha.eval import judge as judging
from aha.eval import magqa
from aha.eval.judge import EndpointJudge, JudgmentCache, Pair, judge_pairs, read_grade


def run(tmp_path, *arguments):
    output = tmp_path / "metrics.json"
    magqa.main([*map(str, arguments), "--output", str(output)])
    return json.loads(output.read_text())


def mean(document, protocol, metric="in_span_score"):
    return document["protocols"][protocol][metric]["mean"]


# ---------------------------------------------------------------- golden


@pytest.mark.parametrize("padding", [15, 20])
def test_graded_file_equals_golden(tmp_path, padding):
    golden = json.loads(shared_fixture("eval/magqa_golden.json").read_text())
    document = run(tmp_path, "--predictions", shared_fixture("eval/magqa_scored.jsonl"), "--num_examples", padding)
    for protocol, key in (("in_span_padded", f"num_examples={padding} pad_with_one=1"), ("in_span", "num_examples=20 pad_with_one=0")):
        for metric, value in golden[key].items():
            assert mean(document, protocol, metric) == pytest.approx(value, abs=0.005 + 1e-9), (protocol, metric)
    per_example = document["protocols"]["in_span"]["in_span_score"]["per_video"].values()
    assert [value for value in per_example if value is not None] == pytest.approx(golden["per_example_in_span"], abs=1e-6)
    assert document["videos"]["scored"] == 15


# ---------------------------------------------------------------- a scripted judge


class Script:
    """What the server answers: `reply(question number, prompt)` gives (status, text), or None: it hangs until the client hangs up."""

    def __init__(self, reply):
        self.reply, self.requests, self.lock = reply, [], threading.Lock()


@contextmanager
def judge_server(reply):
    script = Script(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with script.lock:
                script.requests.append((body, self.headers.get("Authorization")))
                count = len(script.requests)
            answer = script.reply(count, body["messages"][1]["content"])
            if answer is None:
                self.rfile.read(1)
                return
            status, text = answer
            payload = json.dumps({"choices": [{"message": {"content": text}}]}).encode() if status == 200 else text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            if status == 429:
                self.send_header("Retry-After", "0.05")
            self.end_headers()
            with suppress(OSError):  # the client may have gone away
                self.wfile.write(payload)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", script
    finally:
        server.shutdown()
        server.server_close()


def grade_by_text(count, prompt):
    """5 where the given answer is the correct one, else 2."""
    gold, given = prompt.split("Correct answer: ")[1].split("\nGiven answer: ")
    return 200, "5" if given.startswith(gold) else "Grade: 2"


@pytest.fixture
def files(tmp_path):
    gold = [{
        "question_id": f"q{i}", "video": f"v{i}.mp4", "conversation": [{"role": "user", "content": "What does she do?", "time": 0}],
        "answer": [{"role": "assistant", "time": [0, 5], "content": f"She cuts {i}."}, {"role": "assistant", "time": [5, 9], "content": "She fries."}],
    } for i in range(3)]  # fmt: skip
    replies = {  # q0: both spans right; q1: one wrong, one silent; q2: no prediction
        "q0": [(2, "She cuts 0."), (3, "She cuts 0."), (7, "She fries."), (20, "The end.")],
        "q1": [(4, "She sleeps.")],
    }
    predictions = [
        {"question_id": q, "model_response_list": [{"role": "assistant", "time": t, "content": c} for t, c in turns]}
        for q, turns in replies.items()
    ]
    (tmp_path / "gold.json").write_text(json.dumps(gold))
    (tmp_path / "predictions.json").write_text(json.dumps(predictions))
    return [
        "--predictions",
        tmp_path / "predictions.json",
        "--annotations",
        tmp_path / "gold.json",
        "--judge_cache",
        tmp_path / "cache.jsonl",
    ]


def endpoint(url, *more):
    return ["--judge", "endpoint", "--judge_model", "scripted", "--judge_url", url, *more]


def test_from_replies_to_table_and_a_second_run_asks_nothing(tmp_path, files, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    scored = tmp_path / "scored.jsonl"
    with judge_server(grade_by_text) as (url, script):
        first = run(tmp_path, *files, *endpoint(url), "--scored", scored, "--report", tmp_path / "report")
        asked = len(script.requests)
        second = run(tmp_path, *files, *endpoint(url))
        assert len(script.requests) == asked == 3  # in-span replies only, equal ones once
    body, authorization = script.requests[0]
    assert authorization == "Bearer secret-key"
    assert body["temperature"] == 0
    assert first["protocols"] == second["protocols"]
    # q0: (5 + 5) / 2; q1: (2 + 1) / 2; q2 unanswered
    assert mean(first, "in_span") == pytest.approx((5 + 1.5) / 2)
    assert mean(first, "in_span_padded") == pytest.approx((5 + 1.5 + 1) / 3)
    assert mean(first, "in_span_padded", "turns") == pytest.approx(5 / 3)
    for text in (capsys.readouterr().out, (tmp_path / "cache.jsonl").read_text(), (tmp_path / "report" / "report.html").read_text()):
        assert "secret-key" not in text
    # the graded file is judged again without a judge
    assert mean(run(tmp_path, "--predictions", scored, *files[2:]), "in_span") == mean(first, "in_span")


def test_a_busy_judge_is_asked_again(tmp_path, files):
    with judge_server(lambda count, prompt: (429, "slow down") if count % 2 else grade_by_text(count, prompt)) as (url, script):
        assert mean(run(tmp_path, *files, *endpoint(url, "--judge_workers", 1)), "in_span") == pytest.approx(3.25)
    assert len(script.requests) == 6


@pytest.mark.parametrize(
    "trouble, reason",
    [
        (lambda count, prompt: (200, "It depends on many things."), "no grade in the reply"),
        (lambda count, prompt: (400, "bad request"), "HTTP 400"),
        (lambda count, prompt: (401, "no"), "set OPENAI_API_KEY"),
    ],
)
def test_a_failing_judge_loses_no_finished_work(tmp_path, files, trouble, reason):
    """The first pair is graded, then the judge fails: the grade is kept, and a later run asks only for the rest."""
    with judge_server(lambda count, prompt: grade_by_text(count, prompt) if count == 1 else trouble(count, prompt)) as (url, _):
        with pytest.raises(UserError, match=reason) as failure:
            run(tmp_path, *files, *endpoint(url, "--judge_workers", 1))
        assert "left 2 of 3 answers ungraded" in str(failure.value)
    assert not (tmp_path / "metrics.json").exists()
    assert len((tmp_path / "cache.jsonl").read_text().splitlines()) == 1
    # judged on at another address: the cache is keyed by model and address, so the pairs are taken over by hand here
    pairs = [Pair("What does she do?", "She fries.", "She fries."), Pair("What does she do?", "She cuts 0.", "She cuts 0.")]
    with judge_server(grade_by_text) as (url, script):
        judge = EndpointJudge(url, "scripted", first_wait=0.01)
        cache = JudgmentCache(tmp_path / "second.jsonl")
        cache.add(pairs[0].key(judge.identity), 5, "5")
        _, asked = judge_pairs(pairs, judge, JudgmentCache(tmp_path / "second.jsonl"))
        assert asked == len(script.requests) == 1


def test_a_judge_that_hangs_is_given_up_and_its_neighbours_are_kept(tmp_path, monkeypatch):
    """Only what hangs has little time: the others are answered in theirs, on any machine."""
    real = urllib.request.urlopen
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda request, timeout: real(request, timeout=timeout if b"gold 2" in request.data else LONG)
    )
    pairs = [Pair("q", f"gold {i}", f"answer {i}") for i in range(4)]
    with judge_server(lambda count, prompt: None if "gold 2" in prompt else (200, "3")) as (url, _):
        judge = EndpointJudge(url, "scripted", timeout=0.15, first_wait=0.01)
        with pytest.raises(UserError, match="no answer within 0.15 s"):
            judge_pairs(pairs, judge, JudgmentCache(tmp_path / "cache.jsonl"))
    assert len(JudgmentCache(tmp_path / "cache.jsonl").grades) == 3


def test_no_server_is_a_sentence(tmp_path):
    judge = EndpointJudge("http://127.0.0.1:9/v1", "scripted", first_wait=0.001)
    with pytest.raises(UserError, match="no connection to http://127.0.0.1:9/v1"):
        judge_pairs([Pair("q", "g", "a")], judge, JudgmentCache(tmp_path / "cache.jsonl"))


def test_a_cache_line_cut_off_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / "cache.jsonl"
    JudgmentCache(path).add("k1", 4, "4")
    path.write_text(path.read_text() + '{"key": "k2", "gra')
    cache = JudgmentCache(path)
    assert cache.grades == {"k1": 4}
    cache.add("k3", 2, "2")
    assert JudgmentCache(path).grades == {"k1": 4, "k3": 2}


def test_batch_files_there_and_back(tmp_path, files):
    batch = ["--judge", "batch", "--judge_model", "scripted", "--batch_dir", tmp_path / "batch"]
    with pytest.raises(UserError, match="3 answers are not graded yet"):
        run(tmp_path, *files, *batch)
    outputs = []
    for line in (tmp_path / "batch" / "input.jsonl").read_text().splitlines():
        request = json.loads(line)
        assert request["url"] == "/v1/chat/completions"
        text = grade_by_text(1, request["body"]["messages"][1]["content"])[1]
        outputs.append(
            {"custom_id": request["custom_id"], "response": {"status_code": 200, "body": {"choices": [{"message": {"content": text}}]}}}
        )
    outputs[0]["response"] = None  # this one failed at the provider
    (tmp_path / "batch" / "output.jsonl").write_text("\n".join(map(json.dumps, outputs)))
    with pytest.raises(UserError, match=r"1 answers are not graded yet \(1 answers of the last batch held no grade\)"):
        run(tmp_path, *files, *batch)
    outputs[0]["response"] = {"body": {"choices": [{"message": {"content": "5"}}]}}
    (tmp_path / "batch" / "output-2.jsonl").write_text(json.dumps(outputs[0]))
    assert mean(run(tmp_path, *files, *batch), "in_span") == pytest.approx(3.25)


def test_local_model_as_judge(tmp_path, files):
    """A tiny random model answers nonsense, and the command says so; its replies come from the real transformers path."""
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    base = shared_fixture("reference/llava-onevision-qwen2-tiny-ov")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant:"
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                         num_key_value_heads=1)  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    with pytest.raises(UserError, match="no grade in the reply"):
        run(tmp_path, *files, "--judge", "local", "--judge_model", tmp_path / "judge")


# ---------------------------------------------------------------- grades and prompt


@pytest.mark.parametrize(
    "reply, grade",
    [("4", 4), (" 4.\n", 4), ("**3**", 3), ("Grade: 5", 5), ("The score is 2", 2), ("4/5", 4), ("I would give it a 3", 3), ("0", None), ("6", None),
     ("10", None), ("4.5", None), ("between 2 and 4", None), ("", None), ("good", None), ("45", None)],
)  # fmt: skip
def test_grades_are_read_or_refused(reply, grade):
    assert read_grade(reply) == grade


@given(st.text())
def test_any_reply_is_a_grade_or_none(reply):
    assert read_grade(reply) in (None, 1, 2, 3, 4, 5)


def test_the_prompt_changes_only_with_its_version():
    digest = hashlib.sha256((judging.SYSTEM + judging.USER).encode()).hexdigest()[:16]
    assert (judging.PROMPT_VERSION, digest) == (1, PROMPT_DIGEST), "raise PROMPT_VERSION and put the new digest here"


PROMPT_DIGEST = "e5ba582d0932e7c7"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"evaluator_output": [[4]]}, "one grade for each of the 2 replies"),
        ({"evaluator_output": [[4, 9]]}, "not between 1 and 5"),
        ({"answer_time": [[0, 1], [1, 2]]}, "lists of one length"),
        ({"answer_time": [[3, 1]]}, "ends"),
        ({"model_response_list": 3}, "no model_response_list"),
    ],
)
def test_bad_graded_files_are_named(tmp_path, change, message):
    turns = [{"role": "assistant", "content": "x", "time": 1.0}, {"role": "assistant", "content": "y", "time": 2.0}]
    entry = {"question_id": "a", "model_response_list": turns, "answer_time": [[0, 3]], "evaluator_output": [[4, 5]], **change}
    (tmp_path / "p.json").write_text(json.dumps([entry]))
    with pytest.raises(UserError, match=message):
        run(tmp_path, "--predictions", tmp_path / "p.json")


def test_a_judge_is_asked_for_where_one_is_needed(tmp_path, files):
    with pytest.raises(UserError, match="a judge is needed"):
        run(tmp_path, *files)
