"""Whether this host is ready, and for which transports: one module for each subject that is looked at.

Each has ``look(ask, needs)``, a generator of findings; ``examination`` runs them side by side.
"""
