"""Parts that the model is made of: norms and rotation, and linears in few bits."""
