"""The torchx components. torchx is an extra with pins of its own (`make test-torchx`); without it most are skipped."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dtf_lightning.elastic.torchx import appdef, torchx_dist, torchx_elastic
from dtf_lightning.errors import SettingsError

ROOT = Path(__file__).parents[3]
STOCK = ROOT / "tests/support/elastic/programs/stock_ddp.py"
TORCHX_RUN = "torchx run -s local_cwd dist.ddp -j 1:4 --script train.py"

needs_torchx = pytest.mark.skipif(importlib.util.find_spec("torchx") is None, reason="torchx is an optional extra")


def torchx(command: str, cwd: Path, **env: str) -> str:
    """torchx's own command, beside this Python."""
    words = shlex.split(command)
    beside = Path(sys.executable).parent
    result = subprocess.run(
        [str(beside / words[0]), *words[1:]],
        capture_output=True,
        text=True,
        timeout=150,
        cwd=cwd,
        env={**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **env},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize("component", [torchx_dist.ddp, torchx_elastic.ddp])
def test_without_torchx(component, monkeypatch):
    """The modules can be imported; a component says how to get torchx."""
    monkeypatch.setitem(sys.modules, "torchx", None)
    monkeypatch.setitem(sys.modules, "torchx.components.dist", None)
    with pytest.raises(SettingsError, match=r"pip install 'dtf-lightning\[torchx\]'"):
        component(script="train.py", j="1:4")


@pytest.mark.parametrize(("given", "meant"), [("1:4", "1:4x1"), ("1:4x2", "1:4x2"), ("2x8", "2x8"), ("4", "4")])
def test_number_of_nodes(given, meant):
    """As the user types it, to as torchx reads it."""
    assert appdef.with_workers(given) == meant


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"j": "1-4"}, "-j 1-4: expected MIN:MAX"),
        ({"j": "4:1"}, r"min_nodes \(4\) must not exceed max_nodes \(1\)"),
        ({"j": "1:4", "mode": "restrt"}, "mode must be one of live, restart, auto"),
        ({"j": "1:4", "conf": "lease_tt=5"}, "did you mean 'lease_ttl'"),
    ],
)
def test_bad_input(options, message):
    """Refused before anything is scheduled."""
    with pytest.raises(SettingsError, match=message):
        torchx_elastic.ddp(script="train.py", **options)


def test_a_script_decides_the_mode(monkeypatch):
    """As with torchrun: without an option, the script with `ElasticCallback()` is live and a stock one is restarted."""
    roles = SimpleNamespace(args=["torchrun --rdzv_endpoint x train.py"])
    monkeypatch.setattr(appdef, "torchx_ddp", lambda *_, **__: SimpleNamespace(roles=[roles]))
    torchx_dist.ddp(script="train.py", j="1:4")
    assert "--rdzv_conf mode=auto " in roles.args[0]


@pytest.mark.parametrize(
    ("argv", "hinted"),
    [
        (["torchx", "run", "dist.ddp", "-j", "1:4"], True),
        (["torchx", "run", "-s", "local_cwd", "dist.ddp", "-j", "1:4"], False),
        (["torchx", "run", "--scheduler=slurm", "dist.ddp"], False),
        (["pytest"], False),
    ],
)
def test_a_machine_without_docker(argv, hinted, tmp_path, monkeypatch, capsys):
    """torchx's default scheduler is docker's: who has none and names no other is told what to write."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    appdef.hint_without_docker(argv)
    assert ("torchx run -s local_cwd" in capsys.readouterr().err) is hinted
    shutil.copy(ROOT / "configs/torchxconfig", tmp_path / ".torchxconfig")
    appdef.hint_without_docker(argv)
    assert capsys.readouterr().err == ""


@needs_torchx
@pytest.mark.process
def test_builtins_stay_visible(tmp_path):
    """torchx's own components, and ours, none with a complaint of torchx's source check."""
    names = set(re.findall(r"\d+\. (\S+)", torchx("torchx builtins", tmp_path)))
    assert {"dist.ddp", "dist.spmd", "utils.echo", "elastic.ddp"} <= names


@needs_torchx
@pytest.mark.process
@pytest.mark.parametrize(
    ("scheduler", "around"),
    [
        ("slurm", ["#SBATCH hetjob", "--requeue", "scontrol requeue"]),
        ("kubernetes -cfg queue=default", ["kind: Job", "maxRetry: 2", "name: mount-0", "mountPath: /data"]),
    ],
)
def test_dry_run(scheduler, around, tmp_path):
    """What the scheduler would get: our rendezvous, as many workers as asked for, retries and mounts."""
    text = torchx(
        f"torchx run --dryrun --workspace= -s {scheduler} elastic.ddp -j 1:4x2 --endpoint etcd-1:2379,etcd-2:2379 --mode restart "
        "--max_retries 2 --mounts type=bind,src=/data,dst=/data --script train.py",
        tmp_path,
    )
    request = " ".join(text.partition("SCHEDULER REQUEST")[2].split())
    command = (
        "torchrun --rdzv_backend etcd --rdzv_endpoint etcd-1:2379,etcd-2:2379 --rdzv_conf mode=restart "
        "--max_restarts 100"
    )
    assert command in request
    assert "--nnodes 1:4 --nproc_per_node 2" in request
    if "slurm" in scheduler:
        around = [*around, "TORCHX_MAX_RETRIES=2"]
    assert [text for text in around if text not in request] == []


@needs_torchx
@pytest.mark.process
def test_fixed_number_of_nodes_is_torchx_own(tmp_path):
    """-j 1x2 means what it means without us."""
    text = torchx("torchx run --dryrun -s local_cwd dist.ddp -j 1x2 --script train.py", tmp_path)
    assert "--rdzv_backend c10d" in " ".join(re.sub(r"'\s+'", "", text).split())


@needs_torchx
@pytest.mark.process
def test_really_run(etcd, tmp_path):
    """The README's command, literally, without a .torchxconfig: four nodes train a stock DDP script together."""
    assert TORCHX_RUN in (ROOT / "README.md").read_text()
    end_file = tmp_path / "end"
    end_file.touch()
    (tmp_path / "train.py").write_text(f"import sys\nsys.argv[1:] = [{str(end_file)!r}]\n{STOCK.read_text()}")
    output = torchx(TORCHX_RUN, tmp_path, DTF_ETCD_ENDPOINT=etcd.endpoint)
    assert re.search(r"finished rank 0 of \d same weights True", output), output
