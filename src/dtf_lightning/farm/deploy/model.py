"""`Deployment`: what is deployed, whatever the target. Rules are checked when it is made."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from dtf_lightning import __version__

Label = Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,40}[a-z0-9])?$")]
"""A name as DNS, Kubernetes, systemd and Windows all take it."""
Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$", max_length=253)]
Endpoint = Annotated[str, StringConstraints(pattern=r"^(https?://)?[A-Za-z0-9.\[\]:_-]+:\d+$")]
Plain = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@=+\[\]-]*$", max_length=300)]
"""An image or a requirement of pip, with nothing in it that a shell would read."""


class WorkerClass(BaseModel):
    """Workers that are alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Label = "worker"
    replicas: int = Field(default=2, ge=0)
    cpus: float = Field(default=2.0, gt=0)
    memory: int = Field(default=4096, gt=0)
    """MiB."""
    gpus: int = Field(default=0, ge=0)
    every_node: bool = False
    """One on each machine that fits, in the place of `replicas`."""


class Deployment(BaseModel):
    """A farm as it is to be installed. Raises pydantic's `ValidationError`, which says what does not fit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    farm: Label = "farm"
    address: Host = "farm.lab"
    """Name under which workers and clients reach a coordinator: the certificate's."""
    port: int = Field(default=8080, ge=1, le=65535)
    etcd: tuple[Endpoint, ...] = ()
    """Of etcd's members; none: the target's own reference."""
    coordinators: int = Field(default=3, ge=1, le=9)
    workers: tuple[WorkerClass, ...] = (WorkerClass(),)
    archive: str = ""
    """URL for fsspec; "": in the farm's folder."""
    artifacts: str = ""
    """Likewise."""
    namespace: Label = "dtf-farm"
    image: Plain = "registry.example.com/dtf-farm"
    """Without `-coordinator`, `-worker` and the tag."""
    base: Plain = "docker.io/library/python:3.11-slim-bookworm"
    etcd_image: Plain = "quay.io/coreos/etcd:v3.5.21"
    package: Plain = f"dtf-lightning[farm]=={__version__}"
    user: Label = "dtf-farm"

    @model_validator(mode="after")
    def _names_differ(self) -> Deployment:
        names = [one.name for one in self.workers]
        if len(set(names)) < len(names):
            raise ValueError(f"two classes of workers have one name: {', '.join(sorted(names))}")
        return self

    @property
    def url(self) -> str:
        """Of a coordinator."""
        return f"https://{self.address}:{self.port}"

    @property
    def tag(self) -> str:
        """Of the images."""
        return re.sub(r"[^A-Za-z0-9_.-]", "-", __version__)

    def image_of(self, role: str) -> str:
        """Return the image of a role, with its tag."""
        return f"{self.image}-{role}:{self.tag}"
