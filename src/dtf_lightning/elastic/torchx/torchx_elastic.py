"""This is the torchx component module `elastic`: runs on etcd, in live or restart mode. Public.

The rules of `torchx_dist.py` hold here, too.
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
    j: str = "1:4",
    endpoint: Optional[str] = None,
    mode: str = "auto",
    conf: str = "",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 3,
    max_restarts: int = appdef.MAX_RESTARTS,
    mounts: Optional[List[str]] = None,
    debug: bool = False,
    tee: int = 3,
) -> AppDef:
    """Run a script elastically: nodes join, leave and die while training goes on.

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
        j: {min_nnodes}:{nnodes}[x{nproc_per_node}]
        endpoint: etcd's HOST:PORT[,HOST:PORT]; by default DTF_ETCD_ENDPOINT, or this machine's
        mode: live (scripts with ElasticCallback), restart (any script) or auto
        conf: more options of the rendezvous, KEY=VALUE[,KEY=VALUE]
        env: environment variables to be passed to the run (e.g. ENV1=v1,ENV2=v2)
        max_retries: how often the scheduler starts a lost node anew
        max_restarts: failed starts of one node's workers
        mounts: mounts to mount into the worker environment/container
        debug: whether to run with preset debug flags enabled
        tee: tees the specified std stream(s) to console + file. 0: none, 1: stdout, 2: stderr, 3: both
    """
    options: Dict[str, Any] = {
        "script": script, "m": m, "name": name, "h": h, "cpu": cpu, "gpu": gpu, "memMB": memMB, "env": env,
        "max_retries": max_retries, "mounts": mounts, "debug": debug, "tee": tee,
        **({"image": image} if image else {}),
    }  # fmt: skip
    return appdef.elastic_ddp(
        *script_args,
        j=j,
        endpoint=endpoint,
        conf=",".join(part for part in (f"mode={mode}", conf) if part),
        max_restarts=max_restarts,
        **options,
    )
