"""The use cases, each a list of steps with their inverses."""
