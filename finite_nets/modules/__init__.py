"""Networks that are any `torch.nn.Module`, trained across widths without a theory of their own."""
