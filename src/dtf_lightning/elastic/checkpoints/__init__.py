"""Checkpoints that survive crashes, power cuts, full disks and flipped bits.

Read in this order: `record` (what is known of one), `retention` (which to keep), `storage` (the few file-system
operations), `manifest` (what a run owns), `folder` (save and prune), `reader` (find, verify), `formats` and `sharded`
(what is in a file), `staging` and `background` (saving while training goes on), `compare`.
"""
