"""Asking a model, measuring it, and deciding: evaluate → scores.json, predictions.jsonl → verdict.json."""
