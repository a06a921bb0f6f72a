"""From a model and videos to prediction files.

model_choice.py     which model: flags, device, number format (known_models.py: models that have a name)
config.py           ScoreConfig: how videos are scored; Selection: which benchmark
offline.py          one video; dataset.py: a whole benchmark, sharded (ray_engine.py: on a Ray cluster); parts.py: what goes on after a kill
baseline.py         `aha baseline`: rows to be read against (vlm.py: an ordinary vision-language model)
speak.py            `aha speak`: from frame scores to times to speak
ablate.py           `aha ablate`: caches, corruptions, prompts, heads, clocks
judge_local.py      a local language model as judge
"""
