"""Weights & Biases as a dashboard: every value in a section, over one axis (the optimizer step), with the summary that is worth comparing.

transformers' own callback sends all values as `train/...`; they stay there under their names, hidden, and are shown in these sections.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from aha.training.validation import timeline_path

STEP = "train/global_step"
# section -> (name in the log, how runs are compared)
SECTIONS: dict[str, dict[str, str]] = {
    "loss": dict.fromkeys(("loss", "lm", "informative", "relevance", "tv", "uncertainty"), "min"),
    "optimizer": {"learning_rate": "last", "grad_norm": "max"},
    "speed": dict.fromkeys(("step_time_s", "data_wait_s", "frames_per_s", "tokens_per_s", "mfu", "hfu", "imbalance"), "mean"),
    "step": {f"time_{part}_s": "mean" for part in ("vision", "decoder", "loss", "optimizer", "communication")},
    "memory": {"memory_gib": "max", "memory_reserved_gib": "max"},
}
VALIDATION = {"eval/kendall_tau": "max", "eval/spearman_rho": "max", "eval/f1_15": "max"}


def sections_of(logs: dict[str, float]) -> dict[str, float]:
    """Logged values under their section's name."""
    return {f"{section}/{name}": logs[name] for section, names in SECTIONS.items() for name in names if name in logs}


class Dashboard(TrainerCallback):
    """What transformers' callback does not send: the sections, the run's settings, validation pictures, and where the time went."""

    def __init__(self, settings: dict[str, Any], extra: dict[str, Any]):
        self.settings, self.extra = settings, extra

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            import wandb

            wandb.config.update({"aha": self.settings, **self.extra}, allow_val_change=True)
            wandb.define_metric(STEP, hidden=True)
            for section, names in SECTIONS.items():
                for name, summary in names.items():
                    wandb.define_metric(f"{section}/{name}", step_metric=STEP, summary=summary)
                    wandb.define_metric(f"train/{name}", step_metric=STEP, hidden=True)
            for name, summary in VALIDATION.items():
                wandb.define_metric(name, step_metric=STEP, summary=summary)

    def on_log(self, args, state, control, logs=None, **kwargs):
        values = sections_of(logs or {})
        if state.is_world_process_zero and values:
            import wandb

            wandb.log({**values, STEP: state.global_step})

    def on_evaluate(self, args, state, control, **kwargs):
        path = timeline_path(args.output_dir, state.global_step)
        if state.is_world_process_zero and path.is_file():
            import wandb

            wandb.log({"eval/timeline": wandb.Image(str(path)), STEP: state.global_step})


def send_summary(parts: dict[str, float]) -> None:
    """Where an optimizer step's time went, into the run's summary."""
    import wandb

    if wandb.run is not None:
        wandb.run.summary.update({f"step/{name}_s": value for name, value in parts.items()})
