"""Other people's prediction files -> our prediction file, which every evaluation, comparison and figure reads.

    aha data import scores.json --source pgl-sum --h5 eccv16_dataset_summe_google_pool5.h5 --output predictions.json
    aha data import dump.h5 --source triplesumm --output predictions.json
    aha data import hl_val_submission.jsonl --source lighthouse --output predictions.jsonl

pgl-sum, csta            .json {video_N: [scores]} (what PGL-SUM and CA-SUM write), a folder of video_N.npy, .npz, or .h5 (a data set a
                         video, or video_N/score): one score for each of the data set's `picks`, so --h5 is needed
triplesumm               the same files by Mr.HiSum's video ids, one score a second (its code keeps no file: dump what its model returns)
lighthouse, moment_detr  .jsonl {qid, vid, pred_saliency_scores, pred_relevant_windows}: scores of 2-second clips, windows
mmduet, aha              .json or .jsonl {question_id, debug_data, model_response_list}; MMDuet lists both classes of a head

Nothing is rounded, and nothing is guessed: a video that cannot be placed is an error that names it.
"""

from __future__ import annotations

import argparse
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aha.core.checked import number
from aha.core.files import by_number, read_json
from aha.core.flags import check_outputs
from aha.core.heads import SCORES
from aha.core.prediction import Prediction, read_predictions, write_predictions
from aha.core.prediction_layouts import QUESTION_IDS, VIDEO_IDS
from aha.errors import UserError, run_command
from aha.eval.community import H5Video, fits_picks, read_h5

SOURCES = ("pgl-sum", "csta", "triplesumm", "lighthouse", "moment_detr", "mmduet", "aha")


def import_predictions(path: str | Path, source: str, h5: str | Path | None = None) -> list[Prediction]:
    """The predictions of a file (or folder of .npy) that the named code wrote. Raises UserError naming file, video and cure."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path.")
    if source in ("pgl-sum", "csta"):
        if h5 is None:
            raise UserError(f"{source}'s scores lie at the data set's picks; give --h5 eccv16_dataset_summe_google_pool5.h5 (or tvsum).")
        videos = read_h5(h5)
        return [_at_picks(name, scores, videos, path, Path(h5)) for name, scores in score_table(path).items()]
    if source == "triplesumm":
        return [_every_second(name, scores, path) for name, scores in score_table(path).items()]
    if h5 is not None:
        raise UserError(f"--h5 says where pgl-sum's and csta's scores lie; {source}'s file says it itself, leave --h5 out.")
    reader = _clips if source in ("lighthouse", "moment_detr") else _frames
    return [reader(prediction) for prediction in read_predictions(path)]


# ---------------------------------------------------------------- tables of scores


def score_table(path: Path) -> dict[str, np.ndarray]:
    """{video: [N] float64} of a .json, .npz or .h5 file or of a folder of .npy files, in the order of the videos' numbers."""
    if path.is_dir():
        found = {file.stem: _load(file) for file in path.glob("*.npy")}
    elif path.suffix == ".npz":
        found = _load(path)
    elif path.suffix in (".h5", ".hdf5"):
        found = _h5_scores(path)
    elif path.suffix == ".npy":
        raise UserError(f"{path} is one array; give the folder that holds a .npy for each video (video_1.npy, ...).")
    else:
        document = read_json(path, "prediction file")
        if not isinstance(document, dict):
            raise UserError(f"{path} is no object {{video: [scores]}}; is it another program's file? See --source.")
        found = document
    if not found:
        raise UserError(f"{path} holds no scores; check the path.")
    return {name: _vector(found[name], f"{path}: video {name}") for name in by_number(found)}


def _load(path: Path) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)
        return dict(loaded) if path.suffix == ".npz" else loaded
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read ({error}); save plain arrays of numbers (a pickled object could run any program)."
        ) from error


def _h5_scores(path: Path) -> dict[str, np.ndarray]:
    from aha.core.h5 import H5File  # here, because --help needs none

    found = {}
    with H5File(path, "prediction file", "it is damaged or no HDF5 file, get it again") as file:
        for name in file.names():
            scores = file.numbers(name)
            scores = file.numbers(f"{name}/score") if scores is None else scores
            if scores is None:
                raise UserError(f"{path}: video {name} has no data set `score`; expected {{video: scores}} or {{video: {{score}}}}.")
            found[name] = scores
    return found


def _vector(values: Any, where: str) -> np.ndarray:
    try:
        given = np.asarray(values)
        if given.dtype.kind not in "iuf" or (isinstance(values, list) and bool in map(type, values)):
            raise ValueError  # truth values, text, dates and complex numbers could be made numbers, but of what?
        scores = np.squeeze(given.astype(np.float64))
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{where} is no list of numbers; repair the file.") from error
    scores = scores.reshape(-1) if scores.ndim == 0 else scores
    if scores.ndim != 1 or not len(scores):
        raise UserError(f"{where} holds {scores.shape} numbers where one for each sample is expected.")
    if not np.isfinite(scores).all():
        raise UserError(f"{where}: score {int(np.argmin(np.isfinite(scores)))} is not finite; score the video again.")
    return scores


def _at_picks(name: str, scores: np.ndarray, videos: Mapping[str, H5Video], path: Path, h5: Path) -> Prediction:
    """Scores at the picks, as the released evaluation places them: one missing score counts 0, surplus ones are ignored."""
    if name not in videos:
        raise UserError(f"{path}: video {name} is not in {h5}; are both of one data set?")
    truth = videos[name].truth
    picks = truth.picks[truth.picks < truth.n_frames]
    if not fits_picks(len(scores), len(truth.picks)):
        raise UserError(
            f"{path}: video {name} has {len(scores)} scores for {len(truth.picks)} picks of {h5}; they are of another sampling or video."
        )
    placed = np.zeros(len(picks))
    placed[: len(scores)] = scores[: len(picks)]
    return _prediction(name, placed, {"true_frames_list": picks.tolist()}, None, str(path))


def _every_second(name: str, scores: np.ndarray, path: Path) -> Prediction:
    return _prediction(name, scores, {}, np.arange(len(scores), dtype=np.float64), str(path))


def _prediction(name: str, scores: np.ndarray, extra: Mapping[str, Any], times: np.ndarray | None, where: str) -> Prediction:
    rows = [{"relevance_score": score} for score in scores.tolist()]
    if times is not None:
        rows = [{"time": time, **row} for time, row in zip(times.tolist(), rows)]
    return Prediction({"video_uuid": name, **extra, "debug_data": rows, "model_response_list": []}, where)


# ---------------------------------------------------------------- elements with a layout of their own


def _clips(prediction: Prediction) -> Prediction:
    """Lighthouse and moment_detr: clip scores and windows, checked; the element stays as it is."""
    record = prediction.record
    held = [key for key in ("pred_saliency_scores", "pred_relevant_windows") if record.get(key) is not None]
    if not held:
        raise UserError(f"{prediction.name} has neither pred_saliency_scores nor pred_relevant_windows; is this the submission file?")
    if "pred_saliency_scores" in held:
        prediction.clip_scores()
    if "pred_relevant_windows" in held:
        prediction.windows()
    kept = {key: record[key] for key in (*QUESTION_IDS, *VIDEO_IDS, "query", "duration", *held) if key in record}
    return Prediction(kept, prediction.where, prediction.trained_on)


def _frames(prediction: Prediction) -> Prediction:
    """MMDuet and Aha: each head as one number, `time` in every row, the assistant's turns; a frame may lack its relevance."""
    record = dict(prediction.record)
    if record.get("debug_data") is None and record.get("model_response_list") is None:
        raise UserError(f"{prediction.name} has neither debug_data nor model_response_list; is this the file that test.inference wrote?")
    if record.get("debug_data") is not None:
        record["debug_data"] = list(_rows(prediction))
    if record.get("model_response_list") is not None:
        prediction.replies()
    return Prediction(record, prediction.where, prediction.trained_on)


def _rows(prediction: Prediction) -> Iterator[dict[str, float]]:
    for i, row in enumerate(prediction.rows()):
        where = f"{prediction.name}, frame {i}"
        found = {"time": number(row.get("time", row.get("video_time")), where, "time")}
        for head in SCORES:
            if head in row:
                value = row[head]
                both = isinstance(value, list) and len(value) == 2  # [not, is]
                found[head] = number(value[1] if both else value, where, head)
        yield found


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="aha data import", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", help="prediction file, or folder of .npy files")
    parser.add_argument("--source", required=True, choices=SOURCES, help="whose code wrote it")
    parser.add_argument("--h5", metavar="FILE", help="pgl-sum, csta: eccv16_dataset_{summe,tvsum}_google_pool5.h5, whose picks are scored")
    parser.add_argument("--output", required=True, metavar="FILE", help="prediction file to write (.json: a list; .jsonl: one a line)")
    args = parser.parse_args(argv)
    check_outputs(args, "output")
    predictions = import_predictions(args.predictions, args.source, args.h5)
    write_predictions(args.output, predictions)
    print(f"{len(predictions)} predictions: {args.output}")


if __name__ == "__main__":
    run_command(main)
