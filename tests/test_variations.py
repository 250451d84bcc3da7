"""Variations of crops: what each does, and that chance is the caller's."""

from __future__ import annotations

import numpy as np
import pytest

from qmamba.train.variations import magnified, sensor_noise, varied


def crop(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 48, 3), np.uint8)


def test_the_same_generator_gives_the_same_variation_and_the_crop_stays() -> None:
    image, other = crop(0), crop(1)
    before = image.copy()
    found = [varied(image, other, np.random.default_rng(seed)) for seed in (2, 2, *range(3, 40))]
    assert np.array_equal(found[0], found[1]) and np.array_equal(image, before)
    assert all(each.shape == image.shape and each.dtype == np.uint8 for each in found)
    changed = [not np.array_equal(each, image) for each in found]
    assert sum(changed) > 30  # one in 32 stays as it is


def test_hues_and_contrasts_widen() -> None:
    grey = np.full((16, 16, 3), 128, np.uint8)
    found = [varied(grey, grey, np.random.default_rng(seed)) for seed in range(100)]
    casts = [each.reshape(-1, 3).mean(0) for each in found]
    assert max(np.ptp(cast) for cast in casts) > 60
    assert min(cast.mean() for cast in casts) < 90 and max(cast.mean() for cast in casts) > 170


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0, 100.0])
def test_a_magnified_crop_shows_a_part(factor: float) -> None:
    image = crop(0)
    found = magnified(image, factor, np.random.default_rng(0))
    assert found.shape == image.shape
    if factor == 1:
        assert np.array_equal(found, image)
    else:
        assert (
            np.abs(np.diff(found.astype(int), axis=0)).mean()
            < np.abs(np.diff(image.astype(int), axis=0)).mean()
        )


def test_sensor_noise_grows_with_strength_and_brightness_and_is_correlated() -> None:
    def noise(value: int, strength: float) -> np.ndarray:
        flat = np.full((64, 64, 3), value, np.uint8)
        found = sensor_noise(flat, strength, np.random.default_rng(0))
        assert found.shape == flat.shape and found.dtype == np.uint8
        linear = (found / 255) ** 2.2
        return linear - linear.mean((0, 1))

    assert noise(128, 1.0).std() > 1.8 * noise(128, 0.5).std() > 0
    assert noise(200, 0.5).std() > 1.5 * noise(80, 0.5).std()
    field = noise(128, 0.5)[..., 0]
    neighbours = np.corrcoef(field[:, :-1].ravel(), field[:, 1:].ravel())[0, 1]
    assert neighbours > 0.3
