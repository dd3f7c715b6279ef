"""What becomes of attempts when the worker, its keeper or both end under them, and when nobody listens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.worker import executor as executor_module
from dtf_lightning.farm.worker.executor import Executor
from dtf_lightning.farm.worker.logs import KeptLogs
from dtf_lightning.farm.worker.orders import AttemptEnded, AttemptOutput, AttemptStarted
from dtf_lightning.farm.worker.spool import Spool
from dtf_lightning.processes.freezing import freeze
from support.farm.worker import DEVICES, PATIENCE, Listener, Worker

pytestmark = pytest.mark.process

WORKER = """
import sys
from pathlib import Path
from dtf_lightning.farm.worker.executor import Executor
from dtf_lightning.farm.worker.orders import AttemptOrder

def tell(told):
    print(type(told).__name__, flush=True)

executor = Executor(Path(sys.argv[1]), devices={"gpu": ("nvidia/0", "nvidia/1")}, tell=tell, cgroups=sys.argv[3] == "True")
executor.start(AttemptOrder(task="task", number=2, revision=7, command=("sh", "-c", sys.argv[2]), amounts={"gpu": 1}, stdin=True))
sys.stdin.read()
"""
SCRIPT = "echo $$; read line; echo $line; exit 5"


def keeper_of(folder) -> psutil.Process:
    (found,) = [it for it in psutil.process_iter(["cmdline"]) if str(folder) in (it.info["cmdline"] or [])[4:]]
    return found


def killed_worker(folder, script=SCRIPT, *, cgroups=True) -> int:
    """A worker process that was killed with -9 while its attempt ran; the attempt's process."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), script, str(cgroups)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert [process.stdout.readline().strip() for _ in range(2)] == [b"AttemptStarted", b"AttemptOutput"]
    process.kill()
    process.communicate()
    return int((folder / "attempts" / "task.7" / "log").read_bytes().split()[0])


def wait_for_end(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.wait_procs([psutil.Process(pid)], timeout=PATIENCE)
    poll_until(lambda: not psutil.pid_exists(pid), PATIENCE, f"the end of process {pid}")


def test_the_worker_is_killed(workers, tmp_path):
    """The next one goes on with the attempt: its output from the beginning, its input, its exit code, its device."""
    killed_worker(tmp_path / "worker")
    worker = workers()
    assert worker.executor.running() == {"task": 7}
    assert worker.heard.started(7).task == "task"
    assert worker.run("true", amounts={"gpu": 2}).outcome.reason.startswith(
        "it needs 2 gpu, and this worker has 1 free"
    )
    worker.executor.feed("task", 7, b"more\n")
    end = worker.heard.ended(7)
    assert (end.number, end.outcome.kind.value, end.outcome.exit_code) == (2, "failed", 5)
    assert worker.heard.output(7).endswith(b"\nmore\n")
    assert worker.run("true", amounts={"gpu": 2}).outcome.kind.value == "completed"


def test_it_ends_while_there_is_no_worker(workers):
    """The next worker tells how it ended, with its output; and the keeper did not wait for anybody."""
    worker = workers()
    revision = worker.shell("read line; echo $line; exit 4", stdin=True, secrets={"TOKEN": "sesame"})
    worker.heard.started(revision)
    keeper = keeper_of(worker.folder)
    worker.executor.feed(f"t{revision}", revision, b"sesame\n")
    worker.executor.leave()
    wait_for_end(keeper.pid)
    outcome = workers().heard.ended(revision).outcome
    assert (outcome.exit_code, outcome.tail) == (4, "***\n")


def test_no_worker_comes(workers):
    """Attempts end after the keeper's patience, and it with them: nothing runs for nobody."""
    worker = workers(patience=0.2)
    revision = worker.shell("exec sleep 60")
    worker.heard.started(revision)
    keeper = keeper_of(worker.folder)
    worker.executor.leave()
    wait_for_end(keeper.pid)
    outcome = workers().heard.ended(revision).outcome
    assert (outcome.kind.value, outcome.signal) == ("lost", signal.SIGTERM)
    assert outcome.reason == "ended because no worker had come back for it within 0.2 s"


def test_the_keeper_is_killed(workers):
    """Its attempts are lost, with all that they have started, and the worker goes on with another keeper."""
    worker = workers()
    revision = worker.shell("setsid sleep 60 & echo $!; wait")
    worker.heard.printed(revision, b"\n")
    daemon = int(worker.heard.output(revision))
    keeper_of(worker.folder).kill()
    outcome = worker.heard.ended(revision).outcome
    assert outcome.kind.value == "lost"
    assert outcome.reason.startswith("nobody saw how it ended")
    wait_for_end(daemon)
    assert worker.run("true").outcome.kind.value == "completed"


def test_a_daemon_without_environment(workers):
    """The keeper is killed, and a daemon carries no mark: where there are cgroups, the next keeper ends it."""
    worker = workers()
    if worker.executor.confinement == "rlimit":
        pytest.skip("this machine lets us make no cgroups")
    revision = worker.shell("setsid env -i sleep 60 & echo $!; wait")
    worker.heard.printed(revision, b"\n")
    daemon = int(worker.heard.output(revision))
    keeper_of(worker.folder).kill()
    assert worker.heard.ended(revision).outcome.kind.value == "lost"
    wait_for_end(daemon)


def test_the_keeper_is_killed_and_no_worker_is_there(tmp_path):
    """Its guard ends all that its attempts have started: also what has neither their session nor their environment, nor a cgroup."""
    script = "setsid env -i sh -c 'echo $$; exec sleep 60' & wait"
    daemon = killed_worker(tmp_path / "worker", script, cgroups=False)
    keeper = keeper_of(tmp_path / "worker")
    guard = keeper.parent()
    keeper.kill()
    wait_for_end(daemon)
    wait_for_end(guard.pid)


def test_the_guard_is_killed(workers):
    """Nothing runs without it: its keeper ends its attempts, as at a shutdown, and the worker goes on with another one."""
    worker = workers()
    revision = worker.shell("trap 'echo bye; exit 0' TERM; echo ready; sleep 60 & wait")
    worker.heard.printed(revision, b"ready")
    keeper_of(worker.folder).parent().kill()
    outcome = worker.heard.ended(revision).outcome
    assert (outcome.kind.value, outcome.tail) == ("lost", "ready\nbye\n")
    assert worker.run("true").outcome.kind.value == "completed"


@pytest.mark.parametrize("cgroups", [True, False])
def test_all_are_killed(workers, tmp_path, cgroups):
    """Worker, keeper and its guard: the next worker ends what is left of the attempt and tells that it is lost."""
    pid = killed_worker(tmp_path / "worker", "setsid sleep 60 & echo $!; wait", cgroups=cgroups)
    assert psutil.pid_exists(pid)
    keeper = keeper_of(tmp_path / "worker")
    guard = keeper.parent()
    freeze(guard.pid)
    keeper.kill()
    guard.kill()
    outcome = workers(cgroups=cgroups).heard.ended(7).outcome
    assert (outcome.kind.value, outcome.exit_code, outcome.signal) == ("lost", None, None)
    if not cgroups:
        assert outcome.reason.endswith("; processes of it that were still there were killed: 2")
    wait_for_end(pid)


def test_the_keeper_is_asked_to_end(workers):
    """SIGTERM, as at a shutdown: attempts get it too, and may clean up."""
    worker = workers()
    revision = worker.shell("trap 'echo bye; exit 0' TERM; echo ready; sleep 60 & wait")
    worker.heard.printed(revision, b"ready")
    keeper_of(worker.folder).terminate()
    outcome = worker.heard.ended(revision).outcome
    assert (outcome.kind.value, outcome.tail) == ("lost", "ready\nbye\n")


def test_close_ends_all(workers):
    """Each attempt is told as lost; those that do not want to end are killed after the grace."""
    for script, grace, number in (
        ("trap '' TERM; echo ready; sleep 60; sleep 60", 0.2, signal.SIGKILL),
        ("echo ready; exec sleep 600", PATIENCE, signal.SIGTERM),
    ):
        worker = workers()
        revisions = [worker.shell(script, grace=300.0) for _ in range(2)]
        for revision in revisions:
            worker.heard.printed(revision, b"ready")
        keeper = keeper_of(worker.folder)
        worker.executor.close(grace)
        outcomes = [worker.heard.ended(revision).outcome for revision in revisions]
        assert [(it.kind.value, it.signal) for it in outcomes] == [("lost", number)] * 2
        assert not psutil.pid_exists(keeper.pid)
    worker.executor.close(0.2)
    late = worker.start("true")
    assert not worker.heard.all(AttemptStarted, late)


def test_an_end_is_told_until_its_outcome_is_kept(workers):
    """By every next worker; and not any more once it is in the spool, nor when it was forgotten."""
    first = workers()
    revision = first.run_shell("echo a log that nobody stores").revision
    first.executor.leave()
    second = workers()
    end = second.heard.ended(revision)
    spool = Spool(second.folder)
    spool.keep(end.number, end.task, end.revision, end.outcome)
    second.executor.leave()
    third = workers()
    third.run("true")
    assert not third.heard.all(AttemptEnded, revision)
    assert [(kept.task, kept.revision, kept.outcome) for kept in spool.kept()] == [(end.task, revision, end.outcome)]
    spool.forget(end.task, end.revision)
    assert spool.kept() == []
    third.executor.leave()
    fourth = workers()
    fourth.run("true")
    assert not fourth.heard.all(AttemptEnded, revision)
    assert list(KeptLogs(fourth.folder).waiting()) == [(end.task, revision, 0, 25)]


def test_one_worker_a_folder(workers):
    worker = workers()
    with pytest.raises(SettingsError, match=f"another farm worker uses the folder {worker.folder}"):
        Worker(worker.folder)
    assert worker.run("true").outcome.kind.value == "completed"


def test_a_long_path(tmp_path):
    """Longer than the path of a socket may be."""
    folder = tmp_path / ("long" * 40)
    for _ in range(2):
        worker = Worker(folder)
        worker.run("true")
        worker.executor.leave()


def test_a_slow_reader_of_logs_holds_up_no_end(tmp_path, monkeypatch):
    """Whoever takes output hangs; ends and other attempts go on, and no task is held up by its output."""
    monkeypatch.setattr(executor_module, "LOG_FIRST", 0.1)
    heard, release = Listener(), threading.Event()

    def tell(told):
        if isinstance(told, AttemptOutput):
            release.wait(PATIENCE)
        heard(told)

    worker = Worker(tmp_path, tell=tell)
    worker.heard = heard
    try:
        chatty = worker.shell("head -c 3000000 /dev/zero")
        assert heard.ended(chatty).outcome.log_bytes == 3_000_000
        assert worker.run("true").outcome.kind.value == "completed"
        assert not heard.all(AttemptOutput, chatty)
    finally:
        release.set()
    heard.wait(lambda: heard.all_output(chatty, 3_000_000))
    worker.executor.close(0.0)


def test_a_listener_that_raises(tmp_path):
    """Its attempts end all the same, and everything is on disk."""

    def tell(told):
        raise ValueError("not now")

    executor = Executor(tmp_path, devices=DEVICES, tell=tell)
    worker = Worker.__new__(Worker)
    worker.executor = executor
    revision = worker.shell("echo hello")
    poll_until(lambda: not executor.running(), PATIENCE, "the attempt's end")
    executor.close(0.0)
    assert KeptLogs(tmp_path).read(f"t{revision}", revision, 0) == b"hello\n"


def test_a_log_has_a_limit(tmp_path):
    """The task prints on; what is too much is counted."""
    worker = Worker(tmp_path, log_limit=1000)
    outcome = worker.run_shell("head -c 3000000 /dev/zero; echo done > finished").outcome
    assert outcome.kind.value == "completed"
    assert outcome.tail.endswith("[dtf] 2999000 bytes of output were dropped: the log may have 1000 bytes\n")
    worker.executor.close(0.0)


def test_without_cgroups(workers):
    """We look what an attempt's processes hold together; each alone cannot take twice the limit."""
    worker = workers(cgroups=False)
    assert worker.executor.confinement == "rlimit"
    script = "import os, time\nos.fork(); held = bytearray(40 << 20); print('ready', flush=True); time.sleep(60)"
    outcome = worker.run(sys.executable, "-c", script, amounts={"memory": 64}).outcome
    assert (outcome.kind.value, outcome.reason) == ("failed", "killed for its memory limit of 64 MiB")
    outcome = worker.run(sys.executable, "-c", "bytearray(200 << 20)", amounts={"memory": 64}).outcome
    assert (outcome.exit_code, "MemoryError" in outcome.tail) == (1, True)
    daemon = worker.run_shell("setsid sleep 60 & echo $!", amounts={"memory": 64}).outcome
    pid = int(daemon.tail)  # which another process may have by now
    assert not any(process.pid == pid and process.name() == "sleep" for process in psutil.process_iter())


def test_nothing_is_left_open(workers):
    """Fifty attempts later, worker and keeper have the files and threads that they had."""
    worker = workers()

    def held() -> tuple[int, int, int]:
        keeper = keeper_of(worker.folder)
        return len(os.listdir("/proc/self/fd")), keeper.num_fds(), len(keeper.children())

    worker.run("true")
    before, threads = held(), threading.active_count()
    ends = [worker.shell("sleep 0.01 & cat; exit 1", stdin=number % 2 == 0, timeout=0.3) for number in range(50)]
    for revision in ends:
        worker.heard.ended(revision)
    poll_until(lambda: held() == before and threading.active_count() == threads, PATIENCE, lambda: str(held()))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_task_that_fills_the_disk(small_disk):
    """It fails by itself and its outcome is kept; what finds no room then is lost with the reason, and others run afterwards."""
    worker = Worker(small_disk / "worker")
    spool = Spool(small_disk / "worker")
    try:
        full = worker.run_shell("cat /dev/zero > filled")
        assert (full.outcome.kind, full.outcome.exit_code) == ("failed", 1)
        assert "No space left on device" in full.outcome.tail or full.outcome.log_bytes == 0
        spool.keep(full.number, full.task, full.revision, full.outcome)
        assert [kept.task for kept in spool.kept()] == [full.task]
        crowded = worker.run_shell("true")
        assert crowded.outcome.kind in ("lost", "completed")
        if crowded.outcome.kind == "lost":
            assert "No space left on device" in crowded.outcome.reason
        spool.forget(full.task, full.revision)
        KeptLogs(small_disk / "worker").stored(full.task, full.revision, full.outcome.log_bytes)
        assert worker.run_shell("head -c 1000000 /dev/zero > file").outcome.kind == "completed"
    finally:
        worker.executor.close(0.0)
