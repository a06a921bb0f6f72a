"""From scores to segments, ranked highlights, summaries, reels and reports.

Pure functions over numpy arrays (no torch):
    timeline.py   the types: what was scored, a segment, a highlight
    online.py     causal segmentation: a boundary is set the moment enough has been seen
    offline.py    segmentation of a finished video: kernel temporal segmentation, uniform shots
    ranking.py    fused score, smoothing, peaks, diversity
    summary.py    which segments fit a time budget
What is written to disk:
    reel.py  chapters.py  plot.py  thumbnails.py  curve_video.py  report.py  index.py  timelines.py
"""
