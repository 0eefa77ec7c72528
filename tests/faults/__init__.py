"""Fault injection: each module causes one kind of fault and checks what is left."""
