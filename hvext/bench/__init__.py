"""Measuring the accesses to a volume against each other, and what that says."""
