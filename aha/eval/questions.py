"""Reads predictions of the question benchmarks (Charades-STA, QVHighlights, YouCook2, MAGQA): one entry for each question.

An entry names its question (`question_id` or `qid`) and holds frame scores (`debug_data`), windows (`pred_relevant_windows`), clip scores
(`pred_saliency_scores`) or replies (`model_response_list`), in the layouts of aha.score, MMDuet, Aha and the QVHighlights tools.
N frames of one question.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aha.core.predictions import Weights
from aha.errors import UserError
from aha.eval.benchmarks import identity, interval, number, read_entries


@dataclass(frozen=True)
class Entry:
    """The prediction for one question; `where` says where it stands in its file."""

    question_id: str
    where: str
    content: dict[str, Any]

    @property
    def trained_on(self) -> bool:
        return self.content.get("trained_on") is True

    def frames(self, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
        """(times [N], scores [N]). A frame without a relevance score counts 0 (MMDuet); a head of weight 0 need not be there."""
        heads = self.content.get("debug_data")
        if not isinstance(heads, list) or not heads:
            raise UserError(f"{self.where} (question {self.question_id}) has no debug_data; was it written by aha.score?")
        times, scores = np.empty(len(heads)), np.zeros(len(heads))
        for i, head in enumerate(heads):
            where = f"{self.where} (question {self.question_id}), frame {i}"
            if not isinstance(head, dict):
                raise UserError(f"{where} is no object; expected time and scores.")
            times[i] = number(head.get("time", head.get("video_time")), where, "time")
            if "relevance_score" not in head:
                continue
            score = 0.0
            if weights.alpha:
                score += weights.alpha * _probability(head, "informative_score", where)
            if weights.beta:
                score += weights.beta * _probability(head, "relevance_score", where)
            if weights.epsilon:
                score -= weights.epsilon * max(0.0, number(head.get("uncertainty_score"), where, "uncertainty_score") - weights.threshold)
            scores[i] = score
        if not np.isfinite(scores).all():
            raise UserError(
                f"{self.where} (question {self.question_id}): a score is not finite after weighting the heads; check the weights."
            )
        if len(times) > 1 and (np.diff(times) <= 0).any():
            late = int(np.argmax(np.diff(times) <= 0)) + 1
            raise UserError(
                f"{self.where} (question {self.question_id}): time of frame {late} is not after the one before it; times ascend."
            )
        return times, scores

    def windows(self) -> np.ndarray:
        """Listed windows [P, 3]: start, end, score (0 where none is given)."""
        rows = []
        listed = self.content.get("pred_relevant_windows")
        if not isinstance(listed, list):
            raise UserError(f"{self.where} (question {self.question_id}): pred_relevant_windows is no list of [start, end, score].")
        for i, row in enumerate(listed):
            where = f"{self.where} (question {self.question_id})"
            start, end = interval(row, where, f"window {i}")
            rows.append((start, end, number(row[2], where, f"score of window {i}") if len(row) > 2 else 0.0))
        return np.array(rows).reshape(-1, 3)

    def clip_scores(self) -> np.ndarray:
        """`pred_saliency_scores`: one score per 2-second clip."""
        listed = self.content.get("pred_saliency_scores")
        if not isinstance(listed, list) or not listed:
            raise UserError(
                f"{self.where} (question {self.question_id}): pred_saliency_scores is no list of numbers, one for each 2-second clip."
            )
        return np.array(
            [number(x, f"{self.where} (question {self.question_id})", f"pred_saliency_scores {i}") for i, x in enumerate(listed)]
        )

    def replies(self) -> list[tuple[float, str]]:
        """(second, words) of the assistant's turns, in the file's order."""
        turns = self.content.get("model_response_list")
        if not isinstance(turns, list):
            raise UserError(
                f"{self.where} (question {self.question_id}) has no model_response_list; score with --stream_end_prob_threshold."
            )
        replies = []
        for i, turn in enumerate(turns):
            if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
                raise UserError(f"{self.where} (question {self.question_id}): reply {i} is no object with role, time and content.")
            if turn.get("role") == "assistant":
                replies.append(
                    (number(turn.get("time"), f"{self.where} (question {self.question_id})", f"time of reply {i}"), turn["content"])
                )
        return replies


def _probability(head: dict[str, Any], name: str, where: str) -> float:
    value = head.get(name)
    if isinstance(value, list) and len(value) == 2:  # MMDuet writes both classes
        value = value[1]
    return number(value, where, name)


def read_answers(path: str | Path) -> dict[str, Entry]:
    """All entries of a prediction file by question id, in its order. Raises UserError naming file and line; also for a question twice."""
    answers: dict[str, Entry] = {}
    for where, content in read_entries(path, "prediction file"):
        question_id = identity(content, where)
        if question_id in answers:
            raise UserError(f"{where}: question {question_id} is answered twice; keep one prediction for each question.")
        answers[question_id] = Entry(question_id, where, content)
    return answers
