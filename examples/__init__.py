"""Programs that show aiomas_ng at work; run them from a checkout, as in ``python -m examples.<name>``."""
