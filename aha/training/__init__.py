"""One training run, on one GPU or many.

run.py              from flags to the saved adapter; arguments.py: the flags (help.py shows them without importing transformers)
machine.py          what is chosen from the machine where a flag says "auto"
model.py            base + LoRA + heads, checked; data.py: batches of a rank; features.py: cached vision features
trainer.py          transformers' Trainer with our loss, guards and logs; validation.py: scores on held-out videos
checkpoint.py       complete or not there; resize.py: going on with another number of processes
compiled.py recompute.py spare.py optimizer.py    speed and memory: compiled layers, recomputed layers, host memory, 16-bit AdamW state
speed.py logs.py console.py dashboard.py card.py  what is measured, written, shown, sent to wandb, and put into the model card
"""
