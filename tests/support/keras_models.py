"""Models of Keras with unusual layers: saves each after a step, with its names.

``python keras_models.py FOLDER`` runs by itself, because the backend is that of a
whole process.
"""

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import Input, Sequential, layers


class Custom(layers.Layer):
    """A layer with layers, and with variables of its own in between."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense, self.norm = layers.Dense(3), layers.LayerNormalization()

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1],), name="scale")
        self.dense.build(input_shape)
        self.fixed = self.add_weight(shape=(2, 2), name="fixed", trainable=False)
        self.norm.build((None, 3))
        self.shift = self.add_weight(shape=(3,), name="shift")

    def call(self, x):
        return self.norm(self.dense(x * self.scale)) + self.shift


class SavesItself(layers.Layer):
    """A layer with a name of its own for its variable in the file."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1],), name="scale")

    def call(self, x):
        return x * self.scale

    def save_own_variables(self, store):
        store["mine"] = self.scale


class Tied(keras.Model):
    """A model whose output layer is its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.dense = layers.Embedding(7, 3), layers.Dense(3)

    def build(self, _: Any):
        self.embedding.build(None)
        self.dense.build((None, None, 3))
        self.output_weights = self.embedding.embeddings

    def call(self, x):
        x = self.dense(self.embedding(keras.ops.cast(x, "int32")))
        return x @ keras.ops.transpose(self.output_weights)


def make_models() -> dict[str, Any]:
    x = Input((6, 4))
    y = layers.MultiHeadAttention(2, 3)(x, x)
    y = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(y)
    y = layers.GRU(4)(y)
    y = Sequential([Input((4,)), layers.Dense(5), layers.BatchNormalization()])(y)
    y = layers.SpectralNormalization(layers.Dense(7))(y)
    nested = keras.Model(x, layers.Dense(1)(Custom()(y)))
    x = Input((8, 8, 3))
    y = layers.SeparableConv2D(4, 3)(layers.Conv2D(4, 3)(x))
    y = layers.PReLU()(layers.GroupNormalization(2)(y))
    y = layers.GlobalAveragePooling2D()(layers.DepthwiseConv2D(3)(y))
    image = keras.Model(x, layers.Dense(2)(y))
    frozen = Sequential(
        [
            Input((4,)),
            layers.Dense(5),
            layers.BatchNormalization(),
            layers.Dense(4),
            layers.Dense(3),
        ]
    )
    frozen.layers[0].trainable = False
    frozen.layers[2].kernel.trainable = False
    lora = Sequential([Input((4,)), layers.Dense(5), layers.Dense(6), layers.Dense(3)])
    lora.layers[0].enable_lora(2)
    of_steps = Sequential(
        [
            Input((3, 4)),
            layers.TimeDistributed(layers.Dense(5)),
            layers.TimeDistributed(Sequential([layers.Dense(4), layers.Dense(3)])),
            layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)]),
            layers.Dense(2),
        ]
    )
    own = Sequential([Input((4,)), layers.Dense(5), SavesItself(), layers.Dense(3)])
    return {
        "nested": nested,
        "image": image,
        "frozen": frozen,
        "lora": lora,
        "of_steps": of_steps,
        "own": own,
        "tied": Tied(),
    }


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, model in make_models().items():
        model.compile(keras.optimizers.RMSprop(0.01, centered=True), "mse")
        shape = (2,) if name == "tied" else model.input_shape[1:]
        inputs = rng.random((4, *shape), np.float32)
        model.fit(inputs, np.zeros_like(model(inputs)), verbose=0)
        model.save(folder / f"{name}.keras")
        info = {
            "all": [v.path for v in model.weights],
            "trainable": [v.path for v in model.trainable_variables],
            "shapes": [v.shape for v in model.trainable_variables],
        }
        (folder / f"{name}.json").write_text(json.dumps(info))
        arrays: Any = {str(i): np.asarray(v) for i, v in enumerate(model.weights)}
        np.savez(folder / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
