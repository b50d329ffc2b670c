"""Measurements: scans, models and training steps against named peers, and what each scan backend does here."""
