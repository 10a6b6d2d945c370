"""Reading models: their graph, their layers, and what each layer is called with."""
