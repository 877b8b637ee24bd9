"""Reinforcement: answers are drawn, rewarded, and made likelier or less so."""
