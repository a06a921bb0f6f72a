"""`aha demo`: a web page on this machine.

page.py      the Gradio page and its events
session.py   one visitor: a video being scored in a thread, questions, files; nothing is shared but the model
curve.py     the score curve and the list of moments as HTML, and the script that seeks on a click
examples.py  two small videos of coloured shapes
"""
