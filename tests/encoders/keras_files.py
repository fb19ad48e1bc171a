"""Files in Keras's layout: what `save_weights` of Keras 2 writes."""

import numpy as np


def write_h5(path, tensors, inside=None):
    """Write arrays by `<layer>/<tensor>`, a group a layer with the attribute `weight_names`."""
    import h5py

    with h5py.File(path, "w") as file:
        root = file.create_group(inside) if inside else file
        layers = list(dict.fromkeys(name.split("/")[0] for name in tensors))
        # Layers without weights are groups too.
        root.attrs["layer_names"] = np.array([b"input_1", *(layer.encode() for layer in layers)])
        root.create_group("input_1").attrs["weight_names"] = np.array([], dtype="S1")
        for layer in layers:
            names = [f"{name}:0" for name in tensors if name.split("/")[0] == layer]
            group = root.create_group(layer)
            group.attrs["weight_names"] = np.array([name.encode() for name in names])
            for name in names:
                group[name] = np.asarray(tensors[name.removesuffix(":0")])
