"""`MailHandler`: a notice as an e-mail, by SMTP.

Each step of an incident has a `Message-ID` of its own, the same for every try: a mailbox that has it shows it once. All of
an incident's are one thread (`In-Reply-To`).
"""

from __future__ import annotations

import smtplib
import ssl
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dtf_lightning.farm.alerts.notice import Notice
from dtf_lightning.farm.alerts.secrets import read_secret

PORTS = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}


@dataclass(frozen=True, kw_only=True)
class MailHandler:
    """Sends e-mail. `url`: `smtp://HOST:PORT`, `smtp+starttls://` or `smtps://`, with `USER@` where it wants one."""

    url: str
    sender: str
    to: tuple[str, ...]
    secret_file: Path | None = None
    """Holds the user's password."""

    def send(self, notice: Notice, timeout: float) -> None:
        """See `Handler`."""
        parts = urlsplit(self.url)
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        context = ssl.create_default_context()
        server = (
            smtplib.SMTP_SSL(host, port, timeout=timeout, context=context)
            if parts.scheme == "smtps"
            else smtplib.SMTP(host, port, timeout=timeout)
        )
        with server:
            if parts.scheme == "smtp+starttls":
                server.starttls(context=context)
            if parts.username and self.secret_file is not None:
                server.login(unquote(parts.username), read_secret(self.secret_file).decode())
            refused = server.send_message(self.message(notice))
        if refused:
            raise smtplib.SMTPRecipientsRefused(refused)

    def message(self, notice: Notice) -> EmailMessage:
        """Return the e-mail of a notice."""
        message = EmailMessage()
        # Names of workers and tests go into the subject: a line's end there would begin a header.
        message["Subject"] = " ".join(notice.title.split())
        message["From"] = self.sender
        message["To"] = ", ".join(self.to)
        message["Date"] = formatdate()
        message["Message-ID"] = self._id(notice.key)
        thread = self._id(f"{notice.farm}/{notice.incident}")
        message["In-Reply-To"] = thread
        message["References"] = thread
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(notice.text + "\n")
        return message

    def _id(self, key: str) -> str:
        domain = self.sender.rpartition("@")[2].rstrip(">") or "dtf"
        return f"<{sha256(key.encode()).hexdigest()[:32]}@{domain}>"
