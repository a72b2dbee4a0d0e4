"""fit: learns, resumes exactly, refuses what is not its own run, and runs on several processes."""

import ctypes
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from seeds import SEED
from torch import nn
from torch.nn.functional import cross_entropy

from faces import batches, training
from faces.research.augment import Augment

N, SIZE = 96, 8


def red_or_blue(n=N, seed=0):
    """Squares of noise, redder or bluer: (pixels, targets)."""
    rng = np.random.default_rng([seed, SEED])
    targets = rng.integers(0, 2, n)
    pixels = rng.integers(0, 200, (n, SIZE, SIZE, 3))
    pixels[np.arange(n), :, :, targets * 2] += 55
    return pixels.astype(np.uint8), targets


def network(dropout=0.2):
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(288, 2)
    )


def train(folder, model=None, *, loss=cross_entropy, epochs=3, rate=0.01, **options):
    """A short run on drawn noise: (model, history)."""
    model = model or network()
    pixels, targets = red_or_blue()
    history = training.fit(
        model,
        batches.loader(pixels, targets, 16, shuffle=True),
        batches.loader(*red_or_blue(40, seed=1), 32),
        loss=loss,
        optimizer=torch.optim.Adam(model.parameters(), rate),
        epochs=epochs,
        folder=folder,
        precision="fp32",
        progress=False,
        **options,
    )
    return model, history


def weights(model):
    return torch.cat([value.float().flatten() for value in model.state_dict().values()])


def test_learns_and_keeps_its_history(tmp_path):
    model, history = train(tmp_path, epochs=8)
    assert history["val_acc"].iloc[-1] > 0.9
    assert history["epoch"].tolist() == list(range(1, 9))
    assert (history["images_per_s"] > 0).all()
    kept = pd.read_csv(tmp_path / "history.csv")
    pd.testing.assert_frame_equal(kept, history)
    # The validation figures are those of the network that comes back.
    pixels, targets = red_or_blue(40, seed=1)
    found = training.predict(model, batches.loader(pixels, targets, 7)).argmax(1) == targets
    assert found.mean() == pytest.approx(history["val_acc"].iloc[-1])


def test_same_seed_same_weights_other_seed_others(tmp_path):
    first, _ = train(tmp_path / "a", seed=1, augment=Augment())
    again, _ = train(tmp_path / "b", seed=1, augment=Augment())
    other, _ = train(tmp_path / "c", seed=2, augment=Augment())
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", [1, 6, 7, 13, 18])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_run_cut_short_ends_as_if_it_had_not_been(tmp_path, step, ema):
    options = {"augment": Augment(), "schedule": training.one_cycle(), "ema": ema}
    whole, past = train(tmp_path / "whole", **options)
    calls = []

    def deadly(outputs, targets):
        if torch.is_grad_enabled():
            calls.append(1)
        if len(calls) == step:
            raise Killed
        return cross_entropy(outputs, targets)

    with pytest.raises(Killed):
        train(tmp_path / "cut", loss=deadly, **options)
    resumed, history = train(tmp_path / "cut", **options)
    assert torch.equal(weights(whole), weights(resumed))
    figures = [column for column in past if column not in ("seconds", "images_per_s")]
    pd.testing.assert_frame_equal(history[figures], past[figures])


@pytest.mark.slow
def test_kill_9_while_a_checkpoint_is_written_loses_one_epoch_and_no_more(tmp_path):
    script = textwrap.dedent(
        """
        import os, signal, sys
        sys.path[:0] = [sys.argv[2]]
        from faces import training
        import test_training as t

        whole = training.save_file
        def cut_short(tensors, path, *rest):
            whole(tensors, path, *rest)
            if "epoch-02" in str(path):
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        training.save_file = cut_short
        t.train(sys.argv[1])
        """
    )
    here = str(Path(__file__).parent)
    child = subprocess.run([sys.executable, "-c", script, str(tmp_path / "cut"), here], capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert training.checkpoints(tmp_path / "cut")["epoch"].tolist() == [1]
    resumed, _ = train(tmp_path / "cut")
    whole, _ = train(tmp_path / "whole")
    assert torch.equal(weights(whole), weights(resumed))


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, history = train(tmp_path)
    again, past = train(tmp_path)
    assert torch.equal(weights(first), weights(again))
    pd.testing.assert_frame_equal(history, past)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 4}, "epochs"),
        ({"seed": 5}, "seed"),
        ({"rate": 0.5}, "optimizer"),
        ({"settings": {"a": 1}}, "settings"),
    ],
)
def test_checkpoints_of_another_run_are_refused_and_kept(tmp_path, change, named):
    train(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(training.ResumeError, match=rf"(?s){named} differ.*delete the folder"):
        train(tmp_path, **change)
    assert sorted(tmp_path.iterdir()) == before


def test_checkpoints_are_named_listed_and_rolled_back_to(tmp_path):
    _, history = train(tmp_path)
    names = [path.name for path in training.checkpoints(tmp_path)["path"]]
    assert names == [
        f"epoch-{e:02d}-val_acc-{a:.4f}.safetensors" for e, a in zip([1, 2, 3], history["val_acc"], strict=True)
    ]
    pixels, targets = red_or_blue(40, seed=1)
    model = network()
    for epoch in (1, 3, 2, "last", "best"):
        loaded = training.rollback(model, tmp_path, epoch)
        accuracy = (training.predict(model, batches.loader(pixels, targets, 32)).argmax(1) == targets).mean()
        assert accuracy == pytest.approx(history["val_acc"][loaded - 1])
    assert training.rollback(model, tmp_path, "last") == 3
    assert history["val_acc"][training.rollback(model, tmp_path, "best") - 1] == history["val_acc"].max()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of epoch 9 .*\[1, 2, 3\]"):
        training.rollback(model, tmp_path, 9)
    with pytest.raises(FileNotFoundError, match="no checkpoints"):
        training.rollback(model, tmp_path / "empty")


@pytest.mark.parametrize("keep", ["max", "min"])
def test_large_checkpoints_can_be_pruned_to_the_best_and_the_last(tmp_path, keep):
    seen = [0]

    def odd(outputs, targets):  # rises and falls whatever is learnt
        value = [0.5, 0.1, 0.4, 0.9, 0.5][min(4, seen[0])]
        seen[0] += len(outputs) == 8  # the last validation batch of 40 photos
        return torch.full((len(outputs),), value)

    _, history = train(tmp_path, epochs=5, keep=keep, metrics={"acc": odd})
    best = {"max": history["val_acc"].idxmax(), "min": history["val_acc"].idxmin()}[keep] + 1
    assert training.checkpoints(tmp_path)["epoch"].tolist() == sorted({best, 5})
    assert training.rollback(network(), tmp_path, "best", mode=keep) == best
    assert len(train(tmp_path, epochs=5, keep=keep, metrics={"acc": odd})[1]) == 5


def test_best_can_be_the_lowest(tmp_path):
    _, history = train(tmp_path, monitor="val_loss", epochs=4)
    best = training.rollback(network(), tmp_path, "best", mode="min")
    assert history["val_loss"][best - 1] == history["val_loss"].min()


def test_moving_average_is_what_is_validated_and_returned(tmp_path):
    model, history = train(tmp_path / "ema", ema=0.8, epochs=2)
    plain, _ = train(tmp_path / "plain", epochs=2)
    assert not torch.equal(weights(model), weights(plain))
    pixels, targets = red_or_blue(40, seed=1)
    logits = torch.from_numpy(training.predict(model, batches.loader(pixels, targets, 32)))
    assert cross_entropy(logits, torch.from_numpy(targets)).item() == pytest.approx(
        history["val_loss"].iloc[-1], abs=1e-5
    )


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match="epoch 1: lower the learning rate"):
        train(tmp_path, loss=lambda outputs, targets: cross_entropy(outputs, targets) * float("nan"))
    assert not len(training.checkpoints(tmp_path))


def test_other_losses_and_metrics(tmp_path):
    """The same fit regresses: the loss and the metrics are whatever is given."""
    distance = lambda outputs, targets: (outputs[:, 0] - targets).abs()  # noqa: E731
    given = {"loss": lambda o, t: distance(o, t).mean(), "metrics": {"mae": distance}, "monitor": "val_mae"}
    _, history = train(tmp_path, network(dropout=0), epochs=12, schedule=training.one_cycle(), **given)
    assert history["val_mae"].iloc[-1] < history["val_mae"].iloc[0]
    np.testing.assert_allclose(history["val_mae"], history["val_loss"], rtol=1e-5)


@pytest.mark.parametrize("has_unit", [True, False])
def test_on_a_processor_bf16_is_taken_where_there_is_a_matrix_unit(monkeypatch, has_unit):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_unit)
    assert training.has_bf16(torch.device("cpu")) is has_unit
    with training._autocast(torch.device("cpu"), "auto")():
        assert torch.is_autocast_enabled("cpu") is has_unit


def test_without_torch_s_private_test_single_precision_is_taken(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not training.has_bf16(torch.device("cpu"))


def test_fit_leaves_the_allocator_of_the_process_alone(tmp_path, monkeypatch):
    monkeypatch.delattr(ctypes, "CDLL")
    train(tmp_path, epochs=1)


def test_bf16_trains_too(tmp_path):
    model = network()
    pixels, targets = red_or_blue()
    history = training.fit(
        model,
        batches.loader(pixels, targets, 16, shuffle=True),
        batches.loader(pixels, targets, 32),
        loss=cross_entropy,
        optimizer=torch.optim.Adam(model.parameters(), 0.01),
        epochs=5,
        folder=tmp_path,
        precision="bf16",
        progress=False,
    )
    assert history["val_acc"].iloc[-1] > 0.9
    assert next(model.parameters()).dtype == torch.float32
    with pytest.raises(ValueError, match="precision must be auto, bf16 or fp32"):
        training.fit(
            model,
            None,
            None,
            loss=None,
            optimizer=torch.optim.Adam(model.parameters()),
            epochs=1,
            folder=tmp_path,
            precision="fp8",
        )


def test_schedules_begin_low_peak_and_end_low():
    schedule = training.one_cycle(warmup=0.25, start=0.1, end=0.01)
    steps = np.linspace(0, 1, 101)
    factors = np.array([schedule(step) for step in steps])
    assert factors[0] == pytest.approx(0.1)
    assert factors.max() == pytest.approx(1) and steps[factors.argmax()] == pytest.approx(0.25)
    assert factors[-1] == pytest.approx(0.01)
    assert (np.diff(factors[:25]) > 0).all() and (np.diff(factors[26:]) < 0).all()
    assert training.constant(0.3) == 1


def test_a_growing_rate_grows_and_stays():
    schedule = training.growing(0.5, start=0.2)
    assert [schedule(step) for step in (0, 0.25, 0.5, 0.9)] == pytest.approx([0.2, 0.6, 1, 1])


def test_accuracy_of_one_output_of_many_and_of_the_first_task():
    targets = torch.tensor([0, 1, 1])
    assert training.accuracy(torch.tensor([[-1.0], [2.0], [-3.0]]), targets).tolist() == [1, 1, 0]
    assert training.accuracy(torch.eye(3)[[0, 1, 2]], targets).tolist() == [1, 1, 0]
    both = torch.tensor([[-1.0, 9, 0], [2.0, 9, 0], [-3.0, 9, 0]])
    first = training.accuracy_of_first(1)
    assert first(both, torch.stack([targets, torch.zeros(3, dtype=int)], 1)).tolist() == [1, 1, 0]


def test_rolling_back_to_the_last_step_or_to_the_average(tmp_path):
    model, _ = train(tmp_path, ema=0.9)
    averaged = weights(model)
    training.rollback(model, tmp_path, "last", average=False)
    assert not torch.equal(weights(model), averaged)
    training.rollback(model, tmp_path, "last")
    assert torch.equal(weights(model), averaged)


def test_predictions_of_changed_images_and_in_bf16(tmp_path):
    model, _ = train(tmp_path)
    feed = batches.loader(*red_or_blue(40, seed=1), 32)
    plain = training.predict(model, feed)
    swapped = training.predict(model, feed, change=lambda x: x.flip(1))
    by_hand = red_or_blue(40, seed=1)[0][..., ::-1].copy()
    np.testing.assert_allclose(swapped, training.predict(model, batches.loader(by_hand, np.zeros(40), 32)), atol=1e-5)
    assert not np.allclose(plain, swapped)
    np.testing.assert_allclose(training.predict(model, feed, precision="bf16"), plain, atol=0.15)


def test_what_has_predicted_can_go_on_learning():
    model = network()
    training.predict(model, batches.loader(*red_or_blue(8), 8))
    model.train()(torch.rand(4, 3, SIZE, SIZE)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_the_same_global_batch(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, torch
            sys.path[:0] = [sys.argv[2]]
            import test_training as t
            from faces import batches, training
            torch.set_num_threads(1)
            model = t.plain_network()
            history = t.plain_run(model, sys.argv[1] + "/run", batch_size=8)
            torch.save(t.weights(model), f"{sys.argv[1]}/rank-{torch.distributed.get_rank()}.pt")
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    child = subprocess.run(
        [*command, str(tmp_path), str(Path(__file__).parent)], capture_output=True, text=True, timeout=900
    )
    assert child.returncode == 0, child.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    alone = plain_network()
    history = plain_run(alone, tmp_path / "alone", batch_size=16)
    torch.testing.assert_close(weights(alone), first, atol=1e-5, rtol=1e-4)
    shared = pd.read_csv(tmp_path / "run" / "history.csv")
    for column in ("train_loss", "val_loss", "val_acc"):
        np.testing.assert_allclose(shared[column], history[column], atol=1e-5)


def plain_network():
    """Without dropout and batch norm, whose randomness and statistics are each process's own."""
    torch.manual_seed(SEED)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def plain_run(model, folder, batch_size):
    pixels, targets = red_or_blue()
    return training.fit(
        model,
        batches.loader(pixels, targets, batch_size, shuffle=True),
        batches.loader(*red_or_blue(41, seed=1), 16),
        loss=cross_entropy,
        optimizer=torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
        epochs=3,
        folder=folder,
        precision="fp32",
        device="cpu",
        progress=False,
    )
