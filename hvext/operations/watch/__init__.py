"""Supervising running guests: what fails over, moves back or is given up, while nobody looks."""

from hvext.operations.watch.settings import WatchSettings as WatchSettings
from hvext.operations.watch.watch import Watch as Watch
