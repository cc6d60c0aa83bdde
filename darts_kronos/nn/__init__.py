"""The networks: tokenizer, quantizer, predictor. They know torch, not Darts or pandas."""
