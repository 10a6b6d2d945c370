"""Weights that get another shape when tasks are added or removed."""


def replace_weight(layer, old, add):
    """Puts the weight that `add()` gives to `layer` in the place of the `old` one.

    As Keras' own layers do where a weight is to have another shape (`quantize`).
    """
    layer._untrack_variable(old)
    layer._tracker.unlock()
    with layer._open_name_scope():
        add()
    layer._tracker.lock()
