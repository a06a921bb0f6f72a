"""The streaming invariants and golden sessions as a table: `python test/streaming_table.py` (some minutes).

Rows: what was compared, how many sessions or runs, the largest difference of a score.
"""

from __future__ import annotations

from collections import defaultdict

from streaming_model import difference, golden, golden_difference, open_session, run_golden
from test_caches import KINDS
from test_generation import play
from test_streaming import CACHES, RELEASED, frame_by_frame, score, settings_of


def main() -> None:
    rows: dict[str, list[float]] = defaultdict(list)
    for kind, semantics in CACHES + RELEASED:
        for chunk in (2, 7, 64):
            session = open_session(query="what is it?", **settings_of(kind, semantics))
            rows[f"chunks of 2, 7, 64 = frame by frame, {kind} ({semantics})"].append(
                difference(score(session, chunk), frame_by_frame(kind, semantics))
            )
    for family in ("mmduet", "aha"):
        for record in golden(family, "scores")["sessions"].values():
            scores, _ = run_golden(open_session(family, prompt_order="reference"), family, record)
            rows[f"{family}/scores.json"].append(golden_difference(scores, record))
        said = same = 0
        for name, record in golden(family, "generation").items():
            scores, replies = play(family, name, record)
            rows[f"{family}/generation.json"].append(golden_difference(scores, record))
            said += len(record["responses"])
            same += sum(a[:2] == (b["frame"], b["token_ids"]) for a, b in zip(replies, record["responses"]))
        print(f"{family}/generation.json: {same} of {said} replies token for token")
    for name, record in golden("aha", "caches").items():
        wanted = {"window_length": None, "num_sink_tokens": None, **record["settings"]}
        session = open_session(
            cache=KINDS[wanted.get("cache", "dynamic")], window=wanted["window_length"], sink_tokens=wanted["num_sink_tokens"],
            cache_semantics="reference", prompt_order="reference",
        )  # fmt: skip
        session.cache.causal = name.startswith("fa2")
        rows[f"aha/caches.json {name.split('-')[0]}"].append(golden_difference(run_golden(session, "aha", record)[0], record))
    for name, differences in rows.items():
        print(f"{name:60} {len(differences):4} {max(differences):.1e}")


if __name__ == "__main__":
    main()
