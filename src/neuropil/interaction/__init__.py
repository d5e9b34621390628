"""Parts that let things act on one another: groups, sets, fields of features.

- `hypergraph`, `hypergraph_features`, `message_passing`, `hypergraph_layers`, `hyperedge_prediction`,
  `adversarial_negatives`, `hypergraph_tensor`: nets on hypergraphs
- `dual_attention`: transformers whose heads carry relations beside features
- `influence`, `score_screen`, `interaction_conv`: groups of variables that predict a label only together
- `finalmlp`, `click_models`: clicks predicted from categories
"""
