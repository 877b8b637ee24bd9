"""What every other package may use: errors, findings, chat types, files. Standard library only."""
