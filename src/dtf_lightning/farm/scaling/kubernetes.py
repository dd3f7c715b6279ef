"""`kubernetes`: the pods of a StatefulSet are the workers; how many there are is set by its `scale` subresource.

Rules that this file guards:
- Fewer replicas are asked for only when the pods that go have nothing to run: a StatefulSet's last pods go first, so that it is
  known which.
- Where Kubernetes' own autoscaler has the StatefulSet, the farm leaves it alone.
"""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from dtf_lightning.farm.scaling.provider import Provider, ProviderFailed, WorkersWanted

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class KubernetesProvider(Provider):
    """Asks the API server. `account`: folder of the pod's token and of the authority of the server's certificate."""

    ends = True
    names = False

    def __init__(self, api: str, namespace: str, stateful_set: str, account: Path = ACCOUNT) -> None:
        self._api = urlsplit(api)
        self._namespace = quote(namespace, safe="")
        self._set = stateful_set
        self._account = account

    def start(self, wanted: WorkersWanted) -> None:
        """See `Provider`."""
        self._refuse_autoscaler(wanted.timeout)
        present = self._replicas(wanted.timeout)
        if present < wanted.total:
            self._scale(wanted.total, wanted.timeout)

    def end(self, wanted: WorkersWanted) -> None:
        """See `Provider`."""
        self._refuse_autoscaler(wanted.timeout)
        if self._replicas(wanted.timeout) > wanted.total:
            self._scale(wanted.total, wanted.timeout)

    @property
    def _path(self) -> str:
        return f"/apis/apps/v1/namespaces/{self._namespace}/statefulsets/{quote(self._set, safe='')}/scale"

    def _replicas(self, timeout: float) -> int:
        told = self._ask("GET", self._path, timeout)
        try:
            return int(told["spec"].get("replicas", 0))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProviderFailed(f"{self._path}: expected a Scale with spec.replicas, got {str(told)[:200]}") from error

    def _scale(self, replicas: int, timeout: float) -> None:
        self._ask("PATCH", self._path, timeout, {"spec": {"replicas": replicas}})

    def _refuse_autoscaler(self, timeout: float) -> None:
        path = f"/apis/autoscaling/v2/namespaces/{self._namespace}/horizontalpodautoscalers"
        for one in self._ask("GET", path, timeout).get("items", ()):
            target = one.get("spec", {}).get("scaleTargetRef", {})
            if (target.get("kind"), target.get("name")) == ("StatefulSet", self._set):
                name = one.get("metadata", {}).get("name", "")
                raise ProviderFailed(
                    f"Kubernetes' own autoscaler {name!r} has the StatefulSet {self._set}: remove one of the two, the pool or that"
                )

    def _ask(self, method: str, path: str, timeout: float, body: dict[str, Any] | None = None) -> dict[str, Any]:
        host = self._api.hostname or ""
        try:
            token = (self._account / "token").read_text().strip()
            connection: http.client.HTTPConnection
            if self._api.scheme == "https":
                context = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
                connection = http.client.HTTPSConnection(host, self._api.port, timeout=timeout, context=context)
            else:
                connection = http.client.HTTPConnection(host, self._api.port, timeout=timeout)
        except OSError as error:
            raise ProviderFailed(f"a pod's token and certificate are not in {self._account}: {error}") from error
        try:
            headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
            if body is not None:
                headers["Content-Type"] = "application/merge-patch+json"
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            told = json.loads(answer.read() or b"{}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ProviderFailed(f"the API server {self._api.geturl()} does not answer: {error}") from error
        finally:
            connection.close()
        if answer.status >= 300 or not isinstance(told, dict):
            said = told.get("message", "") if isinstance(told, dict) else ""
            raise ProviderFailed(f"{method} {path}: {answer.status} {said or answer.reason}")
        return told
