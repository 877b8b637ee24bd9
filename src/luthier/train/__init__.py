"""The training loop, Luthier's own: data → loss → update, and everything a killed run needs to go on."""
