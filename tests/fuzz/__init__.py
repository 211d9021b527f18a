"""Fuzzing of all that reads what others wrote; see `targets.py`, and `make fuzz`."""
