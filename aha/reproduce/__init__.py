"""The Aha paper's tables in one command: `bash scripts/reproduce.sh`.

tables.py    the tables, as data: the run, instructions/reproduce.md and the estimate take their commands from this one list
check.py     what is missing on this machine, all at once, before anything is downloaded
steps.py     the run: each command's output whole or absent, stamped with what it was made of
report.py    results.json, REPORT.md and report.html
ledger.py    benchmarks/RESULTS.jsonl and RESULTS.md, to which a run appends
"""
