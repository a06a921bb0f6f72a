"""Plug-in for lmms-eval: highlight tasks (aha_lmms_eval.tasks) and the model `aha` (aha_lmms_eval.plugin, aha_lmms_eval.model)."""
