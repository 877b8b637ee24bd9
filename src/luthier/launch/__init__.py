"""Where and how the ranks of a run are started, watched, ended and begun again."""
