"""Reinforcement: answers are drawn from the model, rewarded, and made likelier or less so (GRPO, GSPO)."""
