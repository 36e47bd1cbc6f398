"""ONNX import: file bytes -> records (proto) -> canonical graph (importer)."""
