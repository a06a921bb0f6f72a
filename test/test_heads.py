"""What a head more, or a head less, changes: nothing where it is not asked for."""

import numpy as np
import torch

from aha.core import heads
from aha.core.prediction import Prediction
from aha.highlights import result, timeline
from aha.models import FrameScores

ROWS = [{"time": float(k), "informative_score": 0.1 * k, "relevance_score": 0.2, "novelty_score": 0.3} for k in range(3)]


def test_a_track_takes_the_heads_that_it_knows_whatever_others_there_are(monkeypatch):
    for module in (timeline, result):
        monkeypatch.setattr(module, "SCORES", (*heads.SCORES, "novelty_score"))
    track = timeline.ScoreTrack.of_rows(ROWS, [0, 10, 20], 3.0)
    assert track.informative_F.tolist() == [0.0, 0.1, 0.2] and track.uncertainty_F is None
    read = result.read_track(Prediction.of_scores("clip", "a star", 3.0, 1.0, [0, 10, 20], ROWS), 3.0)
    assert np.array_equal(read.informative_F, track.informative_F) and read.uncertainty_F is None


def test_frames_of_scores_are_cut_out_of_the_heads_that_there_are():
    scores = FrameScores(torch.arange(4.0), torch.arange(4.0) + 1)
    assert scores.rows(1, 3).relevance.tolist() == [2.0, 3.0] and scores.rows(1, 3).uncertainty is None
    assert scores._replace(uncertainty=torch.ones(4)).rows(0, 1).uncertainty.tolist() == [1.0]
