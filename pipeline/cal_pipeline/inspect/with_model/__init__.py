"""Measures and encodes again, and looks into models: the one part of cal-inspect that needs torch."""
