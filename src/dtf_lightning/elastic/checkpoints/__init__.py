"""Checkpoints that survive crashes, power cuts, full disks and flipped bits.

Read the modules in this order: `record` (what is known of a checkpoint), `retention` (which ones to keep), `storage`
(the few file-system operations), `manifest` (which files a run owns), `folder` (save and prune), `reader` (find and
verify), `formats` and `sharded` (what is in a file), `staging` and `background` (saving while training goes on),
`compare` (how two checkpoints differ).
"""
