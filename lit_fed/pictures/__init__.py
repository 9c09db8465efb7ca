"""Figures of numbers: each is counted from rows of a run's tables, then drawn; without files and without pyplot."""
