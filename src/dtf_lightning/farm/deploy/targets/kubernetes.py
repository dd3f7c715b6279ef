"""`kubernetes`: plain manifests: coordinators as a StatefulSet, workers by class, the page, etcd, and what keeps them apart.

Rules that this file guards:
- All pods fit the pod security standard "restricted": no root, no capabilities, a read-only root, seccomp's default.
- Tokens and keys come from Secrets that are made by hand. A token must be its user's alone, which a Secret's file of another owner is
  not: a container that runs first copies it into memory, with the mode that the farm wants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dtf_lightning.farm.deploy import commands
from dtf_lightning.farm.deploy.files import RenderedFile
from dtf_lightning.farm.deploy.model import Deployment, WorkerClass
from dtf_lightning.farm.deploy.settings_files import Places, Wanted, coordinator_sections, worker_sections
from dtf_lightning.farm.deploy.targets.docker import UID, dockerfiles
from dtf_lightning.farm.deploy.templates import render
from dtf_lightning.settings.written_yaml import write_yaml

NAME = "dtf-ha-coordinator"
HEADLESS = f"{NAME}-headless"
PAGE = "dtf-dashboard"
PLACES = Places(config="/etc/dtf-farm", secrets="/run/dtf-farm", state="/var/lib/dtf-farm")
COORDINATOR = commands.coordinator("/etc/dtf-farm/coordinator.yaml")
WORKER = commands.worker("/etc/dtf-farm/worker.yaml")
BACKUPS = "/var/backups/dtf-farm"
BACKUP = commands.backup("/etc/dtf-farm/coordinator.yaml", BACKUPS)
ETCD = "https://etcd-client:2379"
DRAINING = 3600
"""Seconds for a worker to finish what it runs."""

Manifest = dict[str, Any]


def render_kubernetes(wanted: Wanted) -> list[RenderedFile]:
    """Return the files."""
    deployment = wanted.deployment
    files = {
        "namespace.yaml": [_namespace(deployment)],
        "config.yaml": [_config(wanted)],
        "storage.yaml": [_storage(deployment)],
        "ha-coordinator-statefulset.yaml": [_coordinators(deployment)],
        "ha-coordinator-headless-service.yaml": [_service(deployment, HEADLESS, NAME, headless=True)],
        "ha-coordinator-service.yaml": [_service(deployment, NAME, NAME)],
        "dashboard-deployment.yaml": [_page(deployment)],
        "dashboard-service.yaml": [_service(deployment, PAGE, PAGE)],
        "backup-cronjob.yaml": _backups(deployment),
        "ha-worker-deployment.yaml": [_workers(deployment, one) for one in deployment.workers],
        "disruption-budgets.yaml": _budgets(deployment),
        "network-policies.yaml": _policies(deployment),
    }
    if scaled := [one for one in deployment.workers if not one.every_node]:
        files["autoscaler.yaml"] = [_autoscaler(deployment, one) for one in scaled]
    if not deployment.etcd:
        files["etcd.yaml"] = _etcd(deployment)
    header = f"# Coordinators run: {COORDINATOR.line()}\n# Workers run: {WORKER.line()}\n"
    return [
        *(RenderedFile(name=name, text=header + write_yaml(*documents)) for name, documents in files.items()),
        *dockerfiles(wanted),
        RenderedFile(
            name="README.md",
            text=render(
                "kubernetes.md.j2",
                namespace=deployment.namespace,
                name=NAME,
                headless=HEADLESS,
                page=PAGE,
                numbers=list(range(deployment.coordinators)),
                etcd=not deployment.etcd,
                images=[deployment.image_of(role) for role in ("coordinator", "worker")],
            ),
        ),
    ]


# --- what all have ---------------------------------------------------------------------------------------------------


def _object(deployment: Deployment, api: str, kind: str, name: str, **more: Any) -> Manifest:
    labels = {"app.kubernetes.io/part-of": "dtf-farm", "app.kubernetes.io/instance": deployment.farm}
    metadata: Manifest = {"name": name, "namespace": deployment.namespace, "labels": labels}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **more}


def _pod(app: str, spec: Manifest) -> Manifest:
    return {
        "metadata": {"labels": {"app": app}},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": UID,
                "runAsGroup": UID,
                "fsGroup": UID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **spec,
        },
    }


def _container(name: str, image: str, **more: Any) -> Manifest:
    return {
        "name": name,
        "image": image,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **more,
    }


def _private_copies(image: str, secret: str, names: Iterable[str]) -> Manifest:
    """The container that makes files of a Secret its user's alone."""
    copies = " && ".join(f"cp /secrets/{name} {PLACES.secrets}/{name}" for name in names)
    return _container(
        "private-files",
        image,
        command=["/bin/sh", "-c", f"umask 077 && {copies}"],
        resources=_resources(0.05, 32),
        volumeMounts=[
            {"name": secret, "mountPath": "/secrets", "readOnly": True},
            {"name": "private", "mountPath": PLACES.secrets},
        ],
    )


def _resources(cpus: float, memory: int, limits: Mapping[str, Any] | None = None) -> Manifest:
    asked = {"cpu": f"{round(cpus * 1000)}m", "memory": f"{memory}Mi"}
    return {"requests": asked, "limits": {"memory": f"{memory}Mi", **(limits or {})}}


def _secret(name: str, secret: str) -> Manifest:
    return {"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}}


def _memory(name: str) -> Manifest:
    return {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}


def _probe(deployment: Deployment, **more: Any) -> Manifest:
    # Without a token one learns that it lives. `Host` must be a name that it serves, which a pod's address is not.
    asked = {
        "path": "/api/health",
        "port": "api",
        "scheme": "HTTPS",
        "httpHeaders": [{"name": "Host", "value": f"{NAME}:{deployment.port}"}],
    }
    return {"httpGet": asked, "timeoutSeconds": 5, **more}


def _namespace(deployment: Deployment) -> Manifest:
    levels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": deployment.namespace, "labels": levels},
    }


def _config(wanted: Wanted) -> Manifest:
    deployment = wanted.deployment
    tls = {"tls_cert": "/etc/dtf-farm/tls/tls.crt", "tls_key": f"{PLACES.secrets}/tls.key"}
    etcd: Manifest = {
        "endpoint": ",".join(deployment.etcd) or ETCD,
        "ca_cert": "/etc/dtf-farm/etcd/ca.crt",
        "cert": "/etc/dtf-farm/etcd/tls.crt",
        "key": "/etc/dtf-farm/etcd/tls.key",
    }
    if deployment.etcd and not deployment.etcd[0].startswith("https://"):
        etcd = {"endpoint": etcd["endpoint"]}
    coordinator = coordinator_sections(
        wanted,
        PLACES,
        over={
            "server": {"advertise": f"https://${{COORDINATOR_ID}}.{HEADLESS}:{deployment.port}"},
            "farm": {"shared": True},
            "database": {"path": "/var/cache/dtf-farm/results.duckdb"},
            "security": tls,
            "etcd": etcd,
        },
    )
    worker = worker_sections(
        wanted,
        PLACES,
        over={"coordinator": {"url": f"https://{NAME}:{deployment.port}", "ca_cert": "/etc/dtf-farm/tls/ca.crt"}},
    )
    data = {"coordinator.yaml": write_yaml(coordinator), "worker.yaml": write_yaml(worker)}
    return _object(deployment, "v1", "ConfigMap", "dtf-farm-config", data=data)


def _storage(deployment: Deployment) -> Manifest:
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "50Gi"}}}
    return _object(deployment, "v1", "PersistentVolumeClaim", "dtf-farm-files", spec=spec)


# --- coordinators ----------------------------------------------------------------------------------------------------


def _coordinator_volumes(deployment: Deployment) -> tuple[list[Manifest], list[Manifest]]:
    """Return where volumes are mounted, and what they are."""
    mounts: list[Manifest] = [
        {
            "name": "config",
            "mountPath": "/etc/dtf-farm/coordinator.yaml",
            "subPath": "coordinator.yaml",
            "readOnly": True,
        },
        {"name": "tls", "mountPath": "/etc/dtf-farm/tls", "readOnly": True},
        {"name": "private", "mountPath": PLACES.secrets},
        {"name": "files", "mountPath": PLACES.state},
        {"name": "cache", "mountPath": "/var/cache/dtf-farm"},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    volumes: list[Manifest] = [
        {"name": "config", "configMap": {"name": "dtf-farm-config"}},
        {
            "name": "tls",
            "secret": {
                "secretName": "dtf-farm-tls",
                "defaultMode": 0o440,
                "items": [{"key": name, "path": name} for name in ("tls.crt", "ca.crt")],
            },
        },
        {
            "name": "secrets",
            "projected": {
                "defaultMode": 0o440,
                "sources": [
                    {"secret": {"name": "dtf-farm-token", "items": [{"key": "token", "path": "token"}]}},
                    {"secret": {"name": "dtf-farm-tls", "items": [{"key": "tls.key", "path": "tls.key"}]}},
                ],
            },
        },
        _memory("private"),
        {"name": "files", "persistentVolumeClaim": {"claimName": "dtf-farm-files"}},
        {"name": "cache", "emptyDir": {"sizeLimit": "10Gi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
    ]
    if not deployment.etcd or deployment.etcd[0].startswith("https://"):
        mounts.append({"name": "etcd-tls", "mountPath": "/etc/dtf-farm/etcd", "readOnly": True})
        volumes.append(_secret("etcd-tls", "etcd-client-tls"))
    return mounts, volumes


def _coordinator_pod(deployment: Deployment, app: str) -> Manifest:
    image = deployment.image_of("coordinator")
    mounts, volumes = _coordinator_volumes(deployment)
    container = _container(
        "coordinator",
        image,
        args=list(COORDINATOR.words),
        env=[{"name": "COORDINATOR_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        ports=[{"name": "api", "containerPort": deployment.port}],
        startupProbe=_probe(deployment, periodSeconds=5, failureThreshold=60),
        readinessProbe=_probe(deployment, periodSeconds=5, failureThreshold=2),
        livenessProbe=_probe(deployment, periodSeconds=20, failureThreshold=6),
        resources=_resources(0.5, 2048),
        volumeMounts=mounts,
    )
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": app}},
    }
    return _pod(
        app,
        {
            "terminationGracePeriodSeconds": 40,
            "topologySpreadConstraints": [spread],
            "initContainers": [_private_copies(image, "secrets", ("token", "tls.key"))],
            "containers": [container],
            "volumes": volumes,
        },
    )


def _coordinators(deployment: Deployment) -> Manifest:
    spec = {
        "serviceName": HEADLESS,
        "replicas": deployment.coordinators,
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": {"app": NAME}},
        "template": _coordinator_pod(deployment, NAME),
    }
    return _object(deployment, "apps/v1", "StatefulSet", NAME, spec=spec)


def _backups(deployment: Deployment) -> list[Manifest]:
    """Every night, onto a claim of its own, with what a coordinator has."""
    pod = _coordinator_pod(deployment, "dtf-backup")
    (container,) = pod["spec"]["containers"]
    for name in ("ports", "startupProbe", "readinessProbe", "livenessProbe"):
        del container[name]
    container |= {"name": "backup", "args": list(BACKUP.words)}
    container["volumeMounts"].append({"name": "backups", "mountPath": BACKUPS})
    pod["spec"]["volumes"].append({"name": "backups", "persistentVolumeClaim": {"claimName": "dtf-farm-backups"}})
    pod["spec"]["restartPolicy"] = "OnFailure"
    job = {
        "schedule": "17 3 * * *",
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 3600,
        "jobTemplate": {"spec": {"backoffLimit": 3, "template": pod}},
    }
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "50Gi"}}}
    return [
        _object(deployment, "v1", "PersistentVolumeClaim", "dtf-farm-backups", spec=claim),
        _object(deployment, "batch/v1", "CronJob", "dtf-backup", spec=job),
    ]


def _page(deployment: Deployment) -> Manifest:
    """A coordinator that people open; it serves and may lead as the others."""
    template = _coordinator_pod(deployment, PAGE)
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": PAGE}}, "template": template}
    return _object(deployment, "apps/v1", "Deployment", PAGE, spec=spec)


def _service(deployment: Deployment, name: str, app: str, *, headless: bool = False) -> Manifest:
    spec: Manifest = {
        "selector": {"app": app},
        "ports": [{"name": "api", "port": deployment.port, "targetPort": "api"}],
    }
    if headless:
        spec = {"clusterIP": "None", "publishNotReadyAddresses": True, **spec}
    return _object(deployment, "v1", "Service", name, spec=spec)


# --- workers ---------------------------------------------------------------------------------------------------------


def _worker_name(one: WorkerClass) -> str:
    return f"dtf-ha-{one.name}"


def _workers(deployment: Deployment, one: WorkerClass) -> Manifest:
    image = deployment.image_of("worker")
    accelerators = {"nvidia.com/gpu": one.gpus} if one.gpus else {}
    container = _container(
        "worker",
        image,
        args=list(WORKER.words),
        env=[{"name": "WORKER_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        resources=_resources(one.cpus, one.memory, accelerators),
        volumeMounts=[
            {"name": "config", "mountPath": "/etc/dtf-farm/worker.yaml", "subPath": "worker.yaml", "readOnly": True},
            {"name": "tls", "mountPath": "/etc/dtf-farm/tls", "readOnly": True},
            {"name": "private", "mountPath": PLACES.secrets},
            {"name": "work", "mountPath": PLACES.state},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    )
    ca = {"secretName": "dtf-farm-tls", "defaultMode": 0o440, "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    pod: Manifest = {
        "terminationGracePeriodSeconds": DRAINING,  # SIGTERM drains it
        "initContainers": [_private_copies(image, "join", ("join.token",))],
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": "dtf-farm-config"}},
            {"name": "tls", "secret": ca},
            _secret("join", "dtf-farm-join-token"),
            _memory("private"),
            {"name": "work", "emptyDir": {"sizeLimit": "50Gi"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "10Gi"}},
        ],
    }
    if one.gpus:
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    name = _worker_name(one)
    spec: Manifest = {"selector": {"matchLabels": {"app": name}}, "template": _pod(name, pod)}
    spec["template"]["metadata"]["labels"]["dtf-farm/role"] = "worker"
    if one.every_node:
        if one.gpus:
            pod["nodeSelector"] = {"nvidia.com/gpu.present": "true"}
            spec["template"] = _pod(name, pod)
            spec["template"]["metadata"]["labels"]["dtf-farm/role"] = "worker"
        return _object(deployment, "apps/v1", "DaemonSet", name, spec=spec)
    return _object(deployment, "apps/v1", "Deployment", name, spec={"replicas": one.replicas, **spec})


def _autoscaler(deployment: Deployment, one: WorkerClass) -> Manifest:
    """By use of the processor: the farm does not export the length of its queue as a metric yet."""
    name = _worker_name(one)
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
        "minReplicas": max(1, one.replicas),
        "maxReplicas": max(1, one.replicas) * 4,
        "metrics": [
            {
                "type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
            }
        ],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}},
    }
    return _object(deployment, "autoscaling/v2", "HorizontalPodAutoscaler", name, spec=spec)


# --- around them -----------------------------------------------------------------------------------------------------


def _budgets(deployment: Deployment) -> list[Manifest]:
    apps = {NAME: 1} | ({} if deployment.etcd else {"etcd": 1})
    return [
        _object(
            deployment,
            "policy/v1",
            "PodDisruptionBudget",
            app,
            spec={"maxUnavailable": number, "selector": {"matchLabels": {"app": app}}},
        )
        for app, number in apps.items()
    ]


def _policies(deployment: Deployment) -> list[Manifest]:
    """Nobody is reached but coordinators, by all, etcd, by coordinators, and workers, by each other: members of a gang meet."""
    serving = {"matchExpressions": [{"key": "app", "operator": "In", "values": [NAME, PAGE]}]}
    reading = {"matchExpressions": [{"key": "app", "operator": "In", "values": [NAME, PAGE, "dtf-backup"]}]}
    workers = {"matchLabels": {"dtf-farm/role": "worker"}}
    policies: dict[str, Manifest] = {
        "nobody-is-reached": {"podSelector": {}, "policyTypes": ["Ingress"]},
        "coordinators-are-reached": {
            "podSelector": serving,
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"port": "api", "protocol": "TCP"}]}],
        },
        "workers-meet": {
            "podSelector": workers,
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": workers}]}],
        },
    }
    if not deployment.etcd:
        policies["etcd-is-reached"] = {
            "podSelector": {"matchLabels": {"app": "etcd"}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": reading}], "ports": [{"port": 2379, "protocol": "TCP"}]},
                {
                    "from": [{"podSelector": {"matchLabels": {"app": "etcd"}}}],
                    "ports": [{"port": 2379, "protocol": "TCP"}, {"port": 2380, "protocol": "TCP"}],
                },
            ],
        }
    return [
        _object(deployment, "networking.k8s.io/v1", "NetworkPolicy", name, spec=spec) for name, spec in policies.items()
    ]


def _etcd_words() -> list[str]:
    members = ",".join(f"etcd-{number}=https://etcd-{number}.etcd:2380" for number in range(3))
    files = {"trusted-ca-file": "ca.crt", "cert-file": "tls.crt", "key-file": "tls.key"}
    return [
        "etcd",
        "--name=$(POD)",
        "--data-dir=/var/lib/etcd/data",
        "--listen-client-urls=https://0.0.0.0:2379",
        "--advertise-client-urls=https://$(POD).etcd:2379",
        "--listen-peer-urls=https://0.0.0.0:2380",
        "--initial-advertise-peer-urls=https://$(POD).etcd:2380",
        f"--initial-cluster={members}",
        "--initial-cluster-state=new",
        "--experimental-initial-corrupt-check=true",
        "--client-cert-auth=true",
        "--peer-client-cert-auth=true",
        *(f"--{peer}{flag}=/etc/etcd/tls/{name}" for peer in ("", "peer-") for flag, name in files.items()),
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=1h",
        "--listen-metrics-urls=http://0.0.0.0:2381",
    ]


def _etcd(deployment: Deployment) -> list[Manifest]:
    """Three members with TLS between all. A cluster that has one already names it with `--etcd`."""
    container = _container(
        "etcd",
        deployment.etcd_image,
        command=_etcd_words(),
        env=[{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        ports=[
            {"name": "client", "containerPort": 2379},
            {"name": "peer", "containerPort": 2380},
            {"name": "metrics", "containerPort": 2381},
        ],
        readinessProbe={"httpGet": {"path": "/health", "port": "metrics"}, "periodSeconds": 5},
        resources=_resources(0.25, 1024),
        volumeMounts=[
            {"name": "data", "mountPath": "/var/lib/etcd"},
            {"name": "tls", "mountPath": "/etc/etcd/tls", "readOnly": True},
        ],
    )
    apart = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "etcd"}}}
    pod = _pod(
        "etcd",
        {
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}},
            "containers": [container],
            "volumes": [_secret("tls", "etcd-server-tls")],
        },
    )
    claim = {
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "8Gi"}}},
    }
    ports = [{"name": "client", "port": 2379}, {"name": "peer", "port": 2380}]
    headless = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"app": "etcd"}, "ports": ports}
    return [
        _object(deployment, "v1", "Service", "etcd", spec=headless),
        _object(deployment, "v1", "Service", "etcd-client", spec={"selector": {"app": "etcd"}, "ports": ports[:1]}),
        _object(
            deployment,
            "apps/v1",
            "StatefulSet",
            "etcd",
            spec={
                "serviceName": "etcd",
                "replicas": 3,
                "podManagementPolicy": "Parallel",
                "selector": {"matchLabels": {"app": "etcd"}},
                "template": pod,
                "volumeClaimTemplates": [claim],
            },
        ),
    ]
