"""From tokens to batches: stores, packing, masking, pairs, and the order in which a model sees them."""
