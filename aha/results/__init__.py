"""From numbers per video to what people read: one system for all benchmarks.

tree.py      columns -> the metrics file: means, categories, intervals, paired differences; document.py reads it back
layout.py    what tables and pages need to know of a benchmark
table.py     console tables at most 80 columns wide: console.py (one file), compare.py (several side by side)
figures.py   every figure; report.py: report.html
beside.py    our numbers beside published ones, for the reproduction and model cards
cache.py     numbers that depend on the annotations only, kept on disk
"""
