"""Training: one ``fit`` for any model, loss, optimiser and schedule, on one process or, under torchrun, on several.

A run lives in a folder of checkpoints, one an epoch, named like ``epoch-20-val_acc-0.9619.safetensors``: weights
and optimiser state as tensors, everything else as JSON beside them; no pickles. A run that is killed, at whatever
point, goes on from its last checkpoint and ends with the weights it would have had: all randomness of an epoch is
seeded by (seed, epoch, process), so an epoch that was cut short is simply run again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from faces.research.augment import Augment
from faces.research.training import (
    ResumeError,
    _join_processes,
    _mix,
    constant,
    has_bf16,
    pick_device,
)
from faces.research.training import keep_freed_memory as keep_freed_memory
from faces.research.training import one_cycle as one_cycle

CHECKPOINT_NAME = re.compile(r"epoch-(?P<epoch>\d+)-(?P<monitor>\w+)-(?P<value>-?[\d.]+|nan|inf)\.safetensors$")


# --------------------------------------------------------------------------------------------------- schedules
# A schedule maps progress (0 at the first step, 1 after the last) to a factor on each group's learning rate.
# Being a function of progress alone it has no state to save.


def growing(ramp: float, start: float = 0.1) -> Callable[[float], float]:
    """Straight up from ``start`` in the first ``ramp`` share of the run, constant after."""
    return lambda progress: min(1.0, start + (1 - start) * progress / ramp)


# --------------------------------------------------------------------------------------------------------- fit


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Per image, 1 where the network says the target's class: float ``[n]``.

    ``outputs`` are logits ``[n, classes]``, or ``[n, 1]`` for two classes.
    """
    said = outputs[:, 0] > 0 if outputs.shape[1] == 1 else outputs.argmax(1)
    return (said == targets).float()


def accuracy_of_first(outputs: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """``accuracy`` of the first of several tasks, the one with so many outputs; targets are ``[n, tasks]``."""
    return lambda logits, targets: accuracy(logits[:, :outputs], targets[:, 0])


def fit(
    model: nn.Module,
    train: DataLoader,
    val: DataLoader,
    *,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    epochs: int,
    folder: str | os.PathLike,
    schedule: Callable[[float], float] = constant,
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
    metrics: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] | None = None,
    monitor: str = "val_acc",
    keep: str = "all",
    ema: float | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    settings: dict | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Train ``model`` in place and return its history.

    Parameters
    ----------
    model, optimizer : the optimiser holds the model's own parameters.
    train, val : from ``batches.loader``; uint8 images ``[n, 3, size, size]`` and targets ``[n, ...]``.
    loss : (outputs, targets) -> scalar mean over the batch.
    folder : checkpoints and ``history.csv`` go there; if it holds some of the same run, that run goes on.
    schedule : progress 0..1 -> factor on the learning rates.
    augment : float images in 0..1 -> the same, for training batches only.
    metrics : name -> (outputs, targets) -> one number an image; default ``{"acc": accuracy}``. They are computed on
        the training batches as they are trained on (augmented, dropout active) and on the whole of ``val``.
    monitor : the column of the history that names checkpoints.
    keep : "all" checkpoints, or only the last and that with the "max" or "min" monitored figure (for large networks).
    ema : decay of a moving average of the weights, e.g. 0.999; validated, checkpointed and left in ``model``.
    device : "auto" takes CUDA, then Apple's MPS, then the CPU.
    precision : "bf16" (autocast), "fp32", or "auto": bf16 where that is quicker.
    settings : anything JSON can hold that makes this run what it is; a folder written with others is refused.

    Returns
    -------
    DataFrame, one row an epoch: epoch, train_loss, val_loss, train_<metric>, val_<metric>, lr, seconds,
    images_per_s (training only, this machine, all processes).

    Raises
    ------
    ResumeError : ``folder`` holds checkpoints of a run with other settings.
    FloatingPointError : the training loss is no longer finite.

    Under ``torchrun`` each process takes its share of every batch order, gradients are averaged
    (DistributedDataParallel), and the first process alone writes. The global batch is then
    ``batch_size`` × processes.
    """
    metrics = {"acc": accuracy} if metrics is None else metrics
    device = pick_device(device)
    rank, world = _join_processes(device)
    autocast = _autocast(device, precision)
    folder = Path(folder)
    model.to(device, memory_format=torch.channels_last)
    _move_state(optimizer, device)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True) if ema else None
    evaluated = average.module if average else model
    identity = _identity(model, train, optimizer, epochs, seed, ema, world, settings)
    history = _resume(folder, model, average, optimizer, identity, device)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    for batches in (train, val):
        batches.batch_sampler.share(rank, world)

    steps = len(train)
    bar = tqdm(
        total=epochs * steps, initial=len(history) * steps, unit="batch", disable=not progress or rank > 0, leave=False
    )
    for epoch in range(len(history) + 1, epochs + 1):
        train.batch_sampler.set_epoch(epoch)
        torch.manual_seed(_mix(seed, epoch, rank))
        wrapped.train()
        sums, started = _Sums(), time.perf_counter()
        for step, (images, targets) in enumerate(train):
            done = ((epoch - 1) * steps + step) / (epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * schedule(done)
            images, targets = to_float(images, device), targets.to(device, non_blocking=True)
            if augment:
                images = augment(images)
            with autocast():
                outputs = wrapped(images)
            # Losses are sums of logarithms: bf16's three digits would not do.
            outputs = outputs.float()
            value = loss(outputs, targets)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            if average:
                average.update_parameters(model)
            sums.add(value.detach(), outputs.detach(), targets, metrics)
            bar.update()
        row = {"epoch": epoch} | sums.means("train", device, world)
        if not math.isfinite(row["train_loss"]):
            raise FloatingPointError(
                f"the training loss became {row['train_loss']} in epoch {epoch}: lower the learning rate; "
                f"checkpoints of the epochs before are in {folder}"
            )
        trained = time.perf_counter() - started
        row |= _validate(evaluated, val, loss, metrics, autocast, device, world)
        row |= {
            "lr": optimizer.param_groups[0]["lr"],
            "seconds": time.perf_counter() - started,
            "images_per_s": sums.count * world / trained,
        }
        history.append(row)
        if rank == 0:
            _save(folder, model, average, optimizer, history, identity, monitor)
            if keep != "all":
                _prune(folder, keep)
        if world > 1:
            dist.barrier()
        bar.set_postfix({k: f"{row[k]:.3f}" for k in ("train_loss", "val_loss", monitor)} | {"epoch": epoch})
    bar.close()
    if average:
        model.load_state_dict(average.module.state_dict())
    model.eval()
    return pd.DataFrame(history)


def fit_stages(
    model: nn.Module,
    train: DataLoader,
    val: DataLoader,
    stages: Sequence[tuple[int, float, float]],
    *,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    augment: Augment,
    folder: str | os.PathLike,
    weight_decay: float = 0.01,
    **options,
) -> pd.DataFrame:
    """Train in stages, each with a learning rate and a strength of augmentation of its own; return the whole history.

    A curriculum makes pictures harsher as the learning rate falls. Each stage is one cycle of AdamW.

    Parameters
    ----------
    stages : (epochs, learning rate, strength) of each; the strength scales ``augment`` (see ``Augment.scaled``).
    folder : checkpoints of each stage go below it; the last stage's are those to roll back to.
    options : further ones of ``fit``.
    """
    histories = []
    for number, (epochs, rate, strength) in enumerate(stages, 1):
        history = fit(
            model,
            train,
            val,
            loss=loss,
            optimizer=torch.optim.AdamW(model.parameters(), rate, weight_decay=weight_decay),
            epochs=epochs,
            folder=Path(folder) / f"stage-{number}",
            schedule=one_cycle(),
            augment=augment.scaled(strength),
            settings={"stages": [list(map(float, stage)) for stage in stages[:number]]},
            **options,
        )
        histories.append(history.assign(stage=number, strength=strength))
    whole = pd.concat(histories, ignore_index=True)
    return whole.assign(epoch=range(1, len(whole) + 1))


def predict(
    model: nn.Module,
    batches: DataLoader,
    *,
    change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    device: str = "auto",
    precision: str = "fp32",
) -> np.ndarray:
    """Outputs of ``model`` for every image, in order: float32 ``[n, ...]``, computed in ``precision`` (see ``fit``).

    ``change`` is made to the float images ``[n, 3, size, size]`` in 0..1 before the model sees them.
    """
    device = pick_device(device)
    autocast = _autocast(device, precision)
    model.to(device, memory_format=torch.channels_last).eval()
    outputs = []
    # Not around `to`: weights that are moved in inference mode could not be trained any more.
    with torch.inference_mode():
        for images, _ in batches:
            images = to_float(images, device)
            if change:
                images = change(images)
            with autocast():
                outputs.append(model(images).float().cpu().numpy())
    return np.concatenate(outputs)


def to_float(images: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """uint8 ``[n, 3, h, w]`` as float in 0..1 on ``device``; what is float already (features, say) stays as it is."""
    moved = images.to(device, non_blocking=True)
    return moved if moved.is_floating_point() else moved.float().div_(255)


# ------------------------------------------------------------------------------------------------- checkpoints


def checkpoints(folder: str | os.PathLike) -> pd.DataFrame:
    """The checkpoints of a run: epoch, the monitored figure under its own name, path; sorted by epoch."""
    rows = []
    for path in sorted(Path(folder).glob("epoch-*.safetensors")):
        if match := CHECKPOINT_NAME.match(path.name):
            rows.append({"epoch": int(match["epoch"]), match["monitor"]: float(match["value"]), "path": path})
    return (
        pd.DataFrame(rows).sort_values("epoch", ignore_index=True) if rows else pd.DataFrame(columns=["epoch", "path"])
    )


def rollback(
    model: nn.Module, folder: str | os.PathLike, epoch: int | str = "best", *, mode: str = "max", average: bool = True
) -> int:
    """Load the weights of one epoch into ``model``.

    Parameters
    ----------
    epoch : its number, "last", or "best" by the monitored figure (the earliest of equals).
    mode : whether the best is the "max" or the "min".
    average : take the moving average of the weights, where the run kept one, and not the weights of the last step.

    Returns
    -------
    The number of the epoch that was loaded.

    Raises
    ------
    FileNotFoundError : no such checkpoint; the message lists those that there are.
    """
    table = checkpoints(folder)
    if not len(table):
        raise FileNotFoundError(f"no checkpoints in {folder}; they are named epoch-NN-val_acc-0.NNNN.safetensors")
    if epoch == "best":
        chosen = table.loc[_best(table, mode)]
    elif epoch == "last":
        chosen = table.iloc[-1]
    elif epoch in set(table["epoch"]):
        chosen = table[table["epoch"] == epoch].iloc[0]
    else:
        raise FileNotFoundError(f"no checkpoint of epoch {epoch} in {folder}; there are {table['epoch'].tolist()}")
    tensors = load_file(chosen["path"])
    prefix = "average." if average and any(key.startswith("average.") for key in tensors) else "model."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return int(chosen["epoch"])


def _save(folder, model, average, optimizer, history, identity, monitor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    if average:
        tensors |= {f"average.{key}": value for key, value in average.module.state_dict().items()}
        tensors["average_count"] = average.n_averaged
    state = optimizer.state_dict()
    for number, slots in state["state"].items():
        tensors |= {f"optimizer.{number}.{slot}": torch.as_tensor(value) for slot, value in slots.items()}
    # Contiguous copies: safetensors refuses channels_last strides and shared storage.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    metadata = {"history": history, "identity": identity, "param_groups": state["param_groups"]}
    name = f"epoch-{history[-1]['epoch']:02d}-{monitor}-{history[-1][monitor]:.4f}.safetensors"
    # Under its own name only when it is whole: a kill while writing leaves the checkpoint before as the last.
    partial = folder / f".{name}.partial"
    save_file(tensors, partial, {key: json.dumps(value) for key, value in metadata.items()})
    partial.replace(folder / name)
    table = folder / ".history.csv.partial"
    pd.DataFrame(history).to_csv(table, index=False)
    table.replace(folder / "history.csv")


def _prune(folder: Path, mode: str) -> None:
    """Delete all checkpoints but the last and the best."""
    table = checkpoints(folder)
    kept = {table["path"].iloc[-1], table["path"].loc[_best(table, mode)]}
    for path in set(table["path"]) - kept:
        path.unlink()


def _best(table: pd.DataFrame, mode: str) -> int:
    figures = table[next(c for c in table if c not in ("epoch", "path"))]
    return figures.idxmax() if mode == "max" else figures.idxmin()


def _resume(folder, model, average, optimizer, identity, device) -> list[dict]:
    table = checkpoints(folder)
    if not len(table):
        return []
    path = table["path"].iloc[-1]
    with safe_open(path, "pt") as file:
        metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    if metadata.get("identity") != identity:
        before = metadata.get("identity", {})
        changed = sorted(key for key in identity.keys() | before.keys() if identity.get(key) != before.get(key))
        raise ResumeError(
            f"{folder} holds checkpoints of a run with other settings ({', '.join(changed)} differ): "
            "delete the folder or name another one"
        )
    tensors = load_file(path)
    pick = lambda prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}  # noqa: E731
    model.load_state_dict(pick("model."))
    if average:
        average.module.load_state_dict(pick("average."))
        average.n_averaged.copy_(tensors["average_count"])
    slots: dict[int, dict] = {}
    for key, value in pick("optimizer.").items():
        number, slot = key.split(".", 1)
        slots.setdefault(int(number), {})[slot] = value
    optimizer.load_state_dict({"state": slots, "param_groups": metadata["param_groups"]})
    _move_state(optimizer, device)
    return metadata["history"]


def _identity(model, train, optimizer, epochs, seed, ema, world, settings) -> dict:
    """What must be equal for two runs to be one."""
    shapes = [(name, list(value.shape)) for name, value in model.state_dict().items()]
    groups = [
        {k: v for k, v in group.items() if k not in ("params", "lr") and isinstance(v, (int, float, str, bool, tuple))}
        for group in optimizer.param_groups
    ]
    first = {
        "model": hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16],
        "optimizer": f"{type(optimizer).__name__} {groups}",
        "images": train.batch_sampler.n,
        "batch_size": train.batch_sampler.batch_size,
        "epochs": epochs,
        "seed": seed,
        "ema": ema,
        "processes": world,
    }
    return json.loads(json.dumps(first | {"settings": settings or {}}))


# ------------------------------------------------------------------------------------------------------- parts


class _Sums:
    """Running sums of a loss and of metrics over the images of an epoch."""

    def __init__(self):
        self.count, self.sums = 0, {}

    def add(self, value, outputs, targets, metrics) -> None:
        n = len(targets)
        self.count += n
        self._more("loss", value * n)
        for name, metric in metrics.items():
            self._more(name, metric(outputs, targets).sum())

    def _more(self, name, value) -> None:
        # Summed where it was computed: asking a GPU for each batch's figure would stall it.
        self.sums[name] = self.sums.get(name, 0) + (value if value.device.type == "mps" else value.double())

    def means(self, prefix, device, world) -> dict[str, float]:
        names = list(self.sums)
        totals = torch.stack([self.sums[name].cpu().double() for name in names] + [torch.tensor(float(self.count))])
        if world > 1:
            totals = totals.to(device)
            dist.all_reduce(totals)
        *sums, count = totals.tolist()
        return {f"{prefix}_{name}": total / count for name, total in zip(names, sums, strict=True)}


@torch.inference_mode()
def _validate(model, val, loss, metrics, autocast, device, world) -> dict[str, float]:
    model.eval()
    sums = _Sums()
    for images, targets in val:
        targets = targets.to(device)
        with autocast():
            outputs = model(to_float(images, device))
        outputs = outputs.float()
        sums.add(loss(outputs, targets), outputs, targets, metrics)
    return sums.means("val", device, world)


def _autocast(device: torch.device, precision: str):
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f"precision must be auto, bf16 or fp32, not {precision!r}")
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "fp32"
    if precision == "fp32":
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


def _move_state(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    for slots in optimizer.state.values():
        for name, value in slots.items():
            if isinstance(value, torch.Tensor) and value.dim():
                slots[name] = value.to(device)
