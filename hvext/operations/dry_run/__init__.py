"""What operations would do: the same lists of steps that they carry out, in words, and nothing carried out.

QEMU, libvirt and the journal are read, and a provider's folder is looked at. Nothing is changed, no script runs, no
lock is taken and no file made. What only the real run can learn, such as the address that ``attach`` prints, is said
to be unknown.
"""

from hvext.operations.dry_run.guest import DryRun as DryRun
from hvext.operations.dry_run.planned import Planned as Planned
from hvext.operations.dry_run.planned import PlannedStep as PlannedStep
