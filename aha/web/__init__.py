"""`aha demo`: a web page on this machine.

page.py      the Gradio page, its events, and the server
guard.py     what stands before it: hosts, origins, password, routes, uploads as they come, files as they leave
uploads.py   what lies on the disk, whose it is, when it goes
visitors.py  who is there, and when one has left
session.py   one visitor: a video being scored in a thread, questions, files; nothing is shared but the model
limits.py    what visitors may have
curve.py     curve, evidence, moments and reel as HTML, and the script that seeks on a click and shows values under the mouse
"""
