"""From a mixture of data sets to the batches of one rank: order, sharding, cached vision features, broken samples.

Shapes: F frames of a sample, P patches, C tower width, T tokens.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from aha.conversation import IGNORE_INDEX
from aha.core.heads import LABELLED
from aha.data.collate import collate
from aha.data.mixture import Mixture
from aha.errors import UserError
from aha.training.features import VisionCache


class RankBatches(Sampler[list[int]]):
    """Batches of item numbers for one rank; the order follows from (seed, epoch) alone, so a resumed run goes on where it stopped. Item i
    of epoch e has the number e * count + i: processes that read ahead work on two epochs at a time.

    Which items an optimizer step sees depends on the size of the whole step only (batch_size * world_size * accumulation), not on how it
    is divided: 8 GPUs with 2 micro-steps learn from the same items, step by step, as one GPU with 16. (Not so in a smaller last step of
    an epoch: every rank has the same number of batches, and the last ones are filled up from the start of the order.)
    `lengths(epoch)` given: the items of an optimizer step are dealt by length, longest first: ranks (which wait for each other) get about
    equal work, and samples of similar length at a time; a step that does not fit into memory fails at once.
    """

    def __init__(
        self,
        count: int,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        accumulation: int = 1,
        lengths: Callable[[int], Sequence[int]] | None = None,
    ) -> None:
        self.count, self.batch_size, self.rank, self.world_size, self.seed = count, batch_size, rank, world_size, seed
        self.accumulation, self.lengths = accumulation, lengths
        self.epoch, self.epochs = 0, 1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.count // (self.batch_size * self.world_size))

    def order(self, epoch: int) -> list[int]:
        """All items of an epoch (0 .. count - 1), a whole number of micro-steps long."""
        rng = random.Random(f"{self.seed}/{epoch}/order")
        order = rng.sample(range(self.count), self.count)
        per_step = self.batch_size * self.world_size
        total = len(self) * per_step
        order = (order * -(-total // self.count))[:total]
        if self.lengths is None:
            return order
        lengths, whole = self.lengths(epoch), per_step * self.accumulation
        steps = (order[start : start + whole] for start in range(0, total, whole))
        return [i for step in steps for i in deal(step, lengths, self.batch_size, self.world_size)]

    def of_epoch(self, epoch: int) -> Iterator[list[int]]:
        order = self.order(epoch)
        for start in range(self.rank * self.batch_size, len(order), self.batch_size * self.world_size):
            yield [epoch * self.count + i for i in order[start : start + self.batch_size]]

    def __iter__(self) -> Iterator[list[int]]:
        return self.of_epoch(self.epoch)

    def onwards(self) -> Iterator[list[int]]:
        """The batches of this epoch and of all later ones, of which there are `epochs`."""
        for epoch in range(self.epoch, self.epochs):
            yield from self.of_epoch(epoch)


# Of a 7B model with its vision tower: so many tokens long, a sample's attention is as much work as all the rest of it
EVEN_TOKENS = 65_536


def work_of(tokens: int) -> int:
    """What a sample of so many tokens (frames make nearly all of them) costs, in a unit of no meaning."""
    return tokens * (EVEN_TOKENS + tokens)


def deal(items: Sequence[int], lengths: Sequence[int], batch_size: int, world_size: int) -> list[int]:
    """The items of an optimizer step in the order of micro-steps: a batch for each rank, then the next one for each.

    Batches are cut from the items sorted by length, so that little is padded. A row of `world_size` batches is a micro-step: with ZeRO-2
    and 3 ranks wait for each other in each. Of a row the longest batch goes to the rank that has the least work so far. Then the rank with
    the most work exchanges its batch of a row with another rank's, the exchange that helps most first, until none helps. No rank has more
    work than another by more than a row's largest batch has over its smallest.
    """
    longest_first = sorted(items, key=lambda i: -lengths[i])
    batches = [longest_first[k : k + batch_size] for k in range(0, len(items), batch_size)]
    rows: list[list[tuple[int, list[int]]]] = []  # for each rank: (work, batch)
    done = [0] * world_size
    for k in range(0, len(batches), world_size):
        row = [(work_of(lengths[batch[0]]) * len(batch), batch) for batch in batches[k : k + world_size]]
        ranks = sorted(range(world_size), key=lambda rank: done[rank])  # stable: equal ones stay in order
        rows.append([part for _, part in sorted(zip(ranks, row))])
        done = [work + part[0] for work, part in zip(done, rows[-1])]
    while True:
        busiest = max(range(world_size), key=lambda rank: done[rank])
        exchanges = [
            (max(done[busiest] - less, done[rank] + less), rank, k)
            for rank in range(world_size)
            for k, row in enumerate(rows)
            if (less := row[busiest][0] - row[rank][0]) > 0
        ]
        most, rank, k = min(exchanges, default=(done[busiest], 0, 0))
        if most >= done[busiest]:
            return [i for row in rows for _, batch in row for i in batch]
        row = rows[k]
        row[busiest], row[rank] = row[rank], row[busiest]
        for r in (busiest, rank):
            done[r] = sum(row[r][0] for row in rows)


class TrainingSet(Dataset):
    """A mixture under the numbers of `RankBatches`, whose broken samples are reported instead of raised: {"sample_id", "broken": reason}.

    One rank must not stop or skip while the others wait in a collective operation; the trainer gives such a sample weight 0.
    `features`: where frames may be replaced by their cached vision features.
    """

    def __init__(self, mixture: Mixture, features: VisionCache | None = None):
        self.mixture, self.features = mixture, features

    def __len__(self) -> int:
        return len(self.mixture)

    def lengths(self, epoch: int) -> list[int]:
        """Tokens of each item of an epoch."""
        self._enter(epoch)
        return self.mixture.lengths

    def _enter(self, epoch: int) -> None:
        if self.mixture.epoch != epoch:
            self.mixture.set_epoch(epoch)

    def __getitem__(self, number: int) -> dict[str, Any]:
        epoch, i = divmod(number, len(self))
        self._enter(epoch)
        try:
            return self.mixture[i] if self.features is None else self.features.item(self.mixture, i)
        except UserError as error:
            source, sample = self.mixture.items[i]
            return {"sample_id": self.mixture.sources[source].samples[sample].sample_id, "broken": str(error)}


def leave_inherited(worker: int) -> None:
    """A process that reads must not collect what its parent left: freeing a video decoder waits for threads that are not forked with it."""
    gc.freeze()


class Readers(DataLoader):
    """torch's loader, whose processes read on into the next epoch while this one's last batches are computed. torch starts them anew for
    every epoch, and its first step then waits for the first video to be read.

    Batches and random numbers are those of torch's loader.
    """

    def __init__(self, dataset: TrainingSet, batches: RankBatches, **settings: Any):
        settings["worker_init_fn"] = leave_inherited
        super().__init__(dataset, batch_sampler=batches, **settings)
        self.batches, self.settings = batches, settings
        self.ahead: Iterator[dict[str, Any]] | None = None  # the batches of this epoch and of all later ones
        self.due: int | None = None  # the epoch that begins with the next batch of `ahead`; None within an epoch

    def __iter__(self):
        if not self.num_workers:
            return super().__iter__()
        seed = int(torch.empty((), dtype=torch.int64).random_())  # torch draws one for every epoch: what is drawn after it stays the same
        epoch = self.batches.epoch
        if self.due != epoch:
            self.close()
            gc.collect()  # here, where a decoder's threads are
            generator = torch.Generator().manual_seed(seed)
            self.ahead = iter(DataLoader(self.dataset, batch_sampler=self.batches.onwards(), generator=generator, **self.settings))
        self.due = None
        return self._batches(self.ahead, epoch)

    def _batches(self, ahead: Iterator[dict[str, Any]], epoch: int) -> Iterator[dict[str, Any]]:
        for left in reversed(range(len(self))):
            batch = next(ahead)
            if not left:
                self.due = epoch + 1
            yield batch

    def close(self) -> None:
        """End the processes."""
        self.ahead = self.due = None


def placeholder(mixture: Mixture, features: VisionCache | None = None) -> dict[str, Any]:
    """One black frame without labels: what a rank computes, with weight 0, where its whole batch is broken. With cached features it has
    features too: with ZeRO-3 all ranks must run the vision tower together, or none."""
    ids = [*mixture.format.stream_header, *mixture.format.frame_ids]
    nothing = np.full(len(ids), IGNORE_INDEX)
    frames = np.zeros((1, 3, mixture.frame.side, mixture.frame.side), np.uint8) if features is None else features.nothing_1PC
    return {
        "input_ids": np.array(ids), "labels": nothing, **{head.labels: nothing for head in LABELLED},
        "frames": frames, "sample_id": "placeholder", "video_path": "", "frame_fps": 1.0,
        "frame_times": [0.0], "frame_indices": [0],
    }  # fmt: skip


SHARED_MEMORY = Path("/dev/shm")


def readers_that_fit(wanted: int, args: Any, mixture: Mixture) -> int:
    """How many of the `wanted` processes that read ahead there is shared memory for, on this rank; says where it is fewer. A process that
    finds none left waits for ever, and the run with it."""
    if not wanted or not SHARED_MEMORY.is_dir():
        return wanted
    frames = max(source.max_num_frames for source in mixture.sources)
    ahead = (args.dataloader_prefetch_factor or 2) + 1  # batches of a process that wait to be taken, and the one in work
    needed = ahead * args.per_device_train_batch_size * frames * 3 * mixture.frame.side**2
    free = shutil.disk_usage(SHARED_MEMORY).free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    fit = min(wanted, int(free // needed))
    if fit < wanted and args.process_index == 0:
        print(
            f"{SHARED_MEMORY} has room for {fit} of --dataloader_num_workers {wanted} ({needed >> 20} MiB each, {free >> 20} MiB free); "
            f"going on with {fit} (docker run --shm-size gives more)", flush=True
        )  # fmt: skip
    return fit


class Collator:
    """Samples -> batch. `frames` becomes a list with one tensor per sample: uint8 [F,3,S,S], or cached features [F,P,C].

    `broken`: (sample id, reason) of the samples left out; `weight`: 0 where nothing is left, else 1; `num_tokens`: without padding.
    """

    def __init__(self, mixture: Mixture, features: VisionCache | None = None, pad_to_multiple_of: int = 1):
        self.pad_id, self.pad_to_multiple_of = mixture.format.pad_id, pad_to_multiple_of
        self.placeholder = placeholder(mixture, features)

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        broken = [(s["sample_id"], s["broken"]) for s in samples if "broken" in s]
        good = [s for s in samples if "broken" not in s] or [self.placeholder]
        frames = [torch.as_tensor(s["frames"]) for s in good]
        batch = collate([{**s, "frames": np.empty((len(f), 0))} for s, f in zip(good, frames)], self.pad_id, self.pad_to_multiple_of)
        # padding comes after every real token, so causal attention never looks at it: without a mask it takes its fast path
        num_tokens = int(batch.pop("attention_mask_BT").sum())
        weight = 0.0 if len(broken) == len(samples) else 1.0
        return {**batch, "frames": frames, "broken": broken, "num_tokens": num_tokens, "weight": weight}
