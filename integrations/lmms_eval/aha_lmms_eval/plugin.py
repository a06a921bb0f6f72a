"""What lmms-eval finds through the entry point `lmms_eval.models`."""

from lmms_eval.models.registry_v2 import ModelManifest

MODEL = ModelManifest(model_id="aha", simple_class_path="aha_lmms_eval.model.AhaForLmmsEval")
