"""Where models come from: torch and Lightning modules, configs of transformers, timm, ONNX; and what each takes."""
