"""A local transformers chat model as judge (see aha.eval.judge). Needs torch, which the rest of the evaluation does not."""

from __future__ import annotations

from typing import Any

from aha.core.content import local_identity
from aha.errors import UserError
from aha.eval.judge import JudgeFailure

MAX_NEW_TOKENS = 16


def chat_model(path: str) -> Any:
    """The model in a folder or on the hub, of the class that its config.json names."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype="auto")


class LocalJudge:
    """Greedy replies of a causal language model with a chat template, from a folder or hub id."""

    def __init__(self, path: str, device: str | None = None):
        import torch
        from transformers import AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            self.model = chat_model(path)
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise UserError(f"the judge model {path} cannot be loaded ({reason}); give a folder or hub id of a chat model.") from error
        if not self.tokenizer.chat_template:
            raise UserError(f"the judge model {path} has no chat template; choose an instruction-tuned model.")
        self.torch = torch
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device).eval()
        self.identity = local_identity(path)

    def ask(self, system: str, user: str) -> str:
        """The model's greedy reply to one prompt."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        words = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = self.tokenizer(words, add_special_tokens=False, return_tensors="pt").to(self.device)
        with self.torch.inference_mode():
            try:
                output = self.model.generate(
                    **ids, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=self.tokenizer.eos_token_id
                )
            except self.torch.OutOfMemoryError as error:
                raise JudgeFailure("the GPU is out of memory; choose a smaller judge model", None) from error
        return str(self.tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
