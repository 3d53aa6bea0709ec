"""Effects: one module per outside thing. They may use ``process`` and ``files``, never each other."""
