"""A host's VMs and disks as one page to look at."""
