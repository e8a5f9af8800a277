"""Pure functions on `str`: languages, normalization, romanization. Knows no engine and no tensor."""
