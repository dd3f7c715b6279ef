"""The commands about who may talk to a farm, and who has."""

from __future__ import annotations

from dtf_lightning.cli.options import Commands
from dtf_lightning.farm.cli.security.audit import add_audit
from dtf_lightning.farm.cli.security.cert import add_cert
from dtf_lightning.farm.cli.security.secrets import add_secrets
from dtf_lightning.farm.cli.security.tokens import add_tokens


def add_security(actions: Commands) -> None:
    """Add the commands."""
    add_tokens(actions)
    add_secrets(actions)
    add_cert(actions)
    add_audit(actions)
