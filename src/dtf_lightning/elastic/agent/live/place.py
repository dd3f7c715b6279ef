"""`setup_place` decides which place a node's workers have in set-up, before the first generation.

Rules that this file guards:

* what rank zero does in set-up (`prepare_data`, folders and files of loggers, `config.yaml`) is done by one node: by the
  one that has claimed it in etcd, where only one claim can be written;
* a claim goes with its node's incarnation: while nothing trains, the next node whose workers come takes it over;
* a node whose run has trained already joins, if any member of the last generation, or the leader that formed it, is here;
  while none is, it waits until the new leader has found out whether that run goes on.
"""

from __future__ import annotations

from enum import Enum

from dtf_lightning.elastic.rules.records import ENDED, NodeRecord
from dtf_lightning.elastic.run.keys import RunView


class SetupPlace(Enum):
    """The place of a node in set-up."""

    RANK_ZERO = "its first worker is rank zero"
    OTHER = "another node is rank zero, or has been"
    TO_CLAIM = "nobody is rank zero: this node claims it"
    UNDECIDED = "nobody knows yet whether the last generation goes on"


def setup_place(view: RunView, me: NodeRecord) -> SetupPlace:
    """Return the place of the node with the record `me`, in a run that is listed in the view."""
    if view.generation is not None:
        led_on = view.leader is not None and view.leader.epoch == view.generation.epoch
        return SetupPlace.OTHER if view.has_members or led_on else SetupPlace.UNDECIDED
    if view.rank_zero == me.member_id:
        return SetupPlace.RANK_ZERO
    lives = any(r.member_id == view.rank_zero and r.state not in ENDED for r in view.nodes.values())
    return SetupPlace.OTHER if lives else SetupPlace.TO_CLAIM
