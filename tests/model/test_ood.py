"""OutOfDistribution: distances against a brute-force reference, familiarity as a rank, and what a file must hold."""

import numpy as np
import pytest
import torch

from dynamo_mtl.metrics.routing import auroc
from dynamo_mtl.model import ood as module
from dynamo_mtl.model.ood import OutOfDistribution


def _inputs(count, shift=0.0, seed=0):
    """Two groups of points that vary along few directions of 40."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(2, 40, generator=torch.Generator().manual_seed(99))
    spread = torch.randn(6, 40, generator=torch.Generator().manual_seed(98)) * 0.3
    groups = torch.arange(count) % 2
    points = means[groups] + torch.randn(count, 6, generator=generator) @ spread
    away = torch.randn(40, generator=torch.Generator().manual_seed(97))
    return points + 0.02 * torch.randn(count, 40, generator=generator) + shift * away, groups


@pytest.fixture
def fitted():
    features, groups = _inputs(600)
    ood = OutOfDistribution(40)
    ood.fit(features, groups, torch.ones(600, dtype=torch.bool), seed=0)
    return ood


def test_the_distance_is_that_to_the_second_nearest_whitened_feature(fitted):
    """Fails if the covariance is not inverted, or another neighbour is measured to."""
    features, groups = _inputs(600)
    normal = torch.nn.functional.layer_norm(features, (40,)).numpy().astype(np.float64)
    within = np.concatenate([normal[groups == g] - normal[groups == g].mean(0) for g in (0, 1)])
    # All 40 directions are kept, so that no basis matters: distances are Mahalanobis distances.
    covariance = within.T @ within / 600
    ridge = module.RIDGE * np.trace(covariance) / 40
    precision = np.linalg.inv(covariance + ridge * np.eye(40))
    queries, _ = _inputs(5, seed=1)
    asked = torch.nn.functional.layer_norm(queries, (40,)).numpy()
    expected = []
    for row in asked:
        gaps = normal - row
        expected.append(np.sort(np.sqrt(np.einsum("nd,de,ne->n", gaps, precision, gaps)))[1])
    assert fitted(queries).numpy() == pytest.approx(expected, rel=1e-3)


def test_familiarity_is_the_share_of_known_inputs_at_least_as_far_away(fitted):
    known, _ = _inputs(400, seed=2)
    fitted.calibrate(known)
    distances = fitted(known)
    unknown, _ = _inputs(50, shift=1.0, seed=3)
    shares = fitted.familiarity(torch.cat([known, unknown]))
    for distance, share in zip(distances[:20], shares[:20], strict=True):
        assert float(share) == pytest.approx(float((distances >= distance).float().mean()), abs=5e-3)
    assert (shares[:400] < 0.05).float().mean() == pytest.approx(0.05, abs=0.01)
    assert shares.min() > 0
    assert auroc(-shares[:400].numpy(), -shares[400:].numpy()) > 0.99


def test_all_is_familiar_before_anything_is_known():
    assert OutOfDistribution(4).familiarity(torch.randn(3, 4)).tolist() == [1, 1, 1]


def test_bare_inputs_weigh_more_in_the_covariance(fitted):
    """Fails if instructed inputs, of which there are more, decide what counts as far."""
    features, groups = _inputs(600)
    noisy = features.repeat(3, 1)
    noisy[600:, 0] += 5 * torch.randn(1200, generator=torch.Generator().manual_seed(5))
    is_bare = torch.arange(1800) < 600
    states, groups = torch.nn.functional.layer_norm(noisy, (40,)), groups.repeat(3)
    mixed = module._covariance(states, groups, is_bare) * 0.75 + module._covariance(states, groups, ~is_bare) * 0.25
    ood = OutOfDistribution(40)
    ood.fit(noisy, groups, is_bare, seed=0)
    mixed += module.RIDGE * mixed.diagonal().mean() * torch.eye(40)
    whitening = ood.projection @ ood.projection.T
    assert torch.allclose(whitening, torch.linalg.inv(mixed), rtol=1e-2, atol=1e-2 * float(whitening.max()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("center"), "should hold center"),
        (lambda t: t.update(center=torch.zeros(41)), "do not fit 40 features"),
        (lambda t: t.update(references=torch.zeros(0, 40)), "do not fit"),
    ],
)
def test_what_does_not_fit_together_is_refused(fitted, change, message):
    fitted.calibrate(_inputs(50)[0])
    tensors = dict(fitted.state_dict())
    OutOfDistribution(40).take(tensors)
    change(tensors)
    with pytest.raises(ValueError, match=message):
        OutOfDistribution(40).take(tensors)


def test_auroc_by_hand():
    assert auroc(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 1
    assert auroc(np.array([0.0, 2.0]), np.array([1.0, 3.0])) == 0.75
    assert auroc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
