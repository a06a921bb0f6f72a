"""Proactive benchmarks: every golden number by protocol and metric, other people's files, blind rows, bad input as one sentence."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest
from paths import shared_fixture

from aha.errors import UserError
from aha.eval import proactive
from aha.eval.proactive_ovo import FORWARD
from aha.eval.proactive_videoqa import SUBSETS, read_questions, rounds
from aha.results.tree import protocols_tree

DATA = shared_fixture("proactive")
OVO, PO, MCQ, VIDEOQA = DATA / "ovo_bench", DATA / "streamingbench_po", DATA / "streamingbench_mcq", DATA / "proactivevideoqa"


def golden(path: Path) -> dict:
    return json.loads(path.read_text())


def score(benchmark: str, file: Path, annotations: Path, **flags) -> dict[str, dict[str, float]]:
    """The numbers alone, without blind rows' and intervals' resamples."""
    found = proactive.load(benchmark, annotations, **flags).score(file)
    return means({"protocols": protocols_tree(found.columns, {})})


def means(metrics: dict) -> dict[str, dict[str, float]]:
    return {p: {m: entry.get("mean") for m, entry in tree.items()} for p, tree in metrics["protocols"].items()}


def near(value):
    return pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("style", golden(OVO / "golden_averages.json"))
def test_ovo_averages(style):
    want = golden(OVO / "golden_averages.json")[style]
    found = score("ovo_bench", OVO / f"results_{style}.json", OVO / "ovo_bench_new.json")
    assert found["ovo_avg3"] == near({"average": want["ovo_avg3"], **want["parts"], **want["tasks"]})
    for name in ("ovo_rt_bw_avg2", "ovo_avg12", "ovo_avg3_missing_is_zero"):
        assert found[name]["average"] == near(want[name])
    by_question = want["ovo_forward_by_question"]
    assert found["ovo_forward_by_question"]["average"] == near(by_question["ovo_avg3"])
    answered = want["ovo_forward_answered_only"]
    assert found["ovo_forward_answered_only"]["forward"] == (None if answered["forward"] is None else near(answered["forward"]))
    for name in ("ovo_forward_by_question", "ovo_forward_answered_only"):
        for task, value in (want[name]["tasks"] or {}).items():
            assert found[name][task] == near(value)
    words, patterns = want["ovo_word_rule"], want["ovo_patterns_rule"]
    averages = {"average": words["ovo_avg3"], "ovo_rt_bw_avg2": words["ovo_rt_bw_avg2"]}
    assert found["ovo_word_rule"] == near({**averages, **words["parts"], **words["tasks"]})
    averages = {"average": patterns["ovo_avg3_micro"], **{k: patterns[k] for k in ("ovo_avg3_micro", "ovo_avg12")}}
    assert found["ovo_patterns_rule"] == near({**averages, **patterns["parts_micro"], **patterns["tasks"]})


def test_ovo_pushed():
    for style, want in golden(OVO / "golden_push.json").items():
        columns = proactive.load("ovo_bench", OVO).score(OVO / f"push_{style}.jsonl").columns
        tree = protocols_tree(columns, {})["ovo_forward_push_f1_2s"]
        for what in ("f1", "recall", "precision"):
            assert tree[f"average_{what}"]["mean"] == near(want[f"average_{what}"])
            assert all(tree[f"{task}_{what}"]["mean"] == near(want[task][what]) for task in FORWARD)
        for question, marks in want["questions"].items():
            assert tree["average_recall"]["per_video"][question] == near(marks["recall"])
            assert tree["average_precision"]["per_video"][question] == near(marks["precision"])


def test_streamingbench_proactive_output():
    for model, want in golden(PO / "golden_poll.json")["models"].items():
        found = proactive.evaluate("streamingbench_po", PO / "poll_outputs.json", PO, model_name=model)
        tree = found["protocols"]["streamingbench_po_poll"]
        assert len(tree["time_accuracy"]["per_video"]) == want["scores"]["total"] == 16 - len(found["videos"]["skipped"])
        for metric in ("time_accuracy", "answer_accuracy"):
            assert tree[metric]["mean"] == near(want["scores"][metric])
        for key, value in tree["time_accuracy"]["per_video"].items():
            assert value == want["questions"][int(key)]["time_correct"]
    for model, want in golden(PO / "golden_push.json")["models"].items():
        found = score("streamingbench_po", PO / f"push_{model}.jsonl", PO)
        for metric in ("time_accuracy", "answer_accuracy"):
            assert found["streamingbench_po_push"][metric] == near(want["streamingbench_po_push"][metric])
        assert found["streamingbench_po_push_recall"] == near(want["streamingbench_po_push_recall"])


def test_streamingbench_multiple_choice():
    file = MCQ / "questions_real_output.json"
    found = means(proactive.evaluate("streamingbench_mcq", file, file))
    for rule, want in golden(MCQ / "golden.json")["rules"].items():
        assert found[f"streamingbench_mcq_{rule}"] == near({"micro": want["micro"], "macro": want["macro"], **want["tasks"]})


@pytest.mark.parametrize("style", golden(VIDEOQA / "golden.json")["styles"])
def test_proactivevideoqa(style, tmp_path):
    want = golden(VIDEOQA / "golden.json")["styles"][style]
    for subset in SUBSETS:
        (tmp_path / f"{subset}.jsonl").write_bytes((VIDEOQA / subset / f"predictions_{style}.jsonl").read_bytes())
    judge = tmp_path / "judge.json"
    judge.write_text(json.dumps([request for subset in SUBSETS for request in want[subset]["judge_requests"]]))
    found = proactive.evaluate("proactivevideoqa", tmp_path, VIDEOQA, judge_replies=str(judge))
    for subset in SUBSETS:
        for weight in ("w0", "w0.5", "w1"):
            entry = found["protocols"][f"proactivevideoqa_pauc_{weight}"][subset]
            assert entry["mean"] == near(want[subset][f"pauc_{weight}"])
        alarms = found["protocols"]["proactivevideoqa_timing"]["false_alarms"][subset]
        assert sum(alarms["per_video"].values()) == want[subset]["replies_outside_all_spans"]
    assert found["baselines"]["silence"]["proactivevideoqa_pauc_w0"]["WEB"]["mean"] == 25
    assert any("no judge is asked about them, every reply counts as wrong" in note for note in found["notes"])
    one = VIDEOQA / "WEB" / f"predictions_{style}.jsonl"
    alone = score("proactivevideoqa", one, VIDEOQA / "WEB" / "anno.json", judge_replies=str(judge))
    assert alone["proactivevideoqa_pauc_w0.5"] == near({"WEB": want["WEB"]["pauc_w0.5"]})


def test_rounds_of_a_stream():
    questions = list(read_questions(VIDEOQA).values())
    for subset, want in golden(VIDEOQA / "golden.json")["rounds"].items():
        for fps, counts in want.items():
            assert [rounds(one, float(fps)) for one in questions if one.subset == subset] == counts


def test_pauc_needs_a_judge(tmp_path):
    args = ("proactivevideoqa", VIDEOQA / "WEB" / "predictions_mixed.jsonl", VIDEOQA / "WEB" / "anno.json")
    found = proactive.evaluate(*args)
    assert list(found["protocols"]) == ["proactivevideoqa_timing"] and "--judge_replies" in found["missing_metrics"]["PAUC"]
    assert "notes" not in found  # of PAUC's blind rows: there are none
    requests = golden(VIDEOQA / "golden.json")["styles"]["mixed"]["WEB"]["judge_requests"]
    file = tmp_path / "judge.jsonl"
    file.write_text("\n".join(map(json.dumps, requests[1:])))
    with pytest.raises(UserError, match="no judge's reply for question made_web_0.mp4, turn 0"):
        proactive.evaluate(*args, judge_replies=str(file))


# ---------------------------------------------------------------- other people's files


def test_text_for_numbers_order_repeats_and_byte_order_mark(tmp_path):
    want = proactive.evaluate("streamingbench_po", PO / "push_mixed.jsonl", PO)["protocols"]
    lines = [json.loads(line) for line in (PO / "push_mixed.jsonl").read_text().splitlines()]
    for line in lines:
        line["question_id"] = str(line["question_id"])
        for turn in line["model_response_list"]:
            turn["time"] = str(turn["time"])
        line["model_response_list"].reverse()
        line["model_response_list"].append({"role": "user", "content": None})
    file = tmp_path / "push.jsonl"
    file.write_bytes(codecs.BOM_UTF8 + "\n".join(map(json.dumps, [*lines[::-1], lines[0]])).encode())
    assert proactive.evaluate("streamingbench_po", file, PO)["protocols"] == want
    polled = json.loads((PO / "poll_outputs.json").read_text())[::-1]
    file = tmp_path / "polled.json"
    file.write_text(json.dumps(polled))
    both = [proactive.evaluate("streamingbench_po", f, PO, model_name="mixed")["protocols"] for f in (file, PO / "poll_outputs.json")]
    assert both[0] == both[1]


def test_one_answer_a_line_and_folders(tmp_path):
    results = json.loads((OVO / "results_mixed.json").read_text())
    want = proactive.evaluate("ovo_bench", OVO / "results_mixed.json", OVO)["protocols"]
    lines = [{"question_id": row["id"], "response": row["response"]} for part in ("backward", "realtime") for row in results[part]]
    lines += [{"question_id": row["id"], "responses": [test["response"] for test in row["test_info"]]} for row in results["forward"]]
    (tmp_path / "polled.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert proactive.evaluate("ovo_bench", tmp_path / "polled.jsonl", OVO)["protocols"] == want
    (tmp_path / "pushed.jsonl").write_text((OVO / "push_mixed.jsonl").read_text())
    both = proactive.evaluate("ovo_bench", tmp_path, OVO)["protocols"]
    assert set(both) == {*want, "ovo_forward_push_f1_2s"} and both["ovo_avg3"] == want["ovo_avg3"]


def test_a_missing_part_leaves_out_its_protocols(tmp_path):
    results = json.loads((OVO / "results_mixed.json").read_text())
    file = tmp_path / "results.json"
    file.write_text(json.dumps({part: results[part] for part in ("backward", "realtime")}))
    found = means(proactive.evaluate("ovo_bench", file, OVO))
    assert set(found) == {"ovo_rt_bw_avg2", "ovo_avg3_missing_is_zero", "ovo_word_rule", "ovo_patterns_rule"}
    assert found["ovo_avg3_missing_is_zero"]["average"] == near(38.888888888888886) and "average" not in found["ovo_word_rule"]


def test_end_of_what_was_seen_is_one_step_later(tmp_path):
    element = {"question_id": "0", "frame_fps": 2.0, "model_response_list": [{"role": "assistant", "time": 17.0, "content": "3"}]}
    file = tmp_path / "ours.json"
    file.write_text(json.dumps([element]))
    found = [
        means(proactive.evaluate("streamingbench_po", file, PO, reply_time=name))["streamingbench_po_push"]["time_accuracy"]
        for name in ("frame", "interval_end")
    ]
    assert found == [1.0, 0.0]
    file.write_text(json.dumps([{**element, "frame_fps": None}]))
    with pytest.raises(UserError, match="frame_fps .* is missing"):
        proactive.evaluate("streamingbench_po", file, PO, reply_time="interval_end")


def test_blind_rows_of_every_kind():
    found = proactive.evaluate("ovo_bench", OVO / "results_mixed.json", OVO)["baselines"]
    assert found["abcde"]["ovo_avg3"]["backward"]["mean"] == 100 and found["silence"]["ovo_avg3"]["average"]["mean"] == 0
    assert found["always_yes"]["ovo_avg3"]["forward"]["mean"] > 50
    pushed = proactive.evaluate("streamingbench_po", PO / "push_mixed.jsonl", PO)["baselines"]
    assert set(pushed) == {"silence", "always_yes", "abcde", "every_5_s", "echo_after_6_s"}
    assert pushed["echo_after_6_s"]["streamingbench_po_push"]["answer_accuracy"]["mean"] > 0.5
    assert pushed["silence"]["streamingbench_po_push"]["never"]["mean"] == 1
    assert pushed["always_yes"]["streamingbench_po_push_recall"]["recall@2s"]["mean"] == 1


def test_the_command_prints_all_names_within_the_width(tmp_path, capsys):
    output = tmp_path / "metrics.json"
    args = ["--benchmark", "ovo_bench", "--annotations", str(OVO), "--predictions"]
    proactive.main([*args, str(OVO / "results_mixed.json"), "--output", str(output)])
    shown = capsys.readouterr().out
    said = " ".join(shown.split())
    assert "one file, 8 names: ovo_avg3 51.80" in said and "blind rows look at no frame" in said
    assert max(map(len, shown.splitlines()[1:])) <= 80
    assert json.loads(output.read_text())["settings"]["benchmark"] == "ovo_bench"
    proactive.main([*args[:-1], "--compare", str(OVO / "push_early.jsonl"), str(OVO / "push_late.jsonl")])
    assert "minus A" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("{", "not valid JSON"),
        ("[1]", "no StreamingBench output"),
        ('[{"question_id": 99, "model_response_list": []}]', "question 99 is not in the annotations"),
        ('[{"model_response_list": []}]', "has no question_id"),
        ('[{"question_id": 0, "model_response_list": [{"time": "soon", "content": "x"}]}]', "time of a reply is 'soon'"),
        ('[{"question_id": 0, "model_response_list": [{"content": "x"}]}]', "time of a reply is missing"),
        ('[{"question_id": 0, "model_response_list": [{"time": NaN, "content": "x"}]}]', "time of a reply is nan"),
        ('[{"question_id": 0, "model_response_list": {}}]', "model_response_list is no list of objects"),
        (
            '[{"question_id": 0, "model_response_list": []}, {"question_id": 0, "model_response_list": [{"time": 1, "content": "x"}]}]',
            "question 0 is answered twice",
        ),
    ],
)
def test_bad_predictions_are_one_sentence(content, says, tmp_path):
    file = tmp_path / "bad.json"
    file.write_text(content)
    with pytest.raises(UserError, match=says) as error:
        proactive.evaluate("streamingbench_po", file, PO)
    assert "\n" not in str(error.value) and "bad.json" in str(error.value)


@pytest.mark.parametrize(
    ("benchmark", "place", "value", "says"),
    [
        ("ovo_bench", ("gt",), 9, "gt is 9"),
        ("ovo_bench", ("task",), "XYZ", "task is 'XYZ'"),
        ("ovo_bench", ("options",), None, "options is no list"),
        ("streamingbench_po", ("questions", 0, "time_stamp"), "a:b", "time_stamp is 'a:b'"),
        ("streamingbench_po", ("questions", 0, "ground_truth_output"), None, "ground_truth_output is missing"),
        ("streamingbench_po", ("questions",), None, "questions is missing"),
        ("proactivevideoqa", ("answer", 0, "reply_timespan"), [5, 1], "reply_timespan ends"),
        ("proactivevideoqa", ("answer",), "x", "answer is no list"),
    ],
)
def test_bad_annotations_are_one_sentence(benchmark, place, value, says, tmp_path):
    source, predictions = {
        "ovo_bench": (OVO / "ovo_bench_new.json", OVO / "results_mixed.json"),
        "streamingbench_po": (PO / "questions_proactive.json", PO / "push_mixed.jsonl"),
        "proactivevideoqa": (VIDEOQA / "WEB" / "anno.json", VIDEOQA / "WEB" / "predictions_mixed.jsonl"),
    }[benchmark]
    content = json.loads(source.read_text())
    entry = content[0]
    for step in place[:-1]:
        entry = entry[step]
    entry[place[-1]] = value
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=says) as error:
        proactive.evaluate(benchmark, predictions, file)
    assert "\n" not in str(error.value) and "annotations.json, element 0" in str(error.value)
