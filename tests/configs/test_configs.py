"""configs/: each file is well-formed, and every command and setting in it is one that exists and can work."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from dtf_lightning.__main__ import build_parser
from dtf_lightning.elastic.settings import AgentSettings

CONFIGS = Path(__file__).parents[2] / "configs"
KUBERNETES = sorted((CONFIGS / "kubernetes").glob("*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read(CONFIGS / "dtf-node@.service")
    return parser


def container() -> dict[str, Any]:
    return documents(CONFIGS / "kubernetes/train.yaml")[1]["spec"]["template"]["spec"]["containers"][0]


def slurm() -> str:
    return (CONFIGS / "slurm.sh").read_text()


def torchrun_commands() -> Iterator[tuple[str, list[str]]]:
    yield "kubernetes", container()["command"]
    yield "systemd", shlex.split(unit()["Service"]["ExecStart"].partition("env ")[2])
    yield "compose", documents(CONFIGS / "compose.yaml")[0]["services"]["node"]["command"]
    command = re.search(r"^ +(torchrun .*?) &$", slurm(), re.MULTILINE | re.DOTALL)
    yield "slurm", shlex.split(command[1].replace("\\\n", " "))


def settings_of(command: list[str], tmp_path: Path) -> AgentSettings:
    """What the agent would make of the command line, its settings file taken from the ConfigMap."""
    arguments = get_args_parser().parse_args(command[1:])
    conf = dict(pair.split("=", 1) for pair in arguments.rdzv_conf.split(",") if pair)
    if "config" in conf:
        written = documents(CONFIGS / "kubernetes/train.yaml")[0]["data"]
        path = tmp_path / "settings.yaml"
        path.write_text(written[Path(conf["config"]).name])
        conf["config"] = str(path)
    low, high = arguments.nnodes.split(":")
    return AgentSettings.from_rdzv_conf(int(low), int(high), conf)


def seconds_to_stop(name: str) -> float:
    """From the platform's SIGTERM to its SIGKILL."""
    match name:
        case "kubernetes":
            return documents(CONFIGS / "kubernetes/train.yaml")[1]["spec"]["template"]["spec"][
                "terminationGracePeriodSeconds"
            ]
        case "systemd":
            return float(unit()["Service"]["TimeoutStopSec"])
        case "compose":
            return float(documents(CONFIGS / "compose.yaml")[0]["services"]["node"]["stop_grace_period"].rstrip("s"))
        case _:
            return float(re.search(r"--signal=B:USR1@(\d+)", slurm())[1])


class StrictLoader(yaml.SafeLoader):
    """YAML lets a key stand twice and keeps the last: a lint of its own."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands twice: {keys} at {node.start_mark}"
        return super().construct_mapping(node, deep)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.name)
def test_yaml_is_clean(path):
    """No key twice, no tab, no blank at a line's end, and every document has something in it."""
    text = path.read_text()
    assert all(yaml.load_all(text, Loader=StrictLoader))
    assert "\t" not in text
    assert [line for line in text.splitlines() if line != line.rstrip()] == []


@pytest.mark.parametrize(("name", "command"), list(torchrun_commands()))
def test_every_command_and_key(name, command, tmp_path):
    """torchrun's own parser takes the options, our settings take every key, and the grace period fits in the platform's."""
    arguments = get_args_parser().parse_args(command[1:])
    assert (command[0], arguments.rdzv_backend, arguments.training_script) == ("torchrun", "etcd", "train.py")
    settings = settings_of(command, tmp_path)
    assert settings.grace_period < seconds_to_stop(name)
    assert settings.mode == "auto"


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_objects_fit_together(path):
    """Selectors match labels, mounts have volumes, services exist; every object says what it is."""
    everything = documents(path)
    names = {(each["kind"], each["metadata"]["name"]) for each in everything}
    for each in everything:
        assert each["apiVersion"]
        template = each.get("spec", {}).get("template")
        if template is None:
            continue
        labels, pod = template["metadata"]["labels"], template["spec"]
        selector = each["spec"].get("selector", {}).get("matchLabels", labels)
        assert selector.items() <= labels.items()
        claims = {claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", ())}
        volumes = {volume["name"] for volume in pod.get("volumes", ())} | claims
        for one in pod["containers"]:
            assert {mount["name"] for mount in one.get("volumeMounts", ())} <= volumes
        for volume in pod.get("volumes", ()):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
        if each["kind"] == "StatefulSet":
            assert ("Service", each["spec"]["serviceName"]) in names


def test_settings_files_are_mounted():
    """Paths in the ConfigMap and on the command line lie under a mount."""
    text = documents(CONFIGS / "kubernetes/train.yaml")[0]["data"]["dtf.yaml"]
    mounts = [mount["mountPath"] for mount in container()["volumeMounts"]]
    paths = [value for value in yaml.safe_load(text).values() if str(value).startswith("/")]
    assert paths
    assert [path for path in paths if str(Path(path).parent) not in mounts] == []


def test_pre_stop_drains_this_node_of_this_run():
    """With our own command, as its parser reads it."""
    shell = container()["lifecycle"]["preStop"]["exec"]["command"]
    words = shlex.split(shell[-1])
    arguments = build_parser().parse_args(words[1:])
    assert (words[0], words[1], arguments.run, arguments.node) == ("dtf", "drain", "train", "$HOSTNAME")
    assert f"--rdzv-id={arguments.run}" in container()["command"]


def test_etcd_members():
    """Three, each named in the initial cluster, TLS on every port that takes writes."""
    stateful = documents(CONFIGS / "kubernetes/etcd.yaml")[2]
    command = stateful["spec"]["template"]["spec"]["containers"][0]["command"]
    options = dict(option.removeprefix("--").split("=", 1) for option in command[1:])
    members = options["initial-cluster"].split(",")
    assert len(members) == stateful["spec"]["replicas"] == 3
    assert all(re.fullmatch(r"(etcd-\d)=https://\1\.etcd:2380", member) for member in members)
    assert (options["client-cert-auth"], options["peer-client-cert-auth"]) == ("true", "true")
    assert options["experimental-initial-corrupt-check"] == "true"
    endpoint = next(each["value"] for each in container()["env"] if each["name"] == "DTF_ETCD_ENDPOINT")
    assert endpoint == ",".join(f"etcd-{number}.etcd:2379" for number in range(3))


@pytest.mark.process
def test_slurm_script():
    """bash can parse it, and it warns, requeues and survives a lost machine."""
    result = subprocess.run(["bash", "-n", str(CONFIGS / "slurm.sh")], capture_output=True, text=True, timeout=20)
    assert (result.returncode, result.stderr) == (0, "")
    options = re.findall(r"^#SBATCH (\S+)", slurm(), re.MULTILINE)
    assert {"--requeue", "--no-kill", "--signal=B:USR1@120"} <= set(options)
    assert "scontrol requeue" in slurm()


def test_systemd_unit():
    """The agent alone gets SIGTERM, and a failed node comes back."""
    service = unit()["Service"]
    assert (service["KillMode"], service["Restart"]) == ("mixed", "on-failure")
    assert set(unit().sections()) == {"Unit", "Service", "Install"}


def test_torchxconfig():
    """Sections for components that exist, keys that are their arguments."""
    from dtf_lightning.elastic.torchx import torchx_dist, torchx_elastic

    parser = configparser.ConfigParser()
    parser.read(CONFIGS / "torchxconfig")
    for name, component in (("dist.ddp", torchx_dist.ddp), ("elastic.ddp", torchx_elastic.ddp)):
        assert set(parser[f"component:{name}"]) <= component.__annotations__.keys()
