"""`dtf farm doctor`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from dtf_lightning import environment
from dtf_lightning.cli.main import DONE, FAILED
from dtf_lightning.cli.options import Commands
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json


def add_doctor(actions: Commands) -> None:
    """Add the command."""
    parser = add_farm_command(
        actions,
        "doctor",
        _doctor,
        "look at this machine and at the farm from here, and say of what is wrong what mends it",
    )
    parser.add_argument("--machine", action="store_true", help="at this machine alone, before there is a farm")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="also at what a coordinator.yaml names: ports, certificates, etcd"
    )
    add_json(parser)
    add_farm(parser)


def _doctor(arguments: argparse.Namespace) -> int:
    from dtf_lightning.farm.doctor.farm import check_disk, check_home, examine
    from dtf_lightning.farm.doctor.findings import Level
    from dtf_lightning.farm.doctor.machine import examine_machine
    from dtf_lightning.farm.doctor.settings import examine_settings
    from dtf_lightning.farm.home import FarmHome
    from dtf_lightning.farm.settings.coordinator import CoordinatorSettings

    findings = examine_machine()
    if arguments.config is not None:
        findings += examine_settings(CoordinatorSettings.load(arguments.config), environment.etcd_endpoint())
    if arguments.machine:
        folder = FarmHome.default().folder
        findings += [*check_home(folder), *check_disk(folder)]
    else:
        findings += examine(arguments.farm, arguments.token_file, arguments.ca)
    if arguments.json:
        print(json.dumps([{**asdict(finding), "level": finding.level.value} for finding in findings]))
    else:
        for finding in findings:
            print(f"{finding.level.value:<8} {finding.what}: {finding.told}")
            if finding.remedy and finding.level is not Level.GOOD:
                print(f"{'':<8} -> {finding.remedy}")
    return FAILED if any(finding.level is Level.BAD for finding in findings) else DONE
