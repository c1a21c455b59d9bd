"""Demonstrations of any origin: LIBERO's, and data of your own, which are read where they lie."""
