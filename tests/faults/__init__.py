"""What goes wrong on purpose: each file provokes one kind of fault and checks what is left."""
