"""The pages of the documentation, run: every block of every page, on a machine that is thrown away afterwards.

`blocks` reads pages, `machine` makes the machine and runs a script on it, `grounds` has what stands on it before the
first block, `sessions` says which blocks are run one after the other, and on which ground.
"""
