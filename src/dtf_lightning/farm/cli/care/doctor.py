"""`dtf farm doctor`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from dtf_lightning.cli.main import DONE, FAILED
from dtf_lightning.cli.options import Commands
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json


def add_doctor(actions: Commands) -> None:
    """Add the command."""
    parser = add_farm_command(
        actions, "doctor", _doctor, "look at the farm from here, and say of what is wrong what to do"
    )
    add_json(parser)
    add_farm(parser)


def _doctor(arguments: argparse.Namespace) -> int:
    from dtf_lightning.farm.doctor import Level, examine

    findings = examine(arguments.farm, arguments.token_file, arguments.ca)
    if arguments.json:
        print(json.dumps([{**asdict(finding), "level": finding.level.value} for finding in findings]))
    else:
        for finding in findings:
            print(f"{finding.level.value:<8} {finding.what}: {finding.told}")
            if finding.remedy and finding.level is not Level.GOOD:
                print(f"{'':<8} -> {finding.remedy}")
    return FAILED if any(finding.level is Level.BAD for finding in findings) else DONE
