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

from faces.research import heads, training
from faces.research.augment import Augment
from faces.research.batches import Batches
from faces.research.networks import Network

HEAD = heads.Classes("colour", ("red", "blue"))
BRIGHTNESS = heads.Years(kind="l1")


def red_or_blue(n=96, seed=0):
    """Squares of noise, dark or bright, redder or bluer: pixels, and as targets the colour and half the brightness."""
    rng = np.random.default_rng([seed, SEED])
    targets = rng.integers(0, 2, n)
    pixels = rng.integers(0, 200, (n, 8, 8, 3)) * rng.uniform(0.2, 1, (n, 1, 1, 1))
    pixels[np.arange(n), :, :, targets * 2] += 55
    ages = np.repeat(pixels.mean((1, 2, 3))[:, None] / 2, 2, axis=1)
    targets = {"colour": targets[:, None].astype(np.float32), "age": ages.astype(np.float32)}
    return pixels.astype(np.uint8), targets


VAL = Batches(*red_or_blue(41, seed=1), 16)


def network(head=HEAD, plain=False):
    """Plain: without dropout and BatchNorm, whose randomness and statistics are each process's own."""
    torch.manual_seed(SEED)
    norm, dropout = (nn.Identity(), 0.0) if plain else (nn.BatchNorm2d(8), 0.2)
    return Network(nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Flatten()), 288, [head], dropout=dropout)


def train(folder, model=None, *, head=HEAD, epochs=3, rate=0.01, batch_size=16, **options):
    """A short run on drawn noise: (model, history)."""
    model, feed = model or network(head), Batches(*red_or_blue(), batch_size, shuffle=True)
    how = {"precision": "fp32", "device": "cpu", "monitor": f"val_{head.name}_{head.metric}", "best": head.best}
    how |= {"optimizer": torch.optim.Adam(model.parameters(), rate), "epochs": epochs, "progress": False, **options}
    return model, training.fit(model, [head], feed, VAL, folder=folder, **how)


def weights(model):
    return torch.cat([value.float().flatten() for value in model.state_dict().values()])


def accuracy(model, **options):
    return (training.predict(model, VAL, **options)["colour"].argmax(1) == VAL.targets["colour"][:, 0]).mean()


def test_learns_and_keeps_its_history_and_leaves_the_allocator_of_the_process_alone(tmp_path, monkeypatch):
    monkeypatch.delattr(ctypes, "CDLL")
    model, history = train(tmp_path, epochs=8)
    assert history["val_colour_acc"].max() > 0.9
    assert history["epoch"].tolist() == list(range(1, 9)) and (history["images_per_s"] > 0).all()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), history)
    assert accuracy(model) == pytest.approx(history["val_colour_acc"].max())  # of the best epoch


def test_same_seed_same_weights_other_seed_others(tmp_path):
    first, again, other = (train(tmp_path / str(n), seed=s, augment=Augment())[0] for n, s in enumerate((1, 1, 2)))
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", [1, 6, 7, 13, 18])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_run_cut_short_ends_as_if_it_had_not_been(tmp_path, monkeypatch, step, ema):
    options = {"augment": Augment(), "schedule": training.one_cycle(), "ema": ema}
    whole, past = train(tmp_path / "whole", **options)
    honest, calls = training.total_loss, []

    def deadly(*args, **given):
        calls.append(torch.is_grad_enabled())
        if sum(calls) == step:
            raise Killed
        return honest(*args, **given)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "total_loss", deadly)
        train(tmp_path / "cut", **options)
    resumed, history = train(tmp_path / "cut", **options)
    assert torch.equal(weights(whole), weights(resumed))
    figures = [column for column in past if column not in ("seconds", "images_per_s")]
    pd.testing.assert_frame_equal(history[figures], past[figures])


@pytest.mark.slow
def test_kill_9_while_a_checkpoint_is_written_loses_one_epoch_and_no_more(tmp_path):
    script = textwrap.dedent(
        """
        import os, signal, sys
        sys.path[:0] = sys.argv[2:]
        from faces.research import training
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
    child = subprocess.run([sys.executable, "-c", script, tmp_path / "cut", *PATHS], capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert training.checkpoints(tmp_path / "cut")["epoch"].tolist() == [1]
    resumed, whole = (train(tmp_path / name)[0] for name in ("cut", "whole"))
    assert torch.equal(weights(whole), weights(resumed))


PATHS = [str(path) for path in (Path(__file__).parent, Path(__file__).parent.parent)]


def test_checkpoints_of_another_run_are_refused_and_kept(tmp_path):
    train(tmp_path, identity={"rate": 1})
    before = sorted(tmp_path.iterdir())
    for change, named in (({"epochs": 4}, "epochs was 3, is 4"), ({"identity": {"rate": 2}}, "rate was 1, is 2")):
        with pytest.raises(training.ResumeError, match=rf"{named}.*delete the folder"):
            train(tmp_path, **{"identity": {"rate": 1}, **change})
    assert sorted(tmp_path.iterdir()) == before


def test_checkpoints_are_named_listed_loaded_and_removed(tmp_path):
    _, history = train(tmp_path)
    expected = [f"epoch-{e:02d}-val_colour_acc-{a:.4f}.safetensors" for e, a in enumerate(history["val_colour_acc"], 1)]
    assert [path.name for path in training.checkpoints(tmp_path)["path"]] == expected
    model, how = network(), {"monitor": "val_colour_acc", "best": "max"}
    for epoch in (1, 3, 2, "last", "best"):
        loaded = training.load_checkpoint(model, tmp_path, epoch, **how)
        assert accuracy(model) == pytest.approx(history["val_colour_acc"][loaded - 1])
    assert training.load_checkpoint(model, tmp_path, "last") == 3
    best = training.load_checkpoint(model, tmp_path, "best")  # by the least loss
    assert history["val_loss"][best - 1] == history["val_loss"].min()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of epoch 9 .*\[1, 2, 3\]"):
        training.load_checkpoint(model, tmp_path, 9)
    (tmp_path / "notes.txt").write_text("mine")
    training.remove_checkpoints(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"history.csv", "notes.txt"}


@pytest.mark.parametrize("best", ["max", "min"])
def test_checkpoints_can_be_pruned_to_the_best(tmp_path, monkeypatch, best):
    values = iter([0.5, 0.1, 0.4, 0.9, 0.5])  # rises and falls whatever is learnt
    monkeypatch.setattr(training, "evaluate", lambda *_, **__: {"val_loss": 1.0, "val_colour_acc": next(values)})
    train(tmp_path, epochs=5, keep="best", best=best)
    assert training.checkpoints(tmp_path)["epoch"].tolist() == [{"max": 4, "min": 2}[best]]
    assert len(train(tmp_path, epochs=5, keep="best", best=best)[1]) == 5


def test_moving_average_is_what_is_validated_and_returned(tmp_path):
    model, history = train(tmp_path / "ema", ema=0.8, epochs=1)
    assert not torch.equal(weights(model), weights(train(tmp_path / "plain", epochs=1)[0]))
    assert training.evaluate(model, [HEAD], VAL)["val_loss"] == pytest.approx(history["val_loss"].iloc[-1], abs=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match="epoch 1: lower the learning rate"):
        train(tmp_path, head=heads.Classes("colour", ("red", "blue"), weight=float("nan")))
    assert not len(training.checkpoints(tmp_path))


def test_the_same_fit_regresses(tmp_path):
    _, history = train(tmp_path, network(BRIGHTNESS, plain=True), head=BRIGHTNESS, epochs=12, rate=0.003)
    ages = VAL.targets["age"][:, 0]
    assert history["val_age_mae"].iloc[-1] < 0.5 * np.abs(ages - np.median(ages)).mean()  # of the best constant


@pytest.mark.parametrize(("able", "quick"), [("amx_bf16", True), ("avx512_bf16", True), ("avx512_f", False)])
def test_on_a_processor_bf16_is_taken_where_there_are_instructions_for_it(monkeypatch, able, quick):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {able: True}, raising=False)
    assert training.has_bf16(torch.device("cpu")) is quick
    with training._autocast(torch.device("cpu"), "auto")():
        assert torch.is_autocast_enabled("cpu") is quick
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not training.has_bf16(torch.device("cpu"))


def test_bf16_trains_and_predicts(tmp_path):
    model, history = train(tmp_path, epochs=5, precision="bf16")
    assert history["val_colour_acc"].max() > 0.9
    assert next(model.parameters()).dtype == torch.float32
    plain, coarse = (training.predict(model, VAL, precision=name)["colour"] for name in ("fp32", "bf16"))
    np.testing.assert_allclose(coarse, plain, atol=0.15)
    with pytest.raises(ValueError, match="precision must be auto, bf16 or fp32"):
        train(tmp_path, precision="fp8")


def test_schedules_begin_low_peak_and_end_low():
    schedule = training.one_cycle(warmup=0.25, start=0.1, end=0.01)
    steps = np.linspace(0, 1, 101)
    factors = np.array([schedule(step) for step in steps])
    assert factors[0] == pytest.approx(0.1)
    assert factors.max() == pytest.approx(1) and steps[factors.argmax()] == pytest.approx(0.25)
    assert factors[-1] == pytest.approx(0.01)
    assert (np.diff(factors[:25]) > 0).all() and (np.diff(factors[26:]) < 0).all()
    assert training.constant(0.3) == 1
    grows = training.linear_warmup(0.5, start=0.2)
    assert [grows(step) for step in (0, 0.25, 0.5, 0.9)] == pytest.approx([0.2, 0.6, 1, 1])


def test_what_has_predicted_can_go_on_learning():
    model = network().train()
    training.predict(model, VAL)
    assert model.training
    model(torch.rand(4, 3, 8, 8))["colour"].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_the_same_global_batch(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, torch
            sys.path[:0] = sys.argv[2:]
            import test_training as t
            torch.set_num_threads(1)
            model, _ = t.train(sys.argv[1] + "/run", t.network(plain=True), ema=0.5)
            first = t.training.is_first_process()
            torch.save(t.weights(model), f"{sys.argv[1]}/rank-{int(not first)}.pt")
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    child = subprocess.run([*command, str(tmp_path), *PATHS], capture_output=True, text=True, timeout=900)
    assert child.returncode == 0, child.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    alone, history = train(tmp_path / "alone", network(plain=True), ema=0.5)
    torch.testing.assert_close(weights(alone), first, atol=1e-4, rtol=1e-3)
    shared = pd.read_csv(tmp_path / "run" / "history.csv")
    for column in ("val_loss", "val_colour_acc"):
        np.testing.assert_allclose(shared[column], history[column], atol=1e-4)
