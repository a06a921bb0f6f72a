"""What a machine has no memory for is one sentence: before a model is loaded where that can be known, and wherever it shows otherwise."""

from __future__ import annotations

import subprocess
import sys

import llava_next.memory
import numpy as np
import pytest
import torch
from paths import shared_fixture

from aha.errors import UserError, run_command
from aha.models import AhaModel
from aha.scoring.model_choice import ModelChoice

BASE = shared_fixture("reference/llava-onevision-qwen2-tiny-ov")
ADAPTER = shared_fixture("reference/aha-adapter")


def test_weights_that_do_not_fit_are_refused_before_one_is_read(monkeypatch, tmp_path):
    model = ModelChoice(str(BASE), str(ADAPTER)).load()[0]
    needed = 4 * sum(parameter.numel() for parameter in model.parameters())
    read = []
    monkeypatch.setattr("llava_next.checkpoint.iter_tensors", lambda shards: read.append(shards) or [])
    monkeypatch.setattr(llava_next.memory, "free_bytes", lambda device: needed // 2)
    with pytest.raises(UserError, match="as float32, and .* GB of memory are free; --dtype bfloat16 needs"):
        ModelChoice(str(BASE), str(ADAPTER)).load()
    model.save_pretrained(tmp_path / "whole")
    with pytest.raises(UserError, match="GB of memory are free"):
        AhaModel.from_pretrained(tmp_path / "whole")
    assert not read


def test_weights_that_fit_by_half_their_bytes_are_loaded(monkeypatch):
    whole = sum(parameter.numel() for parameter in ModelChoice(str(BASE), str(ADAPTER)).load()[0].parameters())
    monkeypatch.setattr(llava_next.memory, "free_bytes", lambda device: 2 * whole)
    assert ModelChoice(str(BASE), str(ADAPTER), dtype="bfloat16").load()[0].dtype == torch.bfloat16


def too_much(argv: list[str]) -> None:
    np.empty(1 << 60, np.uint8)


def too_much_of_torch(argv: list[str]) -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def too_much_of_a_gpu(argv: list[str]) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 11.76 GiB")


@pytest.mark.parametrize("main", [too_much, too_much_of_torch, too_much_of_a_gpu])
def test_no_memory_in_the_middle_is_one_sentence(main, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["aha"])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and "memory is not enough (" in error and "--weights 8bit" in error


def test_the_peak_of_memory_is_this_programs_own():
    large = np.ones(400 << 20, np.uint8)
    code = "from aha.core.memory import peak_mib; before = peak_mib(); large = b'1' * (200 << 20); print(before, peak_mib())"
    before, after = map(float, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert len(large) >> 20 == 400 and before < 200 <= after < 400
