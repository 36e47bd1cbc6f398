"""torch.nn.Module and torch.export programs -> canonical graph, through the same lowering as ONNX."""
