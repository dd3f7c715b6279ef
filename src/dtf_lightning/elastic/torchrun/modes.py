"""Which script torchrun was asked for, and what `mode=auto` makes of it (docs/decisions/0006-mode-auto.md)."""

from __future__ import annotations

import logging
import re
from argparse import Namespace
from pathlib import Path

log = logging.getLogger(__name__)

OUR_NAME = "dtf_lightning"


def training_script(argv: list[str]) -> str:
    """The script's path, or `-m`'s module; empty when another program than torchrun starts the agent."""
    arguments = _torchrun_arguments(argv)
    return str(arguments.training_script) if arguments is not None else ""


def num_workers_asked(argv: list[str]) -> int:
    """torchrun's `--nproc-per-node`; 1 when another program starts the agent."""
    from torch.distributed.run import determine_local_world_size

    arguments = _torchrun_arguments(argv)
    return int(determine_local_world_size(arguments.nproc_per_node)) if arguments is not None else 1


def _torchrun_arguments(argv: list[str]) -> Namespace | None:
    if not argv or not re.search(r"torchrun$|torch/distributed/(run|launch)\.py$", argv[0]):
        return None
    from torch.distributed.run import get_args_parser

    try:
        return get_args_parser().parse_args(argv[1:])
    except SystemExit:  # argparse's way to refuse; torchrun itself has taken these arguments
        return None


def resolve_mode(mode: str, script: str) -> str:
    """`live` or `restart`. For `auto`: restart for a script that can be read and never names this package.

    A script that only imports what constructs `ElasticCallback` gets restart, which is slower but right; one that cannot
    be read gets live, which stops a script without the callback with an error.
    """
    if mode != "auto":
        return mode
    try:
        text = Path(script).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return "live"
    if OUR_NAME in text:
        return "live"
    log.info(
        "mode=auto: %s does not name %s, so its workers are started anew on every change (mode=restart); if "
        "ElasticCallback is constructed elsewhere, ask for it with --rdzv-conf mode=live",
        *(script, OUR_NAME),
    )
    return "restart"
