"""A run as a page: what its folder tells, gathered once, and shown by `luthier ui` and in report.html."""
