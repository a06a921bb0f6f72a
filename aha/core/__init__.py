"""What every other part stands on: no torch, no video decoder, nothing of a benchmark.

The three nouns
    prediction.py, prediction_layouts.py   the record of a scored video, and the files that hold such records
    fusion.py, heads.py                    one number a frame out of the heads, and which heads there are
    lost_frames.py                         frames of a live stream that the model was too busy to see
Input and output
    files.py, checked.py, h5.py            files written whole; JSON, CSV and HDF5 of strangers, checked as they are read
    flags.py, folds.py, prompts.py, query_map.py, text_answers.py
                                           settings as flags; seeded folds; other queries; the words that other models answer with
The surroundings of a run
    environment.py, extras.py, memory.py   .env, wandb, versions, ranks and locks; optional packages; memory of the process
    hosts.py, asgi.py, addresses.py        who may talk to a server; answers of both servers; addresses without their secrets
    clock.py, fonts.py                     seconds as people write them; which font can show a text
"""
