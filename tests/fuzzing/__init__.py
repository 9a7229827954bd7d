"""Harnesses for a fuzzer: one for each entry that bytes of a peer have."""
