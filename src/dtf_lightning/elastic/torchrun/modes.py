"""These functions find torchrun's script, and what `mode=auto` means for it (docs/decisions/0006-mode-auto.md)."""

from __future__ import annotations

import logging
import re
from argparse import Namespace
from collections.abc import Sequence

from dtf_lightning.elastic.torchrun.script_files import own_files

log = logging.getLogger(__name__)

OUR_NAME = "dtf_lightning"


def training_script(argv: list[str]) -> str:
    """Return the script's path, or the module after `-m`; empty if another program than torchrun starts the agent."""
    arguments = _torchrun_arguments(argv)
    return str(arguments.training_script) if arguments is not None else ""


def num_workers_asked(argv: list[str]) -> int:
    """Return torchrun's `--nproc-per-node`; 1 if another program starts the agent."""
    from torch.distributed.run import determine_local_world_size

    arguments = _torchrun_arguments(argv)
    return int(determine_local_world_size(arguments.nproc_per_node)) if arguments is not None else 1


def started_by_torchrun(argv: list[str]) -> bool:
    """Return whether torchrun is the program that starts the agent, and not a launch by API or a test."""
    return bool(argv) and bool(re.search(r"torchrun$|torch/distributed/(run|launch)\.py$", argv[0]))


def _torchrun_arguments(argv: list[str]) -> Namespace | None:
    if not started_by_torchrun(argv):
        return None
    from torch.distributed.run import get_args_parser

    try:
        return get_args_parser().parse_args(argv[1:])
    except SystemExit:  # argparse's way to refuse; torchrun itself has taken these arguments
        return None


def script_arguments(argv: list[str]) -> list[str]:
    """Return the script's own arguments; none if another program than torchrun starts the agent."""
    arguments = _torchrun_arguments(argv)
    return list(arguments.training_script_args) if arguments is not None else []


def resolve_mode(mode: str, script: str, arguments: Sequence[str] = ()) -> str:
    """Return `live` or `restart`, and log which. For `auto`: restart for a script of which no own file names this
    package.

    A script whose files cannot be found gets live, which stops a script without the callback with an error. `arguments`
    are the script's own, among which configuration files count.
    """
    if mode != "auto":
        log.info("mode=%s, as asked for", mode)
        return mode
    num_read = 0
    for path in own_files(script, arguments):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if OUR_NAME in text:
            log.info("mode=live: %s names %s", path, OUR_NAME)
            return "live"
        num_read += 1
    if not num_read:
        log.info("mode=live: the files of %r could not be read", script)
        return "live"
    log.info(
        "mode=restart: workers are started anew on every change, for neither %s nor what it imports of its own (%d files) "
        "names %s; if the script constructs ElasticCallback all the same, ask for --rdzv-conf mode=live",
        *(script, num_read, OUR_NAME),
    )
    return "restart"
