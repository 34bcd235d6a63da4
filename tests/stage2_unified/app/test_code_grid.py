"""Edit a region of codes and render the code grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.app.code_grid import WAYS, Region, cell_pixels, edited, marked_codes, render_codes

CODES = np.random.default_rng(0).integers(0, 64, (6, 8))


@given(
    top=st.integers(0, 5), left=st.integers(0, 7), height=st.integers(1, 6), width=st.integers(1, 8),
    way=st.sampled_from(WAYS),
)  # fmt: skip
def test_only_the_region_changes_and_as_requested(top, left, height, width, way):
    region = Region(top, left, height, width)
    if top + height > 6 or left + width > 8 or (way == WAYS[2] and top == 0):
        with pytest.raises(UserError):
            edited(CODES, region, way, 5, 64)
        return
    changed = edited(CODES, region, way, 5, 64)
    for row in range(6):
        for column in range(8):
            inside = top <= row < top + height and left <= column < left + width
            filled = {WAYS[0]: 5, WAYS[1]: CODES[row, 7 - column], WAYS[2]: CODES[top - 1, column]}[way]
            assert changed[row, column] == (filled if inside else CODES[row, column])


@pytest.mark.parametrize(("region", "way", "code"), [
    (Region(-1, 0, 1, 1), WAYS[0], 0), (Region(0, 0, 0, 1), WAYS[0], 0), (Region(0, 0, 1, 1), WAYS[0], 64),
    (Region(0, 0, 1, 1), WAYS[0], -1), (Region(0, 0, 1, 1), "magic", 0),
])  # fmt: skip
def test_invalid_edits_are_refused(region, way, code):
    with pytest.raises(UserError):
        edited(CODES, region, way, code, 64)


def test_the_code_map_shows_codes_and_frames_a_region():
    codes = np.array([[1, 2], [2, 1]])
    image, cell = render_codes(codes, 64), cell_pixels((2, 2))
    assert image.shape == (2 * cell, 2 * cell, 3) and image.dtype == np.uint8
    inner = image[cell // 2 :: cell, cell // 2 :: cell]
    assert (inner[0, 0] == inner[1, 1]).all() and (inner[0, 1] == inner[1, 0]).all()
    assert (inner[0, 0] != inner[0, 1]).any()
    framed = render_codes(codes, 64, Region(0, 1, 2, 1))
    assert (framed[0, cell:] == 255).all() and (framed[:, cell] == 255).all() and (framed[:, 0] != 255).any()
    huge = render_codes(np.full((1, 1), 2**31 - 1), 2**31)
    assert huge.max() <= 255


def test_codes_of_high_value_are_marked_and_those_up_to_the_median_are_not():
    pixels, values = np.full((10, 10), 0.5), np.zeros((4, 4))
    values[1, 3], values[0, 0] = 2.0, -1.0
    marked = marked_codes(pixels, values)
    red = (marked[..., 0] > marked[..., 2]).nonzero()
    assert marked.shape == (10, 10, 3)
    assert set(red[0].tolist()) == {3, 4} and set(red[1].tolist()) == {8, 9}
    assert (marked_codes(pixels, np.ones((4, 4))) == 128).all()
