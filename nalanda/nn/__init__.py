"""One transformer, described by data: `Spec` says what it is, `Transformer` and `Model` compose it from parts.

Letters at the end of a tensor's name are its axes:

    B rows   T places of the stream   S places of the source   N places in the cache   D hidden   V vocabulary
    H query heads   G key/value heads   K head dimension   F inner width of the feed-forward   C classes
"""
