"""``"torch"``: Mamba-2's scan as matrix products in plain PyTorch, on any device (arXiv 2405.21060, §6).

One decay a head turns the scan of a chunk into a product with a masked matrix. The sequence is cut into chunks: inside
each, ``(C Bᵀ ∘ decays) x``; across them a state a chunk, carried on by a short recurrence. `scan` is what surrounds any
backend's forward pass; `maps` reads sequences out and puts them back; `chunks` cuts them, and picks one of two forms of
the products: `by_quotients`, the fast one, or `by_head`.

Letters: ``b`` batch, ``k`` directions, ``m`` heads of ``p`` channels that share B and C, ``l`` length, ``n`` states,
``s`` sequences, ``z`` chunks of ``q`` positions.
"""
