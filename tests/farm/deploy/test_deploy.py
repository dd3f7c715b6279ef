"""What `dtf farm deploy` writes: commands and settings that exist, no secrets, nothing overwritten."""

from __future__ import annotations

import plistlib
import re
import xml.etree.ElementTree as ET

import pytest
import yaml

from dtf_lightning import environment
from dtf_lightning.__main__ import build_parser, main
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.deploy.files import FarmCommand, RenderedFile, write_files
from dtf_lightning.farm.deploy.render import TARGETS, deployment_of, render_target
from dtf_lightning.farm.deploy.settings_files import Wanted, changed
from dtf_lightning.farm.deploy.targets.systemd import command_line
from dtf_lightning.farm.deploy.templates import quoted_for_cmd, quoted_for_powershell, render
from dtf_lightning.farm.settings import coordinator as of_coordinator
from dtf_lightning.farm.settings import worker as of_worker
from dtf_lightning.farm.settings.coordinator import CoordinatorSettings
from dtf_lightning.farm.settings.worker import WorkerSettings
from support.farm.deployed import TASK, command_lines, manifests, pod_specs, rendered, wanted

PARSER = build_parser()
ALL = [(target, name) for target in TARGETS for name in rendered(target)]
RUNS_NOTHING = {"dtf-farm-backup.timer": "its service does"}


@pytest.mark.parametrize(("target", "name"), ALL)
def test_every_command_line_is_one(target, name):
    """Each file says which command it is for, and the command line's own parser takes every one that stands in it."""
    lines = list(command_lines(rendered(target)[name]))
    assert lines
    for words in lines:
        PARSER.parse_args(words)


def test_a_command_that_does_not_exist_is_found():
    file = RenderedFile(
        name="x.service", text="[Service]\nExecStart=/opt/dtf-farm/bin/dtf farm coordinater --config x\n"
    )
    (words,) = command_lines(file)
    with pytest.raises(SystemExit):
        PARSER.parse_args(words)


SETTINGS = [(target, name) for target, name in ALL if re.fullmatch(r"(coordinator|page|worker)\.yaml", name)]


def loaded(target, name, text, folder, monkeypatch):
    for variable in ("COORDINATOR_ID", "TMPDIR", "HOME"):
        monkeypatch.setenv(variable, f"/{variable}")
    path = folder / name
    path.write_text(text)
    settings = (WorkerSettings if name.startswith("worker") else CoordinatorSettings).load(path)
    assert settings.warnings == ()
    return settings


@pytest.mark.parametrize(("target", "name"), SETTINGS)
def test_every_setting_is_one(target, name, tmp_path, monkeypatch):
    settings = loaded(target, name, rendered(target)[name].text, tmp_path, monkeypatch)
    if isinstance(settings, CoordinatorSettings):
        assert settings.tls_files is not None
        assert not settings.security.insecure


def test_settings_of_kubernetes(tmp_path, monkeypatch):
    (config,) = (one for one in manifests(rendered("kubernetes")) if one["kind"] == "ConfigMap")
    assert len(config["data"]) == 2
    for name, text in config["data"].items():
        loaded("kubernetes", name, text, tmp_path, monkeypatch)


def test_every_variable_is_one():
    """Of what a file gives its program, that program, or a command of ours, reads each."""
    ours = {*of_coordinator.VARIABLES, *of_worker.VARIABLES}
    ours |= {value for name, value in vars(environment).items() if name.isupper() and isinstance(value, str)}
    told = {"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PATH", "HOME", "TMPDIR", "POD"}  # others' programs
    told |= {"DTF_FARM_TOKEN", "DTF_FARM_CA_PEM", "DTF_GITLAB_TOKEN"}  # secrets of the forges
    found = set()
    for target in TARGETS:
        files = rendered(target)
        for file in files.values():
            # Of the action: inputs, which its scripts read as variables.
            inputs = re.findall(r"\b(DTF_[A-Z_]+): \$\{\{", file.text)
            told.update(name for name in inputs if file.text.count(f"${name}"))
            found.update(re.findall(r"\b(?:Environment=|export )([A-Z_]+)=", file.text))
            found.update(re.findall(r"\b(?:DTF|WORKER|COORDINATOR)_[A-Z_]+\b", file.text))
        for _, spec in pod_specs(manifests(files)):
            found.update(one["name"] for container in spec["containers"] for one in container.get("env", []))
    assert {"COORDINATOR_ID", "WORKER_ID", "DTF_FARM_URL"} <= found
    assert found - ours - told == set()


def test_no_secret_is_written(tmp_path):
    """Whatever the settings hold: a key of a worker, and what a coordinator was given."""
    (tmp_path / "w.yaml").write_text("coordinator:\n  api_key: s3cret\nworker:\n  labels: [lab]\n")
    settings = WorkerSettings.load(tmp_path / "w.yaml")
    assert settings.coordinator.api_key == "s3cret"
    for target in TARGETS:
        files = render_target(
            target, Wanted(deployment=deployment_of(), coordinator=CoordinatorSettings(), worker=settings)
        )
        for file in files:
            assert "s3cret" not in file.text
            assert not re.search(r"kind: Secret$|stringData", file.text, re.MULTILINE)
    assert changed(settings) == {"worker": {"labels": ["lab"]}}


def test_settings_of_ones_own_hold(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "farm: {name: lab}\nserver: {port: 9000}\nretention: {logs: 3d}\netcd: {endpoint: 'e1:2379,e2:2379'}\n"
        "archive: {url: 's3://bucket/lab'}\n"
    )
    assert (
        main(["farm", "deploy", "systemd", "--output", str(tmp_path / "out"), "--config", str(tmp_path / "c.yaml")])
        == 0
    )
    told = yaml.safe_load((tmp_path / "out" / "coordinator.yaml").read_text())
    assert (told["farm"]["name"], told["server"]["port"], told["retention"]) == ("lab", 9000, {"logs": 259200.0})
    assert (told["etcd"], told["archive"]) == ({"endpoint": "e1:2379,e2:2379"}, {"url": "s3://bucket/lab"})


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ({"farm": "A farm"}, "farm: got 'A farm', expected small letters, digits and hyphens"),
        ({"coordinators": 0}, "coordinators: "),
        ({"package": "x; rm -rf /"}, "package: "),
        ({"base": "$(id)"}, "base: "),
        ({"etcd": ("no port",)}, "etcd.0: got 'no port', expected HOST:PORT"),
        ({"workers": ({"name": "a"}, {"name": "a"})}, "two classes of workers have one name: a, a"),
        ({"workers": ({"name": "a", "gpu": 1},)}, "workers.0.gpu is unknown; did you mean 'gpus'?"),
        ({"workers": ({"name": "a", "replicas": "many"},)}, "workers.0.replicas: "),
    ],
)
def test_what_does_not_fit(told, fault):
    with pytest.raises(SettingsError, match=re.escape(fault)):
        deployment_of(**told)


def test_no_such_target():
    with pytest.raises(SettingsError, match="did you mean 'kubernetes'"):
        render_target("kubernets", wanted())


def test_nothing_is_overwritten(tmp_path):
    """All or none; what is the same stays; --force does."""
    a, b = (RenderedFile(name=f"x/{name}", text="new\n") for name in "ab")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "b").write_text("my own\n")
    with pytest.raises(SettingsError, match="is there and has another content"):
        write_files(tmp_path, [a, b])
    assert not (tmp_path / "x" / "a").exists()
    write_files(tmp_path, [a])
    write_files(tmp_path, [a])
    write_files(tmp_path, [a, b], force=True)
    assert (tmp_path / "x" / "b").read_text() == "new\n"


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be"):
        write_files(tmp_path / "file", [RenderedFile(name="a", text="\n")])


def test_words_are_quoted():
    told = FarmCommand(words=("farm", "a b", '50%"$x'))
    assert told.line() == """dtf farm 'a b' '50%"$x'"""
    assert command_line(told) == '/opt/dtf-farm/bin/dtf farm "a b" "50%%\\"$$x"'
    assert quoted_for_powershell("it's") == "'it''s'"
    assert quoted_for_cmd("50%") == '"50%%"'
    with pytest.raises(ValueError, match="batch file"):
        quoted_for_cmd('a"b')


def test_a_template_that_nobody_gives_a_value_is_an_error():
    with pytest.raises(Exception, match="'package' is undefined"):
        render("install.ps1.j2", root="C:", roles=["worker"], lines=[])


# --- what no checker looks at ----------------------------------------------------------------------------------------


def faults_of_pod(spec):
    """What the pod security standard "restricted" has against a pod (kubernetes.io/docs/concepts/security/pod-security-standards)."""
    pod = spec.get("securityContext", {})
    faults = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    faults += [f"volume {one['name']}" for one in spec.get("volumes", []) if "hostPath" in one]
    if pod.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        faults.append("seccomp")
    for one in [*spec["containers"], *spec.get("initContainers", [])]:
        own = {**pod, **one.get("securityContext", {})}
        if own.get("runAsNonRoot") is not True or own.get("runAsUser") == 0:
            faults.append(f"{one['name']}: root")
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            faults.append(f"{one['name']}: privileges")
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
            faults.append(f"{one['name']}: capabilities")
    return faults


def test_pods_are_restricted():
    specs = dict(pod_specs(manifests(rendered("kubernetes"))))
    assert len(specs) == 6
    assert {name: faults_of_pod(spec) for name, spec in specs.items()} == {name: [] for name in specs}


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("runAsNonRoot", False, "root"),
        ("allowPrivilegeEscalation", True, "privileges"),
        ("capabilities", {"drop": ["ALL"], "add": ["SYS_ADMIN"]}, "capabilities"),
    ],
)
def test_a_pod_that_is_not_is_found(key, value, fault):
    spec = next(spec for _, spec in pod_specs(manifests(rendered("kubernetes"))))
    spec["containers"][0]["securityContext"][key] = value
    assert faults_of_pod(spec) == [f"{spec['containers'][0]['name']}: {fault}"]


def faults_of_references(documents):
    """Names that manifests use of each other, or of Secrets that their README makes, and that nobody has."""
    there = {(one["kind"], one["metadata"]["name"]) for one in documents}
    there |= {
        ("Secret", name)
        for name in ("dtf-farm-tls", "dtf-farm-token", "dtf-farm-join-token", "etcd-client-tls", "etcd-server-tls")
    }
    used = set()
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in documents if "template" in one.get("spec", {})]
    faults = []
    for one in documents:
        spec = one.get("spec", {})
        if one["kind"] == "Service" and not any(spec["selector"].items() <= each.items() for each in labels):
            faults.append(f"Service {one['metadata']['name']} selects nobody")
        if "serviceName" in spec:
            used.add(("Service", spec["serviceName"]))
        if "scaleTargetRef" in spec:
            used.add((spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"]))
    for _, spec in pod_specs(documents):
        names = {volume["name"] for volume in spec["volumes"]} | {"data"}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            faults += [f"{container['name']} mounts {name}" for name in sorted(mounted - names)]
        for volume in spec["volumes"]:
            if "secret" in volume:
                used.add(("Secret", volume["secret"]["secretName"]))
            if "configMap" in volume:
                used.add(("ConfigMap", volume["configMap"]["name"]))
            if "persistentVolumeClaim" in volume:
                used.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
    return faults + [f"no {kind} {name}" for kind, name in sorted(used - there)]


def test_manifests_fit_together():
    files = rendered("kubernetes")
    assert faults_of_references(manifests(files)) == []
    readme = files["README.md"].text
    for name in ("dtf-farm-tls", "dtf-farm-token", "dtf-farm-join-token", "etcd-client-tls", "etcd-server-tls"):
        assert name in readme
    external = manifests(rendered("kubernetes", etcd=("https://e1:2379",)))
    assert "etcd" not in {one["metadata"]["name"] for one in external}
    assert faults_of_references(external) == []


def test_manifests_that_do_not_are_found():
    documents = [one for one in manifests(rendered("kubernetes")) if one["kind"] != "ConfigMap"]
    assert faults_of_references(documents) == ["no ConfigMap dtf-farm-config"]


LAUNCHD = {
    "Label", "ProgramArguments", "UserName", "RunAtLoad", "KeepAlive", "ThrottleInterval", "ProcessType", "ExitTimeOut", "Umask",
    "WorkingDirectory", "StandardOutPath", "StandardErrorPath", "SoftResourceLimits", "HardResourceLimits",
}  # fmt: skip
"""Keys of launchd.plist(5) that are used; plistlib loads a misspelt one."""


def faults_of_plist(file):
    told = plistlib.loads(file.data)
    return sorted(told.keys() - LAUNCHD) + ["Label"] * (told["Label"] + ".plist" != file.name)


def test_property_lists():
    files = [file for file in rendered("launchd").values() if file.name.endswith(".plist")]
    assert [faults_of_plist(file) for file in files] == [[], []]
    wrong = RenderedFile(name=files[0].name, text=files[0].text.replace("KeepAlive", "KeepAlife"))
    assert faults_of_plist(wrong) == ["KeepAlife"]


TASK_ORDER = ("RegistrationInfo", "Triggers", "Principals", "Settings", "Actions")


def faults_of_task(text):
    root = ET.fromstring(text)
    parts = [part.tag.removeprefix(TASK) for part in root]
    faults = [] if tuple(parts) == TASK_ORDER else [f"parts {parts}"]
    named = root.find(f"{TASK}Principals/{TASK}Principal").get("id")
    if root.find(f"{TASK}Actions").get("Context") != named:
        faults.append("nobody's action")
    return faults


def test_scheduled_tasks():
    files = [file for file in rendered("windows").values() if file.name.endswith(".xml")]
    assert [faults_of_task(file.text) for file in files] == [[], []]
    assert faults_of_task(files[0].text.replace('id="Author"', 'id="Other"')) == ["nobody's action"]


def test_files_for_windows_have_its_line_ends():
    for file in rendered("windows").values():
        assert (b"\r\n" in file.data) == (not file.name.endswith(".xml"))


def test_a_workflows_job_names_no_runner():
    """A job's `env` is made before it has one; the schema takes it."""
    job = yaml.safe_load(rendered("github")[".github/workflows/farm.yml"].text)["jobs"]["tests"]
    assert "runner." not in str(job.get("env"))
    assert job["steps"][-1]["with"]["command"] == "dtf farm run -- python3 -m pytest"
