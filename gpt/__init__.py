"""Model, training, generation and formats on torch, numpy, tiktoken, tokenizers and safetensors alone."""
