"""The search for better recipe values: what is tried, how far each trial is trained, and which differences are real. Light: no torch."""
