"""`Wire`: a coordinator's TLS, and the names under which it is reached."""

from __future__ import annotations

import time

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.security.certificates import ReloadingContext, TlsFiles
from dtf_lightning.farm.security.names import Listening
from dtf_lightning.farm.settings.coordinator import CoordinatorSettings


class Wire:
    """How a coordinator is reached: its TLS, and the names that it has.

    Raises `SettingsError` for a host that must not be listened on, and for certificates that cannot be used.
    """

    def __init__(self, listening: Listening, files: TlsFiles | None) -> None:
        self._listening = listening
        self.context = ReloadingContext(files) if files is not None else None
        if self.context is not None and (problem := self.context.certificate.problem(time.time())):
            assert files is not None
            raise SettingsError(f"the certificate {files.cert} cannot be used: {problem}")

    @classmethod
    def of(cls, host: str, told: CoordinatorSettings) -> Wire:
        """Return that of a coordinator's settings, of which `host` is where it listens."""
        files = None
        if (paths := told.tls_files) is not None:
            files = TlsFiles(cert=paths[0], key=paths[1], client_ca=paths[2])
        listening = Listening(
            host=host,
            advertise=told.server.advertise,
            tls=files is not None,
            insecure=told.security.insecure,
        )
        return cls(listening, files)

    @property
    def asks_for_certificates(self) -> bool:
        """Whether workers need a certificate of their own."""
        return self.context is not None and self.context.asks_for_certificates

    @property
    def warning(self) -> str:
        """What everybody should know who looks at this farm; "" for nothing."""
        return self._listening.warning

    def address(self, port: int) -> str:
        """Where workers and clients reach it. Raises `SettingsError` where that cannot be known."""
        return self._listening.address(port, self._certified())

    def own_address(self, port: int) -> str:
        """Where it listens; where it does not advertise another, that is `address`."""
        return self._listening.own_address(port, self._certified())

    def serves(self, name: str) -> bool:
        """Whether a request may say that it means this host."""
        return self._listening.serves(name, self._certified())

    def _certified(self) -> tuple[str, ...]:
        return self.context.certificate.names if self.context is not None else ()
