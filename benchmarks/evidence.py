"""Does the evidence tell what a video shows from what it does not? The demo model on generated videos, own and swapped titles.

    python benchmarks/evidence.py --seeds 20 21 22         # the worlds on which the measure and DEMO_LEVEL were chosen
    python benchmarks/evidence.py --seeds 30 31 32         # worlds that nobody had looked at

Of each world `--videos` videos, drawn by the seed, are asked for their own title and for titles of the same world's other videos: of which
nothing is there (2), of which a part is there and nothing fits wholly (4: two-word titles such as "dotted red"), and one that is shown too.
Prints for each kind how many are answered "no clear moment", and the AUC of own against swapped titles, with the query's variations (as the
product measures) and without; one JSON line of all last.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from aha.api import Highlighter, load
from aha.demo.dataset import Target, VideoPlan, importance, plan_dataset, write_video
from aha.highlights.evidence import DEMO_LEVEL

KINDS = {"own": "the video's own title", "absent": "nothing of it is there", "part": "a part of it is there", "shown": "shown too"}
ASKED = {"absent": 2, "part": 4, "shown": 1}  # titles of each kind that a video is asked for, where there are so many


def kind_of(plan: VideoPlan, target: Target) -> str:
    """What the video shows of what a title asks for."""
    if any(target.match(thing, scene.place) == 1 for scene, _ in plan.scenes for thing in scene.things):
        return "shown"
    return "absent" if max(importance(target, scene) for scene, _ in plan.scenes) < 0.1 else "part"


def asked_titles(plans: list[VideoPlan], number: int, seed: int) -> list[tuple[str, str]]:
    """(kind, title) of what one video is asked for; equal seeds give equal titles."""
    plan, random = plans[number], np.random.default_rng([seed, number, 9])
    others = {other.title: kind_of(plan, other.target) for other in plans if other.title != plan.title}
    asked = [("own", plan.title)]
    for kind, most in ASKED.items():
        titles = [title for title, is_kind in others.items() if is_kind == kind]
        asked += [(kind, titles[k]) for k in random.permutation(len(titles))[:most]]
    return asked


def auc(own: list[float], others: list[float]) -> float:
    """How often an own title has more than another; equal ones count half."""
    own_N1, others_M = np.array(own)[:, None], np.array(others)
    return float(np.mean((own_N1 > others_M) + 0.5 * (own_N1 == others_M)))


def table(found: list[dict], level: float) -> str:
    """found: {"kind", "strength", "unvaried"} of each question."""
    lines = [f"{'asked for':26} {'no clear moment':>17} {'AUC':>6} {'without variations':>19}"]
    rows = {about: (kind,) for kind, about in KINDS.items()} | {"not shown (those two)": ("absent", "part")}
    for about, kinds in rows.items():
        of = {name: [row[name] for row in found if row["kind"] in kinds] for name in ("strength", "unvaried")}
        own = {name: [row[name] for row in found if row["kind"] == "own"] for name in of}
        if not of["strength"]:
            continue
        no, count = sum(value <= level for value in of["strength"]), len(of["strength"])
        aucs = [f"{auc(own[name], of[name]):.3f}" if {*kinds} <= {"absent", "part"} else "" for name in of]
        lines.append(f"{about:26} {f'{no} of {count}':>11} {no / count:5.0%} {aucs[0]:>6} {aucs[1]:>19}")
    return "\n".join(lines)


def answers(demo: Highlighter, seed: int, count: int, film: Path) -> Iterator[list[dict]]:
    """What `count` videos of a world are answered, one after the other; film: where they are drawn. unvaried: the strength without
    the query's variations."""
    plans = plan_dataset(seed)
    for number in np.random.default_rng([seed, 5]).permutation(len(plans))[:count].tolist():
        write_video(plans[number], film)
        video, found = demo.encode(film), []
        unrelated = demo.unrelated(video)
        for kind, title in asked_titles(plans, number, seed):
            result = demo.query(video, title, unrelated=unrelated)
            assert result.evidence is not None  # unrelated queries were given
            strengths = {"strength": result.evidence.strength, "unvaried": demo.evidence(result.track, unrelated, []).strength}
            found.append({"seed": seed, "video": plans[number].video_id, "kind": kind, "title": title, **strengths})
        yield found


def main() -> None:
    parser = argparse.ArgumentParser("python benchmarks/evidence.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[30, 31, 32], help="worlds (default: 30 31 32)")
    parser.add_argument("--videos", type=int, default=6, help="videos of each world (default %(default)s)")
    args = parser.parse_args()
    demo, found = load("demo", device="cpu"), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            for of_video in answers(demo, seed, args.videos, Path(folder) / "film.mp4"):
                found += of_video
                print(f"seed {seed}, {of_video[0]['video']}: {len(of_video)} titles", flush=True)
    print(table(found, DEMO_LEVEL))
    print(json.dumps({"benchmark": "evidence", "level": DEMO_LEVEL, "found": found}))


if __name__ == "__main__":
    main()
