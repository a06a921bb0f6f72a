"""`aha watch`: a stream in, events out.

sources.py   frames of a file, a camera, a network stream or standard input
feed.py      the reading thread, the queue and its rule for falling behind
watcher.py   frames -> scores -> segments, highlights and replies, as events
command.py   the command line
"""
