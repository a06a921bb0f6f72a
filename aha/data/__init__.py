"""From data sets to the samples that training takes.

mixture.py          a mixture file -> one map-style data set (ancestors.py: MMDuet's and Aha's own mixture files)
samples.py          what a sample is; labels.py: annotations -> labelled turns -> label arrays
tvsum.py summe.py hisum.py mmduetit.py    the samples of each data set
collate.py          samples -> a batch
feature_cache.py    features of the frozen vision tower on disk, shared with scoring
Commands: check.py (walk a mixture), new.py (your own videos), prepare.py and get.py (what is there, what to fetch; catalog.py is their
list), manifest.py (which videos were scored)
"""
