"""Looking into scores and networks: features, t-SNE, drawn maps, reports."""
