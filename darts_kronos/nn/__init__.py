"""The networks: tokenizer, quantizer, predictor. They know torch, and nothing of Darts or pandas."""
