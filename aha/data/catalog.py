"""Every data set of the project: what belongs where, where it comes from, how big it is and what it is for.

Benchmarks say it in their Task (aha/eval); the data sets that are only trained on stand here. `aha.data.prepare` checks and explains from
this table, and the tables of `instructions/data.md` and `datasets/README.md` are written from it:

    python -m aha.data.catalog                  prints both
"""

from __future__ import annotations

from aha.eval import MODULES, load_task
from aha.eval.task import MMDUETIT, DataSet, File

AHA_ANNOTATIONS = "https://huggingface.co/datasets/aiden200/aha-annotationsv1"
CATALOG = {
    data.name: data
    for data in (
        *(load_task(name).data for name in MODULES),
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


def folders() -> str:
    """The table of datasets/README.md."""
    by_folder: dict[str, list[DataSet]] = {}
    for data in CATALOG.values():
        by_folder.setdefault(data.folder, []).append(data)
    lines = ["| folder | data set | the commands look for |", "| --- | --- | --- |"]
    for folder, sets in by_folder.items():
        files = ", ".join(dict.fromkeys(f"`{file.path}`" for data in sets for file in data.files))
        lines.append(f"| `{folder}/` | {'; '.join(data.title for data in sets)} | {files}; videos in `{sets[0].videos}/` |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), folders(), sep="\n")
