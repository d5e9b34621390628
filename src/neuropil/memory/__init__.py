"""Associative memories on one retrieval core, `lookup(similarity, separation)`.

- `lookup`: read values by dot, cosine or Hamming similarity and softmax, linear, ball, top-k or winner-take-all separation
- `hopfield`, `hopfield_layers`: the modern Hopfield network as functions and as layers; `binary_hopfield`: the classical one
- `sdm`: Kanerva's sparse distributed memory and the attention that it amounts to
- `willshaw`: binary sparse memories and cliques; `noisy_hebb`: the rule that learns them under noise
"""
