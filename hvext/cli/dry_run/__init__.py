"""``--dry-run``: each command up to where it would begin.

The modules and functions here are called as those are that do it: ``hvext.cli.dry_run.volumes.create`` prints what
``hvext.cli.volumes.create`` would do.
"""
