"""The fault matrix; see `matrix.py`."""
