"""Where leaves are cut into blocks."""

import pytest

from rmsprop_jax._storage import _blocks


@pytest.mark.parametrize(
    ("shape", "cut"),
    [
        ((4096,), (0, 128)),
        ((4095,), None),
        ((64, 64), (1, 64)),
        ((784, 256), (1, 128)),
        ((784, 10), (0, 112)),
        ((3, 3, 64, 128), (3, 128)),
        ((50257, 768), (1, 128)),
        ((4099, 17), None),
        ((2, 31, 4099), None),
        ((4096, 31), (0, 128)),
        ((), None),
        ((0, 8192), None),
    ],
)
def test_blocks_are_of_one_length(shape, cut):
    assert _blocks.cut(shape) == cut
    axis, length = cut or (None, 1)
    expected = tuple(length if i == axis else 1 for i in range(len(shape)))
    assert _blocks.sides(shape) == expected
