"""The training loop of all methods.

    python -m hand_perception.training.train --config config/methods/deformer.yaml \\
        --data DIR [DIR ...] --out DIR [--minutes 60] [--validate DIR]

On several GPUs or machines: the same after `torchrun --nproc-per-node N -m`. Run again with the
same --out to resume; a run that was killed goes on as if it had not been. Weights for use are
written by `export_weights`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from hand_perception.networks import resolve_device
from hand_perception.training.data import FrameStore, WindowSampler
from hand_perception.training.objectives import OBJECTIVES, Objective
from hand_perception.types import HandPerceptionError

log = logging.getLogger(__name__)

PACE_STEPS = (20, 60)
"""Between these two steps the speed is taken that turns a time budget into a number of steps."""


@dataclass(frozen=True)
class TrainConfig:
    """The `training` part of a method's yaml."""

    steps: int = 20_000
    minutes: float | None = None
    """Time budget: replaces `steps` once the speed is known, and ends the run at the latest."""
    batch_size: int = 16
    """Windows per step, of all processes together."""
    learning_rate: float = 3e-4
    adversary_learning_rate: float = 1e-3
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    """"cosine" down to 1 % at the last step, or "step": x step_factor every step_every steps."""
    warmup_steps: int = 300
    step_every: int = 10_000
    step_factor: float = 0.7
    clip_norm: float = 1.0
    ema: float = 0.999
    seed: int = 0
    device: str = "auto"
    frames: int = 7
    gap_s: tuple[float, float] = (1 / 15, 1 / 15)
    lookahead: float = 0.5
    drop: float = 0.1
    checkpoint_every: int = 500
    validate_every: int = 1000
    validate_batches: int = 20
    log_every: int = 20

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Checked settings; unknown names are refused."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise HandPerceptionError(
                f"unknown training settings {unknown}; allowed are {sorted(known)}"
            )
        tuples: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        config = cls(**tuples)
        if config.schedule not in ("cosine", "step"):
            raise HandPerceptionError(
                f"schedule is {config.schedule!r}; allowed are cosine and step"
            )
        if config.steps < 1 or config.learning_rate <= 0 or not 0 <= config.ema < 1:
            raise HandPerceptionError(
                f"steps {config.steps}, learning_rate {config.learning_rate}, ema {config.ema}: "
                "steps and rate are positive, ema lies in [0, 1)"
            )
        return config

    def rate(self, step: int, total: int) -> float:
        """Factor of the learning rate at a step: linear warm-up, then the schedule."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule == "step":
            return warm * self.step_factor ** (step // self.step_every)
        progress = min(1.0, step / max(1, total))
        return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


class Trainer:
    """One run: network, optimisers, averaged weights and step; saved and restored as a whole."""

    def __init__(
        self,
        objective: Objective,
        config: TrainConfig,
        sampler: WindowSampler,
        out: Path | str,
        *,
        validation: WindowSampler | None = None,
        method_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.objective, self.config, self.sampler = objective, config, sampler
        self.validation = validation
        self.method_config = dict(method_config or {})
        self.out = Path(out)
        self.device = resolve_device(config.device)
        self.rank = sampler.rank
        objective.network.to(self.device)
        self.trainable = {n: p for n, p in objective.network.named_parameters() if p.requires_grad}
        frozen = {n for n, p in objective.network.named_parameters() if not p.requires_grad}
        self.saved = [n for n in objective.network.state_dict() if n not in frozen]
        self.optimizer = torch.optim.AdamW(
            self.trainable.values(), config.learning_rate, weight_decay=config.weight_decay
        )
        self.adversary_optimizer = None
        if objective.adversary is not None:
            objective.adversary.to(self.device)
            self.adversary_optimizer = torch.optim.AdamW(
                objective.adversary.parameters(),
                config.adversary_learning_rate,
                weight_decay=config.weight_decay,
            )
        if sampler.world > 1:
            for module in (objective.network, objective.adversary):
                for tensor in module.state_dict().values() if module is not None else ():
                    dist.broadcast(tensor, 0)
        self.average = {n: p.detach().clone() for n, p in self.trainable.items()}
        self.step = 0
        self.total = config.steps
        self.paced = config.minutes is None

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.safetensors"

    def run(self) -> None:
        """Train to the end, or until the time budget is spent; resumes from a checkpoint."""
        self.out.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self.restore()
        first, started = self.step, time.monotonic()
        budget = math.inf if self.config.minutes is None else 60 * self.config.minutes
        main = self.rank == 0
        writer = SummaryWriter(str(self.out), purge_step=first) if main else None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        pace = started
        with ThreadPoolExecutor(1) as loader, Progress(*columns, disable=not main) as progress:
            bar = progress.add_task("training", total=self.total, completed=self.step)
            upcoming: Future = loader.submit(self.sampler.batch, self.step)
            while self.step < self.total and not self._spent(started, budget):
                batch = upcoming.result()
                upcoming = loader.submit(self.sampler.batch, self.step + 1)
                terms = self.train_step({n: v.to(self.device) for n, v in batch.items()})
                done = self.step - first
                if not self.paced and done == PACE_STEPS[0]:
                    pace = time.monotonic()
                if not self.paced and done == PACE_STEPS[1]:
                    now = time.monotonic()
                    seconds = (now - pace) / (PACE_STEPS[1] - PACE_STEPS[0])
                    self._set_total(self.step + int(0.95 * (budget - (now - started)) / seconds))
                progress.update(bar, completed=self.step, total=self.total)
                if writer is not None and self.step % self.config.log_every == 0:
                    self._log(writer, terms)
                if self.step % self.config.validate_every == 0 and self.validation is not None:
                    self._validate(writer)
                if main and self.step % self.config.checkpoint_every == 0:
                    self.save()
            upcoming.cancel()
        if main:
            self.save()
        if writer is not None:
            self._validate(writer)
            writer.close()

    def _spent(self, started: float, budget: float) -> bool:
        spent = time.monotonic() - started > budget
        if self.sampler.world > 1:
            # All processes must stop at the same step.
            flag = torch.tensor(float(spent), device=self.device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            spent = bool(flag)
        return spent

    def _set_total(self, total: int) -> None:
        if self.sampler.world > 1:
            shared = torch.tensor(total, device=self.device)
            dist.broadcast(shared, 0)
            total = int(shared)
        self.total, self.paced = max(self.step + 1, total), True
        log.info("time budget: %d steps", self.total)

    def train_step(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step of the network, then of its adversary; returns the loss terms.

        Raises HandPerceptionError, after saving the batch, when the loss is not finite.
        """
        config, objective = self.config, self.objective
        rate = config.rate(self.step, self.total)
        objective.network.train()
        if objective.adversary is not None:
            objective.adversary.requires_grad_(False)
        terms, output = objective.losses(batch)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            self._refuse(batch, terms)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._apply(self.optimizer, self.trainable.values(), config.learning_rate * rate)
        if objective.adversary is not None and self.adversary_optimizer is not None:
            objective.adversary.requires_grad_(True)
            adversary_loss = objective.adversary_loss(batch, output)
            self.adversary_optimizer.zero_grad(set_to_none=True)
            adversary_loss.backward()
            self._apply(
                self.adversary_optimizer,
                objective.adversary.parameters(),
                config.adversary_learning_rate * rate,
            )
            terms = {**terms, "adversary": adversary_loss}
        # The average follows fast at first, so that it never remembers the random start.
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                self.average[name].lerp_(parameter, 1 - decay)
        self.step += 1
        return {n: t.detach() for n, t in terms.items()}

    def _apply(
        self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], rate: float
    ) -> None:
        # Average the gradients over all processes, clip, step.
        used = list(parameters)
        if self.sampler.world > 1:
            for parameter in used:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.sampler.world
        nn.utils.clip_grad_norm_(used, self.config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()

    def _refuse(self, batch: Mapping[str, Tensor], terms: Mapping[str, Tensor]) -> None:
        path = self.out / f"nan_batch_{self.step}_{self.rank}.safetensors"
        self.out.mkdir(parents=True, exist_ok=True)
        save_file({n: v.detach().cpu().contiguous() for n, v in batch.items()}, path)
        bad = [name for name, term in terms.items() if not torch.isfinite(term)]
        raise HandPerceptionError(
            f"the loss is not finite at step {self.step} (terms {bad}); the batch is in {path}, "
            "the last good state in the checkpoint"
        )

    def _log(self, writer: SummaryWriter, terms: Mapping[str, Tensor]) -> None:
        values = {name: float(term) for name, term in terms.items()}
        for name, value in values.items():
            writer.add_scalar(f"loss/{name}", value, self.step)
        rate = self.optimizer.param_groups[0]["lr"]
        writer.add_scalar("learning_rate", rate, self.step)
        total = sum(v for n, v in values.items() if n != "adversary")
        log.info("step %d of %d: loss %.4f, rate %.2e", self.step, self.total, total, rate)

    def _validate(self, writer: SummaryWriter | None) -> None:
        if self.validation is None or writer is None:
            return
        with torch.random.fork_rng():
            sums: dict[str, float] = {}
            batches = self.config.validate_batches
            with self.averaged():
                for number in range(batches):
                    batch = self.validation.batch(number)
                    batch = {n: v.to(self.device) for n, v in batch.items()}
                    for name, value in self.objective.measure(batch).items():
                        sums[name] = sums.get(name, 0.0) + value / batches
                picture = self.objective.picture(batch)
        for name, value in sums.items():
            writer.add_scalar(f"validation/{name}", value, self.step)
        writer.add_image("validation", picture, self.step, dataformats="HWC")
        text = ", ".join(f"{name} {value:.2f}" for name, value in sums.items())
        log.info("validation at step %d: %s", self.step, text)

    def averaged(self) -> _Averaged:
        """Context in which the network has the averaged weights and is in eval mode."""
        return _Averaged(self)

    def save(self) -> None:
        """Write the whole state, atomically."""
        state = self.objective.network.state_dict()
        tensors = {f"model.{n}": state[n] for n in self.saved}
        tensors |= {f"average.{n}": t for n, t in self.average.items()}
        tensors |= _optimizer_tensors("optimizer", self.optimizer)
        if self.objective.adversary is not None and self.adversary_optimizer is not None:
            adversary = self.objective.adversary.state_dict()
            tensors |= {f"adversary.{n}": t for n, t in adversary.items()}
            tensors |= _optimizer_tensors("adversary_optimizer", self.adversary_optimizer)
        tensors["random"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(self.device)
        metadata = {
            "step": str(self.step),
            "total": str(self.total),
            "paced": str(int(self.paced)),
            "config": json.dumps(self.method_config),
            **self.objective.metadata(),
        }
        partial = self.checkpoint.with_suffix(".partial")
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, partial, metadata)
        os.replace(partial, self.checkpoint)

    def restore(self) -> None:
        """Take up the state of the checkpoint; refuses one of another network configuration."""
        tensors = load_file(self.checkpoint)
        with safe_open(self.checkpoint, framework="pt") as file:
            metadata = file.metadata()
        for name, value in self.objective.metadata().items():
            if metadata.get(name) != value:
                raise HandPerceptionError(
                    f"{self.checkpoint} was trained with {name} {metadata.get(name)}, not {value}; "
                    "use another folder or the same configuration"
                )

        def part(prefix: str) -> dict[str, Tensor]:
            return {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}

        self.objective.network.load_state_dict(part("model."), strict=False)
        for name, tensor in part("average.").items():
            self.average[name].copy_(tensor)
        _restore_optimizer(self.optimizer, part("optimizer."))
        if self.objective.adversary is not None and self.adversary_optimizer is not None:
            self.objective.adversary.load_state_dict(part("adversary."))
            _restore_optimizer(self.adversary_optimizer, part("adversary_optimizer."))
        torch.set_rng_state(tensors["random"])
        if self.device.type == "cuda" and "random_cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random_cuda"], self.device)
        self.step = int(metadata["step"])
        if int(metadata["paced"]):
            self.paced = True
            # A budget once turned into steps stays; a plain number of steps may be raised.
            if self.config.minutes is not None:
                self.total = int(metadata["total"])


class _Averaged:
    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.kept: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        self.trainer.objective.network.eval()
        for name, parameter in self.trainer.trainable.items():
            self.kept[name] = parameter.detach().clone()
            parameter.data.copy_(self.trainer.average[name])

    def __exit__(self, *_: object) -> None:
        for name, parameter in self.trainer.trainable.items():
            parameter.data.copy_(self.kept[name])


def _optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state = optimizer.state_dict()
    state["state"] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state["state"].setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(state)


def export_weights(checkpoint: Path | str, path: Path | str) -> None:
    """Write the averaged weights of a checkpoint for use: half precision, configuration within.

    A frozen backbone is not among them; `load` takes it from its own file.
    """
    if not Path(checkpoint).is_file():
        raise HandPerceptionError(f"checkpoint {checkpoint} does not exist")
    tensors = load_file(checkpoint)
    with safe_open(checkpoint, framework="pt") as file:
        metadata = dict(file.metadata())
    prefix = "model."
    weights = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
    weights |= {n[len("average.") :]: t for n, t in tensors.items() if n.startswith("average.")}
    half = {n: t.half() if t.is_floating_point() else t for n, t in weights.items()}
    if broken := [n for n, t in half.items() if not torch.isfinite(t).all()]:
        raise HandPerceptionError(f"weights {broken[:3]} are not finite in half precision")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file(half, path, metadata)


def read_config(path: Path | str) -> dict[str, Any]:
    """A method's yaml, config/methods/<method>.yaml."""
    if not Path(path).is_file():
        raise HandPerceptionError(f"there is no configuration at {path}")
    config = yaml.safe_load(Path(path).read_text())
    if not isinstance(config, dict) or config.get("method") not in OBJECTIVES:
        raise HandPerceptionError(
            f"{path} must name a method that can be trained: {sorted(OBJECTIVES)}"
        )
    return config


def train(
    config: Mapping[str, Any],
    data: Sequence[Path | str],
    out: Path | str,
    *,
    validate: Sequence[Path | str] = (),
    minutes: float | None = None,
) -> Path:
    """Train the method of a configuration on stores of frames; returns the checkpoint.

    Started by torchrun, all its processes train together, each on its share of every batch.
    `config["training"]["data_weights"]` may mix the stores, in the order of `data`.
    """
    settings = dict(config.get("training", {}))
    weights = settings.pop("data_weights", None)
    if minutes is not None:
        settings["minutes"] = minutes
    training = TrainConfig.from_dict(settings)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    started = world > 1 and not dist.is_initialized()
    if started:
        cuda = resolve_device(training.device).type == "cuda"
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if cuda else "gloo")
    torch.manual_seed(training.seed)
    objective = OBJECTIVES[config["method"]](config)
    # Processes start from the same weights and draw different dropout.
    torch.manual_seed(training.seed + rank)

    def sampler(paths: Sequence[Path | str], **options: Any) -> WindowSampler:
        return WindowSampler(
            [FrameStore(path) for path in paths],
            batch_size=training.batch_size,
            frames=training.frames,
            gap_s=training.gap_s,
            **options,
        )

    trainer = Trainer(
        objective,
        training,
        sampler(
            data,
            lookahead=training.lookahead,
            drop=training.drop,
            weights=weights,
            seed=training.seed,
            rank=rank,
            world=world,
        ),
        out,
        validation=sampler(validate, lookahead=0.0, drop=0.0, seed=1) if validate else None,
        method_config=config,
    )
    try:
        trainer.run()
    finally:
        if started:
            dist.destroy_process_group()
    return trainer.checkpoint


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Train a method.")
    parser.add_argument("--config", required=True, help="config/methods/<method>.yaml")
    parser.add_argument("--data", required=True, nargs="+", help="stores of frames")
    parser.add_argument("--out", required=True, help="folder of checkpoint and TensorBoard files")
    parser.add_argument("--validate", nargs="*", default=[], help="stores held out for measuring")
    parser.add_argument("--minutes", type=float, help="time budget")
    parser.add_argument("--export", help="write the averaged weights here at the end")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    checkpoint = train(
        read_config(arguments.config),
        arguments.data,
        arguments.out,
        validate=arguments.validate,
        minutes=arguments.minutes,
    )
    if arguments.export and int(os.environ.get("RANK", "0")) == 0:
        export_weights(checkpoint, arguments.export)


if __name__ == "__main__":
    main()
