"""The progress bar of a run: one line that is kept up to date, not a dictionary per step."""

from __future__ import annotations

from transformers import ProgressCallback


class Progress(ProgressCallback):
    """transformers' bar with loss, learning rate and speed beside it."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "loss" in logs:
            shown = {"loss": f"{logs['loss']:.4f}", "lr": f"{logs['learning_rate']:.1e}"}
            if "frames_per_s" in logs:
                shown |= {"frames/s": f"{logs['frames_per_s']:.1f}", "tokens/s": f"{logs['tokens_per_s']:.0f}"}
            if "mfu" in logs:
                shown["MFU"] = f"{logs['mfu']:.2f}"
            self.training_bar.set_postfix(shown, refresh=False)
        evaluation = {name: value for name, value in logs.items() if name.startswith("eval_") and isinstance(value, float)}
        if evaluation:
            self.training_bar.write("  ".join(f"{name} {value:.4f}" for name, value in evaluation.items()))
