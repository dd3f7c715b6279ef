"""Attempts as real processes: how they start, what they print and read, how they end, and that nothing is left of them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.worker import logs
from dtf_lightning.farm.worker.orders import AttemptEnded, AttemptStarted
from support.farm.worker import PATIENCE

pytestmark = pytest.mark.process


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# --- ends --------------------------------------------------------------------------------------------------------------


def test_it_completes(worker):
    """Started is told before the end, and the outcome has its times and what it has used."""
    revision = worker.start(sys.executable, "-c", "sum(range(3_000_000)); bytearray(60 << 20); print('done')")
    outcome = worker.heard.ended(revision).outcome
    assert (outcome.kind.value, outcome.exit_code, outcome.signal, outcome.reason) == (
        "completed",
        0,
        None,
        "exit code 0",
    )
    assert worker.heard.output(revision) == b"done\n"
    assert (outcome.tail, outcome.log_bytes) == ("done\n", 5)
    assert 0.02 < outcome.cpu_seconds < 20
    assert outcome.peak_memory > 60 << 20
    assert outcome.started <= outcome.ended
    kinds = [type(told) for told in worker.heard.told if told.revision == revision]
    assert kinds.index(AttemptStarted) < kinds.index(AttemptEnded)


@pytest.mark.parametrize(
    ("script", "exit_code", "number", "reason"),
    [
        ("exit 3", 3, None, "exit code 3"),
        ("kill -SEGV $$", None, signal.SIGSEGV, "ended by SIGSEGV"),
        ("kill -KILL $$", None, signal.SIGKILL, "ended by SIGKILL"),
    ],
)
def test_it_fails(worker, script, exit_code, number, reason):
    outcome = worker.run_shell(script).outcome
    assert (outcome.kind.value, outcome.exit_code, outcome.signal, outcome.reason) == (
        "failed",
        exit_code,
        number,
        reason,
    )


@pytest.mark.parametrize(
    ("command", "options", "exit_code", "reason"),
    [
        ("no-such-program", {}, 127, "its command cannot be started: No such file or directory: no-such-program"),
        ("/etc/passwd", {}, 126, "its command cannot be started: Permission denied: /etc/passwd"),
        ("true", {"folder": "/no/such"}, 127, "its working folder cannot be used: No such file or directory: /no/such"),
    ],
)
def test_it_cannot_be_started(worker, command, options, exit_code, reason):
    """With a shell's exit codes, and its devices are free again."""
    outcome = worker.run(command, amounts={"gpu": 2}, **options).outcome
    assert (outcome.kind.value, outcome.exit_code, outcome.reason) == ("failed", exit_code, reason)


def test_a_timeout(worker):
    outcome = worker.run_shell("exec sleep 60", timeout=0.2).outcome
    assert (outcome.kind.value, outcome.signal) == ("timeout", signal.SIGTERM)
    assert outcome.reason == "ended by its timeout of 0.2 s"


def test_cancel_is_sigterm_first(worker):
    """It may clean up and choose its exit code; it is cancelled all the same."""
    revision = worker.shell("trap 'echo bye; exit 7' TERM; echo ready; while :; do read line; sleep 60 & wait; done")
    worker.heard.printed(revision, b"ready")
    worker.executor.cancel(f"t{revision}", revision, "nobody wants it")
    outcome = worker.heard.ended(revision).outcome
    assert (outcome.kind.value, outcome.exit_code, outcome.reason) == ("cancelled", 7, "cancelled: nobody wants it")
    assert outcome.tail == "ready\nbye\n"


def test_cancel_is_sigkill_after_the_grace(worker):
    """It and its children ignore SIGTERM."""
    revision = worker.shell("trap '' TERM; sleep 60 & echo ready; wait; sleep 60", grace=0.2)
    worker.heard.printed(revision, b"ready")
    worker.executor.cancel(f"t{revision}", revision, "")
    outcome = worker.heard.ended(revision).outcome
    assert (outcome.kind.value, outcome.signal, outcome.reason) == ("cancelled", signal.SIGKILL, "cancelled")
    assert outcome.ended - outcome.started >= 0.2


def test_what_had_ended_by_itself_is_not_cancelled(worker):
    end = worker.run("true")
    worker.executor.cancel(end.task, end.revision, "too late")
    worker.executor.cancel("never heard of", 4, "")
    assert worker.run("true").outcome.kind.value == "completed"
    assert len(worker.heard.all(AttemptEnded, end.revision)) == 1


# --- what it leaves running --------------------------------------------------------------------------------------------

DAEMON = """
import os, sys, time
mode, path = sys.argv[1:]
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        if mode == "without environment":
            os.execve(sys.executable, [sys.executable, "-c", f"import os, time; open({path!r}, 'w').write(f'{os.getpid()}\\\\n'); time.sleep(60)"], {})
        open(path, "w").write(f"{os.getpid()}\\n")
        time.sleep(60)
    os._exit(0)
os.wait()
while not (os.path.exists(path) and open(path).read().endswith("\\n")):
    time.sleep(0.01)
if mode == "cancelled":
    time.sleep(60)
"""


@pytest.mark.parametrize("mode", ["completed", "cancelled", "without environment"])
def test_daemons_are_ended(worker, tmp_path, mode):
    """A process that was forked twice, in a session of its own, and with an empty environment."""
    path = tmp_path / "pid"
    revision = worker.start(sys.executable, "-c", DAEMON, mode, str(path))
    if mode == "cancelled":
        poll_until(lambda: path.exists() and path.read_text().endswith("\n"), PATIENCE, "the daemon")
        worker.executor.cancel(f"t{revision}", revision, "")
    outcome = worker.heard.ended(revision).outcome
    assert gone(int(path.read_text()))
    if mode != "cancelled":
        assert outcome.reason == "exit code 0; 1 process that it had left running was ended"


def test_one_attempts_end_leaves_the_others_daemons_alone(worker, tmp_path):
    """Two attempts with a daemon each, of which one ends."""
    paths = [tmp_path / "first", tmp_path / "second"]
    first = worker.start(sys.executable, "-c", DAEMON, "cancelled", str(paths[0]))
    second = worker.start(sys.executable, "-c", DAEMON, "completed", str(paths[1]))
    worker.heard.ended(second)
    pids = [
        int(poll_until(lambda path=path: path.exists() and path.read_text(), PATIENCE, "a daemon")) for path in paths
    ]
    assert [gone(pid) for pid in pids] == [False, True]
    worker.executor.cancel(f"t{first}", first, "")
    worker.heard.ended(first)
    assert gone(pids[0])


def test_a_background_process_holds_nothing_up(worker):
    """It has the attempt's output open."""
    outcome = worker.run_shell("sleep 600 & echo here").outcome
    assert outcome.tail == "here\n"


# --- output and input --------------------------------------------------------------------------------------------------


def test_much_binary_output(worker, monkeypatch):
    """10 MB of random bytes come whole, in pieces of at most 256 KB."""
    monkeypatch.setattr(logs, "LINGER", PATIENCE)  # whoever writes may stand still in its middle
    seed = random.randrange(1 << 30)
    script = f"import random, sys; sys.stdout.buffer.write(random.Random({seed}).randbytes(10 << 20))"
    revision = worker.start(sys.executable, "-c", script)
    outcome = worker.heard.ended(revision).outcome
    assert outcome.log_bytes == 10 << 20
    pieces = worker.heard.wait(lambda: worker.heard.all_output(revision, 10 << 20))
    assert max(len(piece.data) for piece in pieces) <= 1 << 18
    assert min(len(piece.data) for piece in pieces[:-1]) >= 1 << 16
    text = worker.heard.output(revision)
    assert hashlib.sha256(text).digest() == hashlib.sha256(random.Random(seed).randbytes(10 << 20)).digest()
    assert len(outcome.tail.encode()) <= 2048


def test_both_streams_in_their_order(worker):
    revision = worker.shell("echo one; echo two >&2; echo three")
    worker.heard.ended(revision)
    assert worker.heard.output(revision) == b"one\ntwo\nthree\n"


def test_output_comes_while_it_runs(worker):
    revision = worker.shell("echo first; read line; echo $line", stdin=True)
    worker.heard.printed(revision, b"first\n")
    worker.executor.feed(f"t{revision}", revision, b"second\n")
    assert worker.heard.ended(revision).outcome.tail == "first\nsecond\n"


def test_much_input(worker):
    """More than a pipe holds, while the task does not read yet; and the end of the file."""
    data = random.randbytes(5 << 20)
    revision = worker.shell("echo ready; read line; sha256sum", stdin=True)
    worker.heard.printed(revision, b"ready")
    for piece in (b"go\n", data[: 3 << 20], data[3 << 20 :], None):
        worker.executor.feed(f"t{revision}", revision, piece)
    assert hashlib.sha256(data).hexdigest() in worker.heard.ended(revision).outcome.tail


def test_input_that_nobody_reads(worker):
    revision = worker.shell("exec <&-; echo closed; exec sleep 60", stdin=True, grace=0.0)
    worker.heard.printed(revision, b"closed")
    worker.executor.feed(f"t{revision}", revision, bytes(1 << 20))
    worker.executor.cancel(f"t{revision}", revision, "")
    assert worker.heard.ended(revision).outcome.kind.value == "cancelled"


def test_no_input(worker):
    """Without `stdin` a task that reads sees the end of the file."""
    assert worker.run("cat").outcome.reason == "exit code 0"


def test_secrets_are_masked(worker):
    """In whatever pieces they are printed; the task itself has them."""
    script = (
        "import os, sys\nsecret = os.environ['TOKEN']\nassert len(secret) == 9\n"
        "for letter in secret: os.write(1, letter.encode())\nprint(); print(secret[:5], flush=True)\n"
        "sys.stderr.write(secret * 2)"
    )
    end = worker.run(sys.executable, "-c", script, secrets={"TOKEN": "s3cr3t/+="})
    assert end.outcome.tail == "***\ns3cr3\n******"
    log = worker.folder / "attempts" / f"{end.task}.{end.revision}"
    assert not any(b"s3cr3t/+=" in path.read_bytes() for path in log.rglob("*") if path.is_file())


# --- results -----------------------------------------------------------------------------------------------------------

REPORTER = """
import os, pathlib
from dtf_lightning.farm import report
report(loss=0.5, step=1)
report({"loss": 0.25})
folder = pathlib.Path(os.environ["DTF_FARM_RESULTS"])
(folder / "junit.xml").write_text("<testsuite><testcase/><testcase><failure/></testcase></testsuite>")
(folder / "plot.png").write_bytes(bytes(10))
pathlib.Path("out").mkdir()
pathlib.Path("out/model.bin").write_bytes(bytes(20))
raise SystemExit(1)
"""


def test_what_it_reports(worker):
    """Metrics, test cases and files come with the outcome, also of an attempt that fails."""
    outcome = worker.run(sys.executable, "-c", REPORTER, artifacts=("out/*", "missing/*")).outcome
    assert outcome.metrics == {"loss": 0.25, "step": 1.0}
    assert outcome.counts == {"tests": 2, "passed": 1, "failed": 1, "errors": 0, "skipped": 0}
    (metrics,) = (name for name in outcome.artifacts if name.startswith("metrics-"))
    assert sorted(outcome.artifacts) == sorted([metrics, "junit.xml", "out/model.bin", "plot.png"])
    assert Path(outcome.artifacts["out/model.bin"]).read_bytes() == bytes(20)
    assert outcome.reason == "exit code 1; no file matches the artifacts 'missing/*'"


# --- environment, devices, limits --------------------------------------------------------------------------------------


def test_its_environment(worker):
    """Its own folders, variables of its order, what the farm says, and none of the worker's farm variables."""
    end = worker.run_shell("env; pwd; umask", environment={"MINE": "a=b", "TMPDIR": "/tmp"}, number=4)
    text, name = end.outcome.tail, f"{end.task}.{end.revision}"
    revision = end.revision
    printed = dict(line.split("=", 1) for line in worker.heard.output(revision).decode().splitlines() if "=" in line)
    folder = worker.folder / "attempts" / name
    assert printed["MINE"] == "a=b"
    assert printed["TMPDIR"] == "/tmp"
    assert printed["DTF_FARM_RESULTS"] == str(folder / "results")
    assert (printed["DTF_FARM_TASK"], printed["DTF_FARM_ATTEMPT"]) == (end.task, "4")
    assert printed["HF_HOME"] == str(worker.folder / "cache" / "huggingface")
    assert text.splitlines()[-2] == str(folder / "work")


def test_temporary_files(worker):
    """They lie where a socket's path is not too long, and go with the attempt."""
    script = (
        "import socket, tempfile\nname = tempfile.mkdtemp() + '/' + 'x' * 40\n"
        "socket.socket(socket.AF_UNIX).bind(name)\nprint(tempfile.gettempdir())"
    )
    outcome = worker.run(sys.executable, "-c", script).outcome
    assert outcome.exit_code == 0, outcome.tail
    assert not Path(outcome.tail.strip()).exists()


def test_results_that_cannot_be_read(worker):
    """A loop of links, a name that is no text, a pipe in the place of a report: the end is told all the same."""
    script = """cd $DTF_FARM_RESULTS
        ln -s loop loop; mkfifo pipe.jsonl; mkdir a.jsonl; ln -s /dev/zero zero.xml
        printf '{"a": 1}' > "$(printf '\\377').jsonl" """
    outcome = worker.run_shell(script, artifacts=("**/*", "**", "[")).outcome
    assert (outcome.kind.value, outcome.metrics) == ("completed", {"a": 1.0})


@pytest.fixture
def in_the_background():
    """Signals that a shell ignores for what it starts by `nohup ... &`, and one that some starter may ignore."""
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("in_the_background")
def test_signals_are_as_in_a_shell(request):
    """Nothing is ignored or blocked, whatever keeper and worker have done, and whoever has started them."""
    text = request.getfixturevalue("worker").run("cat", "/proc/self/status").outcome.tail
    masks = [int(mask, 16) for mask in re.findall(r"Sig(?:Blk|Ign):\t(\w+)", text)]
    reserved = 3 << 31  # 32 and 33 are the C library's: no program can change what it was started with
    assert [mask & ~reserved for mask in masks] == [0, 0]


def test_a_file_of_the_keeper_is_not_its(worker):
    """It has three open files (and the folder that `ls` reads)."""
    assert worker.run("ls", "/proc/self/fd").outcome.tail.split() == ["0", "1", "2", "3"]


def test_devices_are_shared_out(worker):
    """Three attempts at once: each sees its own devices, the third none; and they run on their cores."""
    script = 'echo "gpu=$CUDA_VISIBLE_DEVICES"; grep Cpus_allowed_list /proc/self/status; read line'
    asked = [{"gpu": 1, "cpu": 1}, {"gpu": 1, "cpu": 1}, {}]
    revisions = [worker.shell(script, amounts=amounts, stdin=True) for amounts in asked]
    for revision in revisions:
        worker.heard.printed(revision, b"Cpus_allowed_list")
    texts = [worker.heard.output(revision).decode().split() for revision in revisions]
    assert [text[0] for text in texts] == ["gpu=0", "gpu=1", "gpu="]
    cores = {str(core) for core in os.sched_getaffinity(0)}
    if {"0", "1"} <= cores:
        assert [text[-1] for text in texts[:2]] == ["0", "1"]
    refused = worker.run("true", amounts={"gpu": 1}).outcome
    assert (refused.kind.value, refused.exit_code) == ("lost", None)
    assert refused.reason == "it needs 1 gpu, and this worker has 0 free (0 whole ones)"
    for revision in revisions:
        worker.executor.feed(f"t{revision}", revision, None)
        worker.heard.ended(revision)
    assert worker.run_shell("echo $CUDA_VISIBLE_DEVICES", amounts={"gpu": 2}).outcome.tail == "0,1\n"


def test_killed_for_its_memory(worker):
    """By the cgroup where there is one, else by us; and it is told."""
    script = "import time\nheld = bytearray(80 << 20)\ntime.sleep(600)"
    outcome = worker.run(sys.executable, "-c", script, amounts={"memory": 64}).outcome
    assert (outcome.kind.value, outcome.reason) == ("failed", "killed for its memory limit of 64 MiB")
    assert outcome.peak_memory > 30 << 20


def test_a_child_is_killed_for_its_memory(worker):
    """Its parent waits for it, and for ever: the whole attempt ends (cgroup v1 kills the child alone)."""
    script = (
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'x = bytearray(80 << 20); input()'])\ninput()"
    )
    revision = worker.start(sys.executable, "-c", script, amounts={"memory": 64}, stdin=True)
    outcome = worker.heard.ended(revision).outcome
    assert (outcome.kind.value, outcome.reason) == ("failed", "killed for its memory limit of 64 MiB")


# --- the same again ----------------------------------------------------------------------------------------------------


def test_started_once(worker, tmp_path):
    """An order that comes twice, while it runs and after its end, is one attempt."""
    script = f"echo started >> {tmp_path}/times; read line"
    revision = worker.shell(script, stdin=True)
    worker.shell(script, task=f"t{revision}", revision=revision, stdin=True)
    worker.heard.started(revision)
    assert worker.executor.running()[f"t{revision}"] == revision
    worker.executor.feed(f"t{revision}", revision, None)
    worker.heard.ended(revision)
    worker.shell(script, task=f"t{revision}", revision=revision, stdin=True)
    assert worker.run("true").outcome.kind.value == "completed"
    assert (tmp_path / "times").read_text() == "started\n"
    assert len(worker.heard.all(AttemptEnded, revision)) == 1
    assert f"t{revision}" not in worker.executor.running()


def test_a_workspace_is_prepared(worker):
    """In a thread: another attempt runs and ends meanwhile. What is fed before the command runs is there for it."""
    reader, writer = os.pipe()

    def prepare(folder):
        os.read(reader, 1)
        (folder / "input").write_text("prepared\n")

    revision = worker.shell("cat input -", stdin=True, prepare=prepare)
    for data in (b"fed\n", None):
        worker.executor.feed(f"t{revision}", revision, data)
    worker.run("true")
    assert worker.executor.running() == {f"t{revision}": revision}
    os.close(writer)
    assert worker.heard.ended(revision).outcome.tail == "prepared\nfed\n"
    os.close(reader)


def test_a_preparation_fails(worker):
    """The attempt is lost: another worker may have more luck."""

    def prepare(folder):
        raise ValueError("the digest is wrong")

    outcome = worker.run("true", prepare=prepare).outcome
    assert (outcome.kind.value, outcome.reason) == ("lost", "the worker could not prepare it: the digest is wrong")


def test_cancelled_while_it_is_prepared(worker):
    """It is not started at all."""
    reader, writer = os.pipe()
    revision = worker.start("touch", "started", prepare=lambda folder: os.read(reader, 1))
    worker.executor.cancel(f"t{revision}", revision, "")
    os.close(writer)
    assert worker.heard.ended(revision).outcome.kind.value == "cancelled"
    assert not (worker.folder / "attempts" / f"t{revision}.{revision}" / "work" / "started").exists()
    os.close(reader)


def test_a_newer_attempt_ends_the_older(worker):
    old = worker.shell("exec sleep 60")
    worker.heard.started(old)
    new = worker.start("true", task=f"t{old}", number=2)
    assert worker.heard.ended(old).outcome.reason == "cancelled: a newer attempt at its task has come"
    assert worker.heard.ended(new).outcome.kind.value == "completed"


def test_many_at_once(worker):
    """Forty, some of which fail: each has its own end and output."""
    revisions = {worker.shell(f"echo {number}; exit {number % 3}"): number for number in range(40)}
    for revision, number in revisions.items():
        assert worker.heard.ended(revision).outcome.exit_code == number % 3
        assert worker.heard.output(revision) == f"{number}\n".encode()
    poll_until(lambda: not worker.executor.running(), PATIENCE, "all to be over")


def test_its_socket_is_free_when_its_end_is_told(worker):
    """What it listened on can be listened on."""
    script = "import socket, time\nserver = socket.create_server(('127.0.0.1', 0))\nprint(server.getsockname()[1], flush=True)\ntime.sleep(60)"
    revision = worker.shell(f'{sys.executable} -c "{script}" & wait')
    worker.heard.printed(revision, b"\n")
    port = int(worker.heard.output(revision))
    worker.executor.cancel(f"t{revision}", revision, "")
    worker.heard.ended(revision)
    socket.create_server(("127.0.0.1", port)).close()


def test_the_workspace_is_the_owners_only(worker):
    end = worker.run("true")
    folder: Path = worker.folder / "attempts" / f"{end.task}.{end.revision}"
    assert {path.name: path.stat().st_mode & 0o77 for path in folder.iterdir() if path.is_dir()} == {
        "results": 0,
        "work": 0,
    }
    assert worker.folder.stat().st_mode & 0o77 == 0


def test_what_is_not_kept_from_it(worker):
    """`docs/platforms.md` says so: it is the worker's user, in the worker's network."""
    end = worker.run("sh", "-c", "id -u; readlink /proc/self/ns/net")
    assert end.outcome.tail.split() == [str(os.getuid()), os.readlink("/proc/self/ns/net")]


def test_what_it_took_as_a_series(workers):
    """CPU seconds, memory and processes, while it runs, as an artifact; it survives in the attempt's folder."""
    worker = workers(sample=0.0)
    until_two = "until { read one && read another; } < ../hardware_metrics.jsonl; do sleep 0.05; done"
    end = worker.run_shell(f"i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; {until_two}")
    path = Path(end.outcome.artifacts["hardware_metrics.jsonl"])
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(samples) >= 2
    assert all(set(sample) == {"at", "cpu_seconds", "memory", "processes"} for sample in samples)
    assert samples[-1]["cpu_seconds"] >= samples[0]["cpu_seconds"]
    assert samples[0]["memory"] > 0
    assert max(sample["processes"] for sample in samples) in (1, 2)
    assert end.outcome.cpu_seconds > 0


def test_yield_asks_the_first_process_alone(worker):
    """A `torchrun` that is asked for its device sees to its workers itself; it ends as yielded whatever its exit code is."""
    script = 'sh -c \'trap "echo hurt" TERM; echo child; while :; do sleep 1; done\' & trap "kill -9 $!; exit 0" TERM; echo up; wait'
    revision = worker.start("sh", "-c", script)
    worker.heard.printed(revision, b"up")
    worker.heard.printed(revision, b"child")
    worker.executor.yield_device(f"t{revision}", revision, "gave its device back for the task x", 20.0)
    end = worker.heard.ended(revision)
    assert (end.outcome.kind, end.outcome.exit_code) == (OutcomeKind.YIELDED, 0)
    assert end.outcome.reason.startswith("gave its device back for the task x")
    assert b"hurt" not in worker.heard.output(revision)


def test_a_yield_has_a_deadline(worker):
    revision = worker.start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done")
    worker.heard.printed(revision, b"up")
    worker.executor.yield_device(f"t{revision}", revision, "x", 0.2)
    end = worker.heard.ended(revision)
    assert (end.outcome.kind, end.outcome.signal) == (OutcomeKind.YIELDED, 9)
