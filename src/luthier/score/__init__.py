"""How answers are scored, and how sure one can be of a score: scorers, intervals, paired tests. Imports scipy inside functions only."""
