"""Scores as pure functions of counts and arrays, with intervals and tests of significance."""
