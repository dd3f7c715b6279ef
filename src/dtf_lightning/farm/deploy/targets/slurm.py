"""`slurm`: pilot jobs: each offers the machine that Slurm gives it to the farm, and drains before its time is over."""

from __future__ import annotations

from dtf_lightning.farm.deploy import commands
from dtf_lightning.farm.deploy.files import RenderedFile
from dtf_lightning.farm.deploy.settings_files import Places, Wanted, settings_file, worker_sections
from dtf_lightning.farm.deploy.templates import render

PLACES = Places(config="${HOME}/dtf-farm", secrets="${HOME}/dtf-farm", state="${TMPDIR}/dtf-farm")


def render_slurm(wanted: Wanted) -> list[RenderedFile]:
    """Return the files: a settings file, and a script for each class of workers."""
    command = commands.worker("worker.yaml")
    over = {"coordinator": {"token_file": "join.token", "ca_cert": "ca.pem"}}
    files = [settings_file("worker.yaml", worker_sections(wanted, PLACES, over=over), command)]
    for one in wanted.deployment.workers:
        text = render(
            "slurm.sh.j2",
            line=command.line(),
            words=command.words,
            name=one.name,
            replicas=max(1, one.replicas),
            cpus=max(1, round(one.cpus)),
            memory=one.memory,
            gpus=one.gpus,
        )
        files.append(RenderedFile(name=f"{one.name}.sh", text=text, executable=True))
    return files
