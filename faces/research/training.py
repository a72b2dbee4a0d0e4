"""The training loop: any network with heads, any optimiser and schedule; on one process or, under torchrun, several.

A run is a folder: ``last.safetensors`` (everything that is needed to go on), ``epoch-NN-COLUMN-VALUE.safetensors`` (the
weights after an epoch), ``history.csv`` and ``progress.log``. Tensors are safetensors and the rest JSON, no pickles.
All randomness of a step is seeded by (seed, epoch, step), so that a run that is killed at any moment goes on from its
last checkpoint, also in the middle of an epoch, and ends with the weights that it would have had.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from faces.research.batches import Batches
from faces.research.heads import Head, total_loss
from faces.research.steps import differences

LAST = "last.safetensors"
BEGUN: dict = {"step": 0, "sums": {}, "seconds": 0.0}  # the state of an epoch at its start


class ResumeError(ValueError):
    """A folder holds a run with other settings, photos or labels."""


# ------------------------------------------------------------------------------------------------------- schedules
# A schedule maps progress (0 at the first step, 1 after the last) to a factor on the learning rates.


def constant(progress: float) -> float:
    """The learning rate as given."""
    return 1.0


def one_cycle(warmup: float = 0.3, start: float = 0.04, end: float = 1e-4) -> Callable[[float], float]:
    """Cosine up from ``start`` in the first ``warmup`` share of the run, cosine down to ``end`` (Smith, 1708.07120)."""

    def schedule(progress: float) -> float:
        if progress < warmup:
            return start + (1 - start) * (1 - math.cos(math.pi * progress / warmup)) / 2
        return end + (1 - end) * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2

    return schedule


def linear_warmup(warmup: float, start: float = 0.1) -> Callable[[float], float]:
    """Linear up from ``start`` in the first ``warmup`` share of the run, constant after."""
    return lambda progress: min(1.0, start + (1 - start) * progress / warmup) if warmup else 1.0


# ------------------------------------------------------------------------------------------------------------- fit


def fit(
    network: nn.Module,
    heads: Sequence[Head],
    train: Batches,
    val: Batches,
    *,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    folder: str | os.PathLike,
    schedule: Callable[[float], float] = constant,
    augment: Callable[[Tensor], Tensor] | None = None,
    distill: float = 0.5,
    monitor: str = "val_loss",
    best: str = "min",
    keep: str = "all",
    ema: float | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    identity: Mapping | None = None,
    upgrade: Callable[[dict], dict] = dict,
    save_every: float = 600.0,
    progress: bool = True,
) -> pd.DataFrame:
    """Train a network in place; at the end it has the weights of the best epoch.

    Parameters
    ----------
    network : float images ``[n, 3, size, size]`` in 0..1 -> ``{head: outputs}``.
    heads : what is learnt; rows without a label count nothing (see ``heads.total_loss``).
    optimizer : of the network's own parameters.
    folder : of the run; if it holds the same run, that goes on.
    schedule : progress 0..1 -> factor on the learning rates.
    augment : float images -> float images, on training batches.
    distill : share of a teacher, see ``heads.total_loss``.
    monitor, best : column of the history that says which epoch is best, and whether "min" or "max" is.
    keep : {"all", "best"}; the weights of which epochs stay on disk.
    ema : decay of a moving average of the weights; it is what is validated and kept.
    device : CUDA, then Apple's MPS, then the CPU.
    precision : {"auto", "bf16", "fp32"}; "auto" is bf16 where the hardware multiplies it faster.
    identity : plain data that makes the run what it is; a folder with another is refused.
    upgrade : an identity as an earlier version wrote it -> as it would be written now.
    save_every : seconds between checkpoints within an epoch.
    progress : show a progress bar.

    Returns
    -------
    DataFrame: one row an epoch: epoch, train_loss, val_loss, train_HEAD_METRIC and val_HEAD_METRIC, lr, seconds,
    images_per_s. Training figures are of the augmented images as they were trained on.

    Raises
    ------
    ResumeError : ``folder`` holds another run.
    FloatingPointError : the training loss is no longer finite.
    """
    device = pick_device(device)
    rank, world = _join_processes(device)
    autocast = _autocast(device, precision)
    folder = Path(folder)
    network.to(device, memory_format=torch.channels_last)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True) if ema else None
    evaluated = average.module if average else network
    about = json.loads(json.dumps(dict(identity or {}) | {"epochs": epochs, "processes": world}))
    state = _resume(folder, network, average, optimizer, about, upgrade, device)
    history, sums, first = state["history"], dict(state["sums"]), state["step"]
    wrapped = DistributedDataParallel(network) if world > 1 else network

    steps, seconds = len(train), state["seconds"]
    total = epochs * steps
    bar = tqdm(
        total=total, initial=len(history) * steps + first, unit="batch", disable=not progress or rank > 0, leave=False
    )
    for epoch in range(len(history) + 1, epochs + 1):
        wrapped.train()
        started = saved = time.perf_counter()
        for step, rows in enumerate(train.order(epoch)):
            if step < first:
                continue
            torch.manual_seed(_mix(seed, epoch, step, rank))
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * schedule(((epoch - 1) * steps + step) / total)
            x, targets = train.take(rows[rank::world])
            x = to_float(x, device)
            targets = {name: values.to(device, non_blocking=True) for name, values in targets.items()}
            if augment:
                x = augment(x)
            with autocast():
                outputs = wrapped(x)
            outputs = {name: output.float() for name, output in outputs.items()}  # bf16 is too coarse for a loss
            loss = total_loss(heads, outputs, targets, distill=distill)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if average:
                average.update_parameters(network)
            _add(sums, heads, loss, outputs, targets)
            bar.update()
            now = time.perf_counter()
            if now - saved >= save_every and step + 1 < steps and rank == 0:
                saved = now
                state = {"history": history, "step": step + 1, "sums": sums, "seconds": seconds + now - started}
                _save(folder, network, average, optimizer, state, about)
                _log(folder, epoch, step + 1, steps, sums, seconds + now - started)
        seconds += time.perf_counter() - started
        row = {"epoch": epoch} | {f"train_{name}": total / max(count, 1) for name, (total, count) in sums.items()}
        row.pop("train_rows")
        if not math.isfinite(row["train_loss"]):
            raise FloatingPointError(
                f"the training loss became {row['train_loss']} in epoch {epoch}: lower the learning rate; "
                f"checkpoints of earlier epochs are in {folder}"
            )
        trained = sums["rows"][0]
        started = time.perf_counter()
        row |= evaluate(evaluated, heads, val, device=device, precision=precision)
        row |= {"lr": optimizer.param_groups[0]["lr"], "seconds": seconds + time.perf_counter() - started}
        history.append(row | {"images_per_s": trained * world / seconds})
        sums, first, seconds = {}, 0, 0.0
        if rank == 0:
            _save_epoch(folder, evaluated, history, monitor, best, keep)
            _save(folder, network, average, optimizer, BEGUN | {"history": history}, about)
        if world > 1:
            dist.barrier()
        bar.set_postfix({k: f"{row[k]:.3f}" for k in {"train_loss", "val_loss", monitor}} | {"epoch": epoch})
    bar.close()
    load_checkpoint(network, folder, monitor=monitor, best=best)
    return pd.DataFrame(history)


def _add(sums: dict, heads: Sequence[Head], loss: Tensor, outputs: Mapping, targets: Mapping) -> None:
    """Add a batch to running sums: name -> [sum, count]."""
    n = len(next(iter(outputs.values())))
    found = {"loss": (float(loss.detach()) * n, n), "rows": (n, 1)}
    found |= {name: (float(score.sum()), len(score)) for name, score in _scores(heads, outputs, targets).items()}
    for name, (value, count) in found.items():
        before = sums.get(name, [0.0, 0])
        sums[name] = [before[0] + value, before[1] + count]


@torch.no_grad()
def _scores(heads: Sequence[Head], outputs: Mapping, targets: Mapping) -> dict[str, Tensor]:
    """HEAD_METRIC -> score of each row whose label is known."""
    known = {head: ~targets[head.name].isnan().any(1) for head in heads}
    return {
        f"{head.name}_{head.metric}": head.score(outputs[head.name][rows], targets[head.name][rows]).double()
        for head, rows in known.items()
    }


def evaluate(network: nn.Module, heads: Sequence[Head], val: Batches, **options) -> dict[str, float]:
    """Loss and metrics over all rows: val_loss, val_HEAD_METRIC; NaN for a head without labels."""
    outputs = predict(network, val, **options)
    outputs = {name: torch.from_numpy(values) for name, values in outputs.items()}
    rows = np.concatenate(val.order())
    targets = {head.name: torch.from_numpy(val.targets[head.name][rows]) for head in heads}
    scores = _scores(heads, outputs, targets).items()
    means = {f"val_{name}": float(score.mean()) if len(score) else math.nan for name, score in scores}
    return {"val_loss": float(total_loss(heads, outputs, targets))} | means


def predict(
    network: nn.Module, batches: Batches, *, device: torch.device | str = "auto", precision: str = "fp32"
) -> dict[str, np.ndarray]:
    """Outputs of a network for every row in order: ``{head: float32 [n, k]}``."""
    device = pick_device(device) if isinstance(device, str) else device
    autocast = _autocast(device, precision)
    network.to(device, memory_format=torch.channels_last)
    training = network.training
    network.eval()
    found: list[dict[str, Tensor]] = []
    with torch.inference_mode():
        for rows in batches.order():
            x, _ = batches.take(rows)
            with autocast():
                outputs = network(to_float(x, device))
            found.append({name: output.float().cpu() for name, output in outputs.items()})
    network.train(training)
    return {name: torch.cat([part[name] for part in found]).numpy() for name in found[0]}


def to_float(images: Tensor, device: torch.device | str) -> Tensor:
    """uint8 images as float in 0..1 on ``device``; float ones as they are."""
    moved = images.to(device, non_blocking=True)
    return moved if moved.is_floating_point() else moved.float().div_(255)


# ----------------------------------------------------------------------------------------------------- checkpoints


def checkpoints(folder: str | os.PathLike) -> pd.DataFrame:
    """The history of a run with the ``path`` of the weights after each epoch, for those that are kept."""
    folder = Path(folder)
    table = folder / "history.csv"
    if not table.is_file():
        return pd.DataFrame(columns=["epoch", "path"])
    history = pd.read_csv(table)
    kept = {int(path.name.split("-")[1]): path for path in folder.glob("epoch-*.safetensors")}
    return history.assign(path=history["epoch"].map(kept)).dropna(subset="path").reset_index(drop=True)


def load_checkpoint(
    network: nn.Module,
    folder: str | os.PathLike,
    epoch: int | str = "best",
    *,
    monitor: str = "val_loss",
    best: str = "min",
) -> int:
    """Load the weights after one epoch, and return its number.

    Parameters
    ----------
    epoch : its number, "last", or "best" by the column ``monitor`` (the earliest of equals).

    Raises
    ------
    FileNotFoundError : no such checkpoint; the message lists those that there are.
    """
    table = checkpoints(folder)
    if epoch == "last" and len(table):
        chosen = table.iloc[-1]
    elif epoch == "best" and len(table):
        chosen = table.loc[_best(table, monitor, best)]
    elif epoch in set(table["epoch"]):
        chosen = table[table["epoch"] == epoch].iloc[0]
    else:
        raise FileNotFoundError(f"no checkpoint of epoch {epoch} in {folder}; there are {table['epoch'].tolist()}")
    network.load_state_dict(load_file(chosen["path"]))
    network.eval()
    return int(chosen["epoch"])


def _best(table: pd.DataFrame, monitor: str, best: str) -> int:
    return table[monitor].idxmax() if best == "max" else table[monitor].idxmin()


def remove_checkpoints(folder: str | os.PathLike) -> None:
    """Remove what a run, or each of its stages, needed to go on; weights and history stay."""
    for place in (Path(folder), *Path(folder).glob("stage-*/")):
        for name in (LAST, "progress.log", "epoch-*.safetensors"):
            for path in place.glob(name):
                path.unlink()


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Contiguous copies: safetensors refuses channels_last strides and shared storage.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    partial = path.with_name(f".{path.name}.partial")
    save_file(tensors, partial, dict(metadata or {}))
    partial.replace(path)


def _save_epoch(folder: Path, network: nn.Module, history: list[dict], monitor: str, best: str, keep: str) -> None:
    row = history[-1]
    write_safetensors(
        network.state_dict(), folder / f"epoch-{row['epoch']:02d}-{monitor}-{row[monitor]:.4f}.safetensors"
    )
    partial = folder / ".history.csv.partial"
    pd.DataFrame(history).to_csv(partial, index=False)
    partial.replace(folder / "history.csv")
    if keep == "best":
        table = checkpoints(folder)
        for path in set(table["path"]) - {table.loc[_best(table, monitor, best), "path"]}:
            path.unlink()


def _save(folder: Path, network, average, optimizer, state: dict, identity: dict) -> None:
    tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
    if average:
        tensors |= {f"average.{key}": value for key, value in average.module.state_dict().items()}
        tensors["average_count"] = average.n_averaged
    kept = optimizer.state_dict()
    for number, slots in kept["state"].items():
        tensors |= {f"optimizer.{number}.{slot}": torch.as_tensor(value) for slot, value in slots.items()}
    metadata = {"state": state, "identity": identity, "param_groups": kept["param_groups"]}
    write_safetensors(tensors, folder / LAST, {key: json.dumps(value) for key, value in metadata.items()})


def _resume(folder: Path, network, average, optimizer, identity: dict, upgrade: Callable, device: torch.device) -> dict:
    path = folder / LAST
    if not path.is_file():
        if any(folder.glob("epoch-*.safetensors")):
            raise ResumeError(f"{folder} holds checkpoints of an earlier version: delete the folder or name another")
        return BEGUN | {"history": []}
    with safe_open(path, "pt") as file:
        metadata = {key: json.loads(value) for key, value in file.metadata().items()}
    if changes := differences(upgrade(metadata["identity"]), identity):
        raise ResumeError(f"{folder} holds another run ({', '.join(changes)}): delete the folder or name another")
    tensors = load_file(path)

    def pick(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    network.load_state_dict(pick("network."))
    if average:
        average.module.load_state_dict(pick("average."))
        average.n_averaged.copy_(tensors["average_count"])
    slots: dict[int, dict] = {}
    for key, value in pick("optimizer.").items():
        number, slot = key.split(".", 1)
        slots.setdefault(int(number), {})[slot] = value.to(device) if value.dim() else value
    optimizer.load_state_dict({"state": slots, "param_groups": metadata["param_groups"]})
    return metadata["state"]


def _log(folder: Path, epoch: int, step: int, steps: int, sums: Mapping, seconds: float) -> None:
    figures = " ".join(f"{name} {total / max(count, 1):.4f}" for name, (total, count) in sums.items() if name != "rows")
    speed = f"images/s {sums['rows'][0] / seconds:.1f}"
    with (folder / "progress.log").open("a", encoding="utf-8") as file:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} epoch {epoch} step {step}/{steps} {figures} {speed}", file=file)


# -------------------------------------------------------------------------------------------------------- hardware


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is CUDA (this process's own under torchrun), MPS or CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies matrices faster in bfloat16 than in single precision."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    able = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch that is supported
    return device.type == "cpu" and bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def _autocast(device: torch.device, precision: str):
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f"precision must be auto, bf16 or fp32, not {precision!r}")
    if precision == "fp32" or (precision == "auto" and not has_bf16(device)):
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


def _join_processes(device: torch.device) -> tuple[int, int]:
    """(rank, number of processes); joins the group that torchrun announces in the environment."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank(), dist.get_world_size()


def is_first_process() -> bool:
    """Whether this is the process that writes results; those of torchrun wait for each other here."""
    if not dist.is_initialized():
        return True
    dist.barrier()
    return dist.get_rank() == 0


def keep_freed_memory() -> None:
    """Tell glibc, for the whole process, to keep freed memory for the next batch.

    The page faults of getting it again cost a quarter of the time of training a small network on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_arena_max, 1)


def _mix(*numbers: int) -> int:
    """One well-mixed seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
