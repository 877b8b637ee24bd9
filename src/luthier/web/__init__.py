"""`luthier ui`: a page on this machine alone, over the folder of runs. It reads files, and steers runs through `flow`."""
