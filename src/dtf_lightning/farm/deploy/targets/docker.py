"""`docker`: an image for each role from one BASE, and a Compose file of etcd, coordinators and workers."""

from __future__ import annotations

from typing import Any

from dtf_lightning.farm.deploy import commands
from dtf_lightning.farm.deploy.files import FarmCommand, RenderedFile
from dtf_lightning.farm.deploy.model import Deployment, WorkerClass
from dtf_lightning.farm.deploy.settings_files import (
    Places,
    Wanted,
    coordinator_sections,
    settings_file,
    worker_sections,
)
from dtf_lightning.farm.deploy.templates import render
from dtf_lightning.settings.written_yaml import write_yaml

UID = 10001
"""Of the user in the images."""
PLACES = Places(config="/etc/dtf-farm", secrets="/run/secrets", state="/var/lib/dtf-farm")
COORDINATOR = commands.coordinator(PLACES(PLACES.config, "coordinator.yaml"))
WORKER = commands.worker(PLACES(PLACES.config, "worker.yaml"))
ETCD = "http://etcd:2379"
COMMON: dict[str, dict[str, Any]] = {
    "security": {"tls_cert": "/run/secrets/tls.crt", "tls_key": "/run/secrets/tls.key"}
}


def dockerfiles(wanted: Wanted) -> list[RenderedFile]:
    """Return what the images are built of."""
    roles = {"coordinator": COORDINATOR, "worker": WORKER}
    return [
        RenderedFile(
            name=f"Dockerfile.{role}",
            text=render(
                "Dockerfile.j2",
                role=role,
                base=wanted.deployment.base,
                package=wanted.deployment.package,
                port=wanted.deployment.port,
                uid=UID,
                state=PLACES.state,
                words=command.words,
                line=command.line(),
            ),
        )
        for role, command in roles.items()
    ]


def render_docker(wanted: Wanted) -> list[RenderedFile]:
    """Return the files."""
    deployment = wanted.deployment
    names = [f"coordinator-{number}" for number in range(1, deployment.coordinators + 1)]
    etcd = {} if deployment.etcd else {"etcd": {"endpoint": ETCD}}
    shared = {"farm": {"shared": True}}
    server = {"server": {"advertise": f"https://${{COORDINATOR_ID}}:{deployment.port}"}}
    coordinator = coordinator_sections(wanted, PLACES, over=COMMON | etcd | shared | server)
    urls = ",".join(f"https://{name}:{deployment.port}" for name in names)
    worker = worker_sections(wanted, PLACES, over={"coordinator": {"url": urls, "ca_cert": "/run/secrets/ca.pem"}})
    header = f"# Coordinators run: {COORDINATOR.line()}\n# Workers run: {WORKER.line()}\n"
    return [
        *dockerfiles(wanted),
        RenderedFile(name="compose.yaml", text=header + write_yaml(_compose(deployment, names))),
        settings_file("coordinator.yaml", coordinator, COORDINATOR),
        settings_file("worker.yaml", worker, WORKER),
        RenderedFile(
            name="README.md",
            text=render("docker.md.j2", names=names, uid=UID, port=deployment.port, farm=deployment.farm),
        ),
    ]


def _compose(deployment: Deployment, names: list[str]) -> dict[str, Any]:
    services: dict[str, Any] = {} if deployment.etcd else {"etcd": _etcd(deployment)}
    for number, name in enumerate(names):
        services[name] = _service(
            deployment.image_of("coordinator"),
            "coordinator",
            COORDINATOR,
            {
                "environment": {"COORDINATOR_ID": name},
                "ports": [f"{deployment.port + number}:{deployment.port}"],
                "networks": ["inside", "outside"],
                "volumes": ["./coordinator.yaml:/etc/dtf-farm/coordinator.yaml:ro", f"farm:{PLACES.state}"],
                "secrets": ["token", "tls.crt", "tls.key"],
                **({} if deployment.etcd else {"depends_on": {"etcd": {"condition": "service_healthy"}}}),
            },
        )
    services |= {one.name: _worker(deployment, one) for one in deployment.workers}
    secrets = ("token", "join.token", "tls.crt", "tls.key", "ca.pem")
    return {
        "name": deployment.farm,
        "services": services,
        "networks": {"inside": {"internal": True}, "outside": {}},
        "volumes": {"farm": {}} | ({} if deployment.etcd else {"etcd": {}}),
        "secrets": {name: {"file": f"./secrets/{name}"} for name in secrets},
    }


def _etcd(deployment: Deployment) -> dict[str, Any]:
    """One member, which the coordinators alone reach."""
    return {
        "image": deployment.etcd_image,
        "command": [
            "etcd",
            "--data-dir=/etcd-data",
            "--listen-client-urls=http://0.0.0.0:2379",
            f"--advertise-client-urls={ETCD}",
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=1h",
        ],
        "volumes": ["etcd:/etcd-data"],
        "networks": ["inside"],
        "healthcheck": {"test": ["CMD", "etcdctl", "endpoint", "health"], "interval": "5s", "retries": 12},
        "restart": "unless-stopped",
    }


def _worker(deployment: Deployment, one: WorkerClass) -> dict[str, Any]:
    service = _service(
        deployment.image_of("worker"),
        "worker",
        WORKER,
        {
            "networks": ["outside"],
            "volumes": ["./worker.yaml:/etc/dtf-farm/worker.yaml:ro"],
            "secrets": ["join.token", "ca.pem"],
            "tmpfs": [f"/tmp:mode=1777,size={one.memory // 4}m"],
            "cpus": one.cpus,
            "mem_limit": f"{one.memory}m",
            "scale": one.replicas,
            "stop_grace_period": "1h",
        },
    )
    if one.gpus:
        device = {"driver": "nvidia", "count": one.gpus, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return service


def _service(image: str, role: str, command: FarmCommand, more: dict[str, Any]) -> dict[str, Any]:
    return {
        "image": image,
        "build": {"context": ".", "dockerfile": f"Dockerfile.{role}"},
        "command": list(command.words),
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
        "tmpfs": ["/tmp:mode=1777"],
        **more,
    }
