"""Adapters to other libraries: Hugging Face datasets, ONNX, pyiqa, Ray, scikit-learn, torchmetrics."""
