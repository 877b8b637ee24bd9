"""From raw rows to token ids and loss masks."""
