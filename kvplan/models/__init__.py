"""From a Hugging Face config.json to layers, modules and formats: families, quantisation, vision towers."""
