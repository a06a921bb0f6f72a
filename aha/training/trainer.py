"""transformers' Trainer with Aha's objective: named loss parts, guards, exact logs and checkpoints that are complete or not there.

What the Trainer and DeepSpeed give (loop, accumulation, clipping, schedule, sharding, callbacks) is theirs. Ours: which batches, the loss,
what is logged, and what a checkpoint is.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils.memory import clear_device_cache
from llava_next import TOWER_BATCH
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from aha.conversation import IGNORE_INDEX
from aha.core.heads import LABELLED
from aha.errors import UserError
from aha.models import AhaModel
from aha.models.losses import Losses
from aha.training import checkpoint, randomness
from aha.training.arguments import RunArguments
from aha.training.data import Collator, RankBatches, Readers, TrainingSet, readers_that_fit
from aha.training.logs import History
from aha.training.model import check_optimizer
from aha.training.optimizer import LowMemoryAdamW
from aha.training.recompute import Recompute
from aha.training.speed import Speed
from aha.training.validation import Validation

Objective = Callable[..., Losses]

# cuDNN's attention needs 60 ms to get ready for a length that it has not seen, forwards and again backwards; samples differ in length by
# their titles alone. Lengths in steps of 64 tokens (about a frame) are seen again soon, and cost 0.7% more work at 90 frames.
PAD_ON_GPU = 64


MOST_SKIPPED = 30  # steps in a row that overflow in float16: the scale of the loss is then 2^-30 of what it was


def out_of_memory(inputs: dict[str, Any], said: str) -> str:
    samples, tokens = ", ".join(inputs["sample_ids"]), inputs["num_tokens"]
    return (
        f"out of GPU memory with {tokens} tokens ({samples}): {said}. Give a lower --max_num_frames, --gradient_checkpointing True, "
        "--low_memory_optimizer True or --load_in_4bit True; a lower --max_memory leaves more room beside the run. The same command goes "
        "on from the last checkpoint."
    )


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """torch.compile does nothing in here. DeepSpeed decorates a function with it, of an optimizer that is not used here, and that alone
    loads the whole compiler: a second of each process of a run that compiles nothing."""
    name = "TORCHDYNAMO_DISABLE"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class MicroBatches:
    """The next `count` batches, read when they are asked for: transformers would keep all frames of an optimizer step in memory."""

    def __init__(self, batches: Iterator, count: int, speed: Speed):
        self.batches, self.count, self.speed = batches, count, speed

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _ in range(self.count):
            begin = time.perf_counter()
            batch = self._next()
            self.speed.waited(time.perf_counter() - begin)
            yield batch

    def _next(self) -> dict[str, Any]:
        try:
            return next(self.batches)
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            raise UserError(
                "the processes that read videos gave nothing for --ddp_timeout seconds; give them more shared memory (/dev/shm; docker run "
                "--shm-size), or --dataloader_num_workers 0."
            ) from error


class EpochSetter(TrainerCallback):
    """Tells the order of batches which epoch it is, before the data loader begins it, and how many there will be."""

    def __init__(self, trainer: AhaTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        batches = self.trainer.rank_batches
        batches.set_epoch(int(state.epoch or 0))
        batches.epochs = state.num_train_epochs

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.readers.close()


class OptimizerTimer(TrainerCallback):
    """The optimizer's time without DeepSpeed, whose engine steps inside its backward call."""

    def __init__(self, speed: Speed):
        self.speed = speed

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.speed.sections.begin("optimizer")

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.speed.sections.end()


class AhaTrainer(Trainer):
    """`objective`: `aha_losses` or `mmduet_losses`; `record`: what a checkpoint carries beside the weights."""

    args: RunArguments
    model: AhaModel
    train_dataset: TrainingSet
    objective: Objective

    def __init__(
        self,
        model: AhaModel,
        args: RunArguments,
        dataset: TrainingSet,
        *,
        objective: Objective,
        tokenizer: Any,
        record: checkpoint.Record,
        recompute: Recompute,
        validation: Validation | None = None,
    ) -> None:
        self.objective, self.tokenizer, self.record, self.validation = objective, tokenizer, record, validation
        self.recompute = recompute
        self.speed = Speed(model)
        self.history = History(args.output_dir, enabled=args.process_index == 0)
        self.rank_batches = RankBatches(
            len(dataset), batch_size=args.per_device_train_batch_size, rank=args.process_index, world_size=args.world_size,
            seed=args.seed if args.data_seed is None else args.data_seed,
            accumulation=args.gradient_accumulation_steps, lengths=dataset.lengths if args.group_by_length else None,
        )  # fmt: skip
        self._skipped = 0
        self._shapes: set[tuple[int, ...]] = set()  # of the batches that this rank has seen
        self._begin_step()
        super().__init__(
            model=model, args=args, train_dataset=dataset,
            data_collator=Collator(dataset.mixture, dataset.features, PAD_ON_GPU if args.device.type == "cuda" else 1),
            eval_dataset=None if validation is None else validation.dataset,
        )  # fmt: skip
        self.add_callback(EpochSetter(self))
        self.add_callback(OptimizerTimer(self.speed))

    # ---- data ----

    def get_train_dataloader(self) -> DataLoader:
        workers = readers_that_fit(self.args.dataloader_num_workers, self.args, self.train_dataset.mixture)
        self.readers = Readers(
            self.train_dataset, self.rank_batches, collate_fn=self.data_collator, num_workers=workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            pin_memory=self.args.dataloader_pin_memory and not self.args.use_cpu, timeout=self.args.ddp_timeout if workers else 0,
        )  # fmt: skip
        return self.readers

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        return MicroBatches(epoch_iterator, num_batches, self.speed), None

    # ---- loss ----

    def forward(self, model: torch.nn.Module, batch: dict[str, Any]):
        """One forward pass over a batch of `Collator`. Pixels become features inside the model, cached features are used as they are."""
        frames = batch["frames"]
        pixels, features, tower_batch = None, None, TOWER_BATCH
        if all(f.dtype == torch.uint8 for f in frames):
            pixels = frames[0] if len(frames) == 1 else torch.cat(frames)
            if checkpoint.zero_stage(self) == 3:
                # weights are gathered at every call of a module: the ranks must call the tower equally often however many frames they have
                tower_batch = len(pixels)
        else:
            features = torch.cat([self._features(f) for f in frames])
        sixteen_bit = self.deepspeed is None and self.model.lm_head.weight.dtype != torch.float32  # such a model needs no autocast
        with torch.autocast(self.args.device.type, enabled=False) if sixteen_bit else contextlib.nullcontext():
            return model(
                input_ids=batch["input_ids_BT"], frames=pixels, vision_features=features, logits_mask=batch["labels_BT"] != IGNORE_INDEX,
                tower_batch=tower_batch,
            )  # fmt: skip

    def _features(self, frames: Tensor) -> Tensor:
        """Pixels or cached features of one sample -> features [F,P,C] on the device."""
        if frames.dtype == torch.uint8:
            return self.model.used_patches(self.model.tower_features(frames))
        return frames.to(self.args.device, non_blocking=True)

    def _prepare_inputs(self, inputs):
        device = self.args.device
        return {name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for name, value in inputs.items()}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Loss of one micro-batch. Raises UserError, with the sample ids, where it is not finite."""
        self._report_broken(inputs)
        output = self._forward_within_memory(model, inputs)
        labels = {f"{head.labels}_BT": inputs[f"{head.labels}_BT"] for head in LABELLED}
        with self.speed.sections("loss"):
            losses = self.objective(output, inputs["labels_BT"], **labels)
        if not torch.isfinite(losses.total):
            values = ", ".join(f"{name} {value.item():g}" for name, value in losses.parts.items())
            raise UserError(
                f"the loss at step {self.state.global_step + 1} is {losses.total.item():g} ({values}) for samples "
                f"{', '.join(inputs['sample_ids'])}; look at their labels, lower --learning_rate, or use --bf16 instead of --fp16. "
                "Nothing was saved after the last checkpoint."
            )
        weight = inputs["weight"]
        for name, value in losses.parts.items():
            self._parts[name] = self._parts.get(name, 0) + value.detach().float() * weight
            self._weighted[name] = self._weighted.get(name, 0) + losses.weighted[name].detach().float() * weight
        self._micro_steps += 1
        self._step_ids += inputs["sample_ids"]
        batch, tokens, frames = len(inputs["num_frames"]), inputs["num_tokens"], sum(inputs["num_frames"])
        self._frames += frames
        self._tokens += tokens
        tower = all(f.dtype == torch.uint8 for f in inputs["frames"])
        self._work += self.speed.model_flops(batch, tokens / batch, frames, tower)
        self._again += self.speed.model_flops.again(batch, tokens / batch, self.recompute.recomputed)
        shape = tuple(inputs["input_ids_BT"].shape)
        self._new_shapes += shape not in self._shapes
        self._shapes.add(shape)
        loss = losses.total * weight
        return (loss, output) if return_outputs else loss

    def _forward_within_memory(self, model: torch.nn.Module, inputs: dict[str, Any]):
        """`forward`; where memory runs out, again with more layers recomputed. Raises UserError where none is left to recompute.

        No other rank waits for this one in a forward pass (with ZeRO-3, where they do, the number of layers is fixed: nothing is repeated).
        """
        while True:
            self.recompute.begin(inputs["input_ids_BT"].numel(), self.args.device)
            shape = (*inputs["input_ids_BT"].shape, self.model.config.hidden_size)
            try:
                with self.recompute.keeping(shape):
                    output = self.forward(model, inputs)
            except torch.OutOfMemoryError as error:
                said = str(error).split(". ")[0]
            else:
                if self.recompute.forward_ended(self.args.device) or not self.recompute.tighten():
                    return output
                del output
                continue
            # outside the except block, so that the tensors held by the traceback are freed
            if not self.recompute.tighten():
                raise UserError(out_of_memory(inputs, said))
            clear_device_cache(garbage_collection=True)
            print(f"out of memory with {inputs['input_ids_BT'].numel()} tokens; recomputing more layers from now on", flush=True)

    def training_step(self, model, inputs, num_items_in_batch=None):
        try:
            with self.speed.sections("decoder"):
                loss = super().training_step(model, inputs, num_items_in_batch)
        except torch.OutOfMemoryError as error:
            raise UserError(out_of_memory(inputs, str(error).split(". ")[0])) from error
        boundary = self.accelerator.sync_gradients
        self.recompute.backward_ended(self.args.device, learn=self._micro_steps > 1 and not boundary or self.state.global_step > 0)
        if boundary:
            self.recompute.step_ended()
        return loss

    def _report_broken(self, inputs: dict[str, Any]) -> None:
        for sample_id, reason in inputs["broken"]:
            self.history.event("broken_sample", step=self.state.global_step + 1, sample=sample_id, reason=reason)
            print(f"skipped {sample_id} (weight 0 in this step): {reason}", flush=True)

    def create_optimizer(self, model=None):
        if not self.args.low_memory_optimizer:
            super().create_optimizer(model)
        elif self.optimizer is None:
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            decay = self.args.weight_decay
            self.optimizer = LowMemoryAdamW(parameters, self.args.learning_rate, betas, self.args.adam_epsilon, decay)
        check_optimizer(self.model, self.optimizer)
        return self.optimizer

    # ---- once per optimizer step ----

    def _begin_step(self) -> None:
        """What is added up over the micro-steps of an optimizer step, on this rank."""
        self._parts: dict[str, Tensor] = {}
        self._weighted: dict[str, Tensor] = {}
        self._micro_steps = self._frames = self._tokens = self._new_shapes = 0
        self._work = self._again = 0.0
        self._step_ids: list[str] = []

    def _get_grad_norm(self, model, grad_norm=None):
        """The step's gradient norm; the step is checked and recorded here because norm and learning rate are both known."""
        norm = super()._get_grad_norm(model, grad_norm)
        norm = float(norm) if norm is not None else None
        names = sorted(self._parts)
        sums = torch.stack([self._parts[n] for n in names] + [self._weighted[n] for n in names])
        world = self.args.world_size
        each_2R = sums.new_zeros(2, world)  # every rank fills in its own column
        each_2R[:, self.args.process_index] = sums.new_tensor([self._work + self._again, self._new_shapes])
        totals = sums.new_tensor([self._frames, self._tokens, self._work / world, self._again / world])
        sums = torch.cat([sums, totals, each_2R.flatten()])
        if world > 1:
            dist.all_reduce(sums)
        busiest, new_shapes = sums[-2 * world :].view(2, world).amax(1).tolist()
        *values, frames, tokens, work, again = sums[: -2 * world].tolist()
        self.speed.worked(frames=frames, tokens=tokens, work=work, again=again, busiest=busiest, new_shapes=new_shapes)
        values = [value / (self._micro_steps * world) for value in values]
        parts = dict(zip(names, values[: len(names)]))
        weighted = dict(zip(names, values[len(names) :]))
        if norm is None or math.isfinite(norm):
            self._skipped = 0
        elif self.args.fp16 and self._skipped < MOST_SKIPPED:
            self._skipped += 1  # the loss was scaled too high for 16 bits: the scaler lowers it and leaves the weights as they are
            self.history.event("skipped_step", step=self.state.global_step + 1, reason="float16 overflow")
        else:
            raise UserError(
                f"the gradient norm at step {self.state.global_step + 1} is {norm:g} though every loss is finite; samples of this step: "
                f"{', '.join(self._all_ids())}; lower --learning_rate or --max_grad_norm. Nothing was saved after the last checkpoint."
            )
        self.last = {
            "loss": sum(weighted.values()), **parts, **{f"{n}_weighted": v for n, v in weighted.items()},
            "learning_rate": self._get_learning_rate(), "grad_norm": norm,
        }  # fmt: skip
        self.history.step(self.state.global_step + 1, self.last)
        self._begin_step()
        return norm

    def _all_ids(self) -> list[str]:
        if self.args.world_size == 1:
            return self._step_ids
        gathered: list[list[str]] = [[] for _ in range(self.args.world_size)]
        dist.all_gather_object(gathered, self._step_ids)
        return [i for ids in gathered for i in ids]

    def floating_point_ops(self, inputs) -> int:
        batch = len(inputs["num_frames"])
        return int(self.speed.model_flops(batch, inputs["num_tokens"] / batch, sum(inputs["num_frames"])))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self.last, **self.speed.report(self.state.global_step, self.recompute.peak)}
        super().log(logs)

    # ---- validation ----

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        metrics = {f"eval_{name}": value for name, value in self.validation.evaluate(self).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.speed.restart(self.state.global_step)
        return metrics

    def _determine_best_metric(self, metrics, trial):
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best:  # a best model that is not saved is no use
            self.control.should_save = True
            self.state.best_model_checkpoint = str(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")
        return is_best

    # ---- checkpoints ----

    def _save_checkpoint(self, model, trial) -> None:
        checkpoint.save(self)
        self.speed.restart(self.state.global_step)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        checkpoint.save_weights(self, output_dir or self.args.output_dir)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        compiles = self.args.chosen.compile_layers or self.args.chosen.low_memory_optimizer
        with contextlib.nullcontext() if compiles else without_compiler():
            prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            checkpoint.load_training_state(self, resume_from_checkpoint)
        if self.deepspeed is not None:
            engine, sections = self.deepspeed, self.speed.sections
            engine.allreduce_gradients = sections.around("communication", engine.allreduce_gradients)
            engine.step = sections.around("optimizer", engine.step)
        self.history.start(self.state.global_step)
        self.speed.restart(self.state.global_step)
        return prepared

    def _save_rng_state(self, output_dir: str) -> None:
        randomness.save_states(Path(output_dir), self.args.process_index, self.args.world_size, self.args.device)

    def _load_rng_state(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is None:
            return
        folder, rank, world_size = Path(checkpoint_folder), self.args.process_index, self.args.world_size
        if checkpoint.check_whole(folder)["world_size"] == world_size:
            randomness.load_states(folder, rank, world_size, self.args.device)
        else:
            randomness.seed_states(self.args.seed, self.state.global_step, rank)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        checkpoint.load_weights(self.model, resume_from_checkpoint)
