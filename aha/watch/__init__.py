"""`aha watch`: streams in, events out.

cameras.py    which streams: the sources of the command line, or a file of cameras
sources.py    frames of a file, a camera, a network stream or standard input
opening.py    sources opened in the reading thread, tried again, gone on with after a restart
feed.py       the reading thread, the queue and its rule for falling behind
engine.py     many cameras on one model: frames -> scores, and the loop
watcher.py    scores of one stream -> segments, highlights and replies, as events
levels.py     which segments are highlights
receivers.py  webhook, MQTT (mqtt.py), file, command; spool.py: what waits for them; clips.py: the clip of a moment
state.py      what is on disk, so that a watch survives
lines.py      events as JSON Lines or text; questions.py: lines typed meanwhile
command.py    the command line
"""
