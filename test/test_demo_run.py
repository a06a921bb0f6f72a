"""The demo's run: titles swapped between videos, steps that are not repeated, the table, the figures; the small language it is trained on."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aha.conversation import DuetFormat, load_tokenizer
from aha.core.files import write_json
from aha.core.folds import folds
from aha.demo import run
from aha.demo.dataset import TITLES, Target, annotate, fill_title, plan_dataset, write_tables
from aha.demo.language import NAMES, caption_of, query_for, random_target, save_tokenizer, train_tokenizer
from aha.demo.scenes import COLOURS, PATTERNS, PLACES, Scene
from aha.errors import UserError
from aha.eval.annotations import read_tvsum


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    write_tables(plan_dataset(0), folder, 0)
    return read_tvsum(folder / "ydata-tvsum50-anno.tsv")


def test_swapped_titles_come_from_another_category(videos):
    for held_out in folds({video_id: video.category for video_id, video in videos.items()}):
        swapped = run.swapped_titles(videos, held_out)
        assert sorted(swapped) == held_out and sorted(swapped.values()) == sorted(videos[i].title for i in held_out)
        owner = {videos[i].title: videos[i].category for i in held_out}
        assert all(owner[title] != videos[i].category for i, title in swapped.items())


def test_steps_are_not_repeated(tmp_path, capsys):
    counter = tmp_path / "counter"
    command = [sys.executable, "-c", f"open({str(counter)!r}, 'a').write('x')"]
    for _ in range(2):
        run.run_step("counting", command, tmp_path / "done.json")
    assert counter.read_text() == "x" and "done before" in capsys.readouterr().out
    run.run_step("counting", [*command, "other"], tmp_path / "done.json")
    assert counter.read_text() == "xx", "another command is another step"


def test_a_step_runs_again_when_what_it_reads_or_made_is_another(tmp_path, capsys):
    """Input by content, not by name or date; a later step does not outlive an earlier one that ran again; what is gone is made anew."""
    weights, scores, table = (tmp_path / name for name in ("adapter", "scores", "table"))

    def copy(source, target):
        command = [sys.executable, "-c", f"open({str(target)!r}, 'w').write(open({str(source)!r}).read())"]
        run.run_step(target.name, command, tmp_path / f".{target.name}", reads=[source], makes=[target])

    def both():
        copy(weights, scores)
        copy(scores, table)
        return table.read_text(), capsys.readouterr().out.count("done before")

    weights.write_text("1")
    assert both() == ("1", 0) and both() == ("1", 2)
    weights.write_text("1")  # another date, the same bytes
    assert both() == ("1", 2)
    weights.write_text("2")
    assert both() == ("2", 0)
    scores.unlink()
    assert both() == ("2", 1)  # made anew with the same bytes: the table stands
    table.write_text("of another run")
    assert both() == ("2", 1)


def test_failed_step_leaves_no_marker(tmp_path):
    with pytest.raises(UserError, match=r"exit code 3, see .*log"):
        run.run_step("failing", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "done.json", tmp_path / "log")
    assert not (tmp_path / "done.json").exists()


def test_training_goes_through_torchrun_and_deepspeed(tmp_path):
    command = run.training_command(tmp_path, tmp_path / "run", 1, 2, ["--max_steps", "3"])
    assert command[command.index("--nproc_per_node") + 1] == "2" and "torch.distributed.run" in command
    assert command[command.index("--deepspeed") + 1].endswith("zero2.json")
    assert command[-2:] == ["--max_steps", "3"]


def test_missing_weights_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ADAPTER", tmp_path / "nowhere")
    with pytest.raises(UserError, match="make_demo_base"):
        run.prepare(tmp_path)


def test_table():
    def tree(offset: float, *names: str):
        return {p: {n: {"mean": offset} for n in names} for p, *names in (("corr_full", "kendall", "spearman"), ("f1_official60", "f1"))}

    rows_of = ("random", "human_vs_each_other_human", "mean_annotation_as_predictor")
    metrics = {name: {"protocols": tree(0.1 * i)} for i, name in enumerate(("trained", "swapped", "before"))}
    metrics["trained"]["baselines"] = {row: tree(0.5) for row in rows_of}
    metrics["before"]["protocols"]["corr_full"]["kendall"]["mean"] = None
    rows = run.table_rows(metrics)
    assert [name for name, _ in rows][0] == "this model" and len(rows) == 6
    assert rows[1][1] == [0.1, 0.1, 0.1] and rows[5][1] == [0.5, 0.5, 0.5]
    lines = run.render(rows, 8).splitlines()
    assert len({len(line) for line in lines}) == 1 and "undefined" in lines[4] and "8 held-out videos" in lines[0]


def test_figures(videos, tmp_path):
    lines = [json.dumps({"step": i, "loss": 1 / (i + 1), "relevance": 0.5 / (i + 1)}) for i in range(5)]
    (tmp_path / "loss_history.jsonl").write_text("\n".join(lines) + "\n")
    run.plot_losses(tmp_path, tmp_path / "loss.png")
    video_id = next(iter(videos))
    scores = [{"time": float(t), "relevance_score": 0.5} for t in range(30)]
    write_json(tmp_path / "p.json", [{"video_uuid": video_id, "query": "q", "debug_data": scores}])
    run.plot_timeline(tmp_path / "p.json", videos, tmp_path / "timeline.png")
    for name in ("loss.png", "timeline.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


# ---- language ----


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = train_tokenizer(0, 700)
    save_tokenizer(tokenizer, folder / "base", image_token=False)
    save_tokenizer(tokenizer, folder / "adapter", image_token=True)
    return load_tokenizer(folder / "base"), load_tokenizer(folder / "adapter")


def test_tokenizers_of_base_and_adapter_agree(tokenizers):
    base, adapter = tokenizers
    assert base.get_vocab() == adapter.get_vocab()
    assert [base.convert_tokens_to_ids(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")] == [700, 701, 702, 703]
    duet = DuetFormat(base)
    for word in (*COLOURS, *PATTERNS, *PLACES):
        assert len(duet.encode(f" {word}")) == 1


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=60)
def test_any_text_survives_the_tokenizer(tokenizers, text):
    import unicodedata

    duet = DuetFormat(tokenizers[0])
    clean = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8"))
    assert tokenizers[0].decode(duet.encode(text)) == clean


def test_queries_name_what_they_ask_for_in_other_words_than_titles():
    random = np.random.default_rng(0)
    titles = {fill_title(t, Target("red", "dotted", "sea")) for templates in TITLES.values() for t in templates}
    for _ in range(300):
        target = random_target(random)
        query = query_for(target, random).lower()
        assert all(word in query for word in target.words().values())
        assert query not in {title.lower() for title in titles}
    assert {frozenset(random_target(random).words()) for _ in range(200)} == set(NAMES)


def test_captions():
    assert caption_of(Scene("sea", 1, ())) == "nothing on sea"
    plan = plan_dataset(0)[0]
    scene = plan.scenes[0][0]
    assert all(f"a {t.pattern} {t.colour} thing" in caption_of(scene) for t in scene.things)
    assert annotate(plan, 0).shape == (20, plan.num_frames)
