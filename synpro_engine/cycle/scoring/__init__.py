"""What is asked of finished models outside of a run's stages: influence of texts, means of weights, ensembles."""
