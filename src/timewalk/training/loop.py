"""The training loop: any method, one process, CPU or one GPU.

Knows nothing of any method: losses, groups, frozen layers and teachers are the method's. Order in
a step: set learning rate and weight decay; loss under autocast; backward; clip; the method's
``after_backward``; optimiser; the method's ``after_step``; log.
"""

import logging
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from timewalk.artefacts import atomic_path, sha256_file, sha256_json, write_json
from timewalk.config import RunConfig, TrainingConfig
from timewalk.data.clips import ClipSource, open_clips
from timewalk.data.workers import plain_errors
from timewalk.encoders import save_encoder
from timewalk.errors import UserError
from timewalk.methods import get_method
from timewalk.methods.base import Losses, Method, Step, TrainedRunConfig
from timewalk.ops.clipping import clip_each_, clip_global_
from timewalk.ops.schedules import warmup_cosine
from timewalk.provenance import provenance
from timewalk.training.batches import BatchSampler, SignalsAreTheTrainers, batches
from timewalk.training.checkpoint import alone, load_checkpoint, save_checkpoint, set_random_state
from timewalk.training.logging import MetricsLog, Progress

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
        workers: processes that load and augment clips.
    """

    device: torch.device
    workers: int = 0


def train(
    name: str, config: RunConfig, manifests: Sequence[Path], output: Path, machine: Machine
) -> None:
    """Train a run, or bring its given encoder, and write ``output/encoder.safetensors``,
    ``encoder.json``, ``metrics.jsonl`` and ``figures/``.

    Goes on from ``output/checkpoints/`` if it holds a checkpoint of the same configuration.

    Args:
        name: the run's name.
        config: the run.
        manifests: shard manifests of the videos of the run's data set; empty without training.
        output: the run's folder.
        machine: device and workers.
    """
    method = get_method(config.method)(config).to(machine.device)
    resolved = config.model_dump(mode="json")
    origin = provenance(
        machine.device,
        run=name,
        config=resolved,
        config_sha256=sha256_json(resolved),
        seed=config.seed,
        inputs={str(path): sha256_file(path) for path in manifests},
    )
    figures: dict[str, Any] = {}
    if isinstance(config, TrainedRunConfig):
        frames, step = method.clip_shape()
        source = open_clips(manifests, frames, step)
        trainer = Trainer(method, config, source, output / "checkpoints", machine, origin)
        trainer.run()
        origin |= {"steps": trainer.total, "clips": len(source)}
        figures = _figures(method, source, machine.device)
        _copy(output / "checkpoints" / "metrics.jsonl", output / "metrics.jsonl")
    else:
        with atomic_path(output / "metrics.jsonl") as temporary:
            temporary.write_text("")
    write_json(output / "config.json", resolved)
    for picture, pixels in figures.items():
        with atomic_path(output / "figures" / f"{picture}.png") as temporary:
            Image.fromarray(pixels).save(temporary)
    save_encoder(method.encoder, output, origin)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _figures(method: Method, source: ClipSource, device: torch.device) -> dict[str, Any]:
    """Ask the method for pictures of four clips spread over the data."""
    spread = {len(source) * k // 4 for k in range(4)}
    pictures = {}
    for number, index in enumerate(sorted(spread)):
        clip = source.clip(index).frames.to(device)
        for picture, pixels in method.visualise(clip).items():
            pictures[f"{picture}-{number}"] = pixels
    return pictures


class Trainer:
    """One training, from its first step or from its newest checkpoint to its last step."""

    def __init__(
        self,
        method: Method,
        config: TrainedRunConfig,
        source: ClipSource,
        folder: Path,
        machine: Machine,
        origin: dict[str, Any],
    ) -> None:
        self.method, self.config, self.source = method, config, source
        self.folder, self.machine, self.origin = folder, machine, origin
        settings = config.training
        self.steps_per_epoch = len(source) // settings.batch_size
        if self.steps_per_epoch == 0:
            raise UserError(
                f"the data set '{config.dataset}' holds {len(source)} clips, less than "
                f"training.batch_size {settings.batch_size}; make the batch smaller."
            )
        whole = settings.epochs * self.steps_per_epoch
        self.total = min(whole, settings.max_steps or whole)
        self.groups = method.parameter_groups()
        self.optimizer = make_optimizer(method, settings, machine.device)
        # Shards count by content: their manifests hold digests, not the folder they lie in.
        inputs = sorted(origin["inputs"].values())
        self.run_hash = sha256_json([origin["config_sha256"], inputs])
        self.first = 0
        self.stop = False
        self.worker_signals = SignalsAreTheTrainers()

    def run(self) -> None:
        """Train to the end.

        Raises:
            UserError: a non-finite loss; the evidence is in the checkpoint folder.
            InterruptedTraining: a signal asked to stop; a checkpoint is written.
        """
        with alone(self.folder):
            torch.manual_seed(self.config.seed)
            self._resume()
            if self.first < self.total:
                self._train()

    def _train(self) -> None:
        self.method.train()
        metrics = MetricsLog(self.folder / "metrics.jsonl", self.first, self.total)
        progress = Progress(self.total, self.first)
        try:
            with _signals(self):
                self._steps(metrics, progress)
        finally:
            self.worker_signals.close()
            metrics.close()
            progress.close()

    def _resume(self) -> None:
        state = load_checkpoint(self.folder, self.run_hash)
        if state is None:
            return
        self.method.load_state_dict(state["method"])
        self.method.load_state(state["extra"])
        self.optimizer.load_state_dict(state["optimizer"])
        set_random_state(state["random"])
        self.first = state["step"]
        log.info("going on from step %d of %d", self.first, self.total)

    def _save(self, step: int) -> None:
        state = {
            "method": self.method.state_dict(),
            "extra": self.method.state(),
            "optimizer": self.optimizer.state_dict(),
            "run_hash": self.run_hash,
            "config": self.config.model_dump(mode="json"),
            "provenance": self.origin,
        }
        save_checkpoint(self.folder, step, state, self.config.training.keep_checkpoints)

    def _steps(self, metrics: MetricsLog, progress: Progress) -> None:
        settings = self.config.training
        sampler = BatchSampler(
            len(self.source), settings.batch_size, self.config.seed, self.first, self.total
        )
        pin = self.machine.device.type == "cuda"
        loader = batches(
            self.source, self.method, sampler, self.machine.workers, pin, self.worker_signals
        )
        saved = time.monotonic()
        text = ""
        for index, (batch, data_s) in enumerate(timed(loader), start=self.first):
            started = time.monotonic()
            step = self._where(index)
            record = self._step(batch, step)
            if metrics.due(index) or index + 1 == self.total:
                record = {key: float(value) for key, value in record.items()}
                record |= {"data_s": data_s, "step_s": time.monotonic() - started}
                record["clips_per_s"] = settings.batch_size / (data_s + record["step_s"])
                record["peak_memory_mb"] = peak_memory_mb(self.machine.device)
                metrics.write({"step": index, "epoch": step.epoch, "time": time.time()} | record)
                text = f"loss {record['loss']:.4f}, {record['clips_per_s']:.2f} clips/s"
            progress.update(index, text)
            done = index + 1
            overdue = time.monotonic() - saved > 60 * settings.checkpoint_minutes
            if done == self.total or (
                done % self.steps_per_epoch == 0 and self._epoch_counts(done)
            ):
                overdue = True
            if overdue or self.stop:
                self._save(done)
                saved = time.monotonic()
            if self.stop and done < self.total:
                raise InterruptedTraining(f"stopped by a signal after step {done} of {self.total}")

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
            epochs=self.config.training.epochs,
            seed=self.config.seed,
        )

    def _step(self, batch: dict[str, Tensor], step: Step) -> dict[str, float | Tensor]:
        device = self.machine.device
        rates = self._set_rates(step)
        batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        bf16 = self.config.training.precision == "bf16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            losses = self.method.loss(batch, step)
        if not torch.isfinite(losses.total):
            self._refuse(losses, step)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        norm = self._clip()
        self.method.after_backward(step)
        self.optimizer.step()
        after = self.method.after_step(step, {**losses.means, **losses.rows})
        loss = losses.total.detach()
        return {"loss": loss, **losses.terms, **rates, "grad_norm": norm, **after}

    def _set_rates(self, step: Step) -> dict[str, float]:
        settings = self.config.training
        peak = settings.learning_rate * settings.batch_size / 256
        warmup = min(round(settings.warmup_epochs * self.steps_per_epoch), step.total)
        rate = warmup_cosine(
            step.index, step.total, peak, settings.min_learning_rate, warmup_steps=warmup
        )
        decay = warmup_cosine(
            step.index, step.total, settings.weight_decay, settings.weight_decay_end
        )
        for group, target in zip(self.groups, self.optimizer.param_groups, strict=True):
            target["lr"] = rate * group.lr_scale
            target["weight_decay"] = decay if group.weight_decay else 0.0
        return {"learning_rate": rate, "weight_decay": decay}

    def _clip(self) -> Tensor | float:
        settings = self.config.training
        parameters = [p for group in self.groups for p in group.parameters if p.grad is not None]
        clip = clip_each_ if settings.clip_mode == "parameter" else clip_global_
        norms = clip(parameters, settings.clip_grad or float("inf"))
        return torch.linalg.vector_norm(norms)

    def _refuse(self, losses: Losses, step: Step) -> None:
        """Keep the evidence of a non-finite loss and stop; the last checkpoint stays as it is."""
        sampler = BatchSampler(
            len(self.source),
            self.config.training.batch_size,
            self.config.seed,
            step.index,
            step.index + 1,
        )
        evidence = self.folder / "non-finite-loss.json"
        write_json(
            evidence,
            {
                "step": step.index,
                "epoch": step.epoch,
                "seed": self.config.seed,
                "clips": [index for _, index in next(iter(sampler))],
                "terms": {key: str(float(value)) for key, value in losses.terms.items()},
            },
        )
        raise UserError(
            f"the loss of step {step.index} is {losses.total.item()}: see {evidence} for its clips "
            "and terms; lower training.learning_rate or set training.precision to fp32, and go on."
        )


def make_optimizer(
    method: Method, settings: TrainingConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Return the optimiser over a method's groups; rates are set before each step."""
    groups = [{"params": group.parameters} for group in method.parameter_groups()]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), fused=device.type == "cuda")


def timed(loader: Iterable[dict[str, Tensor]]) -> Iterator[tuple[dict[str, Tensor], float]]:
    """Yield each batch with the seconds that were spent waiting for it."""
    iterator = iter(loader)
    while True:
        started = time.monotonic()
        try:
            with plain_errors():
                batch = next(iterator)
        except StopIteration:
            return
        yield batch, time.monotonic() - started


def peak_memory_mb(device: torch.device) -> float:
    """Return the highest memory so far in MB: the GPU's, or on the CPU this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


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
