"""Analysis of scores and networks: features, t-SNE, drawings of maps, reports."""
