"""Staging, formats, comparing, background writing, loss slots: with torch, without Lightning."""

from __future__ import annotations

import argparse
import io
import math
import operator
import threading
from collections import deque
from functools import partial

import pytest
import torch
from torch import nn

from dtf_lightning.__main__ import main
from dtf_lightning.elastic.checkpoints import staging
from dtf_lightning.elastic.checkpoints.background import BackgroundWriter
from dtf_lightning.elastic.checkpoints.compare import compare
from dtf_lightning.elastic.checkpoints.folder import CheckpointFolder
from dtf_lightning.elastic.checkpoints.formats import load_tensors, load_verified, safetensors_file, torch_file
from dtf_lightning.elastic.checkpoints.retention import LatestN
from dtf_lightning.elastic.checkpoints.staging import Staging, StateChanged
from dtf_lightning.elastic.checkpoints.storage.local import LocalStorage
from dtf_lightning.elastic.data.skipping_sampler import SkippingSampler, exclude
from dtf_lightning.elastic.numerics.learning_rate_cut import (
    cut_learning_rates,
    hyperparameters,
    restore_hyperparameters,
)
from dtf_lightning.elastic.numerics.loss_slots import LossSlots
from dtf_lightning.errors import CheckpointDamaged, CheckpointError, SettingsError


def training_state() -> dict:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    model[2].bias = model[2].bias
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    return {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()], "note": {"a": [1, "b"]}}


# --- staging ---------------------------------------------------------------------------------------------------------


def test_a_staged_copy_does_not_change():
    """Same bytes as torch.save of the original then; training goes on and changes nothing; buffers are used again."""
    state = training_state()
    buffers = Staging()
    copy = buffers.copy(state)
    expected = {name: tensor.clone() for name, tensor in state["state_dict"].items()}
    for tensor in state["state_dict"].values():
        tensor.zero_()
    assert compare(expected, copy["state_dict"]) == []
    assert type(copy["state_dict"]) is type(state["state_dict"])
    assert copy["note"] == {"a": [1, "b"]}
    held = buffers.num_bytes
    again = buffers.copy(state)
    assert buffers.num_bytes == held
    assert again["state_dict"]["0.weight"].data_ptr() == copy["state_dict"]["0.weight"].data_ptr()


def test_shared_memory_stays_shared():
    """Tied weights, views, the same tensor twice; strides and offsets."""
    base = torch.arange(12.0).view(3, 4)
    state = {"base": base, "again": base, "view": base[1:, ::2], "turned": base.t(), "empty": torch.empty(0, 3)}
    copy = Staging().copy(state)
    assert copy["base"] is copy["again"]
    assert copy["view"].untyped_storage().data_ptr() == copy["base"].untyped_storage().data_ptr()
    for name, tensor in state.items():
        assert torch.equal(copy[name], tensor)
        assert copy[name].stride() == tensor.stride()
    assert copy["base"].data_ptr() != base.data_ptr()


def test_parameters_and_other_tensors():
    """What is not a plain strided tensor is cloned."""
    state = {
        "parameter": nn.Parameter(torch.ones(2), requires_grad=False),
        "sparse": torch.eye(3).to_sparse(),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "scalar": torch.tensor(3, dtype=torch.int64),
    }
    copy = Staging().copy(state)
    assert isinstance(copy["parameter"], nn.Parameter)
    assert not copy["parameter"].requires_grad
    assert torch.equal(copy["sparse"].to_dense(), torch.eye(3))
    assert torch.equal(copy["conjugate"], state["conjugate"])
    assert copy["scalar"].item() == 3


def test_buffers_follow_the_state():
    """A state that shrinks or grows lets go, and takes, memory."""
    buffers = Staging()
    buffers.copy([torch.ones(1000), torch.ones(1000)])
    assert buffers.num_bytes == 8000
    assert buffers.copy([torch.ones(10)])[0].sum() == 10
    assert buffers.num_bytes == 40


def addresses(*tensors: torch.Tensor) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def test_a_copy_that_is_finished_later():
    """Large steady tensors are copied by whoever comes first, the reader or the optimizer step; all else at once."""
    for reader_first in (True, False):
        weights, buffer = torch.arange(100_000.0), torch.ones(3)
        staged = Staging().begin({"weights": weights, "buffer": buffer}, steady=addresses(weights, buffer))
        buffer.zero_()
        if reader_first:
            staged.read()
        staged.wait()
        weights.zero_()
        state = staged.read()
        assert state["buffer"].tolist() == [1, 1, 1]
        assert torch.equal(state["weights"], torch.arange(100_000.0))


@pytest.mark.parametrize("change", [lambda w: w.add_(1), lambda w: w[5:7].zero_(), lambda w: w.data.add_(1)])
def test_a_torn_copy_is_never_passed_on(change, monkeypatch):
    """The first half is copied, then somebody changes all weights, through `.data` even, then the rest is copied."""
    first, second = torch.arange(100_000.0), torch.arange(100_000.0)
    staged = Staging().begin([first, second], steady=addresses(first, second))
    copy, num_copied = torch.Tensor.copy_, 0

    def copy_and_meddle(self, *args, **kwargs):
        nonlocal num_copied
        result, num_copied = copy(self, *args, **kwargs), num_copied + 1
        if num_copied == 1:
            change(first)
            change(second)
        return result

    monkeypatch.setattr(torch.Tensor, "copy_", copy_and_meddle)
    with pytest.raises(StateChanged, match="changed between two optimizer steps"):
        staged.read()
    with pytest.raises(StateChanged):
        staged.read()


def test_a_step_before_the_copy_began_is_found():
    """An optimizer that no hook knows of: the copy would be whole, but younger than the rest of the checkpoint."""
    weights = torch.zeros(100_000)
    staged = Staging().begin([weights], steady=addresses(weights))
    weights.add_(1)
    with pytest.raises(StateChanged):
        staged.read()


def test_an_operation_that_is_not_counted_yet_is_found(monkeypatch):
    """The training thread was stopped in a clamp that has changed the weights and not told: the reader lets it end."""
    weights = torch.arange(100_000.0)
    changed, compared, found = threading.Lock(), threading.Lock(), []
    changed.acquire()
    compared.acquire()

    def train() -> None:
        found.append(Staging().begin([weights], steady=addresses(weights)))
        # One instruction, as an operation in place is: the change, which torch does not count, and then the count.
        steps = (
            partial(weights.data.clamp_, 0, 1),
            changed.release,
            partial(compared.acquire, True, 60),
            weights.relu_,
        )
        deque(map(operator.call, steps), maxlen=0)
        done.wait(60)

    def compare_and_release(one: torch.Tensor, other: torch.Tensor) -> bool:
        same = same_bytes(one, other)
        compared.release()
        return same

    done, same_bytes = threading.Event(), staging._same_bytes
    monkeypatch.setattr(staging, "_same_bytes", compare_and_release)
    training = threading.Thread(target=train)
    training.start()
    try:
        assert changed.acquire(timeout=60)
        with pytest.raises(StateChanged):
            found[0].read()
    finally:
        done.set()
        training.join()


def test_a_thread_that_has_ended_changes_nothing():
    """A script that ended in an error: its last checkpoint is written without it."""
    weights, found = torch.arange(100_000.0), []
    training = threading.Thread(target=lambda: found.append(Staging().begin([weights], steady=addresses(weights))))
    training.start()
    training.join()
    assert torch.equal(found[0].read()[0], weights)


# --- background ------------------------------------------------------------------------------------------------------


def test_one_in_flight():
    """The second job waits until the first is done; flush waits for all."""
    writer, release, order = BackgroundWriter(), threading.Event(), []
    writer.submit(lambda: (release.wait(60), order.append("first")))
    assert writer.num_in_flight == 1
    waiting = threading.Thread(target=lambda: (writer.submit(lambda: order.append("second")), order.append("accepted")))
    waiting.start()
    assert order == []
    release.set()
    waiting.join(60)
    writer.flush()
    assert order.index("first") == 0
    assert sorted(order) == ["accepted", "first", "second"]
    assert writer.num_in_flight == 0


def test_errors_come_to_the_training_thread_once():
    writer = BackgroundWriter()

    def fail() -> None:
        raise CheckpointError("disk full")

    writer.submit(fail)
    with pytest.raises(CheckpointError, match="disk full"):
        writer.flush()
    writer.check()
    writer.submit(fail)
    with pytest.raises(CheckpointError, match="disk full"):
        writer.submit(lambda: None)
    writer.submit(lambda: None)
    writer.flush()


def test_a_hanging_storage_is_an_error():
    """Every wait is finite."""
    writer, release = BackgroundWriter(timeout=0.01), threading.Event()
    writer.submit(lambda: release.wait(60))
    with pytest.raises(CheckpointError, match="still being written"):
        writer.flush()
    release.set()
    writer.timeout = 60
    writer.flush()
    with pytest.raises(SettingsError, match="max_in_flight"):
        BackgroundWriter(0)


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    state = training_state()
    folder = CheckpointFolder(LocalStorage(tmp_path), "run", LatestN(2))
    files = {".ckpt": torch_file(state), ".safetensors": safetensors_file(state["state_dict"])}
    folder.save("a.ckpt", files, step=1, metrics={"loss": 0.5})
    state["state_dict"]["0.weight"][0, 0] += 1.0
    files = {".ckpt": torch_file(state), ".safetensors": safetensors_file(state["state_dict"])}
    folder.save("b.ckpt", files, step=2, metrics={"loss": math.nan})
    return folder


def test_both_formats_hold_the_same_weights(saved, tmp_path):
    """Written while hashing, byte for byte what torch and safetensors read."""
    state = load_verified(saved.storage, saved.records[0], weights_only=True)
    exported = load_tensors(tmp_path / "a.safetensors")
    assert compare(dict(state["state_dict"]), exported) == []
    assert load_tensors(tmp_path / "a.ckpt").keys() >= {"state_dict.0.weight", "optimizer_states.0.state.0.exp_avg"}


def test_tied_weights_as_safetensors():
    shared = torch.ones(3)
    buffer = io.BytesIO()
    safetensors_file({"a": shared, "b": shared})(buffer)
    from safetensors.torch import load

    assert load(buffer.getvalue()).keys() == {"a", "b"}


def test_damage_is_not_loaded(saved, tmp_path):
    data = bytearray((tmp_path / "a.ckpt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.ckpt").write_bytes(data)
    with pytest.raises(CheckpointDamaged, match="damaged"):
        load_verified(saved.storage, saved.records[0])
    with pytest.raises(CheckpointDamaged, match="damaged"):
        load_tensors(tmp_path / "a.ckpt")


def test_compare():
    a = {"same": torch.tensor([1.0, math.nan]), "values": torch.tensor([3.0, 4.0]), "gone": torch.ones(1)}
    b = {"same": torch.tensor([1.0, math.nan]), "values": torch.tensor([3.0, 4.5]), "new": torch.ones(1)}
    found = {difference.name: difference for difference in compare(a, b)}
    assert found.keys() == {"values", "gone", "new"}
    assert (found["gone"].what, found["new"].what) == ("only in A", "only in B")
    values = found["values"]
    assert (values.largest, values.relative, values.num_differing, values.num_elements) == (0.5, 0.1, 1, 2)
    assert compare({"x": torch.ones(2)}, {"x": torch.ones(3)})[0].what == "shape (2,) and (3,)"
    assert "dtype" in compare({"x": torch.ones(2)}, {"x": torch.ones(2).int()})[0].what


# --- the command -----------------------------------------------------------------------------------------------------


def test_command_list_and_verify(saved, tmp_path, capsys):
    assert main(["checkpoints", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "run run:" in out
    assert "loss=0.5" in out
    assert out.count("intact") == 2
    (tmp_path / "stray.ckpt").write_bytes(b"")
    (tmp_path / "b.ckpt").unlink()
    assert main(["checkpoints", str(tmp_path), "verify"]) == 1
    out = capsys.readouterr().out
    assert "b.ckpt: missing" in out
    assert "stray.ckpt: in no manifest" in out
    assert "2 checkpoints, 1 damaged or missing" in out


def test_command_takes_folder_and_action_in_any_order(saved, tmp_path, capsys):
    assert main(["checkpoints", "verify", str(tmp_path)]) == 0
    assert main(["checkpoints", "diff", str(tmp_path), "a.ckpt", "a.ckpt"]) == 0
    with pytest.raises(SystemExit) as exited:
        main(["checkpoints", str(tmp_path), "verfy"])
    assert exited.value.code == 2
    assert "'verfy' is none of the actions list, verify, prune, diff" in capsys.readouterr().err


def test_command_on_a_folder_that_is_not_there(tmp_path, capsys):
    """A typing error is not a folder without checkpoints."""
    assert main(["checkpoints", str(tmp_path / "typo")]) == 1
    assert "typo: it does not exist, or is empty. Expected the folder that BestCheckpoints" in capsys.readouterr().err


def test_command_prune(saved, tmp_path, capsys):
    arguments = ["checkpoints", str(tmp_path), "prune", "--recent", "0", "--best", "1", "--monitor", "loss"]
    assert main([*arguments, "--dry-run"]) == 0
    assert "would remove b.ckpt (step 2" in capsys.readouterr().out
    assert (tmp_path / "b.ckpt").exists()
    assert main(arguments) == 0
    assert "removed 1 checkpoints" in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["a.ckpt"]


def test_command_diff(saved, tmp_path, capsys):
    assert main(["checkpoints", str(tmp_path), "diff", "a.ckpt", "b.ckpt"]) == 1
    out = capsys.readouterr().out
    assert "state_dict.0.weight  values  largest 1  " in out
    assert "1 of 32" in out
    assert main(["checkpoints", str(tmp_path), "diff", "a.ckpt", "a.ckpt"]) == 0
    torch.save({"x": argparse.Namespace(a=torch.ones(1))}, tmp_path / "c.ckpt")
    assert main(["checkpoints", str(tmp_path), "diff", "a.ckpt", "c.ckpt"]) == 1
    assert "--trust" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["diff", "a.ckpt"], "two checkpoints"),
        (["verify", "a.ckpt"], "takes no names"),
        (["list", "--run", "other"], "there are run"),
        (["diff", "a.ckpt", "missing.ckpt"], "cannot be read"),
    ],
)
def test_command_mistakes(saved, tmp_path, capsys, arguments, message):
    assert main(["checkpoints", str(tmp_path), *arguments]) == 1
    assert message in capsys.readouterr().err


# --- loss slots ------------------------------------------------------------------------------------------------------


class Sum:
    """A collective under way: the other rank's table is added when it is waited for."""

    def __init__(self, table: torch.Tensor, other: torch.Tensor) -> None:
        self.table, self.other = table, other

    def wait(self) -> None:
        self.table += self.other


@pytest.mark.parametrize("on_device", [False, True])
def test_losses_are_averaged_over_ranks(on_device):
    """The other rank has losses 3 and NaN, and none in the last slot. Nobody waits before the next buffer is full."""
    slots = LossSlots(3, torch.device("cpu"), on_device=on_device)
    other = torch.tensor([[3.0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    for slot, loss in enumerate([torch.tensor(1.0), torch.tensor([2.0]), 4.0]):
        slots.put(slot, loss, 10 + slot)
    assert slots.collect(lambda table: Sum(table, other)) == []
    seen = slots.flush()
    assert [step for step, _ in seen] == [10, 11, 12]
    assert (seen[0][1], seen[2][1]) == (2.0, 4.0)
    assert math.isnan(seen[1][1])


@pytest.mark.parametrize("on_device", [False, True])
def test_slots_of_one_rank_are_read_at_once_on_the_cpu(on_device):
    """Those on a device are read a buffer later."""
    slots = LossSlots(2, torch.device("cpu"), on_device=on_device)
    seen = []
    for step in range(8):
        slots.put(step % 2, torch.tensor(float(step)), step)
        if step % 2:
            seen.append(slots.collect(None))
    buffers = [[(step, float(step)) for step in (first, first + 1)] for first in (0, 2, 4, 6)]
    assert seen == ([[], *buffers[:-1]] if on_device else buffers)
    slots.drop()
    assert slots.flush() == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_synchronisation_per_step_on_cuda():
    """torch raises at every synchronising call; only the collect of the next buffer may wait for its event."""
    slots = LossSlots(4, torch.device("cuda"))
    loss = torch.ones((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(12):
            slots.put(step % 4, loss, step)
            if step % 4 == 3:
                slots.collect(None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert slots.flush() == [(step, 1.0) for step in range(8, 12)]


# --- rollback's parts ------------------------------------------------------------------------------------------------


def test_excluded_samples_are_replaced():
    """The length stays; what was drawn is known batch by batch, also after the next epoch has begun."""
    excluded: set[int] = set()
    sampler = SkippingSampler(list(range(10)), 10, 4, excluded)
    assert list(sampler) == list(range(10))
    second = sampler.batch(1)
    assert exclude(excluded, [4, 5], 10) == 2
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 10
    assert not {4, 5} & set(drawn)
    assert second.samples() == [4, 5, 6, 7]
    assert sampler.num_iterations == 2


def test_half_of_the_data_stays():
    excluded: set[int] = set()
    assert exclude(excluded, range(100), 10) == 5


def test_cut_learning_rates():
    """The present rate, those that schedulers still will set, and tensors in place; moments and the rest stay."""
    weights = [nn.Parameter(torch.ones(1))]
    optimizer = torch.optim.SGD(weights, lr=1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    scheduler.step()
    saved = hyperparameters([optimizer])
    optimizer.load_state_dict(torch.optim.SGD(weights, lr=7.0, momentum=0.1).state_dict())
    restore_hyperparameters([optimizer], saved)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.5, 0.9)
    cut_learning_rates([optimizer], [scheduler], 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.25
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 / 3)
    captured = torch.optim.Adam(weights, lr=torch.tensor(1.0), capturable=True)
    rate = captured.param_groups[0]["lr"]
    cut_learning_rates([captured], [], 0.5)
    assert rate.item() == 0.5
