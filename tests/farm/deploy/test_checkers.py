"""Each format's own checker on the files of `dtf farm deploy`, and a planted fault in each that it must find."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.farm.deployed import manifests, rendered

pytestmark = pytest.mark.process


def checker(name):
    """The program, beside this Python or on PATH; the test is skipped where there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here: `pip install 'dtf-lightning[dev]'` brings those that come by pip")
    return found


def said(words, folder, text, name):
    """The exit code, and what the checker says of a file with this text."""
    path = folder / name
    path.write_text(text)
    done = subprocess.run([*words, str(path)], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def holds(words, folder, name, text, fault, finding):
    code, told = said(words, folder, text, name)
    assert code == 0, told
    assert fault[0] in text
    code, told = said(words, folder, text.replace(*fault, 1), name)
    assert code != 0
    assert finding in told


def test_shell_scripts(tmp_path):
    words = [checker("shellcheck")]
    text = rendered("systemd")["install.sh"].text
    holds(words, tmp_path, "install.sh", text, ('--upgrade "$package"', "--upgrade $package"), "SC2086")
    for name in ("worker.sh", "gpu.sh"):
        text = rendered("slurm")[name].text
        holds(words, tmp_path, name, text, ('exit "$code"', 'exit "$cod"'), "SC2154")


def test_units(tmp_path):
    """Unknown keys are warnings, so that its words count and not its exit code alone."""
    program = checker("systemd-analyze")
    for name, file in rendered("systemd").items():
        if not name.endswith((".service", ".timer")):
            continue
        text = file.text.replace("/opt/dtf-farm/bin/dtf ", "/bin/true ")
        (tmp_path / name).write_text(text)
    for path in sorted(tmp_path.iterdir()):
        code, told = said([program, "verify"], tmp_path, path.read_text(), path.name)
        assert (code, told) == (0, "")
    whole = (tmp_path / "dtf-farm-worker.service").read_text()
    for fault, finding in (
        (("NoNewPrivileges=yes", "NoNewPriviliges=yes"), "Unknown key"),
        (("Type=exec", "Type=often"), "Failed to parse"),
    ):
        _, told = said([program, "verify"], tmp_path, whole.replace(*fault), "dtf-farm-worker.service")
        assert finding in told


def test_images(tmp_path):
    words = [checker("hadolint")]
    for role in ("coordinator", "worker"):
        text = rendered("docker")[f"Dockerfile.{role}"].text
        fault = ("USER 10001:10001", "USER root")
        holds(words, tmp_path, f"Dockerfile.{role}", text, fault, "DL3002")


@pytest.mark.parametrize(
    ("target", "name", "schema", "fault"),
    [
        ("docker", "compose.yaml", "vendor.compose-spec", ("read_only: true", "read_only: [sometimes]")),
        ("github", ".github/workflows/farm.yml", "vendor.github-workflows", ("runs-on:", "runs-off:")),
        ("gitlab", ".gitlab-ci.yml", "vendor.gitlab-ci", ("interruptible: true", "interruptible: [1]")),
    ],
)
def test_schemas(target, name, schema, fault):
    """check-jsonschema's own copies of what the programs publish, in this process: its command takes a second to start."""
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("no check-jsonschema here: `pip install 'dtf-lightning[dev]'` brings it")
    import jsonschema
    from check_jsonschema.builtin_schemas import get_builtin_schema

    published = get_builtin_schema(schema)
    validator = jsonschema.validators.validator_for(published)(published)
    text = rendered(target)[name].text
    assert list(validator.iter_errors(yaml.safe_load(text))) == []
    assert fault[0] in text
    assert list(validator.iter_errors(yaml.safe_load(text.replace(*fault, 1))))


def test_manifests():
    if importlib.util.find_spec("kubernetes_validate") is None:
        pytest.skip("no kubernetes-validate here: `pip install 'dtf-lightning[dev]'` brings it")
    import kubernetes_validate

    version = kubernetes_validate.latest_version()
    documents = manifests(rendered("kubernetes"))
    assert {one["kind"] for one in documents} >= {"StatefulSet", "DaemonSet", "Deployment", "NetworkPolicy", "Service"}
    for one in documents:
        kubernetes_validate.validate(one, version, strict=True)
    (one,) = (one for one in documents if one["kind"] == "DaemonSet")
    one["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(one, version, strict=True)


def test_powershell(tmp_path):
    program = checker("pwsh")
    parse = "[void][System.Management.Automation.Language.Parser]::ParseFile($args[0], [ref]$null, [ref]$faults); exit $faults.Count"
    words = [program, "-NoProfile", "-Command", f"& {{ {parse} }}"]
    text = rendered("windows")["install.ps1"].text
    assert said(words, tmp_path, text, "install.ps1")[0] == 0
    assert (
        said(words, tmp_path, text.replace("foreach ($one in $Role) {", "foreach ($one in $Role {"), "install.ps1")[0]
        > 0
    )
