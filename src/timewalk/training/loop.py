"""The training loop: any method, on the CPU, one GPU or many.

Knows nothing of any method: losses, groups, frozen layers and teachers are the method's. Order in
a step: set learning rate and weight decay; loss and backward of each micro-batch; join what the
processes know; clip; the method's ``after_backward``; optimiser; the method's ``after_step``; log.

A step means the same on any number of processes: each computes an equal share of the batch, the
gradient is the mean over all, and what the method asked to know of the whole batch is joined.
"""

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from timewalk.artefacts import alone, write_json
from timewalk.data.seeds import seed_of
from timewalk.errors import UserError
from timewalk.methods.base import Losses, Method, Step
from timewalk.ops.clipping import clip_each_, clip_global_
from timewalk.training.batches import (
    BatchSampler,
    OnDevice,
    SignalsAreTheTrainers,
    Source,
    batches,
    clips_of_epoch,
    epoch_size,
    share_of,
)
from timewalk.training.between import BetweenEpochs, Evaluate
from timewalk.training.checkpoint import (
    check_same_run,
    drop_halves,
    find_own,
    load_checkpoint,
    same_together,
    save_checkpoint,
    set_random_state,
)
from timewalk.training.distributed import ALONE, Processes, from_main, mean_of_all
from timewalk.training.job import Job
from timewalk.training.joint import joined_rows, numbers, terms_of
from timewalk.training.logging import EpochMeans, MetricsLog, Progress, SlowData
from timewalk.training.optimizers import learning_parameters, make_optimizer, set_rates
from timewalk.training.system import SystemLog, peak_memory_mb
from timewalk.training.wrap import lay_out, wrap

log = logging.getLogger(__name__)

INTERRUPTED = 75
"""Exit code after SIGTERM: a checkpoint is written, trying again goes on from it."""


class InterruptedTraining(Exception):
    """SIGTERM or SIGUSR1 came: the step is finished and a checkpoint written."""


@dataclass(frozen=True)
class Machine:
    """What does not change results: where and with how many hands.

    Attributes:
        device: torch device.
        workers: processes that load and augment clips, for each training process.
        processes: which of the training processes this is.
    """

    device: torch.device
    workers: int = 0
    processes: Processes = ALONE


class Trainer:
    """One training, from its first step or from its newest checkpoint to its last step.

    Attributes:
        total: its optimiser steps.
        together: clips that are computed at once, over all processes: so many batch normalisations
            see. After a training that had ended before: as it was then.
        derived: whether it starts anew when its data or weights have changed, instead of refusing.
    """

    def __init__(
        self,
        method: Method,
        config: Job,
        source: Source,
        folder: Path,
        machine: Machine,
        origin: dict[str, Any],
        evaluate: Evaluate | None = None,
        derived: bool = False,
    ) -> None:
        self.between = None
        if config.validation is not None and evaluate is not None:
            self.between = BetweenEpochs(config.validation, folder / "validation", evaluate, origin)
        self.method, self.config, self.source = method, config, source
        self.folder, self.machine, self.origin, self.derived = folder, machine, origin, derived
        self.settings = config.training
        self.group = machine.processes
        per_video, size = method.clip_shape().per_video, self.settings.batch_size
        self.clips = clips_of_epoch(source, per_video, size, method.by_group)
        clips = epoch_size(self.clips)
        self.steps_per_epoch = clips // self.settings.batch_size
        if self.steps_per_epoch == 0:
            an_epoch, more = "", ""
            if method.clip_shape().per_video is not None:
                an_epoch, more = " an epoch", ", or raise the run's clips_per_video"
            raise UserError(
                f"the data set '{config.dataset}' holds {clips} clips{an_epoch}, less than "
                f"training.batch_size {self.settings.batch_size}; make the batch smaller{more}."
            )
        whole = self.settings.epochs * self.steps_per_epoch
        self.total = min(whole, self.settings.max_steps or whole)
        self.share = share_of(self.settings.batch_size, self.group, self.settings.micro_batch_size)
        if self.share.parts > 1 and not method.splits:
            raise UserError(
                f"training.micro_batch_size {self.settings.micro_batch_size} would divide a batch "
                f"whose clips {type(method).__name__} compares with each other; leave it out, or "
                "use more GPUs."
            )
        self.together = self.share.clips // self.share.parts * self.group.size
        self.groups = method.parameter_groups()
        self.optimizer = make_optimizer(self.groups, self.settings)
        self.scaler = torch.amp.GradScaler(
            machine.device.type, enabled=self.settings.precision == "fp16"
        )
        self.first = 0
        self.stop = False
        self.worker_signals = SignalsAreTheTrainers()
        self.epoch_means = EpochMeans()

    def run(self) -> None:
        """Train to the end.

        Raises:
            UserError: a non-finite loss; the evidence is in the checkpoint folder.
            InterruptedTraining: a signal asked to stop; a checkpoint is written.
        """
        lock = self.folder / "lock"
        with alone(self.folder, lock) if self.group.main else nullcontext():
            if self.group.main:
                drop_halves(self.folder)
                if self.derived:
                    find_own(self.folder, self._inputs())
            # The others read checkpoints only once the main process has the folder to itself.
            from_main(None)
            self._resume()
            if self.first < self.total or (self.between and self.between.pending(self.total)):
                self._train()
            else:
                # As after a training: the last bits of what is computed from it depend on that.
                lay_out(self.method)

    def _train(self) -> None:
        self.method.train()
        self.loss = wrap(self.method, self.settings, self.machine.device)
        metrics = MetricsLog(
            self.folder / "metrics.jsonl" if self.group.main else Path(os.devnull),
            self.first,
            self.total,
        )
        progress = Progress(self.total, self.first, quiet=not self.group.main)
        folder = self.folder if self.group.main else None
        self.system = SystemLog(folder, self.first, self.total, self.machine.device)
        try:
            with _signals(self):
                self._steps(metrics, progress)
        finally:
            self.worker_signals.close()
            metrics.close()
            self.system.close()
            progress.close()

    def _resume(self) -> None:
        state = load_checkpoint(self.folder)
        if state is None:
            return
        check_same_run(self.folder, state, self.config, self._inputs())
        if self.method.batch_statistics:
            ended = state["step"] >= self.total
            self.together = same_together(self.folder, state, self.together, ended)
        self.method.load_state_dict(state["method"])
        self.method.load_state(state["extra"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch_means.load_state(state["epoch_means"])
        set_random_state(state["random"])
        self.first = state["step"]
        log.info("going on from step %d of %d", self.first, self.total)

    def _inputs(self) -> list[str]:
        """Shards count by content: their manifests hold digests, not the folder they lie in. So do
        the weights that training begins with."""
        return sorted({**self.origin["inputs"], **self.origin.get("weights", {})}.values())

    def _save(self, step: int) -> None:
        if not self.group.main:
            return
        state = {
            "method": self.method.state_dict(),
            "extra": self.method.state(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch_means": self.epoch_means.state(),
            "inputs": self._inputs(),
            "together": self.together,
            "config": self.config.model_dump(mode="json"),
            "provenance": self.origin,
        }
        save_checkpoint(self.folder, step, state, self.settings.keep_checkpoints)

    def _steps(self, metrics: MetricsLog, progress: Progress) -> None:
        device = self.machine.device
        sampler = self._sampler(self.first, self.total)
        pin = device.type == "cuda"
        loader = batches(
            self.source, self.method, sampler, self.machine.workers, pin, self.worker_signals
        )
        data = OnDevice(loader, device)
        slow = SlowData()
        saved = time.monotonic()
        text = ""
        for index in range(self.first, self.total):
            step = self._where(index)
            self._evaluate(metrics, step)
            started = time.monotonic()
            record, stop = self._step(data, step)
            done = index + 1
            ends_epoch = done % self.steps_per_epoch == 0 or done == self.total
            self.epoch_means.add(record)
            due = metrics.due(index) or done == self.total
            if due:
                record = numbers(record)
            data_s = data.take_waited()
            step_s = time.monotonic() - started - data_s
            slow.add(data_s, step_s)
            if due:
                record |= {"data_s": data_s, "step_s": step_s}
                record["clips_per_s"] = self.settings.batch_size / (data_s + step_s)
                record["peak_memory_mb"] = peak_memory_mb(device)
                metrics.write({"step": index, "epoch": step.epoch, "time": time.time()} | record)
                text = f"loss {record['loss']:.4f}, {record['clips_per_s']:.2f} clips/s"
            if ends_epoch:
                means = self.epoch_means.take()
                metrics.write({"step": index, "epoch": step.epoch, "time": time.time()} | means)
            progress.update(index, text)
            self.system.sample(index)
            minutes = (time.monotonic() - saved) / 60
            if (
                stop
                or done == self.total
                or minutes > self.settings.checkpoint_minutes
                or (ends_epoch and self._epoch_counts(done))
            ):
                self._save(done)
                saved = time.monotonic()
            if stop and done < self.total:
                # torchrun ends the others as soon as one has ended: none may go before the
                # checkpoint is written.
                from_main(None)
                raise InterruptedTraining(f"stopped by a signal after step {done} of {self.total}")
        self._evaluate(metrics, self._where(self.total))

    def _evaluate(self, metrics: MetricsLog, step: Step) -> None:
        """Evaluate the encoder if its turn has come; the other processes wait."""
        if self.between is None or not self.between.due(step):
            return
        interrupted = False
        if self.group.main:
            last = min(step.index, self.total - 1)
            where = {"step": last, "epoch": last // self.steps_per_epoch, "time": time.time()}
            try:
                metrics.write(where | self.between(self.method.encoder, step, self.method.heads()))
            except RuntimeError as error:
                # What a loader says when a signal to the whole job has ended its workers too.
                interrupted = self.stop
                if not interrupted:
                    raise
                log.warning("the evaluation was interrupted: %s", error)
        if from_main(interrupted):
            self._save(step.index)
            from_main(None)
            raise InterruptedTraining(f"stopped by a signal before step {step.index + 1}")

    def _sampler(self, first: int, total: int) -> BatchSampler:
        size, seed = self.settings.batch_size, self.config.seed
        return BatchSampler(self.clips, size, seed, first, total, self.share)

    def _epoch_counts(self, done: int) -> bool:
        """Short epochs are not worth a checkpoint each: at most a hundred in a training."""
        every = max(1, self.total // self.steps_per_epoch // 100)
        return (done // self.steps_per_epoch) % every == 0

    def _where(self, index: int) -> Step:
        return Step(
            index=index,
            epoch=index // self.steps_per_epoch,
            total=self.total,
            steps_per_epoch=self.steps_per_epoch,
            epochs=self.settings.epochs,
            seed=self.config.seed,
        )

    def _step(self, data: OnDevice, step: Step) -> tuple[dict[str, float | Tensor], bool]:
        """Take one step; return what is logged, and whether a process was asked to stop."""
        # Drop path and the like draw from torch's own generator: by step, so that a resume needs
        # nothing, and by process, so that no two draw the same.
        torch.manual_seed(seed_of(self.config.seed, step.index, self.group.rank))
        rates = set_rates(self.optimizer, self.groups, self.settings, step)
        self.optimizer.zero_grad(set_to_none=True)
        parts = [self._backward(data, step, part) for part in range(self.share.parts)]
        data.ahead()
        means, rows = joined_rows(parts)
        terms = mean_of_all(
            {f"means.{key}": value for key, value in means.items()}
            | terms_of(parts)
            | {"stop": torch.tensor(float(self.stop), device=self.machine.device)}
        )
        asked = terms.pop("stop")
        joint = {key: terms.pop(f"means.{key}") for key in means} | rows
        if not torch.isfinite(terms["loss"]):
            self._refuse(terms, step)
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        self.method.after_backward(step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        after = self.method.after_step(step, joint)
        if self.scaler.is_enabled():
            after = {**after, "loss_scale": self.scaler.get_scale()}
        # Several processes stop after the same step: the one in which all know of it.
        stop = self.stop if self.group.size == 1 else bool(asked > 0)
        return {**terms, **rates, "grad_norm": norm, **after}, stop

    def _backward(self, data: OnDevice, step: Step, part: int) -> Losses:
        """Add a micro-batch's gradient; processes exchange theirs with the last one."""
        last = part + 1 == self.share.parts
        ddp = isinstance(self.loss, DistributedDataParallel)
        with nullcontext() if last or not ddp else self.loss.no_sync():  # type: ignore[operator]
            total, losses = self.loss(next(data), step)
            self.scaler.scale(total / self.share.parts).backward()
        losses.total = total.detach()
        return losses

    def _clip(self) -> Tensor:
        clip = clip_each_ if self.settings.clip_mode == "parameter" else clip_global_
        norms = clip(learning_parameters(self.groups), self.settings.clip_grad or float("inf"))
        return torch.linalg.vector_norm(norms)

    def _refuse(self, terms: dict[str, Tensor], step: Step) -> None:
        """Keep the evidence of a non-finite loss and stop; the last checkpoint stays as it is."""
        evidence = self.folder / "non-finite-loss.json"
        loss = float(terms["loss"])
        if self.group.main:
            size, seed = self.settings.batch_size, self.config.seed
            whole = BatchSampler(self.clips, size, seed, step.index, step.index + 1)
            write_json(
                evidence,
                {
                    "step": step.index,
                    "epoch": step.epoch,
                    "seed": seed,
                    "clips": [index for _, index in next(iter(whole))],
                    "terms": {key: str(float(value)) for key, value in terms.items()},
                    "loss_scale": self.scaler.get_scale(),
                },
            )
        raise UserError(
            f"the loss of step {step.index} is {loss}: see {evidence} for its clips "
            "and terms; lower training.learning_rate or set training.precision to fp32, and go on."
        )


@contextmanager
def _signals(trainer: Trainer) -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 end the training after the step that is running."""

    def ask(number: int, frame: object) -> None:
        log.warning("%s: finishing the step, then a checkpoint", signal.Signals(number).name)
        trainer.stop = True

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
