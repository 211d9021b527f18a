"""The tests that transformers asks of each of its own models, run on LongCat.

They are in the source distribution of transformers and not in what pip installs: `fetch.py` gets them, `longcat.py`
says what they are run on, `tests/codec/test_transformers_checks.py` runs them.
"""
