"""Run folders: the interface between the processes that train and those that look."""
