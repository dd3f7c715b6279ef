"""`dtf farm openapi`: the API's description, without a farm."""

from __future__ import annotations

import argparse
import json

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.farm.cli.options import add_farm_command


def add_openapi(actions: Commands) -> None:
    """Add the command to the parser."""
    add_farm_command(actions, "openapi", _openapi, "print what the coordinators' API takes, as OpenAPI 3.1")


def _openapi(_: argparse.Namespace) -> int:
    from dtf_lightning.farm.server.routes.description import describe_without_a_farm

    print(json.dumps(describe_without_a_farm(), indent=2))
    return DONE
