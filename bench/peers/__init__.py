"""One worker per contestant, each run in an environment of its own."""
