"""`aha serve`: the engine of `aha watch` behind HTTP and WebSocket.

limits.py     what clients may have
pictures.py   pictures that a client sends -> frames
outbox.py     scores and events of a session, kept until they are read, bounded
engine.py     the thread in which the engine runs
sessions.py   sessions: created, asked, suspended, closed
guard.py      which requests come in, and which addresses a session may name
metrics.py    what Prometheus is told
app.py        the routes
command.py    the command line and the server
client.py     a client in Python
on_ray.py     the same on many machines
"""
