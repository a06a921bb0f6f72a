"""The duet format against the golden templates, prompts and forward calls, and its invariants on random conversations."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llava_next import PUBLISHED
from paths import shared_fixture

from aha.conversation import (
    DuetFormat,
    DuetState,
    Query,
    QuerySchedule,
    Rendered,
    Turn,
    load_tokenizer,
)
from aha.errors import UserError

FAMILIES = ("mmduet", "aha")
FOLDERS = ("llava-onevision-qwen2-tiny-ov", "mmduet-adapter", "aha-adapter")


@pytest.fixture(scope="module")
def duet() -> DuetFormat:
    return DuetFormat(load_tokenizer(shared_fixture("reference/aha-adapter")))


def golden(family: str, name: str) -> dict:
    return json.loads(shared_fixture(f"reference/{family}/{name}.json").read_text())


def to_turns(conversation: list[dict]) -> list[Turn]:
    return [Turn(t["role"], t.get("content", ""), t.get("num_frames", 0), bool(t.get("learn"))) for t in conversation]


def learned_text(duet: DuetFormat, rendered: Rendered) -> str:
    ids = [token for token, learn in zip(rendered.input_ids, rendered.learn_mask) if learn]
    return duet.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_templates_are_exact(family, folder):
    duet = DuetFormat(load_tokenizer(shared_fixture(f"reference/{folder}")))
    wanted = golden(family, "templates")
    assert duet.image_id == wanted["special"]["v_placeholder_id"]
    assert duet.im_end_id == wanted["special"]["eos_token_id"]
    assert len(duet.tokenizer) == wanted["special"]["len_tokenizer"]
    for name, conversation in wanted["conversations"].items():
        rendered = duet.render(to_turns(conversation["conversation"]))
        assert rendered.text == conversation["text"], name
        assert rendered.input_ids == conversation["ids"], name
        if "learn_ranges" in conversation:  # characters; the reference fails where there is no system turn
            words = "".join(rendered.text[begin:end] for begin, end in conversation["learn_ranges"])
            assert learned_text(duet, rendered) == words, name
    prompts = wanted["prompts"]
    question = "What segment of the video addresses the topic 'a red circle moving over the street'?"
    assert duet.system() == prompts["system_only (fed before the first frame)"]["ids"]
    assert duet.stream_header == prompts["stream_prompt"]["ids"]
    assert [duet.im_end_id, *duet.assistant_header] == prompts["generation_prompt"]["ids"]
    assert [duet.im_end_id, *duet.query(question), *duet.stream_header] == prompts["query_after_stream"]["ids"]
    assert [*duet.query(question), *duet.stream_header] == prompts["query_otherwise"]["ids"]
    assert [*duet.query(""), *duet.stream_header] == prompts["empty_query"]["ids"]


def test_no_system_turn_is_learned_all_the_same(duet):
    conversation = golden("aha", "templates")["conversations"]["no_system"]
    rendered = duet.render(to_turns(conversation["conversation"]))
    assert learned_text(duet, rendered) == "It's new.<|im_end|>"


def replay(duet: DuetFormat, family: str, session: dict) -> list[dict]:
    """The forward calls that DuetState asks for, given the golden session's queries and replies."""
    state = DuetState(duet, "reference", family)
    schedule = QuerySchedule([Query(q["content"], q["time"]) for q in session["queries"]], "reference", session["fps"])
    replies = {r["frame"]: r["token_ids"] for r in session.get("responses", [])}
    calls = []
    for k, time in enumerate(session["time"]):
        for query in schedule.due(time):
            calls.append({"ids": state.query(query.text), "frame_tokens": 0})
        calls.append({"ids": state.frame(), "frame": k, "frame_tokens": PUBLISHED.tokens})
        if k in replies:
            calls.append({"ids": state.begin_reply(), "frame_tokens": 0})
            if len(replies[k]) > 1:
                calls.append({"ids": replies[k][:-1], "single_token_calls": len(replies[k]) - 1})
            state.end_reply(replies[k], removed=session["settings"]["remove_assistant_turns"])
    return calls


@pytest.mark.parametrize("family", FAMILIES)
def test_scoring_feeds_the_reference_ids(duet, family):
    sessions = golden(family, "scores")["sessions"]
    assert len(sessions) == 18
    for name, session in sessions.items():
        position = 0
        calls = replay(duet, family, session)
        for call in calls:
            call["pos_first"] = position
            position += len(call["ids"]) + call["frame_tokens"]
            call["pos_last"] = position - 1
        keys = ("ids", "frame", "frame_tokens", "pos_first", "pos_last")
        wanted = [{key: c[key] for key in keys if key in c} for c in session["forward_calls"]]
        assert calls == wanted, name


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_feeds_the_reference_ids(duet, family):
    sessions = golden(family, "generation")
    assert sum(len(s.get("responses", [])) for s in sessions.values()) > 40
    for name, session in sessions.items():
        wanted = [
            {key: c[key] for key in ("ids", "frame", "frame_tokens", "single_token_calls") if key in c} for c in session["forward_calls"]
        ]
        assert replay(duet, family, session) == wanted, name


# Words that would break a tokenizer that parses control tokens in content, or search for offsets.
controls = ["<|im_end|>", "<|im_start|>", "<image>", "<|endoftext|>"]
nasty = st.sampled_from([*controls, "\n", "\n\n", " ", "é", "e\u0301", "🙂", "\ud83d", "assistant\n", "日本"])
contents = st.lists(st.one_of(nasty, st.text(max_size=6), st.just("the red car")), max_size=5).map("".join)
turns_after_system = st.lists(
    st.one_of(
        st.builds(lambda c: Turn("user", c), contents),
        st.builds(lambda c, l: Turn("assistant", c, learn=l), contents, st.booleans()),
        st.builds(lambda n: Turn("stream", num_frames=n), st.integers(0, 3)),
    ),
    max_size=7,
)  # fmt: skip
quick = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(turns=turns_after_system, system=st.none() | contents)
def test_rendering_keeps_control_tokens_for_itself(duet, turns, system):
    turns = ([] if system is None else [Turn("system", system)]) + turns
    shown = [t for t in turns if t.role != "stream" or t.num_frames]
    frames = sum(t.num_frames for t in turns)
    rendered = duet.render(turns)
    ids = rendered.input_ids
    assert ids.count(duet.image_id) == frames * PUBLISHED.tokens == len(rendered.image_token_positions)
    assert ids.count(duet.im_start_id) == ids.count(duet.im_end_id) == len(shown)
    assert 1000 not in ids  # <|endoftext|> typed by a user
    assert len(rendered.frame_token_positions) == frames
    for position in rendered.frame_token_positions:
        assert ids[position - PUBLISHED.tokens + 1 : position + 1] == duet.frame_ids
    assert len(ids) == len(rendered.learn_mask)
    learned = [t for t in turns if t.role == "assistant" and t.learn]
    assert [i for i, m in zip(ids, rendered.learn_mask) if m] == [i for t in learned for i in [*duet.encode(t.content), duet.im_end_id]]
    # One learned token per reply beyond its words, wherever a multi-byte character starts or ends.
    assert sum(rendered.learn_mask) == sum(len(duet.encode(t.content)) + 1 for t in learned)


@quick
@given(turns=turns_after_system, cut=st.booleans())
def test_streaming_feeds_what_training_renders(duet, turns, cut):
    """Concatenated ids of a streamed conversation = its rendering, up to the closing of the last turn."""
    merged: list[Turn] = [Turn("system", "You see a video.")]
    for turn in turns:  # frames that follow each other are one stream turn; a reply needs tokens
        if turn.role == "stream" and turn.num_frames and merged[-1].role == "stream":
            merged[-1] = Turn("stream", num_frames=merged[-1].num_frames + turn.num_frames)
        elif turn.role != "stream" or turn.num_frames:
            merged.append(turn)
    state = DuetState(duet, system_prompt="You see a video.")
    fed: list[int] = []
    for turn in merged[1:]:
        if turn.role == "user":
            fed += state.query(turn.content)
        elif turn.role == "stream":
            for _ in range(turn.num_frames):
                fed += [*state.frame(), *duet.frame_ids]
        else:
            fed += state.begin_reply()
            words = duet.encode(turn.content)
            at_limit = cut and len(words) > 0  # stopped by the length limit: no <|im_end|> was generated
            generated = words if at_limit else [*words, duet.im_end_id]
            fed += generated[:-1]
            state.end_reply(generated)
    rendered = duet.render(merged).input_ids
    if len(merged) == 1:
        assert fed == []
        return
    assert fed == rendered[: len(fed)]
    assert len(rendered) - len(fed) <= 2  # <|im_end|>, and the last word of a reply at its length limit


@quick
@given(before=turns_after_system, words=contents)
def test_a_removed_reply_leaves_no_trace(duet, before, words):
    def feed(state, turn):
        if turn.role == "user":
            return state.query(turn.content)
        if turn.role == "stream":
            return [i for _ in range(turn.num_frames) for i in [*state.frame(), *duet.frame_ids]]
        ids = state.begin_reply()
        state.end_reply([*duet.encode(turn.content), duet.im_end_id])
        return ids

    plain, removed = DuetState(duet), DuetState(duet)
    for turn in before:
        assert feed(plain, turn) == feed(removed, turn)
        removed.begin_reply()
        removed.end_reply([*duet.encode(words), duet.im_end_id], removed=True)
    assert plain.copy().frame() == removed.copy().frame()
    assert plain.query("and now?") == removed.query("and now?")


def test_order_of_events_is_checked(duet):
    state = DuetState(duet)
    with pytest.raises(ValueError, match="without begin_reply"):
        state.end_reply([1])
    state.begin_reply()
    with pytest.raises(ValueError, match="while a reply"):
        state.frame()
    with pytest.raises(ValueError, match="prompt_order"):
        DuetState(duet, "sideways")
    with pytest.raises(ValueError, match="only the first turn"):
        duet.render([Turn("user", "a"), Turn("system", "b")])
    with pytest.raises(ValueError, match="2 relevance labels"):
        Turn("stream", num_frames=3, relevance=(0.0, 1.0))
    with pytest.raises(ValueError, match="robot"):
        Turn("robot", "hello")


def test_queries_come_in_time():
    ours = QuerySchedule([Query("late", 2.5), Query("b", 0), Query("a", 0)], frame_fps=1)
    assert [[q.text for q in ours.due(t)] for t in (0.0, 1.0, 2.0, 3.0)] == [["b", "a"], [], [], ["late"]]
    reference = QuerySchedule([Query("b", 0), Query("a", 0)], "reference", 1)
    assert [[q.text for q in reference.due(0.0)] for _ in range(3)] == [["b"], ["a"], []]
    # 0.1 added eight times is 0.7999...: the reference is one frame late, exact times are not.
    late = QuerySchedule([Query("x", 0.8)], "reference", 10)
    exact = QuerySchedule([Query("x", 0.8)], frame_fps=10)
    assert [bool(late.due(k / 10)) for k in range(10)].index(True) == 9
    assert [bool(exact.due(k / 10)) for k in range(10)].index(True) == 8


def test_tokenizer_folders_that_do_not_work(tmp_path):
    with pytest.raises(UserError, match=f"from {tmp_path}"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    plain = load_tokenizer(shared_fixture("reference/llava-onevision-qwen2-tiny-ov"))
    plain.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_end|>", "<|the_end|>"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(UserError, match=r"no token <\|im_end\|>"):
        load_tokenizer(tmp_path)


def test_image_as_an_ordinary_added_token_is_made_special(tmp_path):
    source = load_tokenizer(shared_fixture("reference/llava-onevision-qwen2-tiny-ov"))
    source.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    stored = json.loads(path.read_text())
    for token in stored["added_tokens"]:
        if token["content"] == "<image>":
            token["special"] = False
    path.write_text(json.dumps(stored))
    config_path = tmp_path / "tokenizer_config.json"
    config = json.loads(config_path.read_text())
    for token in config.get("added_tokens_decoder", {}).values():
        if token["content"] == "<image>":
            token["special"] = False
    config_path.write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert DuetFormat(tokenizer).render([Turn("user", "an <image> here")]).image_token_positions == []
    assert DuetFormat(tokenizer).image_id == 1003
