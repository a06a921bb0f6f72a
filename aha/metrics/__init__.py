"""Formulas, each with its source: numpy arrays in, numbers out. They know no files, videos or benchmarks.

rank.py                     Kendall's tau, Spearman's rho          highlights.py   average precision, top-5 mAP
keyshots.py keyshots_h5.py  key-shot F1 (official; community's h5)  hisum.py        Mr.HiSum's official numbers
grounding.py moments.py     temporal grounding, moment retrieval   captions.py     dense captions (java_captions.py: METEOR, tokenizer)
proactive.py proactive_answers.py    when a model spoke; how a reply is read as an answer
bootstrap.py over_splits.py confidence intervals over videos; mean and deviation over fixed splits
"""
