"""This is the torchx component module `dist`: torchx's `dist.ddp` that also takes `-j MIN:MAX`, elastic on etcd. Public.

torchx loads every entry point of its group without catching exceptions, and checks each function's source: no import
here may fail, and annotations must be of the kind that torchx 0.7 can parse.
"""

from typing import Any, Dict, List, Optional

from dtf_lightning.elastic.torchx import appdef

try:
    from torchx.specs import AppDef
except ImportError:  # torchx is optional; calling a component without it raises an error with a hint
    AppDef = Any


def ddp(
    *script_args: str,
    script: Optional[str] = None,
    m: Optional[str] = None,
    image: Optional[str] = None,
    name: str = "/",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 1024,
    j: str = "1x2",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
    rdzv_backend: Optional[str] = None,
    rdzv_endpoint: Optional[str] = None,
    rdzv_conf: str = "mode=auto",
    max_restarts: int = appdef.MAX_RESTARTS,
    mounts: Optional[List[str]] = None,
    debug: bool = False,
    tee: int = 3,
) -> AppDef:
    """Run torchx's dist.ddp; with -j MIN:MAX nodes join and leave on etcd, in the mode that the script asks for.

    Args:
        script_args: arguments to the main module
        script: script or binary to run within the image
        m: the python module path to run
        image: image (e.g. docker)
        name: job name override
        h: a registered named resource (takes precedence over cpu, gpu, memMB)
        cpu: number of cpus per replica
        gpu: number of gpus per replica
        memMB: cpu memory in MB per replica
        j: [{min_nnodes}:]{nnodes}x{nproc_per_node}, or {min_nnodes}:{nnodes} for one worker per node
        env: environment variables to be passed to the run (e.g. ENV1=v1,ENV2=v2)
        max_retries: the number of scheduler retries allowed
        rdzv_port: the port on rank0's host; only for rendezvous backends other than etcd
        rdzv_backend: etcd for -j MIN:MAX, else torchx's default (c10d)
        rdzv_endpoint: etcd's HOST:PORT[,HOST:PORT]; by default DTF_ETCD_ENDPOINT, or this machine's
        rdzv_conf: options of the rendezvous, KEY=VALUE[,KEY=VALUE]; only for etcd
        max_restarts: failed starts of one node; only for etcd
        mounts: mounts to mount into the worker environment/container
        debug: whether to run with preset debug flags enabled
        tee: tees the specified std stream(s) to console + file. 0: none, 1: stdout, 2: stderr, 3: both
    """
    options: Dict[str, Any] = {
        "script": script, "m": m, "name": name, "h": h, "cpu": cpu, "gpu": gpu, "memMB": memMB, "env": env,
        "max_retries": max_retries, "rdzv_port": rdzv_port, "mounts": mounts, "debug": debug, "tee": tee,
        **({"image": image} if image else {}),
    }  # fmt: skip
    backend = rdzv_backend or ("etcd" if appdef.is_elastic(j) else None)
    if backend == "etcd":
        return appdef.elastic_ddp(
            *script_args, j=j, endpoint=rdzv_endpoint, conf=rdzv_conf, max_restarts=max_restarts, **options
        )
    return appdef.torchx_ddp(
        *script_args, j=appdef.with_workers(j), **options, **({"rdzv_backend": backend} if backend else {})
    )
