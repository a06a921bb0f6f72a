"""Every data set of the project: what belongs where, where it comes from, how big it is and what it is for.

`aha.data.prepare` checks and explains from this table, and `instructions/data.md` is written from it.
"""

from __future__ import annotations

from dataclasses import dataclass

MMDUETIT = "https://huggingface.co/datasets/wangyueqian/MMDuetIT"
AHA_ANNOTATIONS = "https://huggingface.co/datasets/aiden200/aha-annotationsv1"


@dataclass(frozen=True)
class File:
    """One annotation file below the data set's folder; alternatives of a file follow each other with the same `group`."""

    path: str
    source: str
    group: str = ""


@dataclass(frozen=True)
class DataSet:
    """folder: below datasets/. videos: folder of the video files below it, and where they come from. size: "-" = not stated."""

    name: str
    title: str
    folder: str
    files: tuple[File, ...]
    videos: str
    video_source: str
    size: str
    licence: str
    purpose: str


CATALOG = {
    data.name: data
    for data in (
        DataSet(
            "tvsum", "TVSum (Song et al., CVPR 2015)", "tvsum",
            (
                File("ydata-tvsum50-v1_1/data/ydata-tvsum50-anno.tsv", "https://github.com/yalesong/tvsum", "annotations"),
                File("ydata-tvsum50-v1_1/data/ydata-tvsum50-info.tsv", "https://github.com/yalesong/tvsum"),
            ),
            "ydata-tvsum50-v1_1/video", "in the same archive (ydata-tvsum50-v1_1, put it into datasets/tvsum as it is)",
            "644 MB, 50 videos, 3.5 h", "CC BY 3.0", "fine-tuning and evaluation: highlight scores (train_on_tvsum.sh, tvsum.sh)",
        ),
        DataSet(
            "hisum", "Mr.HiSum (Sul et al., NeurIPS 2023)", "hisum",
            (
                File("annotations/mr_hisum.h5", "https://github.com/MRHiSum/MR.HiSum"),
                File("annotations/mr_hisum_split.json", "https://github.com/MRHiSum/MR.HiSum"),
                File("annotations/metadata.csv", f"with titles {AHA_ANNOTATIONS}"),
            ),
            "videos", "YouTube, <youtube_id>.mp4 as in metadata.csv; many are gone by now", "31,892 videos, about 1,800 h",
            "CC BY 4.0, YouTube's terms", "training and evaluation: highlight scores (train_on_hisum.sh, hisum.sh)",
        ),
        DataSet(
            "charades", "Charades-STA (Gao et al., ICCV 2017)", "charades",
            (
                File("annotations/test-random_prompt.json", MMDUETIT, "annotations"),
                File("annotations/charades_sta_test.txt", "https://github.com/jiyanggao/TALL", "annotations"),
            ),
            "videos", "https://prior.allenai.org/projects/charades (Charades_v1_480)", "13 GB at 480p, 9,848 videos",
            "non-commercial, see the licence of Charades", "evaluation: temporal grounding (charades.sh)",
        ),
        DataSet(
            "qvh", "QVHighlights (Lei et al., NeurIPS 2021)", "qvh",
            (
                File("annotations/highlight_val_release.jsonl", "https://github.com/jayleicn/moment_detr (data/)", "annotations"),
                File("annotations/highlight_val-random_prompt.json", MMDUETIT, "annotations"),
            ),
            "videos", "https://github.com/jayleicn/moment_detr (data/README.md, qvhilights_videos.tar.gz)",
            "10,148 clips of 150 s (1,550 val queries)", "CC BY-NC-SA 4.0", "evaluation: highlight detection (qvh.sh)",
        ),
        DataSet(
            "youcook2", "YouCook2 (Zhou et al., AAAI 2018)", "youcook2",
            (
                File("annotations/val-random_prompt.json", MMDUETIT, "annotations"),
                File("annotations/youcookii_annotations_trainval.json", "http://youcook2.eecs.umich.edu", "annotations"),
            ),
            "videos", "https://opendatalab.com/OpenDataLab/YouCook2", "2,000 videos, 176 h (val: 457 videos)",
            "annotations MIT; videos YouTube's terms", "evaluation: dense captioning (youcook2.sh)",
        ),
        DataSet(
            "magqa", "Shot2Story-MAGQA-39k test (Wang et al. 2024)", "shot2story",
            (File("annotations/magqa_test.json", MMDUETIT),),
            "videos", "https://huggingface.co/mhan/shot2story-videos", "2,000 test questions", "CC BY-NC-SA 4.0 (annotations)",
            "evaluation: answering at the right time (magqa.sh)",
        ),
        DataSet(
            "shot2story", "Shot2Story captions and MAGQA, training part", "shot2story",
            (
                File("annotations/dvc_train-human_anno-0.25_0.5_earlier.json", MMDUETIT),
                File("annotations/magqa_train-0.25_0.5-earlier.json", MMDUETIT),
            ),
            "videos", "https://huggingface.co/mhan/shot2story-videos", "43,000 videos, 17 s on average", "CC BY-NC-SA 4.0 (annotations)",
            "training: captions and questions (train_mmduet.sh, aha.json)",
        ),
        DataSet(
            "coin", "COIN (Tang et al., CVPR 2019)", "coin",
            (File("annotations/train-0.25_0.5_earlier-120s_240s.json", MMDUETIT),),
            "videos", "https://coin-dataset.github.io, https://huggingface.co/datasets/WHB139426/coin", "11,827 videos, 476 h",
            "research, see the project's page", "training: captions (train_mmduet.sh, aha.json)",
        ),
        DataSet(
            "didemo", "DiDeMo (Hendricks et al., ICCV 2017)", "didemo", (File("annotations/train.json", MMDUETIT),),
            "videos", "https://github.com/LisaAnne/TemporalLanguageRelease", "10,464 videos of 30 s", "BSD 2-Clause (annotations)",
            "training: grounding (train_mmduet.sh)",
        ),
        DataSet(
            "hirest", "HiREST (Zala et al., CVPR 2023)", "hirest_grounding", (File("annotations/train.json", MMDUETIT),),
            "videos", "https://github.com/j-min/HiREST", "-", "see the project's page", "training: grounding (train_mmduet.sh)",
        ),
        DataSet(
            "queryd", "QuerYD (Oncescu et al., ICASSP 2021)", "queryd", (File("annotations/train.json", MMDUETIT),),
            "videos", "https://www.robots.ox.ac.uk/~vgg/data/queryd", "-", "see the project's page",
            "training: grounding (train_mmduet.sh)",
        ),
        DataSet(
            "hihd", "HIHD (Chang et al., NeurIPS 2025)", "HIHD", (File("annotations/HIHD_metadata.csv", AHA_ANNOTATIONS),),
            "videos", "YouTube, <youtube_id>.mp4 as in HIHD_metadata.csv", "22,463 videos", "see the data set's page; YouTube's terms",
            "training: highlight scores (aha.json)",
        ),
    )
}  # fmt: skip


def markdown() -> str:
    """The table of instructions/data.md."""
    lines = ["| data set | size | licence | where from | where to | what for |", "| --- | --- | --- | --- | --- | --- |"]
    for data in CATALOG.values():
        sources = dict.fromkeys(file.source for file in data.files)
        where_from = f"annotations: {', '.join(sources)}; videos: {data.video_source}"
        paths: dict[str, list[str]] = {}
        for file in data.files:
            paths.setdefault(file.group or file.path, []).append(f"`{file.path}`")
        files = ", ".join(" or ".join(alternatives) for alternatives in paths.values())
        where_to = f"`datasets/{data.folder}/`: {files}; videos in `{data.videos}/`"
        lines.append(f"| `{data.name}`: {data.title} | {data.size} | {data.licence} | {where_from} | {where_to} | {data.purpose} |")
    return "\n".join(lines) + "\n"
